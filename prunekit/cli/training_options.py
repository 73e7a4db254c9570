"""Options that ``train`` and ``finetune`` share, named as in diffusers' training scripts where these have them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._json import JsonObject
from prunekit.choices import (
    Compensation,
    LearningRates,
    LossWeights,
    MomentumDecays,
    Optimizers,
    Precision,
    TimestepSamplers,
)
from prunekit.cli.interrupts import keeping
from prunekit.errors import InputError

if TYPE_CHECKING:
    from prunekit.training import Reporter, TrainOptions
    from prunekit.training.tracking import Tracking

__all__ = ["LoggingDir", "ReportTo", "Resume", "ResumeOrContinue", "TrainingChanges", "training"]

Resume = Annotated[
    str, typer.Option("--resume-from-checkpoint", help="latest: resume an interrupted training; no: start again.")
]
ResumeOrContinue = Annotated[
    str,
    typer.Option(
        "--resume-from-checkpoint",
        help="latest: resume an interrupted training; no: start again; a finished base's file: train it on, up to "
        "--max-train-steps in all.",
    ),
]
ReportTo = Annotated[
    str | None,
    typer.Option(
        help="Track losses with tensorboard, wandb, mlflow, aim, … (names of accelerate's trackers, with commas between; default: "
        "none, or tensorboard with --logging-dir)."
    ),
]
LoggingDir = Annotated[
    Path | None, typer.Option(help="Folder of trackers that write files, such as tensorboard (default: logs).")
]


@dataclass(frozen=True)
class TrainingChanges:
    """Fields of :class:`prunekit.training.TrainOptions`; what is not typed stays at the command's default."""

    gradient_accumulation_steps: Annotated[
        int | None, typer.Option(help="Split each process's batch into this many parts to save memory (default: 1).")
    ] = None
    lr_scheduler: Annotated[
        LearningRates | None,
        typer.Option(help="Learning rate after the warm-up; cosine falls to zero (default: cosine)."),
    ] = None
    warmup_steps: Annotated[
        int | None,
        typer.Option("--lr-warmup-steps", help="Steps of linear warm-up (default: 100 for train, 30 for finetune)."),
    ] = None
    timestep_sampler: Annotated[
        TimestepSamplers | None, typer.Option(help="How training timesteps are drawn (default: uniform).")
    ] = None
    curriculum_share: Annotated[
        float | None,
        typer.Option(help="Share of the steps after which a curriculum reaches its final distribution (default: 0.5)."),
    ] = None
    curriculum_center: Annotated[
        float | None, typer.Option(help="Centre of gaussian-curriculum as a share of T (default: 0.3).")
    ] = None
    curriculum_width: Annotated[
        float | None, typer.Option(help="Width of gaussian-curriculum as a share of T (default: 0.3).")
    ] = None
    loss_weight: Annotated[
        LossWeights | None, typer.Option(help="Weight of each timestep in the loss (default: none).")
    ] = None
    optimizer: Annotated[
        Optimizers | None, typer.Option(help="AdamW, or SGD with a momentum of 0.9 (default: adamw).")
    ] = None
    momentum_decay: Annotated[
        MomentumDecays | None, typer.Option(help="How AdamW's beta1 or SGD's momentum falls (default: none).")
    ] = None
    momentum_floor: Annotated[
        float | None,
        typer.Option(
            help="Lowest value of the momentum; without it rational falls to 0 and exponential to 0.4 (default: none)."
        ),
    ] = None
    momentum_compensation: Annotated[
        Compensation | None, typer.Option(help="How the learning rate compensates for that (default: step).")
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option("--adam-weight-decay", help="AdamW's weight decay (default: 0).")
    ] = None
    label_dropout: Annotated[
        float | None,
        typer.Option(
            help="Share of the images whose class, caption or other conditions are hidden from the model (default: 0)."
        ),
    ] = None
    condition_dropout: Annotated[
        list[str] | None,
        typer.Option(
            help="Also hide one condition alone, NAME=SHARE, e.g. pooled_projections=0.1; may be repeated (default: none)."
        ),
    ] = None
    max_grad_norm: Annotated[float | None, typer.Option(help="Clip the norm of gradients to this (default: 1).")] = None
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing", help="Compute blocks again in the backward pass, to save memory."),
    ] = None
    use_8bit_adam: Annotated[
        bool | None,
        typer.Option("--use-8bit-adam", help="Keep AdamW's moments in 8 bits; needs torchao."),
    ] = None
    ema_decay: Annotated[
        float | None,
        typer.Option(
            "--ema-max-decay",
            help="Decay of the moving average of the weights (default: 0.999 for train, 0.995 for finetune).",
        ),
    ] = None
    mixed_precision: Annotated[Precision | None, typer.Option(help="Mixed precision (default: no).")] = None
    checkpoint_every: Annotated[
        int | None, typer.Option("--checkpointing-steps", help="Steps between checkpoints (default: 500).")
    ] = None
    checkpoint_minutes: Annotated[
        float | None,
        typer.Option("--checkpointing-minutes", help="Also write a checkpoint every so many minutes (default: 3)."),
    ] = None
    checkpoints_total_limit: Annotated[int | None, typer.Option(help="Number of checkpoints to keep (default: 2).")] = (
        None
    )

    @property
    def typed(self) -> JsonObject:
        """The fields that were typed."""
        found: JsonObject = {name: value for name, value in vars(self).items() if value is not None}
        if self.condition_dropout is not None:
            found["condition_dropout"] = dict(map(_share, self.condition_dropout))
        return found


def _share(text: str) -> tuple[str, float]:
    """A condition's name and how often it is hidden.

    Raises:
        InputError: the text is of another form.
    """
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise InputError(
            f"Got --condition-dropout {text!r:.80}; expected NAME=SHARE, as in pooled_projections=0.1."
        ) from error


@contextmanager
def training(
    checkpoints: Path, resume: str, label: str, report_to: str | None, logging_dir: Path | None, options: "TrainOptions"
) -> Iterator[tuple["Reporter | None", "Tracking | None", bool]]:
    """Everything around a training: who reports and writes under ``accelerate launch``, and what becomes of the checkpoints.

    Args:
        checkpoints: their folder, dropped at once where the user starts anew. The block drops it once its result is written.
        resume: ``latest`` or ``no``.
        label: name of the tracked run.
        report_to: names of trackers, or None; with a ``logging_dir``, None is TensorBoard.
        logging_dir: folder of trackers that write files, or None.
        options: of the training, for the trackers.

    Yields:
        A reporter and the trackers, None without trackers and on all processes but the first; whether this is the first, the one
        that writes.

    Raises:
        InputError: ``resume`` is neither.
    """
    from prunekit.search import ranks
    from prunekit.training.checkpoints import drop_checkpoints
    from prunekit.training.tracking import open_tracking

    if resume not in ("latest", "no"):
        raise InputError(
            f"Got --resume-from-checkpoint {resume}; expected latest, to go on after an interruption, or no, to start anew."
        )
    ranks.join()
    first = ranks.place()[0] == 0
    if resume == "no" and first:
        drop_checkpoints(checkpoints)
    ranks.same(None)  # none looks for checkpoints before the first has dropped them
    with keeping(lambda: _saved(checkpoints), without=("--resume-from-checkpoint",) if resume == "no" else ()):
        asked = report_to or ("tensorboard" if logging_dir is not None else "")
        if not first or not asked:
            yield None, None, first
            return
        tracking = open_tracking(asked, label, logging_dir, asdict(options), options.learning_rate_at)
        try:
            yield tracking.reporter(), tracking, True
        finally:
            tracking.finish()


def _saved(checkpoints: Path) -> str | None:
    """What an interrupted training leaves behind."""
    from prunekit.training.checkpoints import saved_step

    step = saved_step(checkpoints)
    return None if step is None else f"the training is saved at step {step} in {checkpoints}"
