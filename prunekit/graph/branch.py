"""Residual branches, as plain data: what can be removed as a whole because its output is added to its input.

Removing a branch replaces modules by *stubs*: a module that ends with the sum returns what the branch was added to, and one whose
output is added elsewhere returns zeros, see :mod:`prunekit.graph.stubs`. So the code around a branch stays as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from prunekit._json import JsonObject

if TYPE_CHECKING:
    from prunekit.results.model_files import StubPart

__all__ = ["Branch", "Output", "Stub", "StubKind", "is_within", "said_of_branches"]

StubKind = Literal["shortcut", "void"]


@dataclass(frozen=True)
class Output:
    """One tensor that a stub returns.

    Args:
        argument: name of the module's argument that it follows.
        place: the argument's place, where it is given without a name.
        through: children of a shortcut that the argument goes through, in order.
        scale: factor of what a shortcut returns.
        shape: of zeros: for each dimension its size, 0 for the argument's own; None for the argument's shape.
    """

    argument: str
    place: int
    through: tuple[str, ...] = ()
    scale: float = 1.0
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Stub:
    """What takes a module's place.

    Args:
        module: the module's name.
        kind: ``shortcut`` returns arguments, through those children that it keeps; ``void`` returns zeros.
        outputs: the tensors that it returns.
        nested: whether they are returned in a tuple.
    """

    module: str
    kind: StubKind
    outputs: tuple[Output, ...]
    nested: bool = False

    @property
    def keeps(self) -> frozenset[str]:
        """Names of the modules below it that stay."""
        return frozenset(f"{self.module}.{child}" for output in self.outputs for child in output.through)

    def to_json(self) -> JsonObject:
        """``{"module", "kind", "outputs", "nested"}``."""
        return {
            "module": self.module,
            "kind": self.kind,
            "outputs": [asdict(output) for output in self.outputs],
            "nested": self.nested,
        }

    @classmethod
    def of(cls, told: "StubPart") -> "Stub":
        """What a file says of a stub."""
        outputs = tuple(
            Output(o.argument, o.place, tuple(o.through), o.scale, None if o.shape is None else tuple(o.shape))
            for o in told.outputs
        )
        return cls(told.module, told.kind, outputs, told.nested)

    def removes(self, name: str) -> bool:
        """Whether a module, or the module of a tensor, is gone with it."""
        return is_within(name, [self.module]) and not is_within(name, self.keeps)


@dataclass(frozen=True)
class Branch:
    """A residual branch that can be removed.

    Args:
        name: of the module that holds it.
        stubs: what takes the place of which modules; the first is of the module that holds the branch.
        writers: the layers whose outputs are added, or else the last layer, with their number of outputs.
        depth: number of sums that it stands for: several for a block of several branches.
    """

    name: str
    stubs: tuple[Stub, ...]
    writers: tuple[tuple[str, int], ...] = ()
    depth: int = 1

    @property
    def module(self) -> str:
        """Name of the module that holds it."""
        return self.stubs[0].module

    def removes(self, name: str) -> bool:
        """Whether a module, or the module of a tensor, is gone when the branch is."""
        return any(stub.removes(name) for stub in self.stubs)


def said_of_branches(removed: Sequence[str]) -> str:
    """How many residual branches are removed, in words.

    Example:
        >>> said_of_branches(["branch:mid_block"])
        '1 residual branch is removed'
    """
    return f"{len(removed)} residual branch{' is' if len(removed) == 1 else 'es are'} removed"


def is_within(name: str, modules: Iterable[str]) -> bool:
    """Whether a name is that of one of the modules, or of something below one."""
    return any(name == module or name.startswith(f"{module}.") or not module for module in modules)


def stubs_of(branches: Mapping[str, Branch], removed: Iterable[str]) -> tuple[Stub, ...]:
    """The stubs that stand for removed branches: of nested modules the outermost, each module once.

    Args:
        branches: by name.
        removed: names of the branches that are removed.
    """
    wanted: dict[str, Stub] = {}
    for name in removed:
        for stub in branches[name].stubs:
            known = wanted.get(stub.module)
            if known is None or known.kind == "void":
                wanted[stub.module] = stub
    gone = tuple(wanted.values())
    return tuple(one for one in gone if not any(other is not one and other.removes(one.module) for other in gone))
