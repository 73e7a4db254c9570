"""A time limit for tracing, and progress messages."""

import logging
import time
from collections.abc import Callable

from prunekit.errors import GraphError

__all__ = ["Deadline"]

_PATIENCE = 3.0  # seconds before anything is said
_log = logging.getLogger(__name__)


class Deadline:
    """A wall-clock limit that starts now.

    Args:
        seconds: the limit.
        progress: is told what is being done, once this takes more than a few seconds; it is logged, too.
    """

    def __init__(self, seconds: float, progress: Callable[[str], None] | None = None) -> None:
        self.seconds, self._start, self._progress = seconds, time.monotonic(), progress

    def check(self) -> None:
        """Refuse to go on after the limit.

        Raises:
            GraphError: the time is up.
        """
        if time.monotonic() > self._start + self.seconds:
            raise GraphError(
                f"The network was not followed through within {self.seconds:g} s; "
                "give a smaller example input or a longer limit."
            )

    def say(self, what: str) -> None:
        """Tell what is being done next.

        Raises:
            GraphError: the time is up.
        """
        self.check()
        spent = time.monotonic() - self._start
        if spent > _PATIENCE:
            _log.info("%s (%.0f s so far)", what, spent)
            if self._progress is not None:
                self._progress(f"{what} ({spent:.0f} s so far)")
