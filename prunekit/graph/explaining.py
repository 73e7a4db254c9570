"""Whether the stubs that a file names are those of residual branches, which are looked for in the unpruned network again."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from torch import nn

from prunekit._messages import one_line
from prunekit.errors import PlanError
from prunekit.graph.branch import Output, Stub
from prunekit.graph.deadline import Deadline, run_first
from prunekit.graph.forward_pass import Inputs
from prunekit.graph.lineage import followed
from prunekit.graph.residuals import residuals

__all__ = ["Explanations"]

_SECONDS = 60.0
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Explanations:
    """The stubs that may stand for each residual branch of an unpruned network.

    Args:
        by_branch: what is known of each stub, by the branch's name.
        complete: whether the network could be followed: if not, nothing is refused.
    """

    by_branch: dict[str, set[tuple[object, ...]]] = field(default_factory=dict)
    complete: bool = True

    @classmethod
    def of(cls, model: nn.Module, passes: Iterable[Inputs]) -> "Explanations":
        """Look for the branches.

        Args:
            model: the unpruned network, on any device, also on the meta device.
            passes: arguments of forward passes, on the same device: one, or as many as it takes to run all parts.
        """
        found = cls()
        try:
            for inputs in passes:
                found._add(model, inputs)
        except Exception as error:  # whatever the network raises, as on the meta device
            _log.info(
                "Stubs of %s are not checked, since it cannot be followed (%s).", type(model).__name__, one_line(error)
            )
            found.complete = False
        return found

    def _add(self, model: nn.Module, inputs: Inputs) -> None:
        deadline = Deadline(_SECONDS)
        run_first(model, inputs, deadline)
        lineage, _ = followed(model, inputs, deadline)
        for shaped, near in product((False, True), repeat=2):
            for one in residuals(model, lineage, shaped=shaped, near=near):
                self.by_branch.setdefault(one.branch.name, set()).update(map(_told, one.branch.stubs))

    def check(self, removed: Sequence[str], stubs: Sequence[Stub]) -> None:
        """Refuse stubs that no removed branch explains.

        Raises:
            PlanError: a name is of no residual branch, or a stub stands where the removed branches leave the module, or returns
                something else.
        """
        if not self.complete:
            return
        odd = next((name for name in removed if name not in self.by_branch), None)
        if odd is not None:
            raise PlanError(f"its plan removes {odd[:80]!r}, which is no residual branch of it.")
        known = set[tuple[object, ...]]().union(*(self.by_branch[name] for name in removed))
        for stub in stubs:
            if _told(stub) in known:
                continue
            if any(stub.module == other[0] for other in known):
                raise PlanError(
                    f"the stub of {stub.module[:80]} does not return what the layer does without its branch."
                )
            raise PlanError(f"a stub stands in place of {stub.module[:80]}, which no removed branch removes.")


def _told(stub: Stub) -> tuple[object, ...]:
    """What is compared of a stub. The sizes of zeros are not, as they depend on the inputs: a run checks them."""
    outputs = tuple(map(_value, stub.outputs)) if stub.kind == "shortcut" else len(stub.outputs)
    plain = stub.kind == "shortcut" or all(one.scale == 1 and not one.through for one in stub.outputs)
    return stub.module, stub.kind, stub.nested, outputs, plain


def _value(output: Output) -> tuple[object, ...]:
    return output.argument, output.place, output.through, output.scale, output.shape
