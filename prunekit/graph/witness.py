"""The calls that a network made when it was traced.

A pruned network must make the same ones: which layers run must not depend on the widths.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from prunekit._types import Args, Function, Kwargs
from prunekit.errors import GraphError
from prunekit.graph.branch import Stub
from prunekit.graph.calls import call_name, is_plain
from prunekit.graph.constraints import Declared
from prunekit.graph.declared import as_layers
from prunekit.graph.forward_pass import Inputs, evaluation_mode, run_and_keep, run_once
from prunekit.graph.pruning_faults import text_of
from prunekit.graph.stubs import Shortcut, Void
from prunekit.graph.weightless import without_values

__all__ = ["Witness"]


@dataclass(frozen=True, eq=False)
class Witness:
    """The calls of one forward pass.

    Args:
        calls: name of each torch function, and of the module that called it.
        inputs: what the network was given.
        declare: layer classes of which each call is one function.
    """

    calls: tuple[tuple[str, str], ...]
    inputs: Inputs
    declare: Mapping[str, Declared] = field(default_factory=dict)

    def check(self, model: nn.Module, stubs: Collection[Stub] = ()) -> None:
        """Run a pruned network once, and compare what it calls; a large one without values.

        Args:
            model: the network.
            stubs: what stands where branches were removed: calls of what was there are not expected.

        Raises:
            GraphError: it does not run, or calls something else.
        """
        calls = [call for call in self.calls if not any(stub.removes(call[1]) for stub in stubs)]
        with as_layers(model, self.declare):
            if without_values(model, self.inputs, _calls) == [name for name, _ in calls]:
                return
            self._check_calls(model, calls)

    def _check_calls(self, model: nn.Module, calls: Sequence[tuple[str, str]]) -> None:
        names, inputs = _Names(), self.inputs_of(model)
        devices = {t.get_device() for t in model.parameters() if t.is_cuda}
        try:
            with torch.random.fork_rng(devices=sorted(devices)), evaluation_mode(model):
                run_and_keep(model, inputs)  # some keep masks or tables from the first pass on
                with names, names.deaf_to_stubs(model):
                    run_once(model, inputs)
        except Exception as error:  # whatever the network raises
            raise GraphError(
                f"The pruned {type(model).__name__} does not run on the inputs it was traced with ({text_of(error)}); "
                "choose other widths."
            ) from error
        for place, (name, module) in enumerate(calls):
            found = names.found[place] if place < len(names.found) else "nothing"
            if found != name:
                raise GraphError(
                    f"At these widths {type(model).__name__} runs other layers: {module or 'the network'} calls {found} where "
                    f"the full network calls {name}; choose other widths."
                )
        if len(names.found) > len(calls):
            raise GraphError(
                f"At these widths {type(model).__name__} runs other layers: it goes on with {names.found[len(calls)]} where "
                "the full network ends; choose other widths."
            )

    def inputs_of(self, model: nn.Module) -> Inputs:
        """The inputs on the device of a network, in its precision if it has changed."""
        known = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), None)
        given = [leaf for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if known is None or (given and given[0].device == known.device):
            return self.inputs
        moved: Inputs = tree_map(
            lambda value: value.to(known.device) if isinstance(value, Tensor) else value, self.inputs
        )
        return moved


def _calls(model: nn.Module, inputs: Inputs) -> list[str]:
    """What a network calls."""
    names = _Names()
    with names, names.deaf_to_stubs(model):
        run_once(model, inputs)
    return names.found


class _Names(TorchFunctionMode):
    """Notes the names of all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._deaf = [False]

    @contextmanager
    def deaf_to_stubs(self, model: nn.Module) -> Iterator[None]:
        """Within the block, what stubs call themselves is not heard; what the layers that they keep call is."""
        with ExitStack() as stack:
            for stub in (module for module in model.modules() if isinstance(module, Shortcut | Void)):
                for module, deaf in ((stub, True), *((child, False) for child in stub.children())):
                    enter = module.register_forward_pre_hook(lambda *_, deaf=deaf: self._deaf.append(deaf))
                    leave = module.register_forward_hook(lambda *_: (self._deaf.pop(), None)[1])
                    stack.callback(enter.remove)
                    stack.callback(leave.remove)
            yield

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        if not self._deaf[-1] and not is_plain(func, args, kwargs or {}):
            self.found.append(call_name(func))
        return func(*args, **(kwargs or {}))
