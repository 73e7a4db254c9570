"""Finds the residual branches of a network: whatever is computed from a tensor and added to it, by one pass's lineage.

Two forms are looked for. A module *ends with the sum* when each of its results leads back to one of its arguments through nothing
but sums, reshapes and numbers, or through a layer of its own on the way past the branch; a branch of another module is *added
outside* when all that happens to its results is that they are multiplied, and added to something that it was computed from.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from prunekit.graph.branch import Branch, Output, Stub, is_within
from prunekit.graph.layers import axis_size, layer_kind
from prunekit.graph.lineage import Lineage, ModuleCall, Step
from prunekit.graph.stubs import argument_names
from prunekit.graph.ways_back import LONGEST, SAME, SUMS, TIMES, WaysBack, factor_of, is_product

__all__ = ["Residual", "residuals"]

_RESHAPES = frozenset(("_unsafe_view", "expand", "reshape", "view"))


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
        self.lineage, self.modules, self.shaped, self.near = lineage, dict(model.named_modules()), shaped, near
        times = Counter(call.module for call in lineage.calls)
        self.calls = [call for call in lineage.calls if times[call.module] == 1 and call.module]
        self._ways = WaysBack(lineage, self.calls)
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
            outputs = tuple(self._output(call, way.given, way.through[::-1], way.scale) for way in found)
            stub = Stub(call.module, "shortcut", outputs, call.form == "tuple")
            sums = {number: place for way in found for number, place in way.sums}
            yield stub, sums

    def added(self) -> Iterator[tuple[Stub, dict[int, int]]]:
        """Modules whose results are added elsewhere, those that hold others first."""
        for call in self.calls:
            if call.form == "other" or not call.results:
                continue
            sums = self._reached(call)
            void = self._void(call) if sums else None
            if void is not None:
                yield void, sums

    def residual(self, stub: Stub, sums: Mapping[int, int]) -> Residual | None:
        """The branch of a stub; None for a layer without which all that it reads is still computed, and for the whole network."""
        if not self._live(stub) & self._products:
            return None
        idle = self._idle(stub)
        if stub.kind == "void" and not idle and layer_kind(self.modules[stub.module]) is not None:
            bases = {self.lineage.steps[number].inputs[place] for number, place in sums.items()}
            if not bases & _given(self.by_name[stub.module]):
                return None
        writers = list(dict.fromkeys(w for number, place in sums.items() for w in self._writers(number, 1 - place)))
        writers = writers or [layer for layer in self._layers if stub.removes(layer)][-1:]
        sizes = tuple((one, axis_size(self.modules[one], "out")) for one in writers)
        return Residual(Branch(f"branch:{stub.module}", (stub, *idle), sizes, len(sums)), sums)

    def _reached(self, call: ModuleCall) -> dict[int, int]:
        """The sums that a module's results are added in, with the place of the other operand; none if they go anywhere else."""
        zero, sums = {node for node, _ in call.results}, dict[int, int]()
        if not zero or zero & _given(call):
            return {}
        waiting, seen = list(zero), set[int]()
        while waiting:
            node = waiting.pop()
            if node in self.lineage.outputs:
                return {}
            for number in self._readers[node]:
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
        before = self.lineage.ancestors(_given(call)) & self.lineage.moving
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
    def _readers(self) -> dict[int, list[int]]:
        """Numbers of the steps that read each node."""
        found: dict[int, list[int]] = defaultdict(list)
        for number, step in enumerate(self.lineage.steps):
            for node in dict.fromkeys(step.inputs):
                found[node].append(number)
        return found

    def _void(self, call: ModuleCall) -> Stub | None:
        """Zeros in place of a module's results, of one position in each dimension; None where it is given no tensor."""
        outputs = []
        for _, shape in call.results:
            alike = sorted(call.given, key=lambda given: _likeness(given[3], shape))
            if not alike:
                return None
            _, _, node, own = alike[-1]
            sizes = tuple(int(not self.shaped or a != b) for a, b in zip(own, shape, strict=len(own) == len(shape)))
            sizes += (1,) * (len(shape) - len(sizes))
            outputs.append(replace(self._output(call, node, (), 1.0), shape=sizes))
        return Stub(call.module, "void", tuple(outputs), call.form == "tuple")

    def _output(self, call: ModuleCall, given: int, through: tuple[str, ...], scale: float) -> Output:
        name, place = self._argument(call, given)
        return Output(name, place, through, scale)

    def _argument(self, call: ModuleCall, given: int) -> tuple[str, int]:
        """Name and place of the argument that a node was given as."""
        place, name, _, _ = next(entry for entry in call.given if entry[2] == given)
        names = argument_names(self.modules[call.module])
        if name is None:
            name = names[place] if place < len(names) else ""
        return name, names.index(name) if name in names else max(place, 0)

    def _idle(self, stub: Stub) -> list[Stub]:
        """Voids for the modules outside a stub of whose results nothing is left to be used.

        A module stays if code that still runs reshapes its results: zeros of other sizes may not be reshaped alike.
        """
        idle = list(self._unused(stub))
        while True:
            gone = [stub.module, *(void.module for void in idle)]
            left = [void for void in idle if not self._is_reshaped(self.by_name[void.module], gone)]
            if len(left) == len(idle):
                return idle
            idle = left

    def _is_reshaped(self, call: ModuleCall, gone: Sequence[str]) -> bool:
        """Whether a module's results reach a reshape in a module that is not gone, through nothing but cheap operators."""
        waiting, seen = [node for node, _ in call.results], set[int]()
        while waiting:
            for number in self._readers[waiting.pop()]:
                step = self.lineage.steps[number]
                if number in seen or is_within(step.module, gone):
                    continue
                seen.add(number)
                if step.operator in _RESHAPES:
                    return True
                if step.operator in SAME | TIMES | SUMS:
                    waiting += step.outputs
        return False

    def _unused(self, stub: Stub) -> Iterator[Stub]:
        live = self._live(stub)
        gone, around = [stub.module], stub.module.rpartition(".")[0]
        for call in self.calls:
            if self.near and not is_within(call.module, [around]):
                continue
            if call.form == "other" or is_within(call.module, gone) or is_within(stub.module, [call.module]):
                continue
            nodes = {node for node, _ in call.results}
            if not nodes or nodes & live or not nodes & self._alive or nodes & _given(call):
                continue
            void = self._void(call)
            if void is not None:
                gone.append(call.module)
                yield void

    @cached_property
    def _alive(self) -> set[int]:
        return self.lineage.ancestors(self.lineage.outputs)

    @cached_property
    def _products(self) -> set[int]:
        """Results of products that depend on the network's arguments."""
        steps = (step for step in self.lineage.steps if is_product(step) and self.lineage.moving & set(step.inputs))
        return {node for step in steps for node in step.outputs}

    def _live(self, stub: Stub) -> set[int]:
        """Nodes that the network's output still depends on when a stub stands."""
        call = self.by_name[stub.module]
        ends = {node for node, _ in call.results}
        onward = []
        if stub.kind == "shortcut":
            used = {(output.argument, output.place) for output in stub.outputs}
            onward = [node for _, _, node, _ in call.given if self._argument(call, node) in used]
        live, waiting = set[int](), list(self.lineage.outputs)
        while waiting:
            node = waiting.pop()
            if node in live:
                continue
            live.add(node)
            if node in ends:
                waiting += onward
                continue
            made = self.lineage.maker(node)
            if made is not None:
                waiting += self.lineage.steps[made].inputs
        return live

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


def _likeness(given: tuple[int, ...], shape: tuple[int, ...]) -> tuple[bool, int]:
    """How much the shape of an argument is like that of a result: as many dimensions, and how many of the same size."""
    return len(given) == len(shape), sum(a == b for a, b in zip(given, shape, strict=False))


def _given(call: ModuleCall) -> set[int]:
    """Nodes of the tensors that a module was given."""
    return {node for _, _, node, _ in call.given}


def _is_sum(step: Step) -> bool:
    """Whether a step is a sum, or a reshape or multiple of one."""
    return step.operator in SAME | TIMES | SUMS


def _stays_zero(step: Step, mine: Sequence[int]) -> bool:
    """Whether a step's result is zero where these operands are."""
    if step.operator in TIMES:
        return step.operator != "div" or 0 in mine
    return step.operator in SAME - {"cat"} or (step.operator in SUMS and len(mine) == len(step.inputs) == 2)
