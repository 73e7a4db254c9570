"""What the manifests of all kinds of runs begin with: the recipe, the versions and the machine; and the parts that they share."""

from typing import Annotated

from prunekit._json import Amount, Named, Number, Positive, Whole
from prunekit.results.formats import MANIFEST, WorkKind
from prunekit.results.model import Checked, Free, Is, JsonValue, Model

__all__ = ["BaseTraining", "Clip", "Features", "Head", "LedgerEntry", "Settings", "metric_label"]


class Features(Model):
    """The feature extractor for FID and KID.

    Args:
        num_features: number of features.
        name: its name.
        sha256: hash of its weights.
        accuracy: as a classifier of its own images.
        resolution: side of the images that it takes.
        own: whether it is the user's own, whose fit is not checked.
        fit: distance of the pictures from the extractor's own, the limit, and the number of pictures.
    """

    num_features: JsonValue = None
    name: str | None = None
    sha256: str | None = None
    accuracy: Number | None = None
    resolution: int | None = None
    own: JsonValue = None
    fit: JsonValue = None


class Clip(Model):
    """The CLIP model for the CLIP score.

    Args:
        name: its folder's name or Hub id.
        sha256: hash of its weights.
    """

    name: str
    sha256: str | None = None


def metric_label(metric: str, features: Features | None, count: int) -> str:
    """The full name of FID or KID, with features and sample count, since the number means nothing without them."""
    name = None if features is None else features.name
    return f"{metric} (features: {name or 'not named'}, n = {count})"


class LedgerEntry(Model):
    """What a stage spent on one kind of work.

    Args:
        stage: name of the stage.
        kind: kind of work; ledgers of older versions have none.
        samples: number of samples that went through a network.
        forward_macs: the part of the MACs for forward passes; older versions did not separate them.
        backward_macs: the part for backward passes.
        macs: MACs in all.
    """

    stage: str
    kind: WorkKind | None = None
    samples: Whole
    forward_macs: Whole | None = None
    backward_macs: Whole | None = None
    macs: Whole


class BaseTraining(Model):
    """What training the base took.

    Args:
        samples: number of images that went forward and backward.
        macs: MACs of these passes.
        known_from: where these figures come from.
    """

    samples: Amount | None = None
    macs: Amount = 0
    known_from: str | None = None


class GroupSettings(Model):
    """How timesteps were cut.

    Args:
        method: name of the method.
    """

    method: str | None = None


class SearchSettings(Model):
    """How widths were searched.

    Args:
        proposer: name of the proposer.
    """

    proposer: str | None = None


class PruneSettings(Model):
    """How channels were chosen.

    Args:
        search: how widths were searched.
    """

    search: SearchSettings | None = None


class StepSettings(Model):
    """How a network was trained.

    Args:
        steps: train steps.
    """

    steps: Whole | None = None


class TuneSettings(Model):
    """How experts were trained.

    Args:
        train: the training of each.
        share_steps: whether groups in which an error changes the sample more got more of the steps.
    """

    train: StepSettings | None = None
    share_steps: bool = False


class Settings(Model):
    """The keys of the recipe that reports show.

    Args:
        description: the recipe's sentence about itself.
        data: the images.
        groups: how timesteps were cut.
        prune: how channels were chosen.
        finetune: how experts were trained.
    """

    description: str | None = None
    data: Free | None = None
    groups: GroupSettings | None = None
    prune: PruneSettings | None = None
    finetune: TuneSettings | None = None


class Head(Model):
    """The keys with which the manifests of all kinds begin.

    Args:
        format: name and version of the format.
        recipe: name of the recipe.
        created: time at which the manifest was written.
        commit: commit of the source tree, with `+changes` if it was modified.
        prunekit: version of prunekit.
        versions: versions of Python and of libraries.
        device: the machine's device.
        threads: threads of one operation.
        config_hash: hash of `config`.
        config: the whole recipe.
        stage_threads: stages that were made with another number of threads.
        stage_versions: stages that were made with other versions.
        seeds: seeds by use.
        seconds: wall time of each stage.
    """

    format: Annotated[str, Is(MANIFEST)]
    recipe: str = "unnamed"
    created: str | None = None
    commit: str | None = None
    prunekit: str | None = None
    versions: dict[str, str | None] | None = None
    device: str | None = None
    threads: Whole | None = None
    config_hash: str | None = None
    config: Annotated[Free, Checked(Settings)] | None = None
    stage_threads: Named[Positive] | None = None
    stage_versions: Named[Named[str]] | None = None
    seeds: dict[str, JsonValue] | None = None
    seconds: Named[Amount] | None = None

    @property
    def settings(self) -> Settings:
        """The keys of the recipe that reports show."""
        return Settings.of(self.config or {}, "The manifest's configuration")
