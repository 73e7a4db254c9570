"""A process that does one job, which it reads from its standard input: ``python -m prunekit.pipeline.worker``.

When the input ends, the process that waits for the job is gone, and this one ends too, a training with its state saved.
"""

import os
import pickle
import signal
import sys
import threading

__all__ = ["main"]


def main() -> None:
    """Do the job."""
    job = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one, through a pipe
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job()


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing more is sent: this returns at the end
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
