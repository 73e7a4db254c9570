"""The results of comparisons of trainings: ways to train one network, and networks for stages."""

from typing import Annotated, ClassVar, Literal

from prunekit._json import Above, Amount, Bounded, Distance, Many, Named, Number, Positive, Whole
from prunekit.experiments import Experiment
from prunekit.results.manifest_head import Features, Head, LedgerEntry
from prunekit.results.model import Free, Model
from prunekit.results.planning_files import GroupsFile

__all__ = [
    "CurriculumManifest",
    "CurriculumRow",
    "CurriculumSettings",
    "Look",
    "MultistageManifest",
    "MultistageRow",
    "MultistageSettings",
    "Network",
    "NetworkSettings",
    "StudySettings",
    "TrainSettings",
    "Unified",
]


class Look(Model):
    """The measurements of a network at one point of its training.

    Args:
        steps: train steps so far.
        training_macs: MACs of the training so far.
        loss: held-out loss on all timesteps.
        stage_losses: held-out loss on the timesteps of each stage.
        fid: FID; None if no extractor knows the pictures.
        kid: KID; None if no extractor knows the pictures.
        features: the extractor.
        no_features: why there is none.
        count: number of generated images.
        count_real: number of real images.
    """

    steps: Whole | None = None
    training_macs: Above
    loss: Amount
    stage_losses: Many[Amount] | None = None
    fid: Distance | None = None
    kid: Number | None = None
    features: Features | None = None
    no_features: str | None = None
    count: Positive
    count_real: Whole | None = None


_Curve = Annotated[list[Look], Bounded(min_length=1)]


class CurriculumRow(Model):
    """One training of a comparison of ways to train.

    Args:
        entry: name of the way to train.
        seed: seed of the training.
        curve: the measurements, in the order of the training.
    """

    entry: str
    seed: int | None = None
    curve: _Curve


class MultistageRow(Model):
    """One training of a comparison of networks for stages.

    Args:
        network: `unified`, `separate`, `equal` or `tailored`.
        grouping: method that cut the stages.
        cuts: first timesteps of all stages except the first.
        seed: seed of the training.
        stage_macs: MACs per sample of every stage, or of the one network.
        sampling_macs: mean MACs of an evaluation while sampling.
        params: number of parameters.
        curve: the measurements, in the order of the training.
    """

    network: str
    grouping: str
    cuts: Many[Whole]
    seed: int | None = None
    stage_macs: Many[Whole]
    sampling_macs: Above
    params: Whole
    curve: _Curve


class Network(Model):
    """The network of a comparison of ways to train.

    Args:
        macs: MACs per sample per evaluation.
        params: number of parameters.
    """

    macs: Whole | None = None
    params: Whole | None = None


class Unified(Model):
    """The network for all timesteps.

    Args:
        macs: MACs per sample per evaluation.
        training_macs: MACs of its training.
    """

    macs: Whole | None = None
    training_macs: Amount


class TrainSettings(Model):
    """How a network was trained.

    Args:
        steps: train steps.
        batch_size: images of a step.
        lr_scheduler: how the learning rate changes.
    """

    steps: Whole
    batch_size: Whole
    lr_scheduler: Literal["constant", "cosine"]


class NetworkSettings(Model):
    """The network of a comparison of trainings.

    Args:
        checkpoint: the trained network that all trainings start from; None for random weights.
        train: how it was trained.
    """

    checkpoint: str | None = None
    train: TrainSettings


class StudySettings(Model):
    """What a comparison of trainings varied and measured.

    Args:
        seeds: seeds of the trainings.
        sampler: sampler of the images for FID.
        sampling_steps: its number of steps.
        entries: for each way to train, what it changes.
        early_stop: when stages are no longer trained; None if all are trained to the end.
    """

    seeds: Many[int]
    sampler: str
    sampling_steps: Whole
    entries: Named[Free] | None = None
    early_stop: Free | None = None


class CurriculumSettings(Model):
    """The keys of the recipe that the page about ways to train shows.

    Args:
        description: the recipe's sentence about itself.
        base: the network.
        curriculum: the comparison.
    """

    description: str
    base: NetworkSettings
    curriculum: StudySettings


class MultistageSettings(Model):
    """The keys of the recipe that the page about networks for stages shows.

    Args:
        description: the recipe's sentence about itself.
        base: the network.
        multistage: the comparison.
    """

    description: str
    base: NetworkSettings
    multistage: StudySettings


class CurriculumManifest(Head):
    """The manifest of a comparison of ways to train.

    Args:
        base: the network.
        ledger: the MACs that each stage spent.
        curriculum: the trainings; those of the entry that the others are compared with come first.
    """

    kind: ClassVar = Experiment.CURRICULUM

    base: Network | None = None
    ledger: Many[LedgerEntry] | None = None
    curriculum: Annotated[list[CurriculumRow], Bounded(min_length=1)]


class MultistageManifest(Head):
    """The manifest of a comparison of networks for stages.

    Args:
        unified: the network for all timesteps.
        groupings: how timesteps were cut into stages.
        multistage: the trainings.
        ledger: the MACs that each stage spent.
    """

    kind: ClassVar = Experiment.MULTISTAGE

    unified: Unified | None = None
    groupings: Many[GroupsFile] | None = None
    multistage: Annotated[list[MultistageRow], Bounded(min_length=1)]
    ledger: Many[LedgerEntry] | None = None
