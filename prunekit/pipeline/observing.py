"""Who watches a run, and what a search leaves behind."""

import json
from pathlib import Path
from typing import Protocol

from prunekit._files import atomic_path
from prunekit.search import SearchResult
from prunekit.training import Progress, Reporter

__all__ = ["Observer", "Silent", "training_reporter", "write_journal"]


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


def training_reporter(observer: Observer, label: str) -> Reporter:
    """Pass a loop's progress on to an observer."""

    def report(progress: Progress) -> None:
        note = f"loss {progress.loss:.4f}, {progress.images_per_second:.0f} images/s"
        observer.progress(label, progress.step, progress.steps, note)

    return report


def write_journal(result: SearchResult, path: Path) -> None:
    """Every measured candidate of a search, one JSON object a line."""
    with atomic_path(path) as part:
        part.write_text("".join(json.dumps(entry) + "\n" for entry in result.memory), encoding="utf-8")
