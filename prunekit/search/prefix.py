"""The layers before a plan's first change compute what they did for a plan that was measured before: they need not run again."""

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
    """What the convolutions and linear layers of a plan's network put out on one batch.

    Args:
        plan: the network's.
        outputs: of each such layer by name, with the version that the tensor had then: changed in place since, it is of no use.
        tensors: what the layers compute with, by state key; repaired, where they are.
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
        starts: place at which each module starts, by name.
        macs: of the layers whose outputs may be shared: called once, without parts, and nothing else has their weights.
    """

    starts: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)

    def of(self, name: str) -> int:
        """Place of a module or tensor; of what it is part of, where it is not called itself."""
        while name not in self.starts:
            name = name.rpartition(".")[0]
        return self.starts[name]


class Prefix:
    """Which layers' outputs a plan shares with one that it was made from.

    Args:
        model: the full network.
        graph: its channel groups.
        order: how it runs on the batch that outputs are shared on; pruned or not, it runs alike.
        record: evaluates a plan's network on that batch and records, given the outputs that are known already.
        worth: MACs of the batch that one candidate must be spared for a plan to be run once more for its outputs; to compare plans
            and note outputs takes as long as 1e9 of them.
    """

    worth: ClassVar[float] = 1e9

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        order: Order,
        record: Callable[[PruningPlan, Mapping[str, Tensor], Recording], Any],
    ) -> None:
        self._model, self._graph, self._order, self._record = model, graph, order, record
        self._known = Recording(PruningPlan({}, "none"))

    def shared(self, plan: PruningPlan, near: PruningPlan) -> dict[str, Tensor]:
        """Outputs, by layer, of those that run before the first that ``plan`` changes in ``near``.

        ``near`` is run for them where it was not and that pays. They are good until the next call.
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
        """State entries of those layers in the network whose outputs they are."""
        return {key: value for key, value in self._known.tensors.items() if key.rpartition(".")[0] in layers}

    def _extend(self, near: PruningPlan) -> None:
        old, new = self._known, Recording(near)
        known = old.before(self._first_change(old.plan, near), self._order)
        new.outputs.update({name: old.outputs[name] for name in known})
        new.tensors.update(self.tensors(known))
        self._known = old = Recording(PruningPlan({}, "none"))  # what is not shared may go before more comes
        self._record(near, known, new)
        self._known = new

    def _first_change(self, one: PruningPlan, other: PruningPlan) -> int:
        """Place in the order of the first module that differs between two plans; past the last where none does."""
        if "none" in (one.fingerprint, other.fingerprint):
            return 0
        changed: set[str] = set()
        kept = [plan.positions(self._graph) for plan in (one, other)]
        for axis in kept[0].keys() | kept[1].keys():
            before, after = (positions.get(axis) for positions in kept)
            if before is None or after is None or len(before) != len(after) or (before != after).any():
                changed.add(axis[0])
        sizes = [attributes(self._model, self._graph, plan) for plan in (one, other)]
        changed |= {name for name in sizes[0].keys() | sizes[1].keys() if sizes[0].get(name) != sizes[1].get(name)}
        return min(map(self._order.of, changed), default=len(self._order.starts))


@contextmanager
def ordering(model: nn.Module) -> Iterator[Order]:
    """Note the order in which a network's modules run within the block, on one batch.

    No layer's outputs may be shared where the network is called more than once.
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
    """Within the block, note what those layers put out that are not noted yet; and what they compute with, for ``weights``."""

    def note(module: nn.Module, _: Any, output: Tensor, name: str) -> None:
        into.outputs[name] = (output, output._version)
        if weights:
            into.tensors.update({f"{name}.{own}": tensor.detach() for own, tensor in own_tensors(module).items()})

    with ExitStack() as stack:
        for name in set(layers) - into.outputs.keys():
            stack.callback(model.get_submodule(name).register_forward_hook(partial(note, name=name)).remove)
        yield


@contextmanager
def answering(model: nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, these layers do not run: they answer with those outputs."""
    modules = {name: model.get_submodule(name) for name in outputs}
    for name, module in modules.items():
        vars(module)["forward"] = lambda *_, _output=outputs[name], **__: _output
    try:
        yield
    finally:
        for module in modules.values():
            del vars(module)["forward"]
