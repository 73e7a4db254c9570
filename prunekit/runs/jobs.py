"""Jobs, which are stages of a run for another process; their diaries; and how they save their state when preempted."""

import json
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NotRequired, Protocol

import torch
from typing_extensions import TypedDict

from prunekit._json import JsonObject, Whole, checked, parse_json
from prunekit.errors import PrunekitError
from prunekit.runs.book import Stage
from prunekit.runs.observing import Observer, say

__all__ = ["Diary", "Job", "Reader", "preemptible"]
_AGAIN = "start the run again, which keeps what is finished"


class _Run(Protocol):
    """The part of a run that a job needs; a protocol, since the run's module imports this one."""

    observer: Observer

    def make(self, stage: Stage) -> None:
        """Make a stage, or keep it if it is finished."""
        ...


class _Entry(TypedDict):
    """A line of a diary: the keys of all kinds of entries, with their types."""

    stage: NotRequired[str]
    kept: NotRequired[bool]
    label: NotRequired[str]
    done: NotRequired[Whole]
    total: NotRequired[Whole]
    note: NotRequired[str]
    said: NotRequired[str]
    failed: NotRequired[str]
    again: NotRequired[bool]
    finished: NotRequired[bool]


@dataclass(frozen=True, eq=False)
class Job:
    """Stages to make one after the other in another process. Its pickle has the recipe, the folder and the stages' keys.

    Args:
        run: the run that the stages belong to.
        name: its name in messages, such as ``group 3``.
        stages: the stages in order; those that are already finished are kept.
        diary: the file that it appends its entries to.
        threads: torch's threads for it; the process's default if missing.
    """

    run: _Run
    name: str
    stages: tuple[Stage, ...]
    diary: Path | None = None
    threads: int | None = None

    @property
    def slug(self) -> str:
        """Its name in file names."""
        return self.name.replace(" ", "-")

    def __call__(self) -> None:
        """Make the stages. A failure, or the end, is written to the diary."""
        if self.diary is None:
            raise AssertionError("a job needs a diary before it is started")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        diary = self.run.observer = Diary(self.diary)
        try:
            with preemptible():
                for stage in self.stages:
                    self.run.make(stage)
        except PrunekitError as error:
            diary.write({"failed": str(error), "again": False})  # another start would fail in the same way
        except Exception as error:  # the waiting run has to report any error
            traceback.print_exc()
            diary.write({"failed": f"{type(error).__name__}: {error}", "again": True})
        else:
            diary.write({"finished": True})

    def checkpoint(self) -> Any:
        """The job that submitit starts again after a preemption or a timeout: the same one; its stages and trainings resume."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415 - an extra

        return DelayedSubmission(self)


class Diary:
    """An observer that writes each event as a line of JSON to a file, which a run in another process reads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, entry: JsonObject) -> None:
        """Append an entry in a single write."""
        with self._path.open("ab", buffering=0) as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def stage(self, name: str, kept: bool) -> None:
        """See :class:`~prunekit.runs.observing.Observer`."""
        self.write({"stage": name, "kept": kept})

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        """See :class:`~prunekit.runs.observing.Observer`."""
        self.write({"label": label, "done": done, "total": total, "note": note})

    def note(self, sentence: str) -> None:
        """See :func:`~prunekit.runs.observing.say`."""
        self.write({"said": sentence})


class Reader:
    """Reads a diary as it grows.

    Attributes:
        failed: why the job failed, or None.
        again: whether the job should be started again after a failure.
        finished: whether the job has finished.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self.failed: str | None = None
        self.again, self.finished = True, False

    def tell(self, observer: Observer) -> None:
        """Pass on the new entries."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read().split(b"\n")[:-1]  # without the last line if it is not yet complete
        for line in lines:
            self._read += len(line) + 1
            entry = checked(_Entry, parse_json(line, f"A line of {self._path}"), f"A line of {self._path}", _AGAIN)
            if "stage" in entry:
                observer.stage(entry["stage"], entry.get("kept", False))
            elif "label" in entry:
                observer.progress(entry["label"], entry.get("done", 0), entry.get("total", 0), entry.get("note", ""))
            elif "said" in entry:
                say(observer, entry["said"])
            elif "failed" in entry:
                self.failed, self.again = entry["failed"], entry.get("again", True)
            else:
                self.finished = True


@contextmanager
def preemptible() -> Iterator[None]:
    """Within the block, a training saves its state before submitit requeues the job.

    submitit requeues a job at SIGUSR2 at once, and ignores SIGTERM. A training notes SIGTERM, saves after the step, and raises it
    again (:class:`~prunekit._signals.Termination`). So this function turns SIGUSR2 into a SIGTERM, and calls submitit's handler
    when the SIGTERM is raised again; without a training that is at once. After any other SIGTERM the training saves and continues.
    """
    number = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
    requeue: Any = signal.getsignal(number)
    if not callable(requeue) or threading.current_thread() is not threading.main_thread():
        yield
        return
    passed: Any = signal.getsignal(signal.SIGTERM)
    wanted = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal wanted
        wanted = True
        os.kill(os.getpid(), signal.SIGTERM)

    def saved(term: int, frame: FrameType | None) -> None:
        if wanted:
            requeue(number, frame)
        elif callable(passed):
            passed(term, frame)

    signal.signal(signal.SIGTERM, saved)
    signal.signal(number, ask)
    try:
        yield
    finally:
        signal.signal(number, requeue)
        signal.signal(signal.SIGTERM, passed)
