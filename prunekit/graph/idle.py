"""Modules that have nothing left to do where a residual branch is removed: what the rest of the network no longer reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from prunekit.graph.branch import Stub, is_within
from prunekit.graph.lineage import Lineage, ModuleCall
from prunekit.graph.stub_making import StubMaker
from prunekit.graph.ways_back import SAME, SUMS, TIMES

__all__ = ["Idle"]

_RESHAPES = frozenset(("_unsafe_view", "expand", "reshape", "view"))


@dataclass(frozen=True, eq=False)
class Idle:
    """Looks for idle modules.

    Args:
        lineage: of a forward pass.
        calls: the calls of modules that are called once.
        makes: describes stubs.
        near: whether only modules within the module around a stub are looked at.
    """

    lineage: Lineage
    calls: Sequence[ModuleCall]
    makes: StubMaker
    near: bool

    @cached_property
    def _by_name(self) -> dict[str, ModuleCall]:
        return {call.module: call for call in self.calls}

    def found(self, stub: Stub) -> list[Stub]:
        """Voids for the modules outside a stub of whose results nothing is left to be used.

        A module stays if code that still runs reshapes its results: zeros of other sizes may not be reshaped alike.
        """
        idle = list(self._unused(stub))
        while True:
            gone = [stub.module, *(void.module for void in idle)]
            left = [void for void in idle if not self._is_reshaped(self._by_name[void.module], gone)]
            if len(left) == len(idle):
                return idle
            idle = left

    def _is_reshaped(self, call: ModuleCall, gone: Sequence[str]) -> bool:
        """Whether a module's results reach a reshape in a module that is not gone, through nothing but cheap operators."""
        waiting, seen = [node for node, _ in call.results], set[int]()
        while waiting:
            for number in self.lineage.readers[waiting.pop()]:
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
        live = self.live(stub)
        gone, around = [stub.module], stub.module.rpartition(".")[0]
        for call in self.calls:
            if self.near and not is_within(call.module, [around]):
                continue
            if call.form == "other" or is_within(call.module, gone) or is_within(stub.module, [call.module]):
                continue
            nodes = {node for node, _ in call.results}
            if not nodes or nodes & live or not nodes & self._alive or nodes & call.given_nodes:
                continue
            void = self.makes.void(call)
            if void is not None:
                gone.append(call.module)
                yield void

    @cached_property
    def _alive(self) -> set[int]:
        return self.lineage.ancestors(self.lineage.outputs)

    def live(self, stub: Stub) -> set[int]:
        """Nodes that the network's output still depends on when a stub stands."""
        call = self._by_name[stub.module]
        ends = {node for node, _ in call.results}
        onward = []
        if stub.kind == "shortcut":
            used = {(output.argument, output.place) for output in stub.outputs}
            onward = [node for _, _, node, _ in call.given if self.makes.argument(call, node) in used]
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
