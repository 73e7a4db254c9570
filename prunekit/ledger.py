"""The ledger of a run: how many samples went through networks at every stage, and what that cost in MACs.

A backward pass counts as twice its forward pass. What a result costs to make (:data:`MAKING`) is kept apart from the moving average
of the weights, whose unit is a multiply-add per parameter and step, and from evaluation. Not counted: the optimizer's own
arithmetic, norms and activations (see :mod:`prunekit.cost`), counting and tracing a network on one
sample, checking on one sample that a pruned network calls what the full one does, and feature extractors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, get_args

from typing_extensions import TypedDict

from prunekit._json import Whole, checked
from prunekit._types import JsonDict
from prunekit.errors import FileFormatError

__all__ = [
    "BASE_TRAINING",
    "MAKING",
    "Kind",
    "LedgerForm",
    "LedgerRow",
    "both_ways",
    "forwards",
    "making_macs",
    "spent_on_training",
    "totals",
]

Kind = Literal["training", "teacher", "grouping", "importance", "search", "ema", "evaluation", "sampling"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAKING: tuple[Kind, ...] = ("training", "teacher", "grouping", "importance", "search")
"""Kinds that a result costs to make."""
BASE_TRAINING = "base training"
"""The stage whose cost is the base's."""
_OLD: dict[str, Kind] = {"groups": "grouping", "importance": "importance", "search": "search", "frontier": "search"}


class LedgerForm(TypedDict):
    """A row in JSON."""

    stage: str
    kind: NotRequired[Kind | None]
    samples: Whole
    macs: Whole
    forward_macs: NotRequired[Whole | None]


@dataclass(frozen=True)
class LedgerRow:
    """What one stage spent on one thing.

    Args:
        stage: which.
        kind: on what.
        samples: that went through a network, once for every evaluation of it; 0 for ``ema``.
        macs: of forward and backward passes together; multiply-adds for ``ema``.
        forward: of these, the forward passes'; None in ledgers that did not tell them apart.
    """

    stage: str
    kind: Kind
    samples: int
    macs: int
    forward: int | None = None

    @property
    def backward(self) -> int | None:
        """MACs of the backward passes."""
        return None if self.forward is None else self.macs - self.forward

    def to_json(self) -> dict[str, Any]:
        """A row of a manifest's ``ledger``."""
        return {
            "stage": self.stage,
            "kind": self.kind,
            "samples": self.samples,
            "forward_macs": self.forward,
            "backward_macs": self.backward,
            "macs": self.macs,
        }

    @classmethod
    def from_json(cls, data: JsonDict) -> "LedgerRow":
        """Read a row; one without a kind is of a time when all rows were of making, and says by its stage of what kind.

        Raises:
            FileFormatError: a key is missing or of the wrong type, or the forward passes are more than all passes.
        """
        known = checked(LedgerForm, data, "A row of the ledger")
        stage, forward = known["stage"], known.get("forward_macs")
        kind: Kind = known.get("kind") or _OLD.get(stage.split(",")[0], "training")
        if forward is not None and forward > known["macs"]:
            raise FileFormatError(
                f"The ledger's row {stage[:80]!r} has {forward} forward MACs of {known['macs']} in all."
            )
        return cls(stage, kind, known["samples"], known["macs"], forward)


def both_ways(stage: str, kind: Kind, samples: int, macs: int) -> LedgerRow:
    """Samples that went forward and backward through a network of so many MACs per sample.

    Example:
        >>> both_ways("fine-tuning, group 0", "training", 10, 7).to_json()["backward_macs"]
        140
    """
    return LedgerRow(stage, kind, samples, 3 * samples * macs, samples * macs)


def forwards(stage: str, kind: Kind, samples: int, macs: int) -> LedgerRow:
    """Samples that went forward only; ``macs`` are of all of them together."""
    return LedgerRow(stage, kind, samples, macs, macs)


def spent_on_training(
    stage: str, samples: int, macs: int, parameters: int, batch_size: int, teacher_macs: int = 0
) -> list[LedgerRow]:
    """Rows of one training: its passes, the moving average of its weights, and a teacher's passes where there is one.

    Args:
        stage: which.
        samples: images that went forward and backward.
        macs: of the network, per sample.
        parameters: of the network; each is averaged once a step.
        batch_size: images per step.
        teacher_macs: of the teacher that each sample went through too.
    """
    rows = [both_ways(stage, "training", samples, macs)]
    if teacher_macs:
        rows.append(forwards(stage, "teacher", samples, samples * teacher_macs))
    return [*rows, forwards(stage, "ema", 0, parameters * (samples // batch_size))]


def totals(rows: Iterable[LedgerRow]) -> Mapping[Kind, LedgerRow]:
    """The sum of every kind that occurs, in the order of :data:`KINDS`."""
    sums: dict[Kind, LedgerRow] = {}
    listed = list(rows)
    for kind in KINDS:
        own = [row for row in listed if row.kind == kind]
        if own:
            parts = [row.forward for row in own]
            forward = None if None in parts else sum(part for part in parts if part is not None)
            sums[kind] = LedgerRow(
                "total", kind, sum(row.samples for row in own), sum(row.macs for row in own), forward
            )
    return sums


def making_macs(rows: Iterable[LedgerRow]) -> tuple[int, int]:
    """MACs that making took: the base's training, and everything else."""
    made = [row for row in rows if row.kind in MAKING]
    base = sum(row.macs for row in made if row.stage == BASE_TRAINING)
    return base, sum(row.macs for row in made) - base
