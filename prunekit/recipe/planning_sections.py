"""The sections of a recipe that say what each timestep group's network is to be: groups, allocation and prune."""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from prunekit._chosen import check_choice
from prunekit._types import FloatArray
from prunekit.allocation import RULES
from prunekit.choices import CutRule, ExpertsKind, HeadMode, NormMode, SensitivityMeasure, Shrink
from prunekit.errors import InputError
from prunekit.graph import Constraints
from prunekit.groups import ETA, METHODS, Similarity
from prunekit.importance import CRITERIA, criterion
from prunekit.recipe.bounds import SEARCH, check_search
from prunekit.recipe.fields import STRICT, NotNegative, Positive, Ratio, Seed
from prunekit.recipe.schema import Choice
from prunekit.search import RepairKind, SearchOptions, UnconfirmedEndpoint

__all__ = ["MEASURED_METHODS", "AllocationOptions", "GroupOptions", "PruneOptions"]

MEASURED_METHODS = ("gradient", "similarity")
"""Grouping methods that need a base or images."""


def _unconfirmed(options: SearchOptions) -> SearchOptions:
    """The options as a recipe gives them, with an endpoint that is not yet confirmed."""
    return options if options.llm is None else replace(options, llm=UnconfirmedEndpoint(**vars(options.llm)))


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

    Raises:
        InputError: options exclude each other, or cuts do not rise.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    method: Annotated[str, Choice((*METHODS, *MEASURED_METHODS))] = "uniform"
    count: Positive = 5
    cuts: tuple[int, ...] | None = None
    experts: ExpertsKind = "all"
    alpha: float | None = None
    eta: Annotated[float, Field(gt=0)] = ETA
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
        cuts = self.cuts or ()
        if any(second <= first for first, second in zip((0, *cuts), cuts, strict=False)):
            raise InputError(f"Got cuts {list(cuts)}; expected rising timesteps from 1.")
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

    def check_number_of_timesteps(self, timesteps: int, place: str) -> None:
        """Refuse cuts beyond the last timestep, and more groups than timesteps; ``place`` is where they stand in the recipe.

        Raises:
            InputError: there are some.
        """
        last = max(self.cuts or (0,))
        if last >= timesteps:
            raise InputError(
                f"Got {place}.cuts up to {last} and a noise schedule of {timesteps} timesteps; expected less."
            )
        if self.number > timesteps:
            raise InputError(
                f"Got a {place}.count of {self.number} and a noise schedule of {timesteps} timesteps; expected at most one each."
            )

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
            trained for a short time. Rule ``measured`` then compares losses after this training. 0: compare losses before it.
        recovery_steps: train steps of each of these; the other options are those of the fine-tuning.

    Raises:
        InputError: options need rule ``measured``, there is one recovery, or the frontiers do not go below the budget.
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

    Raises:
        InputError: an option is unknown or out of its range, or a target of latency has no table.
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
        check_choice("shrink", self.shrink, get_args(Shrink))
        criterion(self.criterion)
        if not 0 <= self.floor <= 1:
            raise InputError(f"Got floor {self.floor:g}; expected a share of every channel group from 0 to 1.")
        check_choice("repair", self.repair, get_args(RepairKind))
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
