"""Describes stubs for modules, from one call of each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from prunekit.graph.branch import Output, Stub
from prunekit.graph.lineage import ModuleCall
from prunekit.graph.stubs import argument_names

__all__ = ["StubMaker"]


@dataclass(frozen=True, eq=False)
class StubMaker:
    """Describes stubs.

    Args:
        modules: the network's modules by name.
        shaped: whether zeros have the shape of an argument, and not one position along each dimension.
    """

    modules: Mapping[str, nn.Module]
    shaped: bool

    def void(self, call: ModuleCall) -> Stub | None:
        """Zeros in place of a module's results, of one position in each dimension; None where it is given no tensor."""
        outputs = []
        for _, shape in call.results:
            alike = sorted(call.given, key=lambda given: _likeness(given[3], shape))
            if not alike:
                return None
            _, _, node, own = alike[-1]
            sizes = tuple(int(not self.shaped or a != b) for a, b in zip(own, shape, strict=len(own) == len(shape)))
            sizes += (1,) * (len(shape) - len(sizes))
            outputs.append(replace(self.output(call, node), shape=sizes))
        return Stub(call.module, "void", tuple(outputs), call.form == "tuple")

    def output(self, call: ModuleCall, given: int, through: tuple[str, ...] = (), scale: float = 1.0) -> Output:
        """What is returned in place of one result: the argument that a node was given as, through children and times a number."""
        name, place = self.argument(call, given)
        return Output(name, place, through, scale)

    def argument(self, call: ModuleCall, given: int) -> tuple[str, int]:
        """Name and place of the argument that a node was given as."""
        place, name, _, _ = next(entry for entry in call.given if entry[2] == given)
        names = argument_names(self.modules[call.module])
        if name is None:
            name = names[place] if place < len(names) else ""
        return name, names.index(name) if name in names else max(place, 0)


def _likeness(given: tuple[int, ...], shape: tuple[int, ...]) -> tuple[bool, int]:
    """How much the shape of an argument is like that of a result: as many dimensions, and how many of the same size."""
    return len(given) == len(shape), sum(a == b for a, b in zip(given, shape, strict=False))
