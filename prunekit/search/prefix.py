"""Reuse of layer outputs: the layers before a plan's first change need not run again if a similar plan was measured before."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from prunekit.graph import ChannelGraph, PruningPlan
from prunekit.graph.layers import layer_kind, own_tensors
from prunekit.graph.surgery import attributes

__all__ = ["Order", "Prefix", "Recording", "answering", "ordering", "recording"]


@dataclass(frozen=True, eq=False)
class Recording:
    """The outputs of the convolutions and linear layers of a plan's network on one batch.

    Args:
        plan: the network's plan.
        outputs: each layer's output by name, with the tensor's version: an output that was changed in place since is not used.
        tensors: the layers' weights by state key, after the repair if there is one.
    """

    plan: PruningPlan
    outputs: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def before(self, position: int, order: "Order") -> dict[str, Tensor]:
        """Outputs of the layers that start before this one."""
        return {
            name: output
            for name, (output, version) in self.outputs.items()
            if order.starts[name] < position and output._version == version
        }


@dataclass(eq=False)
class Order:
    """How a network runs on one batch.

    Args:
        starts: place in the order at which each module starts, by name.
        macs: MACs of the layers with shareable outputs: called once, without submodules, with weights that no other layer shares.
    """

    starts: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> int:
        """Place of a module or tensor; the place of its parent module if it is not called itself."""
        while name not in self.starts:
            name = name.rpartition(".")[0]
        return self.starts[name]


class Prefix:
    """Finds the layer outputs that a plan shares with the plan that it was made from.

    Args:
        model: the full network.
        graph: its channel groups.
        order: order of the modules on the shared batch; pruning does not change it.
        record: evaluates a plan's network on that batch and records its outputs, given the outputs that are known already.
        worth: MACs that must be saved per candidate before a plan is run once more to record its outputs; comparing plans and
            recording outputs takes about as long as 1e9 MACs.
    """

    worth: ClassVar[float] = 1e9

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        order: Order,
        record: Callable[[PruningPlan, Mapping[str, Tensor], Recording], object],
    ) -> None:
        self._model, self._graph, self._order, self._record = model, graph, order, record
        self._known = Recording(PruningPlan({}, "none"))

    def shared(self, plan: PruningPlan, near: PruningPlan) -> dict[str, Tensor]:
        """Outputs, by layer, of the layers that run before the first change from ``near`` to ``plan``.

        ``near`` is run to record them if that was not done yet and pays off. They are valid until the next call.
        """
        if sum(self._order.macs.values()) < self.worth:
            return {}
        common, usual = self._first_change(self._known.plan, plan), self._first_change(near, plan)
        spared = sum(macs for name, macs in self._order.macs.items() if common <= self._order.starts[name] < usual)
        if spared and spared >= self.worth:
            self._extend(near)
            common = usual
        return self._known.before(common, self._order)

    def tensors(self, layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """State entries of those layers in the network that was recorded."""
        return {key: value for key, value in self._known.tensors.items() if key.rpartition(".")[0] in layers}

    def _extend(self, near: PruningPlan) -> None:
        old, new = self._known, Recording(near)
        known = old.before(self._first_change(old.plan, near), self._order)
        new.outputs.update({name: old.outputs[name] for name in known})
        new.tensors.update(self.tensors(known))
        self._known = old = Recording(PruningPlan({}, "none"))  # frees what is not shared before more is recorded
        self._record(near, known, new)
        self._known = new

    def _first_change(self, one: PruningPlan, other: PruningPlan) -> int:
        """Place in the order of the first module that differs between two plans; past the end if none differs."""
        if "none" in (one.fingerprint, other.fingerprint):
            return 0
        changed: set[str] = set()
        kept = [plan.positions(self._graph) for plan in (one, other)]
        for axis in kept[0].keys() | kept[1].keys():
            before, after = (positions.get(axis) for positions in kept)
            if before is None or after is None or len(before) != len(after) or (before != after).any():
                changed.add(axis[0])
        stubs = [set(plan.stubs(self._graph)) for plan in (one, other)]
        changed |= {stub.module for stub in stubs[0] ^ stubs[1]}
        sizes = [attributes(self._model, self._graph, plan) for plan in (one, other)]
        changed |= {name for name in sizes[0].keys() | sizes[1].keys() if sizes[0].get(name) != sizes[1].get(name)}
        return min(map(self._order.of, changed), default=len(self._order.starts))


@contextmanager
def ordering(model: nn.Module) -> Iterator[Order]:
    """Note the order in which a network's modules run within the block, on one batch.

    If the network is called more than once, no outputs are shared.
    """
    order = Order({"": 0})
    calls: Counter[str] = Counter()
    owners = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())

    def start(_: nn.Module, __: Any, name: str) -> None:
        order.starts.setdefault(name, len(order.starts))
        calls[name] += 1

    def end(module: Any, _: Any, output: Any, name: str) -> None:
        if isinstance(output, Tensor):
            order.macs[name] = output.numel() * module.weight[0].numel()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(start, name=name)).remove)
            alone = all(owners[id(tensor)] == 1 for tensor in module.parameters(recurse=False))
            plain = not any(module.children()) and "forward" not in vars(module)
            if layer_kind(module) in ("conv", "linear") and alone and plain:
                stack.callback(module.register_forward_hook(partial(end, name=name)).remove)
        yield order
    for name in list(order.macs):
        if calls[name] != 1 or calls[""] != 1:
            del order.macs[name]


@contextmanager
def recording(model: nn.Module, layers: Collection[str], into: Recording, *, weights: bool) -> Iterator[None]:
    """Within the block, record the outputs of those layers that are not recorded yet; with ``weights``, their weights too."""

    def note(module: nn.Module, _: Any, output: Tensor, name: str) -> None:
        into.outputs[name] = (output, output._version)
        if weights:
            into.tensors.update({f"{name}.{own}": tensor.detach() for own, tensor in own_tensors(module).items()})

    with ExitStack() as stack:
        for name in (set(layers) - into.outputs.keys()) & dict(model.named_modules()).keys():  # a branch may be removed
            stack.callback(model.get_submodule(name).register_forward_hook(partial(note, name=name)).remove)
        yield


@contextmanager
def answering(model: nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, these layers do not run: they return the given outputs."""
    modules = {name: model.get_submodule(name) for name in outputs}
    for name, module in modules.items():
        vars(module)["forward"] = lambda *_, _output=outputs[name], **__: _output
    try:
        yield
    finally:
        for module in modules.values():
            del vars(module)["forward"]
