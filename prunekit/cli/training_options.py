"""Options that ``train`` and ``finetune`` share, named as in diffusers' training scripts where these have them."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.cli.interrupts import keeping
from prunekit.errors import InputError

if TYPE_CHECKING:
    from prunekit.training import Reporter

__all__ = ["LoggingDir", "Resume", "training", "with_training_options"]

Resume = Annotated[
    str, typer.Option("--resume-from-checkpoint", help="latest: resume an interrupted training; no: start again.")
]
LoggingDir = Annotated[Path | None, typer.Option(help="TensorBoard folder (needs the tracking extra).")]
_Text, _Count, _Number = str | None, int | None, float | None
_SHARED: dict[str, Any] = {
    "gradient_accumulation_steps": Annotated[
        _Count, typer.Option(help="Split each process's batch into this many parts to save memory.")
    ],
    "lr_scheduler": Annotated[
        _Text, typer.Option(help="Learning rate after the warm-up: cosine (falls to zero) or constant.")
    ],
    "warmup_steps": Annotated[_Count, typer.Option("--lr-warmup-steps", help="Steps of linear warm-up.")],
    "timestep_sampler": Annotated[
        _Text,
        typer.Option(help="uniform, gaussian-curriculum, noise-rate-curriculum, asymmetric or loss-second-moment."),
    ],
    "curriculum_share": Annotated[
        _Number, typer.Option(help="Share of the steps after which a curriculum reaches its final distribution.")
    ],
    "loss_weight": Annotated[_Text, typer.Option(help="none, min-snr, p2 or change-aware.")],
    "momentum_decay": Annotated[_Text, typer.Option(help="How AdamW's beta1 falls: none, rational or exponential.")],
    "momentum_compensation": Annotated[
        _Text, typer.Option(help="How the learning rate compensates for that: step, gradient, code or none.")
    ],
    "weight_decay": Annotated[_Number, typer.Option("--adam-weight-decay", help="AdamW's weight decay.")],
    "label_dropout": Annotated[
        _Number, typer.Option(help="Share of the images whose class is hidden from a class-conditional model.")
    ],
    "max_grad_norm": Annotated[_Number, typer.Option(help="Clip the norm of gradients to this.")],
    "ema_decay": Annotated[
        _Number, typer.Option("--ema-max-decay", help="Decay of the moving average of the weights.")
    ],
    "mixed_precision": Annotated[_Text, typer.Option(help="no, fp16 or bf16.")],
    "checkpoint_every": Annotated[_Count, typer.Option("--checkpointing-steps", help="Steps between checkpoints.")],
    "checkpoint_minutes": Annotated[
        _Number,
        typer.Option("--checkpointing-minutes", help="Write a checkpoint after this many minutes, whatever the step."),
    ],
    "checkpoints_total_limit": Annotated[_Count, typer.Option(help="Number of checkpoints to keep.")],
}
"""Fields of :class:`prunekit.training.TrainOptions`; what is not typed stays at the command's default."""


def with_training_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter ``changes`` becomes an option for each field above; it is given those that were typed."""

    @wraps(command)
    def wrapped(**values: Any) -> None:
        typed = {name: values.pop(name) for name in _SHARED}
        command(**values, changes={name: value for name, value in typed.items() if value is not None})

    own = inspect.signature(command)
    shared = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=_SHARED[name]) for name in _SHARED]
    left = [each.replace(kind=Parameter.KEYWORD_ONLY) for name, each in own.parameters.items() if name != "changes"]
    wrapped.__signature__ = own.replace(parameters=[*left, *shared])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in (*left, *shared)} | {"return": None}
    return wrapped


@contextmanager
def training(
    checkpoints: Path, resume: str, label: str, logging_dir: Path | None
) -> Iterator[tuple["Reporter | None", bool]]:
    """Everything around a training: who reports and writes under ``accelerate launch``, and what becomes of the checkpoints.

    Args:
        checkpoints: their folder, dropped at once where the user starts anew. The block drops it once its result is written.
        resume: ``latest`` or ``no``.
        label: of the progress bar.
        logging_dir: TensorBoard's, or None.

    Yields:
        A reporter, None on all processes but the first; whether this is the first, the one that writes.

    Raises:
        InputError: ``resume`` is neither.
    """
    from prunekit.cli.console import Bars
    from prunekit.runs.observing import training_reporter
    from prunekit.search import ranks
    from prunekit.training.checkpoints import drop_checkpoints
    from prunekit.training.tracking import with_tensorboard

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
        if not first:
            yield None, False
            return
        with Bars().shown() as bars:
            yield with_tensorboard(training_reporter(bars, label), logging_dir), True


def _saved(checkpoints: Path) -> str | None:
    """What an interrupted training leaves behind."""
    from prunekit.training.checkpoints import saved_step

    step = saved_step(checkpoints)
    return None if step is None else f"the training is saved at step {step} in {checkpoints}"
