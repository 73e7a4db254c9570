"""Sections of recipes that compare: networks for stages, ways to train, and experts beside what else their training could make."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from prunekit._messages import did_you_mean
from prunekit.errors import InputError
from prunekit.recipe.schema import ShownAs
from prunekit.recipe.sections import (
    STRICT,
    AllocationOptions,
    FinetuneOptions,
    GroupOptions,
    Positive,
    PruneOptions,
    Seed,
    Train,
)
from prunekit.training import StageDraw, TrainOptions

__all__ = ["CurriculumOptions", "EntryOptions", "EvidenceOptions", "MultistageOptions", "slug"]

_Width = Annotated[int, Field(ge=1, le=2**14)]  # a convolution between two of these takes 10 GB
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 .,+_-]{0,63}$")]


def slug(name: str) -> str:
    """An entry's name as a file's or a folder's.

    Example:
        >>> slug("CLTS + MDLRC 0.8")
        'clts-mdlrc-0-8'
    """
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def _distinct(names: Iterable[str]) -> None:
    """Refuse names that would share a file."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(slug(name), name)
        if other != name:
            raise InputError(
                f"Entries {other!r} and {name!r} differ in signs or case only; expected names that differ in more."
            )


@dataclass(frozen=True)
class MultistageOptions:
    """One encoder with a decoder for each stage, compared at equal training MACs with what it replaces.

    Every network is trained with the MACs of the recipe's ``base.train``: from scratch where there is a ``base.model``, and from
    the weights of a ``base.checkpoint`` where there is one, which leaves no room for tailored widths.

    Args:
        widths: the tailored decoders' ``block_out_channels``, cleanest stage first; as many stages.
        groupings: ways to cut; the first is what networks are compared on, the others get tailored decoders only.
        networks: ``unified`` (one network), ``separate`` (one for each stage), ``equal`` and ``tailored`` (one encoder, decoders of
            its own or of tailored widths).
        draw: see :class:`prunekit.training.StageTimesteps`.
        seeds: of first weights, batches and noise.
        looks: points of the learning curve.
        sampler: of the images for FID.
        sampling_steps: its steps.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    widths: Annotated[tuple[tuple[_Width, ...], ...], Field(min_length=2)]
    groupings: Annotated[tuple[GroupOptions, ...], Field(min_length=1)] = (GroupOptions("uniform", 3),)
    networks: tuple[Literal["unified", "separate", "equal", "tailored"], ...] = (
        "unified",
        "separate",
        "equal",
        "tailored",
    )
    draw: StageDraw = "uniform"
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    looks: Positive = 5
    sampler: str = "ddim"
    sampling_steps: Positive = 20

    def __post_init__(self) -> None:
        for grouping in self.groupings:
            stages = grouping.number
            if stages != len(self.widths):
                raise InputError(
                    f"Grouping {grouping.method} makes {stages} stages; expected {len(self.widths)}, one for each of widths."
                )


@dataclass(frozen=True)
class CurriculumOptions:
    """Ways to train, compared at equal train steps by how soon they get where the first of them ends.

    Every one trains the recipe's ``base.model`` from scratch as ``base.train`` says, but for what its entry changes.

    Args:
        entries: names, and options of ``base.train`` with other values; the first is the baseline.
        seeds: of first weights, batches and noise.
        looks: points of the learning curve.
        sampler: of the images for FID.
        sampling_steps: its steps.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    entries: Annotated[dict[_Name, Annotated[dict[str, Any], ShownAs(Train)]], Field(min_length=2)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    looks: Positive = 8
    sampler: str = "ddim"
    sampling_steps: Positive = 20

    def __post_init__(self) -> None:
        _distinct(self.entries)

    def settings(self, train: TrainOptions) -> dict[str, TrainOptions]:
        """The training options of every entry.

        Raises:
            InputError: an entry changes what all have in common, or something that is no option.
        """
        return {name: self.setting(name, train) for name in self.entries}

    def setting(self, name: str, train: TrainOptions) -> TrainOptions:
        """The training options of an entry, see :meth:`settings`."""
        changes, options = self.entries[name], set(asdict(train))
        known = options - {"steps", "batch_size", "seed"}
        if wrong := sorted(set(changes) - known):
            meant = "" if wrong[0] in options else did_you_mean(wrong[0], known)
            raise InputError(
                f"Entry {name} changes {', '.join(wrong)}{meant}; expected options of base.train but steps, batch_size and seed."
            )
        return TypeAdapter(Train).validate_python({**asdict(train), **changes})


class _Changes(TypedDict, total=False):
    """Sections of the recipe with other values; what is not given stays."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    groups: GroupOptions
    allocation: AllocationOptions
    prune: PruneOptions
    finetune: FinetuneOptions


@dataclass(frozen=True)
class EntryOptions:
    """One way to spend the training that all have in common.

    Args:
        kind: what it is shown as.
        changes: sections ``groups``, ``allocation``, ``prune`` and ``finetune`` of the recipe, with other values.
        seeds: of its fine-tuning, where they are others than the comparison's: fewer for what is dear.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    kind: Literal["experts", "baseline", "ablation"] = "experts"
    changes: Annotated[
        dict[Literal["groups", "allocation", "prune", "finetune"], dict[str, Any]], ShownAs(_Changes)
    ] = field(default_factory=dict)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] | None = None


@dataclass(frozen=True)
class EvidenceOptions:
    """Experts beside baselines and ablations, each a recipe of its own that differs in a few keys, at equal training MACs.

    How many steps every one is fine-tuned for follows from what its search has left of the MACs.

    Args:
        entries: ways, by name.
        headline: the entry that the report's claim is about.
        training: MACs that each may spend beyond the base, as a share of those that training the base took.
        seeds: of fine-tuning.
        loss_groups: equal timestep groups by which held-out losses are told.
        timed_images: images that are sampled from every network in turn for its wall time.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    entries: Annotated[dict[_Name, EntryOptions], Field(min_length=1)]
    headline: str
    training: Annotated[float, Field(gt=0)] = 0.25
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
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
            if {"steps", "seed"} & set(entry.changes.get("finetune", {}).get("train", {})):
                raise InputError(
                    f"Entry {name} changes finetune.train.steps or its seed; expected that these be left to the comparison."
                )

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """Fine-tuning seeds of an entry."""
        return self.entries[name].seeds or self.seeds
