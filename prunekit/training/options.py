"""Training options, and the progress that a loop reports."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, get_args

from prunekit._chosen import check_choice
from prunekit.choices import (
    Compensation,
    LearningRates,
    LossWeights,
    MomentumDecays,
    Optimizers,
    Precision,
    TimestepSamplers,
)
from prunekit.errors import InputError
from prunekit.training.momentum import ExponentialMomentum, MomentumDecay, RationalMomentum

__all__ = ["PRECISIONS", "LearningRates", "Progress", "Reporter", "TrainOptions"]

PRECISIONS = get_args(Precision)
_CHOICES = {
    "timestep_sampler": get_args(TimestepSamplers),
    "loss_weight": get_args(LossWeights),
    "lr_scheduler": get_args(LearningRates),
    "momentum_decay": get_args(MomentumDecays),
    "optimizer": get_args(Optimizers),
    "momentum_compensation": get_args(Compensation),
    "mixed_precision": PRECISIONS,
}
_COUNTS = (
    "steps",
    "batch_size",
    "gradient_accumulation_steps",
    "checkpoint_every",
    "checkpoints_total_limit",
    "log_every",
)


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the defaults are this project's, for small images.

    Args:
        steps: number of train steps.
        batch_size: images per step, over all processes.
        gradient_accumulation_steps: number of parts into which a process's share of the batch is split to save memory; the
            gradients are those of the whole batch.
        timestep_sampler: how timesteps are drawn. ``logit-normal`` is Stable Diffusion 3's draw for flow matching, with the shift
            of the pipeline's scheduler, and ``log-normal`` is EDM's, see :class:`~prunekit.training.LogNormalTimesteps`.
            ``asymmetric`` is SpeeD's, and the loss weight ``change-aware`` is its other half.
        curriculum_share: share of the steps after which a curriculum has reached its final distribution.
        curriculum_center: centre of ``gaussian-curriculum`` as a share of T.
        curriculum_width: its width, a standard deviation as a share of T.
        loss_weight: weight of each timestep in the loss. ``inverse-loss`` and ``inverse-root-loss`` are learnt: the inverse of the
            timestep's usual loss, or of its root.
        optimizer: AdamW, or SGD with a momentum of 0.9.
        learning_rate: the optimizer's learning rate after the warm-up.
        lr_scheduler: how the learning rate changes after the warm-up: ``cosine`` falls to zero; ``constant`` keeps it, so that a
            learning curve can be read at any step.
        warmup_steps: number of steps over which the learning rate rises linearly.
        momentum_decay: how AdamW's β1 or SGD's momentum falls over all steps: not at all (``none``), to zero (``rational``,
            :class:`~prunekit.training.RationalMomentum`) or from 0.9 to 0.4 (``exponential``,
            :class:`~prunekit.training.ExponentialMomentum`).
        momentum_floor: what it does not fall below. If missing: 0 for ``rational``, 0.4 for ``exponential``.
        momentum_compensation: how the learning rate compensates for the falling β1, see :class:`~prunekit.training.MomentumDecay`.
        weight_decay: AdamW's weight decay.
        label_dropout: share of the images for which the classes or other conditions are withheld from the network, see
            :class:`~prunekit.training.Columns`.
        condition_dropout: for some conditions by their arguments' paths, such as ``{pooled_projections: 0.1}``, the share of the
            images for which that one is withheld in addition, each drawn for itself.
        max_grad_norm: norm at which gradients are clipped.
        gradient_checkpointing: whether blocks are computed again in the backward pass, which saves most of the activations' memory
            and takes about a third more time; the result is the same.
        use_8bit_adam: whether AdamW keeps its moments in 8 bits, by torchao (``pip install 'prunekit[low-memory]'``).
        ema_decay: decay of the weights' moving average, min(ema_decay, (1+n)/(10+n)) after n steps.
        mixed_precision: precision of the forward pass; ``no`` is float32.
        checkpoint_every: number of steps between checkpoints.
        checkpoint_minutes: minutes after which a checkpoint is written in any case. The value does not change the result, so an
            interrupted training can resume with another value. If writing takes long, checkpoints come less often, so that
            writing takes at most a twentieth of the time.
        checkpoints_total_limit: number of newest checkpoints that are kept.
        log_every: number of steps between reports; each reports the mean loss since the last one.
        seed: seed of the batches, timesteps and noise.

    Raises:
        InputError: an option is unknown or out of its range.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    steps: int = 2000
    batch_size: int = 128
    gradient_accumulation_steps: int = 1
    timestep_sampler: TimestepSamplers = "uniform"
    curriculum_share: float = 0.5
    curriculum_center: float = 0.3
    curriculum_width: float = 0.3
    loss_weight: LossWeights = "none"
    learning_rate: float = 1e-3
    lr_scheduler: LearningRates = "cosine"
    warmup_steps: int = 100
    optimizer: Optimizers = "adamw"
    momentum_decay: MomentumDecays = "none"
    momentum_floor: float | None = None
    momentum_compensation: Compensation = "step"
    weight_decay: float = 0.0
    label_dropout: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    use_8bit_adam: bool = False
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    checkpoint_every: int = 500
    checkpoints_total_limit: int = 2
    log_every: int = 50
    seed: int = 0
    checkpoint_minutes: float = 3.0
    condition_dropout: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self._check_finite()
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise InputError(f"Got {name} {getattr(self, name)}; expected at least 1.")
        if self.learning_rate <= 0 or not 0 <= self.ema_decay < 1 or self.checkpoint_minutes <= 0:
            raise InputError(
                f"Got learning_rate {self.learning_rate:g}, ema_decay {self.ema_decay:g} and checkpoint_minutes "
                f"{self.checkpoint_minutes:g}; expected a positive rate, a decay in [0, 1) and positive minutes."
            )
        if not 0 < self.curriculum_share <= 1:
            raise InputError(
                f"Got curriculum_share {self.curriculum_share:g}; expected a share of the steps in (0, 1]."
            )
        if not 0 <= self.curriculum_center <= 1 or not 1e-6 <= self.curriculum_width <= 10:
            raise InputError(
                f"Got curriculum_center {self.curriculum_center:g} and curriculum_width {self.curriculum_width:g}; expected "
                "shares of the timesteps, a centre in [0, 1] and a width in [1e-6, 10]."
            )
        self._check_dropout()
        if self.warmup_steps < 0 or self.weight_decay < 0 or self.max_grad_norm <= 0:
            raise InputError("Expected warmup_steps and weight_decay of at least 0 and a positive max_grad_norm.")
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        if self.use_8bit_adam and self.optimizer != "adamw":
            raise InputError(f"Got use_8bit_adam with optimizer {self.optimizer}; expected optimizer adamw.")
        if self.momentum_floor is not None and self.momentum_decay == "none":
            raise InputError(f"Got momentum_floor {self.momentum_floor:g} without a momentum_decay; expected both.")
        if self.use_8bit_adam and self.momentum_decay != "none":
            raise InputError(
                f"Got use_8bit_adam with momentum_decay {self.momentum_decay}; expected one of them, since 8-bit AdamW takes one "
                "beta1 only."
            )
        _ = self.momentum  # refuses a floor above where it starts

    def _check_finite(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"Got {each.name} {value}; expected a finite number.")

    def _check_dropout(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise InputError(f"Got label_dropout {self.label_dropout:g}; expected a share of the images in [0, 1).")
        for name, share in (self.condition_dropout or {}).items():
            if not 0 <= share < 1:
                raise InputError(
                    f"Got condition_dropout {share:g} for {name:.80}; expected a share of the images in [0, 1)."
                )

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a train step: linear warm-up, then the schedule; a cosine stays slightly above 0 at the last step."""
        if step < self.warmup_steps:
            return self.learning_rate * ((step + 1) / self.warmup_steps)
        if self.lr_scheduler == "constant":
            return self.learning_rate
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.5 * (1 + math.cos(math.pi * progress)))

    @property
    def momentum(self) -> MomentumDecay | None:
        """The decay of β1, or None.

        Raises:
            InputError: the decay never reaches the floor.
        """
        match self.momentum_decay:
            case "rational":
                falling = RationalMomentum(self.steps, minimum=self.momentum_floor or 0.0)
                return MomentumDecay(falling, self.momentum_compensation)
            case "exponential":
                whole = ExponentialMomentum(1.0)  # over all steps it falls to its minimum
                least = whole.minimum if self.momentum_floor is None else self.momentum_floor
                if not least:
                    raise InputError("Got momentum_floor 0 with momentum_decay exponential, which never reaches it.")
                factor = (least / whole.initial) ** (1 / self.steps)
                return MomentumDecay(ExponentialMomentum(factor, least), self.momentum_compensation)
            case _:
                return None


@dataclass(frozen=True)
class Progress:
    """A progress report: steps done of ``steps``, mean loss since the last report, images per second."""

    step: int
    steps: int
    loss: float
    images_per_second: float


Reporter = Callable[[Progress], None]
