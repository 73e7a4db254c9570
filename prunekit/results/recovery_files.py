"""What short fine-tunings recover in each timestep group, ``recoveries.json``."""

from typing import Annotated

from prunekit._json import Bounded, Many, Positive, Unchanged, Whole
from prunekit.results.formats import RECOVERIES
from prunekit.results.manifest_head import LedgerEntry
from prunekit.results.model import Is, Model

__all__ = ["FinishedRecovery", "GroupRecoveriesPart", "RecoveriesFile", "RecoveryPart"]

_Loss = Annotated[float, Bounded(gt=0), Unchanged()]


class RecoveryPart(Model):
    """A pruned network before and after a short fine-tuning.

    Args:
        macs: its MACs per sample per evaluation.
        before: its loss on the timestep group, after repair.
        after: the same loss after the fine-tuning.
    """

    macs: Positive
    before: _Loss
    after: _Loss


class FinishedRecovery(RecoveryPart):
    """A network whose fine-tuning has ended while those of others go on, in a file that is removed in the end.

    Args:
        ledger: what it took; earlier versions did not say.
    """

    ledger: Many[LedgerEntry] | None = None


class GroupRecoveriesPart(Model):
    """The recoveries of a timestep group.

    Args:
        index: its index, 0 = cleanest.
        start: first timestep.
        stop: one past the last timestep.
        points: networks of different sizes.
    """

    index: Whole
    start: Whole
    stop: Whole
    points: Many[RecoveryPart]


class RecoveriesFile(Model):
    """What short fine-tunings recover in each timestep group, `recoveries.json`.

    Args:
        format: name and version of the format.
        num_timesteps: number of timesteps T.
        base_macs: MACs of the base.
        base_sha256: hash of the base's file; None if it is not known.
        steps: train steps of each fine-tuning.
        groups: the timestep groups, cleanest first.
    """

    format: Annotated[str, Is(RECOVERIES)]
    num_timesteps: Positive
    base_macs: Positive
    base_sha256: str | None
    steps: Positive
    groups: Many[GroupRecoveriesPart]
