"""Sections of recipes that compare networks for stages, ways to train, or experts with baselines at equal training."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from prunekit._json import JsonObject
from prunekit._messages import did_you_mean
from prunekit.choices import Middle
from prunekit.errors import InputError
from prunekit.recipe.fields import STRICT, Positive, Seeds, Train
from prunekit.recipe.planning_sections import AllocationOptions, GroupOptions, PruneOptions
from prunekit.recipe.schema import ShownAs
from prunekit.recipe.tuning_sections import FinetuneOptions
from prunekit.training import StageDraw, TrainOptions

__all__ = ["CurriculumOptions", "EntryOptions", "EvidenceOptions", "MultistageOptions", "slug"]

_Width = Annotated[int, Field(ge=1, le=2**14)]  # a convolution between two of these takes 10 GB
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .,+_-]{0,63}$")]


def slug(name: str) -> str:
    """Turn an entry's name into the name of a file or folder.

    Example:
        >>> slug("CLTS + MDLRC 0.8")
        'clts-mdlrc-0-8'
    """
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _distinct(names: Iterable[str]) -> None:
    """Refuse names that would share a file."""
    known: dict[str, str] = {}
    for name in names:
        if (other := known.get(slug(name))) is not None:
            if name == other:
                raise InputError(f"Got entry {name!r}, which is the name of the base's row; expected another name.")
            raise InputError(
                f"Entries {other!r} and {name!r} differ in signs or case only; expected names that differ in more."
            )
        known[slug(name)] = name


@dataclass(frozen=True)
class EarlyStopOptions:
    """When a stage is no longer trained, see :class:`prunekit.training.EarlyStop`.

    Args:
        every: number of train steps between two looks at the stages' held-out losses.
        patience: number of looks without an improvement after which a stage is stopped.
        improvement: smallest fall of the loss that counts as an improvement, as a share of the best loss so far.
    """

    __pydantic_config__: ClassVar[JsonObject] = STRICT

    every: Positive = 500
    patience: Positive = 3
    improvement: Annotated[float, Field(ge=0, lt=1)] = 0.002


@dataclass(frozen=True)
class MultistageOptions:
    """Compares one encoder with a decoder for each stage with the networks that it replaces, at equal training MACs.

    Every network is trained with the MACs of the recipe's ``base.train``: from scratch if there is a ``base.model``, or from the
    weights of the ``base.checkpoint``, which excludes tailored widths.

    Args:
        widths: ``block_out_channels`` of each stage's tailored decoder, cleanest stage first.
        groupings: ways to cut the stages. All networks are compared on the first; the others get tailored decoders only.
        networks: ``unified`` is one network, ``separate`` one for each stage; ``equal`` and ``tailored`` are one encoder with a
            decoder for each stage, of the base's widths or of ``widths``.
        middle: ``shared`` for one middle block in the encoder, as in the paper's DPM-Solver and latent networks; ``own`` for one in
            each decoder, at its width.
        draw: how stages are drawn in training, see :class:`prunekit.training.StageTimesteps`.
        early_stop: when a stage is no longer trained. In networks with several decoders the other stages get its place in the
            batches; separate networks end early. If missing, every stage is trained to the end.
        seeds: seeds of the first weights, the batches and the noise; one training each.
        looks: number of points on the learning curve.
        sampler: sampler of the images for FID.
        sampling_steps: its number of steps.

    Raises:
        InputError: the networks lack ``unified`` or repeat, a grouping needs a budget, or its stages are not one for each of
            ``widths``.
    """

    __pydantic_config__: ClassVar[JsonObject] = STRICT

    widths: Annotated[tuple[tuple[_Width, ...], ...], Field(min_length=2)]
    groupings: Annotated[tuple[GroupOptions, ...], Field(min_length=1)] = (GroupOptions("uniform", 3),)
    networks: tuple[Literal["unified", "separate", "equal", "tailored"], ...] = (
        "unified",
        "separate",
        "equal",
        "tailored",
    )
    middle: Middle = "shared"
    draw: StageDraw = "uniform"
    early_stop: EarlyStopOptions | None = None
    seeds: Seeds = (0, 1, 2)
    looks: Positive = 5
    sampler: str = "ddim"
    sampling_steps: Positive = 20

    def __post_init__(self) -> None:
        networks = self.networks
        if "unified" not in networks or not len(set(networks)) == len(networks) > 1:
            raise InputError(
                f"Got networks [{', '.join(networks)}]; expected unified, with which all are compared, and others, each once."
            )
        for grouping in self.groupings:
            if grouping.experts == "noisy":
                raise InputError(
                    "Got a grouping with experts noisy, whose border follows from a budget; expected a method and a count, or cuts."
                )
            stages = grouping.number
            if stages != len(self.widths):
                raise InputError(
                    f"Grouping {grouping.method} makes {stages} stages; expected {len(self.widths)}, one for each of widths."
                )


@dataclass(frozen=True)
class CurriculumOptions:
    """Compares ways to train at equal train steps: how soon each reaches the final quality of the first one.

    Each entry trains the recipe's ``base.model`` from scratch as ``base.train`` says, except for the options that it changes.

    Args:
        entries: by name, the options of ``base.train`` that an entry changes; the first entry is the baseline.
        seeds: seeds of the first weights, the batches and the noise; one training each.
        looks: number of points on the learning curve.
        sampler: sampler of the images for FID.
        sampling_steps: its number of steps.
    """

    __pydantic_config__: ClassVar[JsonObject] = STRICT

    entries: Annotated[dict[_Name, Annotated[JsonObject, ShownAs(Train)]], Field(min_length=2)]
    seeds: Seeds = (0, 1, 2)
    looks: Positive = 8
    sampler: str = "ddim"
    sampling_steps: Positive = 20

    def __post_init__(self) -> None:
        _distinct(self.entries)

    def settings(self, train: TrainOptions) -> dict[str, TrainOptions]:
        """The training options of every entry.

        Raises:
            InputError: an entry changes an option that all entries share, or names an unknown option.
        """
        return {name: self.setting(name, train) for name in self.entries}

    def setting(self, name: str, train: TrainOptions) -> TrainOptions:
        """The training options of an entry, see :meth:`settings`.

        Raises:
            InputError: the entry changes something else than training options, or one that all entries share.
        """
        changes, options = self.entries[name], set(asdict(train))
        known = options - {"steps", "batch_size", "seed"}
        if wrong := sorted(set(changes) - known):
            meant = "" if wrong[0] in options else did_you_mean(wrong[0], known)
            raise InputError(
                f"Entry {name} changes {', '.join(wrong)}{meant}; expected options of base.train but steps, batch_size and seed."
            )
        return TypeAdapter(Train).validate_python({**asdict(train), **changes})


class _Changes(TypedDict, total=False):
    """Sections of the recipe with other values; keys that are not given keep theirs."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    groups: GroupOptions
    allocation: AllocationOptions
    prune: PruneOptions
    finetune: FinetuneOptions


@dataclass(frozen=True)
class EntryOptions:
    """One way to spend the training MACs that every entry gets.

    Args:
        kind: its role in the report.
        changes: keys of the sections groups, allocation, prune and finetune that the entry changes.
        seeds: seeds of its fine-tuning, in place of the comparison's, so that an expensive entry can have fewer.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    kind: Literal["experts", "baseline", "ablation"] = "experts"
    changes: Annotated[dict[Literal["groups", "allocation", "prune", "finetune"], JsonObject], ShownAs(_Changes)] = (
        field(default_factory=dict)
    )
    seeds: Seeds | None = None


@dataclass(frozen=True)
class EvidenceOptions:
    """Compares experts with baselines and ablations at equal training MACs; each entry is the recipe with a few keys changed.

    Each entry is fine-tuned for as many steps as its search has left MACs for.

    Args:
        entries: the entries by name.
        headline: the entry that the report's claim is about.
        training: MACs that each entry may spend beyond the base, as a share of the base's training MACs.
        seeds: seeds of the fine-tuning.
        loss_groups: number of equal timestep groups for which held-out losses are reported.
        timed_images: number of images sampled from each network to measure its wall time.

    Raises:
        InputError: the headline is no entry, or an entry changes the steps or the seed of fine-tuning.
    """

    __pydantic_config__: ClassVar[JsonObject] = STRICT

    entries: Annotated[dict[_Name, EntryOptions], Field(min_length=1)]
    headline: str
    training: Annotated[float, Field(gt=0)] = 0.25
    seeds: Seeds = (0, 1, 2)
    loss_groups: Positive = 5
    timed_images: Positive = 64

    def __post_init__(self) -> None:
        if self.headline not in self.entries:
            meant = did_you_mean(self.headline, self.entries)
            raise InputError(
                f"Got headline {self.headline!r}{meant}; expected one of the entries: {', '.join(self.entries)}."
            )
        _distinct(["base", *self.entries])
        for name, entry in self.entries.items():
            trained = entry.changes.get("finetune", {}).get("train")
            if isinstance(trained, Mapping) and {"steps", "seed"} & set(trained):
                raise InputError(
                    f"Entry {name} changes finetune.train.steps or its seed; expected that these be left to the comparison."
                )

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """Fine-tuning seeds of an entry."""
        return self.entries[name].seeds or self.seeds
