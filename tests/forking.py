"""Processes of their own that import nothing anew: each is forked from one that has imported everything.

The server is started when the first process is asked for, once in every worker of pytest. It starts no threads, so forking is safe.
"""

import multiprocessing
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from prunekit.runs.jobs import Job

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",  # which optimizers import when they are first used
        "accelerate",
        "diffusers.models.unets.unet_2d",
        "diffusers.schedulers.scheduling_ddim",
        "sklearn.datasets",
        "torchmetrics.image.fid",
        "torchmetrics.image.kid",
        "prunekit.cli.app",
        "prunekit.consistency",
        "prunekit.report.kinds",
        "prunekit.report.overview",
        "prunekit.studies.kinds_of_runs",
    ]
)


def processor_seconds() -> float:
    """Time of the forked processes that have ended, which nobody else counts as this process did not start them."""
    server = forkserver._forkserver._forkserver_pid
    if server is None:
        return 0.0
    times = psutil.Process(server).cpu_times()
    return times.children_user + times.children_system


def forked(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that calls a function of a module; it has started."""
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def forked_command(folder: Path, words: Sequence[str], *, leads_a_group: bool = False) -> BaseProcess:
    """A process that stands in a folder and runs a command line, with ``out`` and ``err`` there.

    Args:
        folder: made if it is missing.
        words: the command line, with the command's name first.
        leads_a_group: make it the leader of a process group, as a shell does.
    """
    folder.mkdir(exist_ok=True)
    return forked(_command, folder, list(words), leads_a_group)


def succeeded(folder: Path, words: Sequence[str]) -> None:
    """Run a command that nobody disturbs and that must succeed."""
    process = forked_command(folder, words)
    process.join()
    assert process.exitcode == 0, (folder / "err").read_text()


def forked_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """Processes that see what ``accelerate launch`` or torchrun tells each of several ranks on CPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [forked(_as_rank, rank, size, port, function, arguments) for rank in range(size)]


class ForkedJobs:
    """An executor of a run whose jobs' processes are forked; they get the pickled job, as workers of the product do."""

    def __init__(self, width: int, retries: int = 0) -> None:
        self.width, self.threads, self.retries = width, 1, retries

    def start(self, jobs: Sequence[Job]) -> list["ForkedJob"]:
        return [ForkedJob(forked(_work, pickle.dumps(job)), job.diary) for job in jobs if job.diary is not None]


@dataclass(frozen=True)
class ForkedJob:
    """A job that has started."""

    process: BaseProcess
    diary: Path

    def ended(self) -> bool:
        return not self.process.is_alive()

    def cause(self) -> str:
        return f"its process ended with {self.process.exitcode}"

    def stop(self) -> bool:
        self.process.terminate()
        return True


def _work(pickled: bytes) -> None:
    pickle.loads(pickled)()  # noqa: S301 - from the test that started this process


def _as_rank(rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in told.items()} | {"ACCELERATE_USE_CPU": "true"})
    function(*arguments)


def _command(folder: Path, words: list[str], leads_a_group: bool) -> None:
    from prunekit.cli import main

    if leads_a_group:
        os.setsid()
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - as at a start
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = words
    main()
