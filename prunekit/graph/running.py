"""One forward pass of a network, in eval mode and without gradients, with nothing hidden from hooks and modes."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Inputs", "evaluation_mode", "output_tensors", "run_once"]

Inputs = Mapping[str, Any] | tuple[Any, ...]
_UNCOMPILED = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


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

    Its fast path runs whole transformer layers, and flexible attention compiles itself, which it cannot do under a mode.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    flexible: Any = sys.modules.get("torch.nn.attention.flex_attention")
    compiles = getattr(flexible, _UNCOMPILED, None)
    torch.backends.mha.set_fastpath_enabled(False)
    if compiles is not None:
        setattr(flexible, _UNCOMPILED, True)
    try:
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
