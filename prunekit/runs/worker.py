"""A process for one job, which it reads from standard input: ``python -m prunekit.runs.worker``.

The input ends when the process that waits for the job ends. The worker then ends too, after a training has saved its state. It does
the same at SIGTERM, and at Ctrl-C, which reaches all processes of a terminal.
"""

import os
import pickle
import signal
import sys
import threading
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Do the job; exits with 130 if a signal stopped it.

    Raises:
        KeyboardInterrupt: a signal came while the job was not ending itself.
    """
    ending = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ending
        if not ending:  # a second signal must not interrupt the handling of the first
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
    os.read(sys.stdin.fileno(), 1)  # nothing more is sent, so this returns when the input ends
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
