"""Who watches a run."""

from typing import Protocol

from prunekit.training import Progress, Reporter

__all__ = ["Observer", "Silent", "Within", "training_reporter"]


class Observer(Protocol):
    """Who watches a run."""

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


def training_reporter(observer: Observer, label: str) -> Reporter:
    """Pass a loop's progress on to an observer."""

    def report(progress: Progress) -> None:
        note = f"loss {progress.loss:.4f}, {progress.images_per_second:.0f} images/s"
        observer.progress(label, progress.step, progress.steps, note)

    return report
