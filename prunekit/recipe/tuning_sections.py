"""The sections of a recipe that say how experts are trained and measured."""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, get_args

from pydantic import Field, JsonValue

from prunekit._chosen import check_choice
from prunekit.choices import VarianceKind
from prunekit.errors import InputError
from prunekit.extractors import FILES
from prunekit.features import SHIPPED
from prunekit.inception import INCEPTION
from prunekit.recipe.fields import STRICT, NotNegative, Positive, Seeds, Train
from prunekit.recipe.schema import Choice
from prunekit.slim import SlimModel
from prunekit.training import Fade, TrainOptions

__all__ = ["DistillationOptions", "EvaluationOptions", "FinetuneOptions"]


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
        share_steps: whether groups in which an error changes the sample more get more of the steps. The total MACs stay those
            of equal steps for all. It needs an allocation with a sensitivity.
        only_pruned: whether timestep groups that keep the whole base stay as they are. They then share its weights, and a short
            training cannot make them worse.
        train: the options of the training.
        learning_rates: learning rate of each timestep group, cleanest first, in place of ``train.learning_rate``. Noisier groups
            take higher rates, since their gradients differ less between images.
        variance: how the variances of a network that predicts them are kept: by the distance from the base's (``distill``), by
            the variational bound (``vlb``, arXiv:2102.09672), or not at all (``none``). Other networks are not affected.
        variance_weight: weight of that in the loss. If missing: 0.1 for ``distill`` and 0.001 for ``vlb``.

    Raises:
        InputError: the variance is unknown, its weight out of range, or ``from_scratch`` is given with an option of fine-
            tuning.
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
        check_choice("variance", self.variance, get_args(VarianceKind))
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

    Raises:
        InputError: a guidance scale is given without a pipeline, or twice.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    samples: Annotated[Positive, Field(ge=2)] = 1024
    seeds: Seeds = (0, 1, 2)
    features: Annotated[str, Choice(("auto", *SHIPPED, INCEPTION), files=FILES)] = "auto"
    clip: str | None = None
    pipeline: str | None = None
    guidance_scale: float | None = None
    pipeline_arguments: dict[str, JsonValue] = field(default_factory=dict)
    other_guidance_scales: tuple[float, ...] = ()
    loss_samples: Positive = 2048
    grid: Positive = 40

    def __post_init__(self) -> None:
        scales = (self.guidance_scale, *self.other_guidance_scales)
        if self.pipeline is None and any(scale is not None for scale in scales):
            raise InputError(
                "Got a guidance scale without a pipeline; name the pipeline through which samples are drawn."
            )
        if len(set(scales)) < len(scales):
            raise InputError(f"Got the guidance scales {', '.join(map(str, scales))}; expected each of them once.")
