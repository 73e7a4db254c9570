"""Runs jobs in processes of this machine, or with submitit, locally or on SLURM."""

import logging
import os
import pickle
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from prunekit.errors import InputError, UnfinishedError
from prunekit.runs.jobs import Job, Reader
from prunekit.runs.observing import Observer

__all__ = ["Executor", "Handle", "Processes", "fan_out"]

_log = logging.getLogger(__name__)
_POLL = 0.2  # seconds between checks of running jobs
_DIARY = re.compile(r".+-[0-9a-f]{8}\.(jsonl|log)")
_SUBMITITS = re.compile(
    r"submission_file_\w+\.sh|[0-9a-f_-]+(\.pkl|_submitted\.pkl|_\d+_result\.pkl|_\d+_log\.(out|err))|batch-\w+\.pkl"
)
"""Names of the files that submitit writes into its folder."""
_GRACE = 120.0  # seconds that a training has to save its state


class Handle(Protocol):
    """A started job."""

    @property
    def diary(self) -> Path:
        """The file that it writes its diary to."""
        ...

    def ended(self) -> bool:
        """Whether it has ended, for any reason."""
        ...

    def cause(self) -> str:
        """The error for a job that ended without reporting a result."""
        ...

    def stop(self) -> bool:
        """End the job because the waiting run is stopping, unless it should outlive the run; returns whether it will end."""
        ...


class Executor(Protocol):
    """Starts jobs.

    Attributes:
        width: largest number of jobs at the same time; None for all.
        threads: torch's threads for each job; None for the process's default.
        retries: how often a failed job is started again.
    """

    width: int | None
    threads: int | None
    retries: int

    def start(self, jobs: Sequence[Job]) -> Sequence[Handle]:
        """Start jobs, each of which has a diary."""
        ...


def fan_out(executor: Executor, jobs: Sequence[Job], folder: Path, observer: Observer) -> None:
    """Run jobs until they end, and start failed ones again.

    Args:
        executor: where the jobs run.
        jobs: the jobs; no two may make the same stage.
        folder: for diaries and logs; removed when every job has finished.
        observer: is told the entries of the jobs' diaries.

    Raises:
        UnfinishedError: jobs failed; it names each with its reason. It is raised after all other jobs have ended.
    """
    waiting, running = deque(jobs), list[tuple[Job, Handle, Reader]]()
    starts, failures = Counter[str](), dict[str, str]()
    try:
        while waiting or running:
            free = len(waiting) if executor.width is None else executor.width - len(running)
            batch = [_ready(waiting.popleft(), folder, executor.threads) for _ in range(min(free, len(waiting)))]
            starts.update(job.name for job in batch)
            if batch:
                started = zip(batch, executor.start(batch), strict=True)
                running += [(job, handle, Reader(handle.diary)) for job, handle in started]
            time.sleep(_POLL)
            for entry in list(running):
                job, handle, reader = entry
                ended = handle.ended()  # asked before the diary is read, so that the diary is complete if it has
                reader.tell(observer)
                if not ended:
                    continue
                running.remove(entry)
                if reader.finished:
                    failures.pop(job.name, None)
                    continue
                failures[job.name] = reader.failed or handle.cause()
                if reader.again and starts[job.name] <= executor.retries:
                    waiting.append(job)
    finally:
        _stop([handle for _, handle, _ in running])
    if failures:
        raise _unfinished(failures, len(jobs), folder)
    _clear(folder, jobs)


def _clear(folder: Path, jobs: Sequence[Job]) -> None:
    """Remove the jobs' files from their folder, and the folders that are then empty."""
    records = {f"{job.slug}.json" for job in jobs}
    submitits = folder / "submitit"
    for path in (*folder.glob("*"), *submitits.glob("*")):
        ours = _SUBMITITS.fullmatch(path.name) if path.parent == submitits else _DIARY.fullmatch(path.name)
        if path.is_file() and (ours or (path.parent == folder and path.name in records)):
            path.unlink(missing_ok=True)
    for place in (submitits, folder):
        with suppress(OSError):  # it has other files, or does not exist
            place.rmdir()


def _ready(job: Job, folder: Path, threads: int | None) -> Job:
    """The job with a new diary, to which no earlier start of the job writes."""
    diary = folder.resolve() / f"{job.slug}-{secrets.token_hex(4)}.jsonl"
    diary.parent.mkdir(parents=True, exist_ok=True)
    return replace(job, diary=diary, threads=threads)


def _stop(handles: Sequence[Handle]) -> None:
    ending = [handle for handle in handles if handle.stop()]
    if any(not handle.ended() for handle in ending):
        _log.info("Waiting for %d jobs to save their state.", len(ending))
    deadline = time.monotonic() + _GRACE
    while any(not handle.ended() for handle in ending) and time.monotonic() < deadline:
        time.sleep(_POLL)


def _unfinished(failures: Mapping[str, str], count: int, folder: Path) -> UnfinishedError:
    reasons = "; ".join(f"{name}: {' '.join(reason.split()).rstrip('.')}" for name, reason in failures.items())
    return UnfinishedError(
        f"{len(failures)} of {count} jobs failed ({reasons}); what the others made is kept, and another start runs what is missing "
        f"(logs: {folder}).",
        dict(failures),
    )


class Processes:
    """An executor of processes on this machine, which share its threads.

    Args:
        count: how many run at the same time.
        retries: further starts of a job that failed.

    Raises:
        InputError: fewer than one process, or a negative number of retries.
    """

    def __init__(self, count: int, retries: int = 1) -> None:
        self.width: int | None
        self.threads: int | None
        self.width, self.threads, self.retries = count, shared_threads(count), checked_retries(retries)
        self.gpus = visible_gpus()
        self._started: list[_Process] = []

    def start(self, jobs: Sequence[Job]) -> list["_Process"]:
        """See :class:`Executor`. Each process sees one GPU, the one that the fewest others use."""
        started = []
        for job in jobs:
            self._started = [process for process in self._started if not process.ended()]
            busy = Counter(process.gpu for process in self._started)
            gpu = min(self.gpus, key=lambda own: busy[own], default=None)
            started.append(_Process.of(job, gpu))
            self._started.append(started[-1])
        return started


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, with their names in ``CUDA_VISIBLE_DEVICES``."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    return [name.strip() for name in listed.split(",") if name.strip()]


def shared_threads(count: int) -> int:
    """Torch's threads for each of ``count`` processes, which share this process's.

    Raises:
        InputError: fewer than one process.
    """
    if count < 1:
        raise InputError(f"Got {count} jobs at the same time; expected at least 1.")
    return max(1, torch.get_num_threads() // count)


def checked_retries(retries: int) -> int:
    """The number of retries.

    Raises:
        InputError: it is negative.
    """
    if retries < 0:
        raise InputError(f"Got {retries} retries; expected 0 or more.")
    return retries


@dataclass(frozen=True, eq=False)
class _Process:
    """A process that does a job, and ends when this process ends."""

    process: "subprocess.Popen[bytes]"
    diary: Path
    errors: Path
    gpu: str | None = None

    @classmethod
    def of(cls, job: Job, gpu: str | None = None) -> "_Process":
        if job.diary is None:
            raise AssertionError("a job needs a diary before it is started")
        errors = job.diary.with_suffix(".log")
        threads = {} if job.threads is None else {"OMP_NUM_THREADS": str(job.threads)}
        sees = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        with errors.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prunekit.runs.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **threads, **sees},
            )
        made = cls(process, job.diary, errors, gpu)
        if process.stdin is not None:
            try:
                process.stdin.write(pickle.dumps(job))
                process.stdin.flush()  # stays open: the process ends when it is closed
            except BrokenPipeError:
                pass  # it has already ended; ``ended`` will show that
        return made

    def ended(self) -> bool:
        """See :class:`Handle`."""
        if self.process.poll() is None:
            return False
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        return True

    def cause(self) -> str:
        """See :class:`Handle`."""
        code = self.process.poll()
        how = f"exit code {code}" if code is None or code >= 0 else signal.Signals(-code).name
        return f"its process ended with {how}{last_line(self.errors)}"

    def stop(self) -> bool:
        """See :class:`Handle`; a training saves its state first."""
        self.process.terminate()
        return True


def last_line(log: Path) -> str:
    """The last line of a log, as an addition to a sentence."""
    if not log.is_file():
        return ""
    lines: list[Any] = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f" after {lines[-1].strip()!r}" if lines else ""
