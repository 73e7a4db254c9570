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

__all__ = ["Bars", "showing_progress"]

_WHOLE_STAGES = ("importance of timestep groups", "search", "training")
_MINUTE = 60.0  # between two lines where there is no terminal


class Bars:
    """An observer of runs, and a watcher of everything else, that draws on standard error.

    Args:
        weights: work of each stage of a run, in any unit; the overall bar needs it. Stages that are not named weigh nothing.
        inside: whether the work happens in this process, so that it tells of its progress itself.
    """

    def __init__(self, weights: Mapping[str, float] | None = None, inside: bool = True) -> None:
        self._weights, self._inside = dict(weights or {}), inside
        self._left: Overall | None = Overall(self._weights) if self._weights else None
        self._process, self._first = os.getpid(), int(os.environ.get("RANK", "0")) == 0
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._stage, self._began, self._spoke = "", time.monotonic(), time.monotonic()
        self._starts: dict[str, float] = {}

    def stage(self, name: str, kept: bool) -> None:
        """See :class:`prunekit.runs.observing.Observer`."""
        self._end_stage()
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

    def close(self) -> None:
        """Take the bars away, and show the cursor."""
        self._end_stage()
        self._stop()

    @contextmanager
    def shown(self) -> Iterator["Bars"]:
        """Watch the block."""
        try:
            with watched(self):
                yield self
        finally:
            self.close()

    def _end_stage(self) -> None:
        if self._stage and not self._terminal:
            print(f"{self._stage}: ended after {said_seconds(time.monotonic() - self._began)}", file=sys.stderr)
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
        began = self._starts.setdefault(label, now)
        if now - self._spoke >= _MINUTE and done < total:
            left = (now - began) / done * (total - done) if done else None
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


class Overall:
    """How far a run is, and the time left: by the cost model's work for each stage, at the speed that was measured so far.

    Args:
        weights: work of each stage by name.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._left = dict(weights)
        self._kept = self._done = self._current = self._seconds = 0.0
        self._within, self._began = 0.0, time.monotonic()

    def begin(self, stage: str, kept: bool) -> None:
        """A stage begins, or is kept; the one before is over."""
        now = time.monotonic()
        if self._current:  # stages without weight take time that no rate explains
            self._done, self._seconds = self._done + self._current, self._seconds + now - self._began
        weight = self._left.pop(stage, 0.0)
        self._kept += weight if kept else 0.0
        self._current, self._within, self._began = (0.0 if kept else weight), 0.0, now

    def within(self, share: float, label: str = "") -> None:
        """The share of the running stage that is done, if ``label`` is all that the stage does.

        The share of any other stage is its time so far, compared with the time that it should take by the stages before.
        """
        if not label or label in _WHOLE_STAGES:
            self._within = max(self._within, share)
        elif self._current and self._seconds:
            expected = self._current * self._seconds / self._done
            self._within = max(self._within, min(0.99, (time.monotonic() - self._began) / expected))

    @property
    def share(self) -> float:
        """Share of the work that is done."""
        done = self._kept + self._done + self._current * self._within
        total = self._kept + self._done + self._current + sum(self._left.values())
        return done / total if total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds left; None before anything is measured."""
        done = self._done + self._current * self._within
        seconds = self._seconds + (time.monotonic() - self._began if self._current else 0.0)
        if not done or not seconds:
            return None
        return seconds / done * (self._current * (1 - self._within) + sum(self._left.values()))

    @property
    def time_left(self) -> str:
        """The time left in words; empty before anything is measured."""
        return "" if (left := self.seconds_left) is None else f"about {said_seconds(left)}"

    def said(self) -> str:
        """Share and time left of the whole run in words; empty before anything is measured."""
        return f"run: {100 * self.share:.0f} %, {left} left" if (left := self.time_left) else ""


def said_seconds(seconds: float) -> str:
    """A time in words.

    Example:
        >>> said_seconds(42.4), said_seconds(150), said_seconds(7300)
        ('42 s', '2 min 30 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def showing_progress(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose progress is shown."""

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> None:
        with Bars().shown():
            command(*args, **values)

    return wrapped
