"""Finds the residual branches of a network: whatever is computed from a tensor and added to it, by one pass's lineage.

Two forms are looked for. A module *ends with the sum* when each of its results leads back to one of its arguments through nothing
but sums, reshapes and numbers, or through a layer of its own on the way past the branch; a branch of another module is *added
outside* when all that happens to its results is that they are multiplied, and added to something that it was computed from.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from prunekit.graph.branch import Branch, Stub
from prunekit.graph.idle import Idle
from prunekit.graph.layers import axis_size, layer_kind
from prunekit.graph.lineage import Lineage, ModuleCall, Step
from prunekit.graph.stub_making import StubMaker
from prunekit.graph.ways_back import LONGEST, SAME, SUMS, TIMES, WaysBack, factor_of, is_product

__all__ = ["Residual", "residuals"]


@dataclass(frozen=True, eq=False)
class Residual:
    """A branch, with the sums that it ends in.

    Args:
        branch: as it would be removed.
        sums: number of the step of each sum, with the place of the operand that stays.
    """

    branch: Branch
    sums: Mapping[int, int]


def residuals(model: nn.Module, lineage: Lineage, *, shaped: bool = False, near: bool = False) -> list[Residual]:
    """All residual branches, in network order; one for each set of sums.

    Args:
        model: the network.
        lineage: of one forward pass of it.
        shaped: whether zeros have the shape of an argument, for code that reshapes them, and not one position along each dimension.
        near: whether what nobody reads any more goes with a branch only within the module around it.
    """
    finder = _Finder(model, lineage, shaped, near)
    by_sums: dict[frozenset[int], Residual] = {}
    for stub, sums in (*finder.ending(), *finder.added()):
        key = frozenset(sums)
        found = finder.residual(stub, sums) if key not in by_sums else None
        if found is not None:
            by_sums[key] = found
    order = {call.module: i for i, call in enumerate(lineage.calls)}
    return sorted(by_sums.values(), key=lambda found: order[found.branch.module])


class _Finder:
    """Looks for branches.

    Args:
        model: the network.
        lineage: of its forward pass.
        shaped: see :func:`residuals`.
        near: see there.
    """

    def __init__(self, model: nn.Module, lineage: Lineage, shaped: bool, near: bool) -> None:
        self.lineage, self.modules = lineage, dict(model.named_modules())
        times = Counter(call.module for call in lineage.calls)
        self.calls = [call for call in lineage.calls if times[call.module] == 1 and call.module]
        self._ways, self._stubs = WaysBack(lineage, self.calls), StubMaker(self.modules, shaped)
        self._idle = Idle(lineage, self.calls, self._stubs, near)
        self.by_name = {call.module: call for call in self.calls}

    def ending(self) -> Iterator[tuple[Stub, dict[int, int]]]:
        """Modules that end with the sum, those that hold others first."""
        for call in self.calls:
            if call.form == "other" or not call.results:
                continue
            ways = [self._ways.best(call, *result) for result in call.results]
            if not all(ways) or not any(way.sums for way in ways if way):
                continue
            found = [way for way in ways if way is not None]
            outputs = tuple(self._stubs.output(call, way.given, way.through[::-1], way.scale) for way in found)
            stub = Stub(call.module, "shortcut", outputs, call.form == "tuple")
            sums = {number: place for way in found for number, place in way.sums}
            yield stub, sums

    def added(self) -> Iterator[tuple[Stub, dict[int, int]]]:
        """Modules whose results are added elsewhere, those that hold others first."""
        for call in self.calls:
            if call.form == "other" or not call.results:
                continue
            sums = self._reached(call)
            void = self._stubs.void(call) if sums else None
            if void is not None:
                yield void, sums

    def residual(self, stub: Stub, sums: Mapping[int, int]) -> Residual | None:
        """The branch of a stub; None for a layer without which all that it reads is still computed, and for the whole network."""
        if not self._idle.live(stub) & self._products:
            return None
        idle = self._idle.found(stub)
        if stub.kind == "void" and not idle and layer_kind(self.modules[stub.module]) is not None:
            bases = {self.lineage.steps[number].inputs[place] for number, place in sums.items()}
            if not bases & self.by_name[stub.module].given_nodes:
                return None
        writers = list(dict.fromkeys(w for number, place in sums.items() for w in self._writers(number, 1 - place)))
        writers = writers or [layer for layer in self._layers if stub.removes(layer)][-1:]
        sizes = tuple((one, axis_size(self.modules[one], "out")) for one in writers)
        return Residual(Branch(f"branch:{stub.module}", (stub, *idle), sizes, len(sums)), sums)

    def _reached(self, call: ModuleCall) -> dict[int, int]:
        """The sums that a module's results are added in, with the place of the other operand; none if they go anywhere else."""
        zero, sums = {node for node, _ in call.results}, dict[int, int]()
        if not zero or zero & call.given_nodes:
            return {}
        waiting, seen = list(zero), set[int]()
        while waiting:
            node = waiting.pop()
            if node in self.lineage.outputs:
                return {}
            for number in self.lineage.readers[node]:
                if number in seen:
                    continue
                step = self.lineage.steps[number]
                mine = [place for place, source in enumerate(step.inputs) if source in zero]
                if _stays_zero(step, mine):
                    zero |= set(step.outputs)
                    waiting += step.outputs
                elif self._fits(call, step, mine):
                    sums[number] = 1 - mine[0]
                else:
                    return {}
                seen.add(number)
        return sums

    def _fits(self, call: ModuleCall, step: Step, mine: list[int]) -> bool:
        """Whether a result is added to what the module's arguments were computed from, and that keeps its shape."""
        if (
            step.operator not in SUMS
            or len(step.inputs) != 2
            or factor_of(step) != 1
            or (step.operator, mine) == ("sub", [0])
        ):
            return False
        base = step.inputs[1 - mine[0]]
        if step.given[1 - mine[0]] != step.shape:  # a shift for all positions is no stream
            return False
        before = self.lineage.ancestors(call.given_nodes) & self.lineage.moving
        return self._leads_to(before, base, self._ways.is_affine) or self._leads_to(before, base, _is_sum)

    def _leads_to(self, wanted: Collection[int], node: int, is_passed: Callable[[Step], bool]) -> bool:
        """Whether a node was computed from one of some others by nothing but steps of one kind."""
        waiting, left = [node], LONGEST
        while waiting and left:
            node, left = waiting.pop(), left - 1
            if node in wanted:
                return True
            made = self.lineage.maker(node)
            if made is not None and is_passed(self.lineage.steps[made]):
                waiting += self.lineage.steps[made].inputs
        return False

    @cached_property
    def _products(self) -> set[int]:
        """Results of products that depend on the network's arguments."""
        steps = (step for step in self.lineage.steps if is_product(step) and self.lineage.moving & set(step.inputs))
        return {node for step in steps for node in step.outputs}

    def _writers(self, number: int, place: int) -> Iterator[str]:
        """The layers whose outputs are what is added at a sum."""
        waiting, left = [self.lineage.steps[number].inputs[place]], LONGEST
        while waiting and left:
            node, left = waiting.pop(), left - 1
            layers = self._layers_of.get(node, ())
            if layers:
                yield from (name for name, size in layers if size == math.prod(self.lineage.steps[number].shape))
                continue
            made = self.lineage.maker(node)
            if made is not None and self.lineage.steps[made].operator in SAME | TIMES | SUMS:
                waiting += [one for one in self.lineage.steps[made].inputs if one in self.lineage.moving]

    @cached_property
    def _layers(self) -> list[str]:
        """Convolutions and linear layers, in the order in which they run."""
        return [call.module for call in self.calls if layer_kind(self.modules[call.module]) in ("conv", "linear")]

    @cached_property
    def _layers_of(self) -> dict[int, list[tuple[str, int]]]:
        """Layers that make a node, with the number of values that they make."""
        found: dict[int, list[tuple[str, int]]] = defaultdict(list)
        for call in self.calls:
            if call.form == "tensor" and layer_kind(self.modules[call.module]) in ("conv", "linear"):
                found[call.results[0][0]].append((call.module, math.prod(call.results[0][1])))
        return found


def _is_sum(step: Step) -> bool:
    """Whether a step is a sum, or a reshape or multiple of one."""
    return step.operator in SAME | TIMES | SUMS


def _stays_zero(step: Step, mine: Sequence[int]) -> bool:
    """Whether a step's result is zero where these operands are."""
    if step.operator in TIMES:
        return step.operator != "div" or 0 in mine
    return step.operator in SAME - {"cat"} or (step.operator in SUMS and len(mine) == len(step.inputs) == 2)
