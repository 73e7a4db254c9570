"""Options that ``train`` and ``finetune`` share, named as in diffusers' training scripts where these have them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit.errors import InputError

if TYPE_CHECKING:
    from prunekit.training import Reporter

__all__ = [
    "Accumulation",
    "CheckpointEvery",
    "CheckpointLimit",
    "CurriculumShare",
    "EmaDecay",
    "LoggingDir",
    "LossWeight",
    "LrScheduler",
    "MaxGradNorm",
    "MixedPrecision",
    "MomentumCompensation",
    "MomentumDecay",
    "Resume",
    "TimestepSampler",
    "Warmup",
    "WeightDecay",
    "given",
    "training",
]

Accumulation = Annotated[
    int | None,
    typer.Option(
        "--gradient-accumulation-steps", help="Parts that each process's share of a batch goes through in, one by one."
    ),
]
LrScheduler = Annotated[str | None, typer.Option(help="After the warm-up: cosine (to zero) or constant.")]
Warmup = Annotated[int | None, typer.Option("--lr-warmup-steps", help="Steps of linear warm-up.")]
WeightDecay = Annotated[float | None, typer.Option("--adam-weight-decay", help="AdamW's weight decay.")]
MaxGradNorm = Annotated[float | None, typer.Option(help="Norm that gradients are clipped to.")]
EmaDecay = Annotated[float | None, typer.Option("--ema-max-decay", help="Decay of the weights' moving average.")]
MixedPrecision = Annotated[str, typer.Option(help="no, fp16 or bf16.")]
TimestepSampler = Annotated[
    str | None,
    typer.Option(help="uniform, gaussian-curriculum, noise-rate-curriculum, asymmetric or loss-second-moment."),
]
CurriculumShare = Annotated[
    float | None, typer.Option(help="Share of the steps after which a curriculum has reached its last distribution.")
]
LossWeight = Annotated[str | None, typer.Option(help="none, min-snr, p2 or change-aware.")]
MomentumDecay = Annotated[str | None, typer.Option(help="How AdamW's beta1 falls: none, rational or exponential.")]
MomentumCompensation = Annotated[
    str | None, typer.Option(help="What the learning rate does about it: step, gradient, code or none.")
]
CheckpointEvery = Annotated[int | None, typer.Option("--checkpointing-steps", help="Steps between checkpoints.")]
CheckpointLimit = Annotated[int | None, typer.Option("--checkpoints-total-limit", help="Checkpoints that are kept.")]
Resume = Annotated[
    str, typer.Option("--resume-from-checkpoint", help="latest: go on after an interruption; no: start anew.")
]
LoggingDir = Annotated[Path | None, typer.Option(help="TensorBoard folder (needs the tracking extra).")]


def given(**values: Any) -> dict[str, Any]:
    """Those that were typed."""
    return {name: value for name, value in values.items() if value is not None}


@contextmanager
def training(
    checkpoints: Path, resume: str, label: str, logging_dir: Path | None
) -> Iterator[tuple["Reporter | None", bool]]:
    """Everything around a training: who reports and writes under ``accelerate launch``, and what becomes of the checkpoints.

    Args:
        checkpoints: dropped once the block is through, or at once where the user starts anew.
        resume: ``latest`` or ``no``.
        label: of the progress bar.
        logging_dir: TensorBoard's, or None.

    Yields:
        A reporter, None on all processes but the first; whether this is the first, the one that writes.

    Raises:
        InputError: ``resume`` is neither.
    """
    import shutil

    from prunekit.cli.console import Bars
    from prunekit.pipeline.observing import training_reporter
    from prunekit.search import ranks
    from prunekit.training.tracking import with_tensorboard

    if resume not in ("latest", "no"):
        raise InputError(
            f"Got --resume-from-checkpoint {resume}; expected latest, to go on after an interruption, or no, to start anew."
        )
    ranks.join()
    first = ranks.place()[0] == 0
    if resume == "no" and first:
        shutil.rmtree(checkpoints, ignore_errors=True)
    ranks.same(None)  # none looks for checkpoints before the first has dropped them
    if not first:
        yield None, False
        return
    with Bars().shown() as bars:
        yield with_tensorboard(training_reporter(bars, label), logging_dir), True
    shutil.rmtree(checkpoints, ignore_errors=True)
