"""Progress on standard error: bars with the time left in a terminal, and a plain line a minute elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from prunekit._messages import printable
from prunekit._progress import watched
from prunekit.cli.overall_progress import Overall, OverallOfJobs, said_seconds

__all__ = ["Bars", "showing_progress"]

_MINUTE = 60.0  # between two lines where there is no terminal


class Bars:
    """An observer of runs, and a watcher of everything else, that draws on standard error.

    Args:
        weights: work of each stage of a run, in any unit; the overall bar needs it. Stages that are not named weigh nothing.
        inside: whether the work happens in this process, so that it tells of its progress itself; else several stages run at a
            time in jobs.
    """

    def __init__(self, weights: Mapping[str, float] | None = None, inside: bool = True) -> None:
        self._weights, self._inside = dict(weights or {}), inside
        whole = Overall if inside else OverallOfJobs
        self._left: Overall | OverallOfJobs | None = whole(self._weights) if self._weights else None
        self._process, self._first = os.getpid(), int(os.environ.get("RANK", "0")) == 0
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._stage, self._began, self._spoke = "", time.monotonic(), time.monotonic()
        self._starts: dict[str, tuple[float, int]] = {}

    def stage(self, name: str, kept: bool) -> None:
        """See :class:`prunekit.runs.observing.Observer`."""
        self._end_stage("done")
        self.note(f"{name}: kept from before" if kept else name)
        if self._left is not None:
            self._left.begin(name, kept)
        self._stage, self._began = ("" if kept else name), time.monotonic()

    def note(self, sentence: str) -> None:
        """See :func:`prunekit.runs.observing.say`."""
        if self._progress is not None:
            self._progress.console.print(printable(sentence), highlight=False, markup=False)
        else:
            print(printable(sentence), file=sys.stderr)

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        """See :class:`prunekit.runs.observing.Observer`."""
        if not self._inside:  # else the work has told itself, in finer steps
            self(label, done, total, note)

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        """See :class:`prunekit._progress.Watcher`."""
        if os.getpid() != self._process or not self._first or total < 1:
            return
        if self._left is not None and self._stage:
            self._left.within(min(1.0, done / total), label)
        if self._terminal:
            self._draw(label, done, total, note)
        else:
            self._line(label, done, total, note)

    @contextmanager
    def shown(self) -> Iterator["Bars"]:
        """Watch the block; afterwards the bars are gone, and the cursor is there."""
        ending = "stopped"
        try:
            with watched(self):
                yield self
            ending = "done"
        finally:
            self._end_stage(ending)
            self._stop()

    def _end_stage(self, ending: str) -> None:
        if self._stage and not self._terminal and self._inside:
            print(f"{self._stage}: {ending} after {said_seconds(time.monotonic() - self._began)}", file=sys.stderr)
        if self._left is not None and self._stage:
            self._left.within(1.0)
        self._stage = ""

    def _draw(self, label: str, done: int, total: int, note: str) -> None:
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
            from rich.text import Text

            class Left(TimeRemainingColumn):
                """The time left by what the bars know, or else by the bar's own speed."""

                def render(self, task: Task) -> Text:
                    left = task.fields.get("left", "")
                    return Text(left, style="progress.remaining") if left else super().render(task)

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                Left(),
                TextColumn("{task.fields[note]}"),
            )
            console = Console(stderr=True)
            self._progress = Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._progress.start()
            if self._left is not None:
                self._tasks[""] = self._progress.add_task("whole run", total=1.0, note="")
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, total=total, note=note)
        self._progress.update(self._tasks[label], completed=done, total=total, note=note)
        if self._left is not None:
            self._progress.update(self._tasks[""], completed=self._left.share, left=self._left.time_left)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(label))
            if not self._tasks:
                self._stop()  # so that results are printed on a clean terminal

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._tasks = None, {}

    def _line(self, label: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        began, first = self._starts.setdefault(label, (now, done))
        if now - self._spoke >= _MINUTE and done < total:
            left = (now - began) / (done - first) * (total - done) if done > first else None
            parts = [
                f"{label}: {100 * done / total:.0f} %",
                f"{said_seconds(left)} left" if left is not None else "",
                note,
            ]
            if self._left is not None:
                parts.append(self._left.said())
            print("prunekit: " + ", ".join(filter(None, parts)), file=sys.stderr, flush=True)
            self._spoke = now
        if done >= total:
            del self._starts[label]


def showing_progress(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose progress is shown."""

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> None:
        with Bars().shown():
            command(*args, **values)

    return wrapped
