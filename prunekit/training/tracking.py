"""Tracking: writes losses for TensorBoard if the ``tracking`` extra is installed."""

from pathlib import Path

from prunekit.errors import InputError
from prunekit.training.options import Progress, Reporter

__all__ = ["with_tensorboard"]


def with_tensorboard(report: Reporter, folder: Path | str | None) -> Reporter:
    """A reporter that also writes loss and rate for TensorBoard; ``report`` itself if no folder is given.

    Raises:
        InputError: a folder is given and TensorBoard is not installed.
    """
    folder = Path(folder) if folder is not None else None
    if folder is None:
        return report
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "TensorBoard is not installed; install prunekit[tracking], or leave `logging_dir` out."
        ) from error
    writer = SummaryWriter(str(folder))

    def both(progress: Progress) -> None:
        report(progress)
        writer.add_scalar("loss", progress.loss, progress.step)
        writer.add_scalar("images_per_second", progress.images_per_second, progress.step)
        writer.flush()

    return both
