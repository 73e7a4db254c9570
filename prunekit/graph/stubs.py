"""Stubs: modules that stand where a residual branch was removed. They have no weights, and cost next to nothing."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from prunekit.errors import PlanError
from prunekit.graph.branch import Output, Stub

__all__ = ["Shortcut", "Void", "argument_names", "has_layer", "put_stubs", "stub_for", "stubs_in"]


class _Stub(nn.Module):
    """Returns tensors that follow from its arguments.

    Args:
        outputs: what it returns.
        nested: whether in a tuple.
    """

    def __init__(self, outputs: tuple[Output, ...], nested: bool) -> None:
        super().__init__()
        self.outputs, self.nested = outputs, nested

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module that was here would return without the branch."""
        made = tuple(self._made(output, self._given(output, args, kwargs)) for output in self.outputs)
        return made if self.nested else made[0]

    def _given(self, output: Output, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        given = kwargs[output.argument] if output.argument in kwargs else args[output.place]
        if not isinstance(given, Tensor):
            raise PlanError(
                f"A removed branch was given {type(given).__name__} as {output.argument}; expected a tensor."
            )
        return given

    def _made(self, output: Output, given: Tensor) -> Tensor:
        raise NotImplementedError


class Shortcut(_Stub):
    """Returns arguments as they are, times a number, or through layers that were on the way past the branch."""

    def _made(self, output: Output, given: Tensor) -> Tensor:
        for child in output.through:
            given = self.get_submodule(child)(given)
        return given if output.scale == 1 else given * output.scale


class Void(_Stub):
    """Returns zeros: what they are added to stays as it is. They can be written into, as by sums in place."""

    def _made(self, output: Output, given: Tensor) -> Tensor:
        sizes = given.shape if output.shape is None else [n or given.shape[i] for i, n in enumerate(output.shape)]
        return given.new_zeros(sizes)


def put_stubs(model: nn.Module, stubs: Iterable[Stub]) -> None:
    """Put stubs in the place of modules, in place.

    Args:
        model: the network.
        stubs: none of them within another.

    Raises:
        PlanError: the network has no such module.
    """
    for stub in stubs:
        holder, _, name = stub.module.rpartition(".")
        try:
            parent, old = model.get_submodule(holder), model.get_submodule(stub.module)
        except AttributeError:
            old = None
        if old is None or not stub.module:
            raise PlanError(f"A branch of {stub.module[:80]!r} was removed; {type(model).__name__} has no such module.")
        new = stub_for(old, stub)
        setattr(parent, name, new) if not isinstance(parent, nn.ModuleList | nn.Sequential) else parent.__setitem__(
            int(name), new
        )


def stub_for(old: nn.Module, stub: Stub) -> nn.Module:
    """What takes the place of a module; the children that it goes through are the module's own.

    Raises:
        PlanError: the module does not have these children.
    """
    new = (Shortcut if stub.kind == "shortcut" else Void)(stub.outputs, stub.nested)
    for key, value in vars(old).items():
        if isinstance(value, bool | int | float | str | tuple) and key not in vars(
            new
        ):  # the code around it may ask for them
            setattr(new, key, value)
    for child in dict.fromkeys(child for output in stub.outputs for child in output.through):
        if child not in dict(old.named_children()):
            raise PlanError(f"A branch of {stub.module!r} was removed but for {child[:80]!r}, which it does not have.")
        new.add_module(child, old.get_submodule(child))
    new.train(old.training)
    return new


def stubs_in(model: nn.Module) -> tuple[Stub, ...]:
    """The stubs that stand in a network, in its order."""
    return tuple(
        Stub(name, "shortcut" if isinstance(module, Shortcut) else "void", module.outputs, module.nested)
        for name, module in model.named_modules()
        if isinstance(module, _Stub)
    )


def has_layer(model: nn.Module, name: str) -> bool:
    """Whether a network has a module of this name which computes something: zeros in the place of a removed one do not count."""
    module = dict(model.named_modules()).get(name)
    return module is not None and not isinstance(module, Void)


def argument_names(module: nn.Module) -> list[str]:
    """Names of the arguments of a module's forward pass that can be given by place."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, one in inspect.signature(module.forward).parameters.items() if one.kind in kinds]
