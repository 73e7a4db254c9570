"""Processes of their own that import nothing anew: each is forked from one that has imported the heavy libraries."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "accelerate", "prunekit.search", "prunekit.training"])


def forked(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that calls a function of a module; it has started."""
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def forked_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """Processes that see what ``accelerate launch`` or torchrun tells each of several ranks on CPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [forked(_as_rank, rank, size, port, function, arguments) for rank in range(size)]


def _as_rank(rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in told.items()} | {"ACCELERATE_USE_CPU": "true"})
    function(*arguments)
