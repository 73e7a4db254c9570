"""One forward pass of a network, in eval mode and without gradients, with nothing hidden from hooks and modes."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.errors import InputError

__all__ = ["Inputs", "check_one_sample", "evaluation_mode", "output_tensors", "run_once"]

Inputs = Mapping[str, Any] | tuple[Any, ...]
_UNCOMPILED = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


def check_one_sample(inputs: Inputs) -> None:
    """Refuse a batch where one sample is expected: costs would be those of the batch.

    Raises:
        InputError: the first tensor with several axes holds several samples, and no other tensor has a batch of one.
    """
    tensors = [leaf for leaf in tree_leaves(dict(inputs) if isinstance(inputs, Mapping) else inputs) if _has_rows(leaf)]
    sample = next((tensor for tensor in tensors if tensor.ndim > 1), None)
    if sample is not None and len(sample) > 1 and all(len(tensor) != 1 for tensor in tensors):
        raise InputError(
            f"Got example inputs with a batch of {len(sample)} (the first has shape {tuple(sample.shape)}); expected one sample: "
            "costs are counted per sample."
        )


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards every module, not only the root, has the mode that it had."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def run_once(model: nn.Module, inputs: Inputs) -> Any:
    """One forward pass without gradients, in eval mode; afterwards each module has its old mode again."""
    with _nothing_hidden(), evaluation_mode(model), torch.no_grad():
        return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


@contextmanager
def _nothing_hidden() -> Iterator[None]:
    """Within the block, torch runs nothing behind the backs of hooks, modes and counters.

    Its fast path runs whole transformer layers; compiled functions, such as flexible attention, cannot compile under a mode, or
    trace the mode itself, which takes minutes.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    flexible: Any = sys.modules.get("torch.nn.attention.flex_attention")
    compiles = getattr(flexible, _UNCOMPILED, None)
    torch.backends.mha.set_fastpath_enabled(False)
    if compiles is not None:
        setattr(flexible, _UNCOMPILED, True)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        if compiles is not None:
            setattr(flexible, _UNCOMPILED, compiles)


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors of a network's output: a tensor, a tuple, a dict, or an object that holds them."""
    if not isinstance(output, Tensor | tuple | list | Mapping):
        output = vars(output)
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
