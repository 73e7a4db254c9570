"""A job: stages of a run for a process of its own, what it says meanwhile, and how it gives way when its machine is taken."""

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

from prunekit._json import Whole, checked, parse_json
from prunekit.errors import PrunekitError
from prunekit.runs.book import Stage
from prunekit.runs.observing import Observer, say

__all__ = ["Diary", "Job", "Reader", "preemptible"]
_AGAIN = "start the run again, which keeps what is finished"


class _Run(Protocol):
    """What a job needs of a run, which knows its executor and so its jobs."""

    observer: Observer

    def make(self, stage: Stage) -> None:
        """Make a stage, or keep it if it is finished."""
        ...


class _Entry(TypedDict):
    """A line of a diary: what any kind of entry says has this type."""

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
    """Stages that are made one after the other in a process of its own; pickled, the recipe, the folder and the stages' keys.

    Args:
        run: the run that the stages are of.
        name: what people call it, such as ``group 3``.
        stages: what to make, in this order; what is finished by then is kept.
        diary: file that it appends to.
        threads: torch's threads for it; as many as the process has if absent.
    """

    run: _Run
    name: str
    stages: tuple[Stage, ...]
    diary: Path | None = None
    threads: int | None = None

    @property
    def slug(self) -> str:
        """Its name for files."""
        return self.name.replace(" ", "-")

    def __call__(self) -> None:
        """Make the stages. A failure goes to the diary, as does the end."""
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
            diary.write({"failed": str(error), "again": False})  # the same would happen again
        except Exception as error:  # whatever it is, the run that waits has to name it
            traceback.print_exc()
            diary.write({"failed": f"{type(error).__name__}: {error}", "again": True})
        else:
            diary.write({"finished": True})

    def checkpoint(self) -> Any:
        """What submitit is to start again after a preemption or a timeout: the same; stages and trainings go on where they were."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415 - an extra

        return DelayedSubmission(self)


class Diary:
    """An observer that writes what it is told to a file, a line of JSON each, for a run in another process to read."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, entry: dict[str, Any]) -> None:
        """Append an entry, in one write."""
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
        again: whether a failure is worth another start.
        finished: whether it came to its end.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self.failed: str | None = None
        self.again, self.finished = True, False

    def tell(self, observer: Observer) -> None:
        """Pass on what is new."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read().split(b"\n")[:-1]  # a line that is still being written waits for its end
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
    """Within the block, what makes submitit requeue a job first lets a training save its state.

    submitit requeues a job at SIGUSR2 wherever it stands, and lets SIGTERM pass. A training notes SIGTERM, saves after the step,
    and raises it again (:class:`~prunekit._signals.Termination`). So SIGUSR2 becomes a SIGTERM here, and what comes back
    of it is submitit's turn; where no training runs, it comes back at once. A SIGTERM by itself has the training save and go on.
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
