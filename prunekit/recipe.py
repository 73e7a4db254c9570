"""Recipes: whole experiments as YAML, checked before anything runs; an unknown key is refused with its line."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from prunekit._types import FloatArray
from prunekit.allocation import RULES
from prunekit.checkpoint import ModelSpec
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.features import SHIPPED
from prunekit.groups import ETA, METHODS, Rule, Similarity
from prunekit.importance import criterion
from prunekit.schedule import NoiseSchedule
from prunekit.search import RepairKind, SearchOptions
from prunekit.training import Fade, StageDraw, TrainOptions

__all__ = [
    "MEASURED_METHODS",
    "AllocationOptions",
    "BaseOptions",
    "CurriculumOptions",
    "DataOptions",
    "DistillationOptions",
    "EvaluationOptions",
    "FinetuneOptions",
    "GroupOptions",
    "MultistageOptions",
    "PruneOptions",
    "Recipe",
    "load_recipe",
]

_STRICT: dict[str, str] = {"extra": "forbid"}
MEASURED_METHODS = ("gradient", "similarity")
"""Grouping methods that need a base or images."""


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    known = sorted(names)

    def check(name: str) -> str:
        if name not in known:
            raise InputError(f"Got {name!r}; expected one of {', '.join(known)}.")
        return name

    return check


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 +_-]{0,63}$")]
_Positive = Annotated[int, Field(ge=1)]
_NotNegative = Annotated[int, Field(ge=0)]
_Ratio = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class DataOptions:
    """Where images come from, see :func:`prunekit.data.load_images`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    source: str = "digits"
    resolution: int | None = None


@dataclass(frozen=True)
class BaseOptions:
    """The base: a checkpoint (a path, or ``embedded:digits``), or a network to train.

    Args:
        checkpoint: what to load; nothing is trained then.
        model: ``{"class", "config"}`` of a network to train; either this or ``checkpoint``.
        noise_schedule: see :meth:`prunekit.schedule.NoiseSchedule.from_config`.
        prediction_type: ``epsilon``, ``sample`` or ``v_prediction``.
        train: how to train it.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    checkpoint: str | None = None
    model: dict[str, Any] | None = None
    noise_schedule: dict[str, Any] = field(default_factory=lambda: {"kind": "linear", "num_timesteps": 1000})
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    train: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.model is None):
            raise InputError("A base needs either a checkpoint or a model to train, and not both.")
        if self.model is not None:
            self.spec()
        NoiseSchedule.from_config(self.noise_schedule)

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

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    method: Annotated[str, AfterValidator(_one_of((*METHODS, *MEASURED_METHODS)))] = "uniform"
    count: _Positive = 5
    cuts: tuple[int, ...] | None = None
    alpha: float | None = None
    eta: float = ETA
    rule: Rule | None = None
    samples: _Positive | None = None
    nodes: Annotated[int, Field(ge=2)] | None = None
    seed: _NotNegative = 0
    memory_mib: _Positive = 256

    def __post_init__(self) -> None:
        if self.method == "similarity" and self.cuts is None:
            self.similarity(np.zeros((1, 1))).check_rule(self.count)
        elif self.alpha is not None or self.rule is not None:
            with_ = f"method {self.method}" if self.cuts is None else "explicit cuts"
            raise InputError(f"Got alpha or rule with {with_}; expected them with method similarity.")

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

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    budget: _Ratio = 0.8
    rule: Annotated[str, AfterValidator(_one_of(RULES))] = "linear"
    sampler: str = "ddim"
    steps: _Positive = 50
    floor: _Ratio = 0.1
    frontier_floor: _Ratio = 0.3

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
        width_multiples: resolution → multiple of the widths there and above, see
            :meth:`prunekit.graph.ChannelGraph.with_multiples`; empty for all that the structure allows.
        latency_table: JSON of layer times for a target of latency; measured and written there where it does not exist.
        floor: share of every channel group that stays at least.
        repair: closed-form repair of the layers that read what was cut, before fine-tuning: ``none``, ``bias`` or
            ``least-squares``, see :class:`prunekit.search.Repair`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    criterion: str = "taylor"
    norm_mode: Literal["even", "whole"] = "even"
    head_mode: Literal["whole", "even"] = "whole"
    samples: _Positive = 256
    batch_size: _Positive = 64
    seed: int = 0
    search: SearchOptions = field(default_factory=SearchOptions)
    width_multiples: dict[_Positive, _Positive] = field(default_factory=dict)
    latency_table: str | None = None
    floor: float = 0.0
    repair: RepairKind = "least-squares"

    def __post_init__(self) -> None:
        criterion(self.criterion)
        if not 0 <= self.floor <= 1:
            raise InputError(f"Got floor {self.floor:g}; expected a share of every channel group from 0 to 1.")
        if self.repair not in get_args(RepairKind):
            raise InputError(f"Got repair {self.repair!r}; expected one of {', '.join(get_args(RepairKind))}.")
        if any(number < 1 for pair in self.width_multiples.items() for number in pair):
            raise InputError(
                f"Got width_multiples {self.width_multiples}; expected resolutions and multiples of at least 1."
            )
        if self.search.target_of == "latency" and self.latency_table is None:
            raise InputError(
                "A target of latency needs latency_table: the file of layer times to read, or to measure and write."
            )


@dataclass(frozen=True)
class DistillationOptions:
    """How the base teaches its experts, see :class:`prunekit.training.Distillation`.

    Args:
        weight: share of the loss that is the distance from the base's prediction.
        feature_weight: weight of the distance of the last layers' outputs of every block; 0 for none.
        fade: whether both fall to zero over the fine-tuning (``linear``) or stay (``constant``).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    feature_weight: Annotated[float, Field(ge=0)] = 0.0
    fade: Fade = "constant"


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune an expert.

    Args:
        overlap: timesteps beyond each border of the group that are trained on too, so that neighbours agree at the seam.
        distillation: how the base teaches it; absent for images alone.
        train: the loop's options.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    overlap: _NotNegative = 20
    distillation: DistillationOptions | None = None
    train: TrainOptions = field(
        default_factory=lambda: TrainOptions(steps=600, learning_rate=5e-4, warmup_steps=30, ema_decay=0.995)
    )


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured.

    Args:
        samples: images sampled per model and seed.
        seeds: of the initial noise.
        features: name of the feature extractor, or ``auto``: the shipped one for the data.
        loss_samples: held-out draws per timestep group for the denoising loss.
        grid: images kept for the report's grids.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    samples: _Positive = 1024
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    features: Annotated[str, AfterValidator(_one_of(("auto", *SHIPPED)))] = "auto"
    loss_samples: _Positive = 2048
    grid: _NotNegative = 40


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

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    widths: Annotated[tuple[tuple[_Positive, ...], ...], Field(min_length=2)]
    groupings: Annotated[tuple[GroupOptions, ...], Field(min_length=1)] = (GroupOptions("uniform", 3),)
    networks: tuple[Literal["unified", "separate", "equal", "tailored"], ...] = (
        "unified",
        "separate",
        "equal",
        "tailored",
    )
    draw: StageDraw = "uniform"
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    looks: _Positive = 5
    sampler: str = "ddim"
    sampling_steps: _Positive = 20

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

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    entries: Annotated[dict[_Name, dict[str, Any]], Field(min_length=2)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    looks: _Positive = 8
    sampler: str = "ddim"
    sampling_steps: _Positive = 20

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


class Recipe(BaseModel):
    """A whole experiment. Stages whose section is absent are not run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    description: str = ""
    data: DataOptions = DataOptions()
    base: BaseOptions
    groups: GroupOptions | None = None
    allocation: AllocationOptions | None = None
    prune: PruneOptions | None = None
    finetune: FinetuneOptions | None = None
    multistage: MultistageOptions | None = None
    curriculum: CurriculumOptions | None = None
    evaluation: EvaluationOptions | None = None

    @model_validator(mode="after")
    def _can_measure(self) -> "Recipe":
        """Rule ``measured`` has the searches of the prune section decide, which then must be for targets of MACs."""
        if (
            self.allocation
            and self.allocation.rule == "measured"
            and (self.prune is None or self.prune.search.target_of != "macs")
        ):
            raise InputError("Allocation rule measured needs a prune section whose search has target_of macs.")
        comparisons = [name for name in ("multistage", "curriculum") if getattr(self, name)]
        if comparisons and (self.evaluation is None or self.allocation or comparisons[1:]):
            raise InputError(
                f"A {comparisons[0]} section needs an evaluation section, and no allocation or other comparison."
            )
        if self.base.model is None and (
            self.curriculum or (self.multistage and "tailored" in self.multistage.networks)
        ):
            raise InputError("A curriculum, and tailored decoders, need a base with a model to train from scratch.")
        if self.multistage and self.base.train.timestep_sampler != "uniform":
            raise InputError("A multistage section needs timestep_sampler uniform; its draw says how stages are drawn.")
        if self.curriculum:
            self.curriculum.settings(self.base.train)
        return self


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it is not YAML, or a key is unknown or has a wrong value; the message gives the line.
    """
    if not path.is_file():
        raise MissingFileError(f"Recipe {path} does not exist; expected a .yaml file.")
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        repeated = next(_repeated(tree), None)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not YAML: {' '.join(str(error).split()).rstrip('.')}.") from error
    if not isinstance(data, dict):
        raise FileFormatError(f"{path} holds no mapping; expected keys such as name, data and base.")
    if repeated is not None:
        line = repeated.start_mark.line + 1
        raise FileFormatError(f"{path}, line {line}: {repeated.value}: given twice; keep one of them.")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        line = _line_of(tree, first["loc"])
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise FileFormatError(f"{path}, line {line}: {where or 'recipe'}: {message}.") from error


def _repeated(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """Keys that a mapping has already; YAML forbids them, and PyYAML would keep the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                yield key
            seen.add(str(key.value))
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line (from 1) of the innermost key on the way to ``location`` that the text has."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return int(line)
