"""A process that does one job, which it reads from its standard input: ``python -m prunekit.runs.worker``.

When the input ends, the process that waits for the job is gone, and this one ends too, a training with its state saved. So it does
at SIGTERM, and at a Ctrl-C, which reaches all processes of a terminal.
"""

import os
import pickle
import signal
import sys
import threading
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Do the job; ends with 130 where a signal stopped it."""
    ending = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ending
        if not ending:  # a second signal must not interrupt what the first one has set off
            ending = True
            raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    try:
        job = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one, through a pipe
        threading.Thread(target=_end_with_parent, daemon=True).start()
        job()
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing more is sent: this returns at the end
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
