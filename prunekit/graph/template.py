"""A copy of a network that takes on plan after plan, where a fresh copy for each would take most of the time."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from prunekit.graph.deadline import Deadline, run_first
from prunekit.graph.forward_pass import Inputs
from prunekit.graph.plan import PruningPlan
from prunekit.graph.structure import ChannelGraph
from prunekit.graph.stubs import put_stubs
from prunekit.graph.surgery import all_tensors, apply, are_gone, attributes, refit, slicer

__all__ = ["Template"]


class Template:
    """Prunes one network again and again, each time in the same copy.

    Args:
        model: the network that ``graph`` was traced from.
        graph: its channel groups.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph) -> None:
        self._model, self._graph = model, graph
        self._copy = apply(model, graph, PruningPlan({}, graph.fingerprint), share=True)
        self._tensors = all_tensors(model)
        self._sizes = [(vars(module), _plain(module)) for module in self._copy.modules()]
        self._children = [(module._modules, dict(module._modules)) for module in self._copy.modules()]

    def run_first(self, inputs: Inputs, deadline: Deadline) -> None:
        """A first pass of the copy that is pruned, at full width, see :func:`~prunekit.graph.deadline.run_first`."""
        run_first(self._copy, inputs, deadline)

    def __call__(self, plan: PruningPlan, given: Mapping[str, Tensor] = MappingProxyType({})) -> nn.Module:
        """The network pruned by a plan, as :func:`~prunekit.graph.apply` with ``share`` makes it; good until the next call.

        Args:
            plan: what to keep.
            given: tensors that are not to be sliced from the full network's but to be taken as they are, by state key.
        """
        stubs = plan.stubs(self._graph)
        for own, sizes in self._sizes:
            own.update(sizes)
        for children, whole in self._children:
            children.update(whole)
        put_stubs(self._copy, stubs)
        missing = {k: tensor for k, tensor in self._tensors.items() if k not in given and not are_gone(k, stubs)}
        state = dict(given)
        if missing:
            cut = slicer(self._model, self._graph, plan)
            state |= {key: cut(key, tensor) for key, tensor in missing.items()}
        return refit(self._copy, state, attributes(self._model, self._graph, plan))


def _plain(module: nn.Module) -> dict[str, Any]:
    """A module's own numbers, and tuples and texts, as they are in the full network."""
    return {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | tuple)}
