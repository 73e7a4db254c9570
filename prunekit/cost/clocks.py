"""How long a function takes on a device, and what the device is called.

This is the only module that knows how a kind of device is timed. The timer of CUDA devices is tested against a stand-in for
``torch.cuda``, since the project's tests have no GPU.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from prunekit._json import JsonDict, JsonObject
from prunekit.errors import InputError

__all__ = ["device_named", "is_here", "machine_of", "seconds_of"]

_SAME = ("processor", "device", "threads")


def seconds_of(run: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds that a function takes.

    A GPU works through a queue. There the function is put into the queue ``calls`` times between two events, so that short work is
    not measured by the time that it takes to start it. A CPU runs it once.

    Args:
        run: what to time.
        device: where it computes.
        calls: how often it runs between two events of a GPU.

    Returns:
        Seconds of one call.
    """
    if device.type == "cuda":
        return _by_events(run, device, calls)
    if device.type == "cpu":
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        started = clock()
        run()
        return clock() - started
    torch.accelerator.synchronize(device)
    started = time.perf_counter()
    run()
    torch.accelerator.synchronize(device)
    return time.perf_counter() - started


def _by_events(run: Callable[[], object], device: torch.device, calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize(device)
    return 1e-3 * float(start.elapsed_time(end)) / calls  # milliseconds


def device_named(name: str) -> torch.device:
    """The device of a name such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        InputError: torch does not know the name, or this machine has no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        kinds = ["cpu"]
        if torch.accelerator.is_available() and (found := torch.accelerator.current_accelerator()) is not None:
            kinds.append(found.type)
        raise InputError(f"Got device {name!r}; expected one that this machine has: {', '.join(kinds)}.") from error
    return device


def machine_of(device: torch.device) -> JsonObject:
    """What decides how long a network takes: torch's version, threads, kind of device and its name."""
    said: JsonObject = {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device.type}
    if device.type == "cuda":
        return {**said, "processor": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {**said, "processor": _processor()}


def is_here(machine: JsonDict) -> bool:
    """Whether a machine, as :func:`machine_of` describes it, is this one with its current number of threads."""
    try:
        own = machine_of(device_named(str(machine.get("device"))))
    except InputError:
        return False
    return all(own.get(key) == machine.get(key) for key in _SAME)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, UnicodeDecodeError):
        return platform.processor() or platform.machine()
