"""The ledger of a run: how many samples went through networks at every stage, and their cost in MACs.

A backward pass counts as twice its forward pass. The cost of making a result (:data:`MAKING`) is separate from evaluation and from
the moving average of the weights, which is counted in multiply-adds per parameter and step. Not counted are the optimizer's
arithmetic, norms and activations (see :mod:`prunekit.cost`), counting and tracing a network on one sample, checking on one sample
that a pruned network runs the same layers as the full one, and feature extractors.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from prunekit.errors import FileFormatError
from prunekit.results.formats import WorkKind as Kind

if TYPE_CHECKING:
    from prunekit.results.manifest_head import LedgerEntry

__all__ = [
    "BASE_TRAINING",
    "MAKING",
    "Kind",
    "LedgerRow",
    "both_ways",
    "forwards",
    "making_macs",
    "spent_on_training",
    "totals",
]

KINDS: tuple[Kind, ...] = get_args(Kind)
MAKING: tuple[Kind, ...] = ("training", "teacher", "grouping", "importance", "search")
"""Kinds of rows that are part of the cost of making a result."""
BASE_TRAINING = "base training"
"""The stage that is the base's training."""
_OLD: dict[str, Kind] = {"groups": "grouping", "importance": "importance", "search": "search", "frontier": "search"}


@dataclass(frozen=True)
class LedgerRow:
    """The cost of one stage for one kind of work.

    Args:
        stage: name of the stage.
        kind: kind of work.
        samples: number of samples that went through a network, counted once per evaluation; 0 for ``ema``.
        macs: MACs of forward and backward passes together; multiply-adds for ``ema``.
        forward: the part of ``macs`` for forward passes; None in ledgers of older versions, which did not separate them.
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

    @property
    def entry(self) -> "LedgerEntry":
        """A row of a manifest's ``ledger``."""
        from prunekit.results.manifest_head import LedgerEntry  # noqa: PLC0415 - loads pydantic

        return LedgerEntry(
            stage=self.stage,
            kind=self.kind,
            samples=self.samples,
            forward_macs=self.forward,
            backward_macs=self.backward,
            macs=self.macs,
        )

    def to_json(self) -> dict[str, object]:
        """:attr:`entry` as JSON."""
        return self.entry.to_json()

    @classmethod
    def from_json(cls, data: "LedgerEntry | Mapping[str, object]") -> "LedgerRow":
        """Read a row. Rows written by older versions have no kind; it is inferred from the stage's name.

        Raises:
            FileFormatError: a key is missing or of the wrong type, or the forward passes exceed the total.
        """
        from prunekit.results.manifest_head import LedgerEntry  # noqa: PLC0415 - loads pydantic

        known = LedgerEntry.of(data, "A row of the ledger")
        forward = known.forward_macs
        kind: Kind = known.kind or _OLD.get(known.stage.split(",")[0], "training")
        if forward is not None and forward > known.macs:
            raise FileFormatError(
                f"The ledger's row {known.stage[:80]!r} has {forward} forward MACs of {known.macs} in all."
            )
        return cls(known.stage, kind, known.samples, known.macs, forward)


def both_ways(stage: str, kind: Kind, samples: int, macs: int) -> LedgerRow:
    """A row for samples that went forward and backward through a network with ``macs`` MACs per sample.

    Example:
        >>> both_ways("fine-tuning, group 0", "training", 10, 7).to_json()["backward_macs"]
        140
    """
    return LedgerRow(stage, kind, samples, 3 * samples * macs, samples * macs)


def forwards(stage: str, kind: Kind, samples: int, macs: int) -> LedgerRow:
    """A row for samples that went forward only; ``macs`` is the total for all samples."""
    return LedgerRow(stage, kind, samples, macs, macs)


def spent_on_training(
    stage: str, samples: int, macs: int, parameters: int, batch_size: int, teacher_macs: int = 0
) -> list[LedgerRow]:
    """Rows of one training: its passes, the moving average of its weights, and a teacher's passes if there is one.

    Args:
        stage: name of the stage.
        samples: number of images that went forward and backward.
        macs: MACs of the network, per sample.
        parameters: parameters of the network; each is averaged once per step.
        batch_size: images per step.
        teacher_macs: MACs per sample of the teacher that each sample also went through.
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
    """MACs of making the result: those of the base's training, and all others."""
    made = [row for row in rows if row.kind in MAKING]
    base = sum(row.macs for row in made if row.stage == BASE_TRAINING)
    return base, sum(row.macs for row in made) - base
