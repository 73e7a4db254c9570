"""A recipe's sections: what each stage of the main job can be told. They import no other module of the recipe's."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from prunekit._messages import did_you_mean
from prunekit._types import FloatArray
from prunekit.allocation import RULES
from prunekit.checkpoint import Asked, ModelSpec
from prunekit.checkpoint.bounds import check_schedule
from prunekit.errors import InputError
from prunekit.features import SHIPPED
from prunekit.graph import Constraints
from prunekit.groups import ETA, METHODS, Rule, Similarity
from prunekit.importance import CRITERIA, criterion
from prunekit.recipe.bounds import MAX_COUNT, MAX_SEED, SEARCH, TRAINING, check_search
from prunekit.recipe.schema import Choice
from prunekit.schedule import NoiseSchedule
from prunekit.schedule.noise import NAMED_KINDS
from prunekit.search import RepairKind, SearchOptions, UnconfirmedEndpoint
from prunekit.training import Fade, TrainOptions

__all__ = [
    "MEASURED_METHODS",
    "STRICT",
    "AllocationOptions",
    "BaseOptions",
    "DataOptions",
    "DistillationOptions",
    "EvaluationOptions",
    "FinetuneOptions",
    "GroupOptions",
    "Positive",
    "PruneOptions",
    "Seed",
    "Train",
]

STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
MEASURED_METHODS = ("gradient", "similarity")
"""Grouping methods that need a base or images."""


def _unconfirmed(options: SearchOptions) -> SearchOptions:
    """The options as a recipe gives them: their endpoint waits for a confirmation."""
    return options if options.llm is None else replace(options, llm=UnconfirmedEndpoint(**vars(options.llm)))


_MODEL = Field(
    json_schema_extra={
        "properties": {
            "class": {"type": "string", "description": "A class of diffusers."},
            "config": {"type": "object", "description": "Arguments of its constructor."},
        }
    }
)
_NOISE_SCHEDULE = Field(
    json_schema_extra={
        "properties": {
            "kind": {"enum": [*NAMED_KINDS, "explicit"]},
            "num_timesteps": {"type": "integer", "minimum": 1},
        }
    }
)
_LINEAR = {"kind": "linear", "num_timesteps": 1000}
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NotNegative = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Train = Annotated[TrainOptions, TRAINING]
Ratio = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class DataOptions:
    """Where images come from, see :func:`prunekit.data.load_images`.

    Args:
        source: what to read.
        resolution: side of the square images; the source's own when absent.
        labels: whether the images' classes are read, for a network that takes some.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    source: str = "digits"
    resolution: int | None = None
    labels: bool = False


@dataclass(frozen=True)
class BaseOptions:
    """The base: a checkpoint (a path, or ``embedded:digits``), or a network to train.

    Args:
        checkpoint: what to load; nothing is trained then.
        model: ``{"class", "config"}`` of a network to train; either this or ``checkpoint``.
        noise_schedule: see :meth:`prunekit.schedule.NoiseSchedule.from_config`. If missing: the checkpoint's own; linear over 1000
            timesteps for a network to train.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``. If missing: the checkpoint's own; epsilon for one to train.
        train: how to train it.
        weights: ``ema`` or ``raw``, of a checkpoint that has both; a moving average is preferred if missing.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    checkpoint: str | None = None
    model: Annotated[dict[str, Any], _MODEL] | None = None
    noise_schedule: Annotated[dict[str, Any], _NOISE_SCHEDULE] | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction"] | None = None
    train: Train = field(default_factory=TrainOptions)
    weights: Literal["ema", "raw"] | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.model is None):
            raise InputError("A base needs either a checkpoint or a model to train, and not both.")
        if self.model is not None:
            self.spec()
            if self.weights is not None:
                raise InputError("Got weights with a model to train; expected them with a checkpoint.")
            object.__setattr__(self, "noise_schedule", self.noise_schedule or dict(_LINEAR))
            object.__setattr__(self, "prediction_type", self.prediction_type or "epsilon")
        if self.noise_schedule is not None:
            check_schedule(self.noise_schedule, "The noise schedule")
        _ = self.schedule

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the options name, else linear."""
        return NoiseSchedule.from_config(self.noise_schedule or _LINEAR)

    @property
    def asked(self) -> Asked:
        """What is asked of the checkpoint."""
        schedule = None if self.noise_schedule is None else self.schedule
        return Asked(self.weights, schedule, self.prediction_type)

    def spec(self) -> ModelSpec:
        """The network to train."""
        return ModelSpec.from_json(self.model or {})


@dataclass(frozen=True)
class GroupOptions:
    """How to cut the timesteps: ``method`` and ``count``, or explicit ``cuts``.

    Args:
        method: a key of :data:`prunekit.groups.METHODS`, ``similarity`` (of the recipe's images) or ``gradient`` (of the base).
        count: number of groups.
        cuts: first timesteps of all groups but the first, instead.
        alpha: see :class:`prunekit.groups.Similarity`, as for ``eta``, ``rule`` and ``memory_mib``.
        eta: tolerance of method ``similarity``.
        rule: ``stages`` or ``dynamic``.
        samples: pairs of image and noise; draws per timestep bin for ``gradient``. The method's own default when absent.
        nodes: timesteps at which the methods look; their own default when absent.
        seed: of the draws.
        memory_mib: MiB that the optimal denoiser may take.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    method: Annotated[str, Choice((*METHODS, *MEASURED_METHODS))] = "uniform"
    count: Positive = 5
    cuts: tuple[int, ...] | None = None
    alpha: float | None = None
    eta: float = ETA
    rule: Rule | None = None
    samples: Positive | None = None
    nodes: Annotated[int, Field(ge=2)] | None = None
    seed: Seed = 0
    memory_mib: Positive = 256

    def __post_init__(self) -> None:
        if self.method == "similarity" and self.cuts is None:
            self.similarity(np.zeros((1, 1))).check_rule(self.count)
        elif self.alpha is not None or self.rule is not None:
            with_ = f"method {self.method}" if self.cuts is None else "explicit cuts"
            raise InputError(f"Got alpha or rule with {with_}; expected them with method similarity.")

    @property
    def number(self) -> int:
        """How many groups there are to be."""
        return self.count if self.cuts is None else len(self.cuts) + 1

    def similarity(self, images: NDArray[np.uint8] | FloatArray) -> Similarity:
        """Method ``similarity`` of some images."""
        memory = self.memory_mib * 2**20
        return Similarity(images, self.eta, self.alpha, self.rule, seed=self.seed, memory=memory, **self.looks)

    @property
    def looks(self) -> dict[str, int]:
        """``samples`` and ``nodes`` where they are given."""
        given = {"samples": self.samples, "nodes": self.nodes}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class AllocationOptions:
    """Budget, rule, and the sampler whose steps the budget is a mean over.

    Args:
        budget: mean fraction of the base's MACs.
        rule: see :func:`prunekit.allocation.allocate`.
        sampler: whose steps count.
        steps: sampling steps.
        floor: smallest ratio that rules ``snr`` and ``uniform`` give.
        frontier_floor: fraction of the base's MACs down to which every group is searched before rule ``measured`` decides.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    budget: Ratio = 0.8
    rule: Annotated[str, Choice(tuple(RULES))] = "linear"
    sampler: str = "ddim"
    steps: Positive = 50
    floor: Ratio = 0.1
    frontier_floor: Ratio = 0.3

    def __post_init__(self) -> None:
        if self.rule == "measured" and self.frontier_floor > self.budget:
            raise InputError(
                f"Got budget {self.budget:g} and frontier_floor {self.frontier_floor:g}; rule measured needs frontiers that go "
                "below the budget: lower frontier_floor."
            )


@dataclass(frozen=True)
class PruneOptions:
    """How to score and search.

    Args:
        criterion: name of the importance criterion.
        norm_mode: how group norms shrink, ``even`` or ``whole``.
        head_mode: how attentions shrink, by ``whole`` heads or ``even`` within all of them.
        samples: timesteps per group in the calibration set.
        batch_size: timesteps per forward pass.
        seed: of the calibration set.
        search: see :class:`prunekit.search.SearchOptions`. Where its target is of parameters or latency, the allocation's fractions
            are meant of the base's parameters or latency.
        constraints: layers that stay whole, are tied, shrink only so far or in another mode, see
            :class:`prunekit.graph.Constraints`.
        width_multiples: what widths are multiples of: a number, or resolution → multiple there and above, see
            :meth:`prunekit.graph.ChannelGraph.with_multiples`; 1 or empty for all that the structure allows. If missing, 8 where
            the base's widths are multiples of 8 and the network is not tiny, see :mod:`prunekit.search.multiples`.
        latency_table: JSON of layer times for a target of latency, wherever it is; where there is no such file, a run measures the
            times and writes them under this name into its own folder.
        floor: share of every channel group that stays at least.
        repair: closed-form repair of the layers that read what was cut, before fine-tuning: ``none``, ``bias`` or
            ``least-squares``, see :class:`prunekit.search.Repair`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    criterion: Annotated[str, Field(json_schema_extra={"enum": [*CRITERIA]})] = "taylor"
    norm_mode: Literal["even", "whole"] = "even"
    head_mode: Literal["whole", "even"] = "whole"
    samples: Positive = 256
    batch_size: Positive = 64
    seed: Seed = 0
    search: Annotated[SearchOptions, SEARCH, AfterValidator(check_search), AfterValidator(_unconfirmed)] = field(
        default_factory=SearchOptions
    )
    constraints: Constraints = field(default_factory=Constraints)
    width_multiples: Positive | dict[Positive, Positive] | None = None
    latency_table: str | None = None
    floor: Annotated[float, Field(json_schema_extra={"minimum": 0, "maximum": 1})] = 0.0
    repair: RepairKind = "least-squares"

    def __post_init__(self) -> None:
        criterion(self.criterion)
        if not 0 <= self.floor <= 1:
            raise InputError(f"Got floor {self.floor:g}; expected a share of every channel group from 0 to 1.")
        if self.repair not in (known := get_args(RepairKind)):
            meant = did_you_mean(self.repair, known)
            raise InputError(f"Got repair {self.repair!r}{meant}; expected one of {', '.join(known)}.")
        if any(number < 1 for pair in (self.multiples or {}).items() for number in pair):
            raise InputError(
                f"Got width_multiples {self.width_multiples}; expected resolutions and multiples of at least 1."
            )
        if self.search.target_of == "latency" and self.latency_table is None:
            raise InputError(
                "A target of latency needs latency_table: the file of layer times to read, or to measure and write."
            )

    @property
    def multiples(self) -> dict[int, int] | None:
        """``width_multiples`` by resolution, None for the default."""
        asked = self.width_multiples
        return {1: asked} if isinstance(asked, int) else asked


@dataclass(frozen=True)
class DistillationOptions:
    """How the base teaches its experts, see :class:`prunekit.training.Distillation`.

    Args:
        weight: share of the loss that is the distance from the base's prediction.
        feature_weight: weight of the distance of the last layers' outputs of every block; 0 for none.
        fade: whether both fall to zero over the fine-tuning (``linear``) or stay (``constant``).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    feature_weight: Annotated[float, Field(ge=0)] = 0.0
    fade: Fade = "constant"


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune an expert.

    Args:
        overlap: timesteps beyond each border of the group that are trained on too, so that neighbours agree at the seam.
        distillation: how the base teaches it; absent for images alone.
        from_scratch: whether it begins with random weights in the pruned widths, as a small network of its own would.
        train: the loop's options.
        learning_rates: one for each timestep group, cleanest first, in place of ``train.learning_rate``. The noisier a group, the
            less its gradients differ between images, and the more it can take.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    overlap: NotNegative = 20
    distillation: DistillationOptions | None = None
    from_scratch: bool = False
    train: Train = field(
        default_factory=lambda: TrainOptions(steps=600, learning_rate=5e-4, warmup_steps=30, ema_decay=0.995)
    )
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    def train_of(self, group: int) -> TrainOptions:
        """The loop's options for a timestep group, 0 = cleanest.

        Raises:
            InputError: there are learning rates, and none for this group.
        """
        if self.learning_rates is None:
            return self.train
        if group >= len(self.learning_rates):
            raise InputError(
                f"Got {len(self.learning_rates)} finetune.learning_rates and a timestep group {group}; expected one for each group."
            )
        return replace(self.train, learning_rate=self.learning_rates[group])


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured.

    Args:
        samples: images sampled per model and seed.
        seeds: of the initial noise.
        features: name of the feature extractor, or ``auto``: the shipped one that knows the pictures, and no FID where none does.
        loss_samples: held-out draws per timestep group for the denoising loss.
        grid: images kept for the report's grids.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    samples: Positive = 1024
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    features: Annotated[str, Choice(("auto", *SHIPPED))] = "auto"
    loss_samples: Positive = 2048
    grid: NotNegative = 40
