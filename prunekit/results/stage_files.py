"""What stages of runs return, and the record of each in the run's folder."""

from typing import Annotated

from prunekit._json import Amount, Many, Named, Positive, Whole
from prunekit.results.evidence_results import EvidenceRow
from prunekit.results.expert_results import Assembled, Expert, GroupLoss, Metrics
from prunekit.results.formats import STAGE
from prunekit.results.learning_results import CurriculumRow, MultistageRow
from prunekit.results.manifest_head import LedgerEntry
from prunekit.results.model import Free, Is, Model, NotNull

__all__ = ["Mark", "StageFacts", "StageFile", "StageRecord"]


class StageFacts(Model):
    """What a stage returns, for the manifest; each kind of stage sets its own keys.

    Args:
        losses: held-out denoising losses of every timestep group.
        metrics: sample quality.
        evidence: a network of a comparison of experts with baselines.
        curriculum: a training of a comparison of ways to train.
        multistage: a training of a comparison of networks for stages.
        ledger: the MACs that it spent.
        expert: the slim model of a timestep group.
        assembled: the experts as one denoiser.
        seconds_per_image: wall time of each network.
    """

    losses: Many[GroupLoss] | None = None
    metrics: Metrics | None = None
    evidence: EvidenceRow | None = None
    curriculum: CurriculumRow | None = None
    multistage: MultistageRow | None = None
    ledger: Many[LedgerEntry] | None = None
    expert: Expert | None = None
    assembled: Assembled | None = None
    seconds_per_image: Named[Amount] | None = None


class Mark(Model):
    """A file that a stage wrote.

    Args:
        sha256: hash of its content.
        size: its size in bytes.
        mtime_ns: time of its last change.
        extra: whether it may be deleted.
    """

    sha256: str
    size: Whole
    mtime_ns: int
    extra: bool = False


class StageRecord(Model):
    """A finished stage. Version 1 recorded neither versions nor hashes of files.

    Args:
        key: hash of everything that the stage was made from, except files.
        seconds: wall time.
        threads: threads of one operation.
        versions: versions that influence numbers.
        facts: what it returned.
        outputs: the files that it wrote.
        inputs: hash of the files of each earlier stage that it read.
    """

    key: str
    seconds: Amount
    threads: Annotated[Positive | None, NotNull()] = None
    versions: Annotated[Named[str] | None, NotNull()] = None
    facts: Free
    outputs: Annotated[Named[Mark] | None, NotNull()] = None
    inputs: Annotated[Named[str] | None, NotNull()] = None

    @property
    def results(self) -> StageFacts:
        """What the stage returned, for a stage of prunekit's own runs."""
        return StageFacts.of(self.facts, "A stage's record")


class _StageHead(Model):
    """The name.

    Args:
        format: name and version of the format.
        name: name of the stage.
    """

    format: Annotated[str, Is(STAGE)]
    name: str


class StageFile(StageRecord, _StageHead):
    """The record of a finished stage, `stages/*.json`.

    Args:
        sha256: hash of the other keys, which shows whether the file was edited.
    """

    sha256: str
