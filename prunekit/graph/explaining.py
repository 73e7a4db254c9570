"""Whether the stubs that a file names are those of residual branches, which are looked for in the unpruned network again."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

from torch import nn

from prunekit._messages import one_line
from prunekit.errors import PlanError
from prunekit.graph.branch import Output, Stub
from prunekit.graph.deadline import Deadline, run_first
from prunekit.graph.forward_pass import Inputs
from prunekit.graph.lineage import followed
from prunekit.graph.residuals import residuals

__all__ = ["check_explained"]

_SECONDS = 60.0
_log = logging.getLogger(__name__)

_Told = tuple[object, ...]


def check_explained(model: nn.Module, passes: Iterable[Inputs], removed: Sequence[str], stubs: Sequence[Stub]) -> None:
    """Refuse stubs that no removed branch explains. Nothing is refused if the network cannot be followed; the reason is logged.

    Args:
        model: the unpruned network, on any device, also on the meta device.
        passes: arguments of forward passes, on the same device: one, or as many as it takes to run all parts.
        removed: names of the removed branches.
        stubs: what stands for them.

    Raises:
        PlanError: a name is of no residual branch, a stub stands where the removed branches leave the module, or it returns
            something else than they do.
    """
    deadline, known, wrong = Deadline(_SECONDS), defaultdict[str, set[_Told]](set), None
    try:
        lineages = []
        for inputs in passes:
            run_first(model, inputs, deadline)
            lineages.append(followed(model, inputs, deadline)[0])
        for (shaped, near), lineage in product(product((False, True), repeat=2), lineages):
            deadline.check()
            for one in residuals(model, lineage, shaped=shaped, near=near):
                known[one.branch.name].update(map(_told, one.branch.stubs))
            wrong = _wrong(known, removed, stubs)
            if wrong is None:
                return
    except Exception as error:  # whatever the network raises, as on the meta device
        _log.info(
            "Stubs in a %s are not checked, since it cannot be followed (%s).", type(model).__name__, one_line(error)
        )
        return
    if wrong is not None:
        raise PlanError(wrong)


def _wrong(known: Mapping[str, set[_Told]], removed: Sequence[str], stubs: Sequence[Stub]) -> str | None:
    """The first thing that is not explained, in a sentence; None if all is.

    Args:
        known: what may stand for each branch.
        removed: see :func:`check_explained`.
        stubs: see there.
    """
    odd = next((name for name in removed if name not in known), None)
    if odd is not None:
        return f"its plan removes {odd[:80]!r}, which is no residual branch of it."
    told = set[_Told]().union(*(known[name] for name in removed))
    stub = next((stub for stub in stubs if _told(stub) not in told), None)
    if stub is None:
        return None
    if any(stub.module == module for module, *_ in told):
        return f"the stub of {stub.module[:80]} does not return what the layer does without its branch."
    return f"a stub stands in place of {stub.module[:80]}, which no removed branch removes."


def _told(stub: Stub) -> _Told:
    """What is compared of a stub. The sizes of zeros are not, as they depend on the inputs: a run checks them."""
    if stub.kind == "shortcut":
        return stub.module, stub.kind, stub.nested, tuple(map(_value, stub.outputs))
    return stub.module, stub.kind, stub.nested, tuple((one.scale, one.through) for one in stub.outputs)


def _value(output: Output) -> _Told:
    return output.argument, output.place, output.through, output.scale, output.shape
