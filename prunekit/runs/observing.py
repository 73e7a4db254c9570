"""Observers of runs."""

import logging
from typing import Protocol

from prunekit.training import Progress, Reporter

__all__ = ["Observer", "Silent", "Within", "say", "training_reporter"]

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Observes a run. An optional method ``note(sentence)`` receives messages for the user; see :func:`say`."""

    def stage(self, name: str, kept: bool) -> None:
        """A stage begins, or is ``kept`` from an earlier run."""
        ...

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        """Something inside a stage has progressed."""
        ...


class Silent:
    """An observer that does nothing."""

    def stage(self, name: str, kept: bool) -> None:
        """See :class:`Observer`."""

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        """See :class:`Observer`."""


def say(observer: Observer, sentence: str) -> None:
    """Give an observer a message for the user; without a method ``note``, the message goes to the log."""
    note = getattr(observer, "note", None)
    if callable(note):
        note(sentence)
    else:
        _log.warning("%s", sentence)


class Within:
    """Passes on the events of a run that is part of another run.

    Args:
        observer: the observer of the other run.
        part: the run's name there.
    """

    def __init__(self, observer: Observer, part: str) -> None:
        self._observer, self._part = observer, part

    def stage(self, name: str, kept: bool) -> None:
        """See :class:`Observer`; kept stages are not passed on."""
        if not kept:
            self._observer.stage(f"{self._part}: {name}", kept)

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        """See :class:`Observer`."""
        self._observer.progress(f"{self._part}: {label}", done, total, note)

    def note(self, sentence: str) -> None:
        """See :func:`say`."""
        say(self._observer, f"{self._part}: {sentence}")


def training_reporter(observer: Observer, label: str) -> Reporter:
    """A reporter that passes a training loop's progress on to an observer."""

    def report(progress: Progress) -> None:
        note = f"loss {progress.loss:.4f}, {progress.images_per_second:.0f} images/s"
        observer.progress(label, progress.step, progress.steps, note)

    return report
