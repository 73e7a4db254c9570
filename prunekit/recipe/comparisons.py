"""Sections of recipes that compare: networks for stages, and ways to train."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter

from prunekit.errors import InputError
from prunekit.recipe.sections import STRICT, GroupOptions, Positive
from prunekit.training import StageDraw, TrainOptions

__all__ = ["CurriculumOptions", "MultistageOptions"]

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 +_-]{0,63}$")]


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

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    widths: Annotated[tuple[tuple[Positive, ...], ...], Field(min_length=2)]
    groupings: Annotated[tuple[GroupOptions, ...], Field(min_length=1)] = (GroupOptions("uniform", 3),)
    networks: tuple[Literal["unified", "separate", "equal", "tailored"], ...] = (
        "unified",
        "separate",
        "equal",
        "tailored",
    )
    draw: StageDraw = "uniform"
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    looks: Positive = 5
    sampler: str = "ddim"
    sampling_steps: Positive = 20

    def __post_init__(self) -> None:
        for grouping in self.groupings:
            stages = grouping.count if grouping.cuts is None else len(grouping.cuts) + 1
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

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    entries: Annotated[dict[_Name, dict[str, Any]], Field(min_length=2)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    looks: Positive = 8
    sampler: str = "ddim"
    sampling_steps: Positive = 20

    def settings(self, train: TrainOptions) -> dict[str, TrainOptions]:
        """The training options of every entry.

        Raises:
            InputError: an entry changes what all have in common, or something that is no option.
        """
        own = {}
        for name, changes in self.entries.items():
            wrong = sorted(set(changes) & {"steps", "batch_size", "seed"} or set(changes) - set(asdict(train)))
            if wrong:
                raise InputError(
                    f"Entry {name} changes {', '.join(wrong)}; expected options of base.train but steps, batch_size and seed."
                )
            own[name] = TypeAdapter(TrainOptions).validate_python({**asdict(train), **changes})
        return own
