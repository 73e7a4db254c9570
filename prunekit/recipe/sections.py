"""A recipe's sections: the options of each stage of the main job. Of this package, they import only ``bounds`` and ``schema``."""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

from prunekit._json import JsonObject
from prunekit._messages import did_you_mean
from prunekit._types import FloatArray
from prunekit.allocation import RULES
from prunekit.checkpoint import Asked, ModelSpec
from prunekit.checkpoint.config_limits import check_schedule
from prunekit.choices import (
    CutRule,
    ExpertsKind,
    HeadMode,
    NormMode,
    PredictionType,
    SensitivityMeasure,
    Shrink,
    VarianceKind,
    Weights,
)
from prunekit.errors import InputError
from prunekit.extractors import FILES
from prunekit.features import SHIPPED
from prunekit.graph import Constraints
from prunekit.groups import ETA, METHODS, Similarity
from prunekit.importance import CRITERIA, criterion
from prunekit.inception import INCEPTION
from prunekit.recipe.bounds import MAX_COUNT, MAX_SEED, SEARCH, TRAINING, check_search
from prunekit.recipe.schema import Choice
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.schedule.noise import NAMED_KINDS
from prunekit.search import RepairKind, SearchOptions, UnconfirmedEndpoint
from prunekit.slim import SlimModel
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

STRICT: dict[str, object] = {"extra": "forbid", "allow_inf_nan": False}
MEASURED_METHODS = ("gradient", "similarity")
"""Grouping methods that need a base or images."""


def _unconfirmed(options: SearchOptions) -> SearchOptions:
    """The options as a recipe gives them, with an endpoint that is not yet confirmed."""
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


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse a seed that is there twice: it would be one training or one set of images that counts as two."""
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise ValueError(f"Got seed {twice} more than once; expected different seeds.")
    return seeds


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_different)]
"""Seeds, each once."""


def _one_or_two(value: object) -> object:
    """A number or two, as they are; here so that an error names the key, and not one of the two forms."""
    numbers = value if isinstance(value, list) and len(value) == 2 else [value]
    if value is not None and not all(type(number) is int for number in numbers):
        raise ValueError(f"Got {value!r:.80}; expected a number of pixels, or height and width such as [32, 48].")
    return value


@dataclass(frozen=True)
class DataOptions:
    """Where images come from, see :func:`prunekit.data.load_images`.

    Args:
        source: ``digits``, ``embedded:fashion``, a folder or zip of pictures, a folder of arrays or of encoded images, an ``.npz``,
            ``.npy`` or ``.safetensors`` file, a parquet file or dataset folder, or idx files. ``FILE::KEY`` names the array of
            images, and ``FOLDER::SPLIT`` the split of a dataset. ``~`` is the home folder.
        resolution: side of the square images in pixels, or height and width; the source's own if missing.
        labels: whether the images' classes are read; a class-conditional network needs them.
        shapes: of one row of each argument of the network, as encoded images will have them, such as
            ``{encoder_hidden_states: [77, 768]}``; ``latents`` are the noisy samples. ``estimate`` counts with them as long as the
            encoded images are not there. Arguments that are left out have the shapes that follow from the network's config.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    source: str = "digits"
    resolution: Annotated[
        int | Annotated[list[int], Field(min_length=2, max_length=2)] | None, BeforeValidator(_one_or_two)
    ] = None
    labels: bool = False
    shapes: dict[str, Annotated[list[Positive], Field(min_length=1, max_length=7)]] | None = None


@dataclass(frozen=True)
class BaseOptions:
    """The base: either a checkpoint or a network to train.

    Args:
        checkpoint: a file, a diffusers folder, a Hub id, ``embedded:digits`` or ``embedded:fashion``; it is loaded and not trained.
        model: the network to train, by ``class`` and ``config``; give either this or ``checkpoint``.
        noise_schedule: the noise schedule by ``kind`` and the arguments of that kind, see
            :meth:`prunekit.schedule.NoiseSchedule.from_config`. If missing: the checkpoint's own, or linear over 1000 timesteps
            for a network to train.
        prediction_type: what the network predicts. If missing: the checkpoint's own, or epsilon for a network to train.
        train: how the network is trained.
        weights: which weights to read of a checkpoint that has both; the moving average is preferred if missing.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    checkpoint: str | None = None
    model: Annotated[JsonObject, _MODEL] | None = None
    noise_schedule: Annotated[JsonObject, _NOISE_SCHEDULE] | None = None
    prediction_type: PredictionType | None = None
    train: Train = field(default_factory=TrainOptions)
    weights: Weights | None = None

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
        """The noise schedule that the options name; linear if they name none."""
        return NoiseSchedule.from_config(self.noise_schedule or _LINEAR)

    @property
    def parameterization(self) -> Parameterization:
        """The noise schedule and prediction type of a network to train."""
        return Parameterization(self.schedule, self.prediction_type or "epsilon")

    @property
    def asked(self) -> Asked:
        """The weights, noise schedule and prediction type that the options ask for."""
        schedule = None if self.noise_schedule is None else self.schedule
        return Asked(self.weights, schedule, self.prediction_type)

    def spec(self) -> ModelSpec:
        """The network to train."""
        return ModelSpec.from_json(self.model or {})


@dataclass(frozen=True)
class GroupOptions:
    """How to cut the timesteps: ``method`` and ``count``, or explicit ``cuts``, or by the budget for one specialist.

    Args:
        experts: ``noisy`` makes two groups: the base serves the cleaner timesteps and one pruned specialist the noisiest; the
            border follows from the budget, see :func:`prunekit.steps.budgets.specialist_groups`. ``all`` uses the other keys.
        method: how the borders are found; ``similarity`` needs the recipe's images and ``gradient`` the base.
        count: number of groups.
        cuts: explicit borders in place of ``method`` and ``count``: the first timestep of every group except the first.
        alpha: threshold of rule ``stages`` on the similarity; calibrated on the images if missing, see
            :class:`prunekit.groups.Similarity`.
        eta: tolerance of method ``similarity``: the difference up to which two predictions of the optimal denoiser count as equal.
        rule: how method ``similarity`` cuts: ``stages`` is the paper's rule for three groups, ``dynamic`` the exact partition of
            least dissimilarity. If missing: ``stages`` for three groups, else ``dynamic``.
        samples: pairs of image and noise for ``similarity``, or draws per timestep bin for ``gradient``; the method's own default
            if missing.
        nodes: number of timesteps at which the method measures; the method's own default if missing.
        seed: seed of the draws.
        memory_mib: memory in MiB that the optimal denoiser of method ``similarity`` may take.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    method: Annotated[str, Choice((*METHODS, *MEASURED_METHODS))] = "uniform"
    count: Positive = 5
    cuts: tuple[int, ...] | None = None
    experts: ExpertsKind = "all"
    alpha: float | None = None
    eta: float = ETA
    rule: CutRule | None = None
    samples: Positive | None = None
    nodes: Annotated[int, Field(ge=2)] | None = None
    seed: Seed = 0
    memory_mib: Positive = 256

    def __post_init__(self) -> None:
        if self.experts == "noisy" and (self.cuts is not None or self.method != "uniform" or self.count not in (2, 5)):
            raise InputError(
                "Got experts noisy with a method, a count or cuts; expected none of them, since it makes two groups and the border "
                "follows from the budget."
            )
        if self.method == "similarity" and self.cuts is None:
            self.similarity(np.zeros((1, 1))).check_rule(self.count)
        elif self.alpha is not None or self.rule is not None:
            with_ = f"method {self.method}" if self.cuts is None else "explicit cuts"
            raise InputError(f"Got alpha or rule with {with_}; expected them with method similarity.")

    @property
    def number(self) -> int:
        """How many groups to make."""
        if self.experts == "noisy":
            return 2
        return self.count if self.cuts is None else len(self.cuts) + 1

    def similarity(self, images: NDArray[np.uint8] | FloatArray) -> Similarity:
        """Method ``similarity`` of some images."""
        memory = self.memory_mib * 2**20
        return Similarity(images, self.eta, self.alpha, self.rule, seed=self.seed, memory=memory, **self.looks)

    @property
    def looks(self) -> dict[str, int]:
        """``samples`` and ``nodes``, each if given."""
        given = {"samples": self.samples, "nodes": self.nodes}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class AllocationOptions:
    """How much compute each timestep group gets.

    Args:
        budget: mean share of the base's MACs over the sampling steps.
        rule: how the budget is divided among the groups, see :func:`prunekit.allocation.allocate`; ``measured`` searches every
            group first.
        sampler: the sampler over whose steps the mean is taken.
        steps: the sampler's number of steps.
        floor: smallest share that rules ``auto``, ``snr`` and ``uniform`` give a group. If missing, the rule's own: 0.1 for ``snr``
            and ``uniform``, 5/8 of the budget's square for ``auto``. No rule goes below what the network can be pruned to.
        frontier_floor: share of the base's MACs down to which every group is searched before rule ``measured`` decides, or to what
            the network can be pruned to, if that is more.
        sensitivity: whether rule ``measured`` weighs each group's loss by what the sampler makes of an error in the group, which is
            measured first, and not by the group's number of steps.
        sensitivity_in: where the change of the sample is measured. ``auto`` takes pixels, and latents where nothing decodes them;
            ``features`` takes the extractor of the evaluation section.
        sensitivity_samples: number of samples.
        sensitivity_size: size of the noise that is added to predictions, relative to their root mean square.
        sensitivity_clamped: whether the scheduler keeps its clamping of the clean sample, if it has one, while it is measured.
            Changes are then hardly ever proportional to errors, so that noise of a second size is tried too.
        recoveries: number of sizes, evenly from the frontier's floor to the whole network, at which every group's network is
            trained for a short time, so that rule ``measured`` compares losses that a fine-tuning leaves. 0 for losses before it.
        recovery_steps: train steps of each of these; the other options are those of the fine-tuning.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    budget: Ratio = 0.8
    rule: Annotated[str, Choice(tuple(RULES))] = "auto"
    sampler: str = "ddim"
    steps: Positive = 50
    floor: Ratio | None = None
    frontier_floor: Ratio = 0.3
    sensitivity: bool = False
    sensitivity_in: SensitivityMeasure = "auto"
    sensitivity_samples: Positive = 32
    sensitivity_size: Ratio = 0.002
    sensitivity_clamped: bool = False
    recoveries: NotNegative = 0
    recovery_steps: Positive = 200

    def __post_init__(self) -> None:
        if self.rule == "measured" and self.frontier_floor > self.budget:
            raise InputError(
                f"Got budget {self.budget:g} and frontier_floor {self.frontier_floor:g}; rule measured needs frontiers that go "
                "below the budget: lower frontier_floor."
            )
        if self.sensitivity and self.rule != "measured":
            raise InputError(f"Got sensitivity with rule {self.rule}; expected rule measured, whose losses it weighs.")
        if self.recoveries and self.rule != "measured":
            raise InputError(
                f"Got recoveries with rule {self.rule}; expected rule measured, whose losses they correct."
            )
        if self.recoveries == 1:
            raise InputError(
                "Got recoveries 1; expected 0, or 2 or more: the smallest network, the whole one, and sizes between."
            )


@dataclass(frozen=True)
class PruneOptions:
    """How channels are scored and the widths searched.

    Args:
        criterion: importance criterion that scores the channels.
        norm_mode: how group norms shrink: evenly in every norm group, or by whole norm groups.
        head_mode: how attentions shrink: by whole heads, or evenly within all of them.
        samples: number of timesteps per group in the calibration set.
        batch_size: number of timesteps per forward pass.
        seed: seed of the calibration set.
        search: how the widths are searched. If its target is of parameters or latency, the allocation's shares are of the base's
            parameters or latency.
        constraints: layers that stay whole, are tied, keep a minimum width, or shrink in another mode.
        width_multiples: what widths are multiples of: a number, or a mapping of resolution to the multiple at that resolution and
            above; 1 or empty for all widths that the structure allows. If missing: 8 where the base's widths are multiples of 8
            and the network is not tiny.
        latency_table: JSON file of layer times for a target of latency. If there is no such file, the run measures the times and
            writes them under this name into its own folder. It may be another machine's.
        latency_batch_size: samples in a batch for which time counts; 16 if missing and the times are measured. A table that exists
            must be for this size.
        floor: smallest share of each channel group that is kept.
        shrink: what becomes smaller: `width` removes channels, `depth` whole residual branches, `both` either.
        repair: closed-form repair of the layers that read pruned channels, before fine-tuning.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    criterion: Annotated[str, Field(json_schema_extra={"enum": [*CRITERIA]})] = "taylor"
    norm_mode: NormMode = "even"
    head_mode: HeadMode = "whole"
    samples: Positive = 256
    batch_size: Positive = 64
    seed: Seed = 0
    search: Annotated[SearchOptions, SEARCH, AfterValidator(check_search), AfterValidator(_unconfirmed)] = field(
        default_factory=SearchOptions
    )
    constraints: Constraints = field(default_factory=Constraints)
    width_multiples: Positive | dict[Positive, Positive] | None = None
    latency_table: str | None = None
    latency_batch_size: Positive | None = None
    floor: Annotated[float, Field(json_schema_extra={"minimum": 0, "maximum": 1})] = 0.0
    repair: RepairKind = "least-squares"
    shrink: Shrink = "width"

    def __post_init__(self) -> None:
        if self.shrink not in (known := get_args(Shrink)):
            meant = did_you_mean(self.shrink, known)
            raise InputError(f"Got shrink {self.shrink!r}{meant}; expected one of {', '.join(known)}.")
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
    """How the base teaches its experts.

    Args:
        weight: share of the loss that is the distance to the base's prediction.
        feature_weight: weight of the distance between the outputs of each block's last layer; 0 for none.
        fade: whether both weights fall to zero over the fine-tuning (``linear``) or stay (``constant``).
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    feature_weight: Annotated[float, Field(ge=0)] = 0.0
    fade: Fade = "constant"


@dataclass(frozen=True)
class FinetuneOptions:
    """How each expert is fine-tuned.

    Args:
        overlap: number of timesteps beyond each border of the group that are also trained on, so that neighbouring experts agree
            at the seam.
        distillation: how the base teaches the experts; if missing, they learn from the images alone.
        from_scratch: whether training starts from random weights, so that only the pruned widths are used.
        groups: timestep groups that are trained, 0 = cleanest; all if missing. The others stay as they are.
        share_steps: whether groups in which an error changes the sample more get more of the steps, at the same MACs together as
            the same number for each. It needs an allocation with a sensitivity.
        only_pruned: whether timestep groups that keep the whole base stay as they are. They then share its weights, and a short
            training cannot make them worse.
        train: the options of the training.
        learning_rates: learning rate of each timestep group, cleanest first, in place of ``train.learning_rate``. Noisier groups
            take higher rates, since their gradients differ less between images.
        variance: how the variances of a network that predicts them are kept: by the distance from the base's (``distill``), by
            the variational bound (``vlb``, arXiv:2102.09672), or not at all (``none``). Other networks are not affected.
        variance_weight: weight of that in the loss. If missing: 0.1 for ``distill`` and 0.001 for ``vlb``.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    overlap: NotNegative = 20
    distillation: DistillationOptions | None = None
    from_scratch: bool = False
    only_pruned: bool = False
    groups: tuple[NotNegative, ...] | None = None
    share_steps: bool = False
    train: Train = field(
        default_factory=lambda: TrainOptions(steps=600, learning_rate=5e-4, warmup_steps=30, ema_decay=0.995)
    )
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    variance: VarianceKind = "distill"
    variance_weight: Annotated[float, Field(ge=0)] | None = None

    def __post_init__(self) -> None:
        if self.variance not in (kinds := get_args(VarianceKind)):
            raise InputError(f"Got variance {self.variance!r:.40}; expected one of {', '.join(kinds)}.")
        if self.variance_weight is not None and not 0 <= self.variance_weight < float("inf"):
            raise InputError(f"Got variance_weight {self.variance_weight:g}; expected a finite number of at least 0.")
        if self.from_scratch and (self.only_pruned or self.groups is not None):
            other = "only_pruned" if self.only_pruned else "groups"
            raise InputError(
                f"Got from_scratch with {other}; expected at most one of them, since all are trained from scratch."
            )

    def leaves(self, slim: SlimModel) -> bool:
        """Whether a slim model stays as it is."""
        return self.leaves_group(slim.group.index, slim.is_whole)

    def leaves_group(self, index: int, whole: bool) -> bool:
        """Whether a timestep group's network stays as it is.

        Args:
            index: the timestep group.
            whole: whether its network keeps the whole base.
        """
        return (self.only_pruned and whole) or (self.groups is not None and index not in self.groups)

    def with_steps(self, steps: int) -> "FinetuneOptions":
        """The same options with another number of train steps, and a warm-up of at most all of them."""
        warmup = min(self.train.warmup_steps, steps)
        return replace(self, train=replace(self.train, steps=steps, warmup_steps=warmup))

    def train_of(self, group: int) -> TrainOptions:
        """The loop's options for a timestep group, 0 = cleanest.

        Raises:
            InputError: learning rates are given, but none for this group.
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
    """What is measured at the end.

    Args:
        samples: number of images sampled per model and seed.
        seeds: seeds of the initial noise.
        features: feature extractor for FID, KID, precision and recall. ``auto`` takes the shipped one that knows the pictures, and
            measures none of them if none does. ``inception-v3`` takes the weights in torch's cache. A file has Inception's weights,
            or a network of :func:`prunekit.features.save_features`.
        clip: folder of a CLIP model, or its Hub id if it is in the Hub's cache, for the CLIP score of pictures with prompts.
        pipeline: folder of the diffusers pipeline through which samples are drawn and decoded, for encoded data; with its guidance
            and its scheduler.
        guidance_scale: of classifier-free guidance; the pipeline's default if missing.
        pipeline_arguments: of the pipeline's own call, such as ``max_sequence_length``, in addition to those with which the data
            were encoded.
        other_guidance_scales: further scales at which every model is sampled and measured.
        loss_samples: number of held-out draws per timestep group for the denoising loss.
        grid: number of images kept for the report's grids.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    samples: Positive = 1024
    seeds: Seeds = (0, 1, 2)
    features: Annotated[str, Choice(("auto", *SHIPPED, INCEPTION), files=FILES)] = "auto"
    clip: str | None = None
    pipeline: str | None = None
    guidance_scale: float | None = None
    pipeline_arguments: dict[str, JsonValue] = field(default_factory=dict)
    other_guidance_scales: tuple[float, ...] = ()
    loss_samples: Positive = 2048
    grid: NotNegative = 40

    def __post_init__(self) -> None:
        scales = (self.guidance_scale, *self.other_guidance_scales)
        if self.pipeline is None and any(scale is not None for scale in scales):
            raise InputError(
                "Got a guidance scale without a pipeline; name the pipeline through which samples are drawn."
            )
        if len(set(scales)) < len(scales):
            raise InputError(f"Got the guidance scales {', '.join(map(str, scales))}; expected each of them once.")
