"""Settings of the process under which torch is faster on a CPU, made before it is loaded. What the user's environment sets stays.

``benchmarks/busy_machine.py`` measures both.
"""

import ctypes
import os
import sys

__all__ = ["set_up"]

_SPINS = 3000
_LARGEST, _KEPT = 32 << 20, 256 << 20  # bytes
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's malloc.h


def set_up() -> None:
    """Prepare this process and those that it starts.

    - OpenMP's threads look for work only 3,000 times before they sleep. By default they look for some milliseconds. If other
      programs use the cores, each thread then waits for one that is not running, at every operation, and everything takes 20
      times as long.
    - The C library keeps up to 256 MiB of freed memory, and takes blocks up to 32 MiB from there. By default it gives much of it
      back to the system and gets it again for every batch.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
        os.environ["MALLOC_MMAP_THRESHOLD_"], os.environ["MALLOC_TRIM_THRESHOLD_"] = str(_LARGEST), str(_KEPT)
