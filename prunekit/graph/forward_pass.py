"""One forward pass of a network, in eval mode and without gradients, with nothing hidden from hooks and modes."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from itertools import chain, islice
from operator import is_
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from prunekit._messages import one_line
from prunekit.errors import GraphError, InputError

__all__ = [
    "Inputs",
    "check_has_values",
    "check_inputs",
    "check_is_no_script",
    "check_one_sample",
    "checked_network",
    "device_of",
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


def check_inputs(inputs: object) -> None:
    """Refuse what are no arguments of a forward pass; a tensor would be unpacked along its first axis.

    Raises:
        InputError: they are neither a tuple, a list nor a dict.
    """
    if not isinstance(inputs, tuple | list | Mapping):
        raise InputError(
            f"Got a {type(inputs).__name__} as the example inputs; expected a tuple, as in (x, timestep), or a dict."
        )


def check_one_sample(inputs: Inputs) -> None:
    """Refuse a batch where one sample is expected: costs would be those of the batch.

    Raises:
        InputError: they are neither a tuple nor a dict, or the first tensor with several axes holds several samples, and no other
            tensor has a batch of one.
    """
    check_inputs(inputs)
    tensors = [leaf for leaf in tree_leaves(dict(inputs) if isinstance(inputs, Mapping) else inputs) if _has_rows(leaf)]
    sample = next((tensor for tensor in tensors if tensor.ndim > 1), None)
    if sample is not None and len(sample) > 1 and all(len(tensor) != 1 for tensor in tensors):
        raise InputError(
            f"Got example inputs with a batch of {len(sample)} (the first has shape {tuple(sample.shape)}); expected one sample: "
            "costs are counted per sample."
        )


def checked_network(model: object) -> nn.Module:
    """The same network.

    Raises:
        InputError: it is another object, such as a state dict or a class.
    """
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise InputError(f"Got {got}; expected a network, a torch.nn.Module with its weights loaded.")
    return model


def check_has_values(model: nn.Module) -> None:
    """Refuse a network without values or sizes, and tensors or a mode that allow no gradients.

    Raises:
        InputError: it is one.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(map(is_lazy, tensors)):
        raise InputError(
            "Got a network with lazy layers, which have no sizes yet; call it once with its example inputs."
        )
    if any(tensor.is_meta for tensor in tensors):
        raise InputError("Got a network on the meta device, which has no weights; load them first.")
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise InputError(
            "Got torch's inference mode, or a network that was made in it; expected neither, since it allows no gradients: use "
            "torch.no_grad() instead."
        )


def check_is_no_script(model: nn.Module) -> None:
    """Refuse TorchScript, whose modules cannot be watched and whose tensors cannot be replaced.

    Raises:
        GraphError: the network is a TorchScript module, or has one.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise GraphError(
                f"Got {f'a network whose module {name} is' if name else 'a network that is'} a TorchScript module "
                "(torch.jit.ScriptModule), which cannot be followed; expected the torch.nn.Module that it was made from: give that "
                "one."
            )


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block. Afterwards every module, not only the root, has the mode, attributes and buffers that it had.

    A forward pass may write them: a counter, a table, statistics, its last activations. Undone, each pass starts alike, and the
    caller's network is as it was. What a pass puts into lists, dicts and other objects that a module holds stays there, and what
    TorchScript modules write. A module that gets other parameters or submodules keeps them, and its attributes, which go with
    them: a lazy layer is made in its first pass, and experts may be loaded when they are needed.
    """
    modules = list(model.modules())
    with torch._C.DisableTorchFunction(), torch.no_grad():
        holdings = [_Holdings(module) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    try:
        with _eval_flags(model, modules):
            yield
    finally:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for holding in holdings:
                holding.restore()


def eval_flags(model: nn.Module) -> AbstractContextManager[None]:
    """Eval mode within the block and nothing else: in train mode, to read a weight with a spectral norm changes its buffers."""
    return _eval_flags(model, model.modules())


@contextmanager
def _eval_flags(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[None]:
    training = [module for module in modules if module.training]
    if training:
        try:
            model.eval()
        except NotImplementedError as error:  # torch.export's
            raise GraphError(
                f"A {type(model).__name__} cannot be put in eval mode ({one_line(error)}); expected the torch.nn.Module that it "
                "was exported from."
            ) from error
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
    """Make a function leave the network undisturbed that is its first argument, see :func:`undisturbed`.

    Within it compiled networks run uncompiled: inside compiled code the hooks on layers are not called.
    """

    @wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        model = args[0] if args else kwargs.get("model")
        if not args and "model" not in kwargs:  # Python says so
            return function(*args, **kwargs)
        with undisturbed(checked_network(model)), torch.compiler.set_stance("force_eager"):
            return function(*args, **kwargs)

    return wrapped


# the attributes that every module has come first, and none of them is a tensor
_OF_ALL_MODULES = len(vars(nn.Module()))


class _Holdings:
    """What a module holds now: its attributes, its buffers, and the values of the tensors among both; used without autograd.

    Attributes that autograd computed are held without their values: whoever computes them makes them anew in each pass. A network
    has hundreds of modules, and a pass of a small one takes a few milliseconds, so this is written for speed.

    Args:
        module: the module.
    """

    __slots__ = ("_attributes", "_buffers", "_class", "_module", "_parts", "_values")

    def __init__(self, module: nn.Module) -> None:
        own = vars(module)
        self._module, self._class, self._attributes = module, type(module), own.copy()
        self._parts = (*own["_parameters"].values(), *own["_modules"].values())
        self._buffers: dict[str, Tensor | None] = own["_buffers"].copy()
        self._values: list[tuple[Tensor, Tensor]] = []
        held = [*self._buffers.values()]
        if Tensor in map(type, islice(own.values(), _OF_ALL_MODULES, None)):
            held += [each for each in own.values() if type(each) is Tensor and each.grad_fn is None]
        if held:
            self._values = [(each, each.clone()) for each in held if each is not None and _can_be_written(each)]

    def restore(self) -> None:
        """Give the module back what it held."""
        own = vars(self._module)
        if type(self._module) is not self._class:
            return
        if not _is_same(own, self._attributes) and self._has_its_parts():
            own.clear()
            own.update(self._attributes)
        buffers = own["_buffers"]
        if (buffers or self._buffers) and not _is_same(buffers, self._buffers):
            self._module._non_persistent_buffers_set -= buffers.keys() - self._buffers.keys()
            buffers.clear()
            buffers.update(self._buffers)
        for each, value in self._values:
            if not torch.equal(each, value):
                each.copy_(value)

    def _has_its_parts(self) -> bool:
        """Whether it still has the same parameters and submodules; if not, its attributes belong to the new ones."""
        own = vars(self._module)
        parts = (*own["_parameters"].values(), *own["_modules"].values())
        return len(parts) == len(self._parts) and all(map(is_, parts, self._parts))


def _is_same(now: Mapping[str, object], before: Mapping[str, object]) -> bool:
    """Whether a dict has the same objects under the same names, in the same order."""
    return len(now) == len(before) and all(map(is_, now.values(), before.values())) and now.keys() == before.keys()


def _can_be_written(held: Tensor) -> bool:
    if type(held) is not Tensor or held.is_meta or held.is_inference():
        return False
    return held.layout is torch.strided and not held.is_quantized and 0 not in held.stride()


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


def device_of(model: nn.Module) -> torch.device:
    """The device of a network's first tensor; the CPU for a network without tensors."""
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors of a network's output: a tensor, a tuple, a dict, or an object that holds them.

    Raises:
        GraphError: it is no such thing.
    """
    if not isinstance(output, Tensor | tuple | list | Mapping):
        if not hasattr(output, "__dict__"):
            raise GraphError(
                f"The network returns a {type(output).__name__}; expected a tensor, or a tuple, dict or dataclass with some."
            )
        output = vars(output)
    leaves = tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
