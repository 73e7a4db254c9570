"""Which machine measures: what rows of one file must have in common, and what is recorded beside it."""

import gc
import shutil
import subprocess
from typing import Any

import torch
from _manifest import environment

from prunekit.cost.clocks import device_named, machine_of


def chosen_device(name: str | None) -> torch.device:
    """The device of a name; a GPU if there is one and none is named.

    Raises:
        InputError: this machine has no such device.
    """
    return device_named(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def identity(device: torch.device) -> dict[str, Any]:
    """What decides how long a job takes: device and versions; on a CPU the number of threads, too."""
    said = dict(machine_of(device))
    if device.type != "cpu":
        del said["threads"]
    return said


def record(device: torch.device) -> dict[str, Any]:
    """The manifest: commit, versions, and what the device is set to."""
    found: dict[str, Any] = {**environment(), "machine": identity(device), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "device": about.name,
            "driver": _driver(),
            "cudnn": torch.backends.cudnn.version(),
            "device_memory": about.total_memory,
            "multiprocessors": about.multi_processor_count,
            "tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32},
        }
    return found


def emptied(device: torch.device) -> None:
    """Give back what earlier jobs left on a GPU, and measure its peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int | None:
    """Most bytes that torch held on a GPU since; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def _driver() -> str | None:
    """Version of NVIDIA's driver; None if its tool does not tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(told.split()), None)
