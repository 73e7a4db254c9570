"""One forward pass of a network, in eval mode and without gradients, with nothing hidden from hooks and modes."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.errors import InputError

__all__ = [
    "Inputs",
    "check_has_values",
    "check_one_sample",
    "eval_flags",
    "evaluation_mode",
    "output_tensors",
    "run_and_keep",
    "run_once",
    "undisturbed",
    "undisturbing",
]

Inputs = Mapping[str, Any] | tuple[Any, ...]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
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


def check_has_values(model: nn.Module) -> None:
    """Refuse a network without values, and tensors or a mode that allow no gradients.

    Raises:
        InputError: it is one.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise InputError("Got a network on the meta device, which has no weights; load them first.")
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise InputError(
            "Got torch's inference mode, or a network that was made in it; expected neither, since it allows no gradients: use "
            "torch.no_grad() instead."
        )


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block. Afterwards every module, not only the root, has the mode and the buffers that it had.

    A forward pass may write buffers: a counter, a table, statistics. Undone, each pass starts alike, and the caller's network is as
    it was. If buffers were written, modules get their other attributes back, too, such as the mark that a table is filled.
    """
    holdings = [_Holdings(module) for module in model.modules()]
    try:
        with eval_flags(model):
            yield
    finally:
        if any([holding.restore_buffers() for holding in holdings]):
            for holding in holdings:
                holding.restore_attributes()


@contextmanager
def eval_flags(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block and nothing else: in train mode, to read a weight with a spectral norm changes its buffers."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """:func:`evaluation_mode`, and afterwards torch's global generators go on as if the network had drawn nothing."""
    cuda = sorted({tensor.get_device() for tensor in model.parameters() if tensor.is_cuda})
    with torch.random.fork_rng(devices=cuda), evaluation_mode(model):
        yield


def undisturbing(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function leave the network undisturbed that is its first argument, see :func:`undisturbed`."""

    @wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        model = args[0] if args else kwargs.get("model")
        if not isinstance(model, nn.Module):  # the function says so
            return function(*args, **kwargs)
        with undisturbed(model):
            return function(*args, **kwargs)

    return wrapped


class _Holdings:
    """What a module holds now.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module, self._attributes, self._buffers = module, dict(vars(module)), dict(module._buffers)
        self._values: dict[str, tuple[Tensor, Tensor]] = {}
        if not self._buffers:
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            own = [(name, each) for name, each in self._buffers.items() if each is not None and _can_be_written(each)]
            self._values = {name: (each, each.clone()) for name, each in own}

    def restore_buffers(self) -> bool:
        """Give the module back the buffers that it held; whether they had changed."""
        buffers = self._module._buffers
        if not buffers and not self._buffers:
            return False  # most modules: a pass of a small network takes a few milliseconds
        with torch._C.DisableTorchFunction(), torch.no_grad():
            written = [(each, value) for each, value in self._values.values() if not torch.equal(each, value)]
            for each, value in written:
                each.copy_(value)
        replaced = buffers.keys() != self._buffers.keys() or any(buffers[k] is not v for k, v in self._buffers.items())
        if replaced:
            self._module._non_persistent_buffers_set -= buffers.keys() - self._buffers.keys()
            buffers.clear()
            buffers.update(self._buffers)
        return bool(written) or replaced

    def restore_attributes(self) -> None:
        """Give the module back the attributes that it held."""
        own = vars(self._module)
        own.clear()
        own.update(self._attributes)


def _can_be_written(buffer: Tensor) -> bool:
    if type(buffer) is not Tensor or buffer.is_meta or buffer.is_inference():
        return False
    return buffer.layout is torch.strided and not buffer.is_quantized and 0 not in buffer.stride()


def run_once(model: nn.Module, inputs: Inputs) -> Any:
    """One forward pass without gradients within :func:`evaluation_mode`, so that it leaves no trace in the network."""
    with evaluation_mode(model):
        return run_and_keep(model, inputs)


def run_and_keep(model: nn.Module, inputs: Inputs) -> Any:
    """:func:`run_once`, but what the network keeps of the pass stays: some keep tables or masks, and later passes compute less."""
    with _nothing_hidden(), eval_flags(model), torch.no_grad():
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
