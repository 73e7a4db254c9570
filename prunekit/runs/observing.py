"""Who watches a run."""

import logging
from typing import Protocol

from prunekit.training import Progress, Reporter

__all__ = ["Observer", "Silent", "Within", "say", "training_reporter"]

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who watches a run. One that has a method ``note(sentence)`` is told, too, what a user should know; see :func:`say`."""

    def stage(self, name: str, kept: bool) -> None:
        """A stage begins, or is ``kept`` from an earlier run."""
        ...

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        """Something inside a stage moved on."""
        ...


class Silent:
    """An observer that says nothing."""

    def stage(self, name: str, kept: bool) -> None:
        """See :class:`Observer`."""

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        """See :class:`Observer`."""


def say(observer: Observer, sentence: str) -> None:
    """Tell an observer a sentence that a user should read; one without a method ``note`` has it in the log."""
    note = getattr(observer, "note", None)
    if callable(note):
        note(sentence)
    else:
        _log.warning("%s", sentence)


class Within:
    """Passes on what happens in a run that is part of another.

    Args:
        observer: of the other.
        part: what the run is called there.
    """

    def __init__(self, observer: Observer, part: str) -> None:
        self._observer, self._part = observer, part

    def stage(self, name: str, kept: bool) -> None:
        """See :class:`Observer`; of what is kept nothing is said."""
        if not kept:
            self._observer.stage(f"{self._part}: {name}", kept)

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        """See :class:`Observer`."""
        self._observer.progress(f"{self._part}: {label}", done, total, note)

    def note(self, sentence: str) -> None:
        """See :func:`say`."""
        say(self._observer, f"{self._part}: {sentence}")


def training_reporter(observer: Observer, label: str) -> Reporter:
    """Pass a loop's progress on to an observer."""

    def report(progress: Progress) -> None:
        note = f"loss {progress.loss:.4f}, {progress.images_per_second:.0f} images/s"
        observer.progress(label, progress.step, progress.steps, note)

    return report
