"""Tracking by accelerate's trackers: losses, learning rate, speed, and images of samples."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from prunekit._json import JsonDict
from prunekit._messages import did_you_mean
from prunekit.errors import InputError
from prunekit.training.options import Progress, Reporter

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

__all__ = ["Tracking", "open_tracking", "tracker_names"]

_PACKAGES = {"tensorboard": "tensorboard", "comet_ml": "comet-ml"}  # pip's names where they differ from the trackers'


class Tracking:
    """Writes what happens in a training to trackers.

    Args:
        trackers: accelerate's, or ones of your own.
        learning_rate: learning rate of a train step, to be tracked too.
    """

    def __init__(
        self, trackers: Sequence["GeneralTracker"], learning_rate: Callable[[int], float] | None = None
    ) -> None:
        self._trackers, self._learning_rate = tuple(trackers), learning_rate

    def reporter(self, report: Reporter | None = None) -> Reporter:
        """A reporter for :func:`prunekit.training.train` that also calls ``report``."""

        def both(progress: Progress) -> None:
            if report is not None:
                report(progress)
            values = {"loss": progress.loss, "images_per_second": progress.images_per_second}
            if self._learning_rate is not None:
                values["lr"] = self._learning_rate(progress.step - 1)
            for tracker in self._trackers:
                tracker.log(values, step=progress.step)

        return both

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Track uint8 images (count, C, H, W), with the trackers that take images."""
        pixels = images.permute(0, 2, 3, 1).numpy()
        for tracker in self._trackers:
            if (log_images := getattr(tracker, "log_images", None)) is not None:
                named = {"dataformats": "NHWC"} if getattr(tracker, "name", "") == "tensorboard" else {}
                log_images({name: pixels}, step=step, **named)

    def finish(self) -> None:
        """Write what is left, and end the trackers' runs."""
        for tracker in self._trackers:
            tracker.finish()


def tracker_names() -> list[str]:
    """Names of accelerate's trackers."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # noqa: PLC0415 - takes seconds

    return sorted(LOGGER_TYPE_TO_CLASS)


def open_tracking(
    report_to: "str | GeneralTracker | Sequence[str | GeneralTracker]",
    run_name: str,
    logging_dir: Path | str | None = None,
    config: Mapping[str, object] | None = None,
    learning_rate: Callable[[int], float] | None = None,
) -> Tracking:
    """Start trackers.

    Args:
        report_to: names of accelerate's trackers (:func:`tracker_names`), with commas between, or trackers of your own.
        run_name: the run's or project's name.
        logging_dir: folder of trackers that write files (default: ``logs``).
        config: options of the run, to be stored with it; values that are not numbers or texts are stored as text.
        learning_rate: learning rate of a train step, to be tracked too.

    Raises:
        InputError: there is no tracker of this name, or its package is not installed; the message has the command to install it.
    """
    asked = [report_to] if isinstance(report_to, str) or not isinstance(report_to, Sequence) else list(report_to)
    named = [name for each in asked for name in (each.split(",") if isinstance(each, str) else [each])]
    trackers = [_named(each.strip(), run_name, logging_dir) if isinstance(each, str) else each for each in named]
    stored: JsonDict = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in (config or {}).items()
    }
    for tracker in trackers:
        start = getattr(tracker, "start", None)
        if callable(start):  # newer versions of accelerate start a tracker apart from making it
            start()
        if stored:
            tracker.store_init_configuration(dict(stored))
    return Tracking(trackers, learning_rate)


def _named(name: str, run_name: str, logging_dir: Path | str | None) -> "GeneralTracker":
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers  # noqa: PLC0415 - takes seconds

    if name not in LOGGER_TYPE_TO_CLASS:
        known = tracker_names()
        raise InputError(f"Unknown tracker {name!r}{did_you_mean(name, known)}; expected one of {', '.join(known)}.")
    if name not in {str(getattr(each, "value", each)) for each in get_available_trackers()}:
        package = _PACKAGES.get(name, name)
        raise InputError(f"The tracker {name} is not installed; install it with `pip install {package}`.")
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    arguments: dict[str, Any] = {}
    if "logging_dir" in inspect.signature(kind.__init__).parameters:
        arguments["logging_dir"] = str(logging_dir or "logs")
    if kind.requires_logging_directory:
        Path(arguments["logging_dir"]).mkdir(parents=True, exist_ok=True)
    tracker: GeneralTracker = kind(run_name, **arguments)
    return tracker
