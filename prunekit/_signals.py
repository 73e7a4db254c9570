"""Ctrl-C (SIGINT) and SIGTERM, delayed until work that must not be interrupted is done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Termination"]

_HELD = (signal.SIGINT, signal.SIGTERM)


class Termination:
    """Whether the process has been asked to end.

    Example:
        >>> with Termination.noticed(True) as termination:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     termination.asked
        ...     termination.forget()
        True
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal came that has not taken effect yet."""
        return self._number is not None

    @classmethod
    @contextmanager
    def noticed(cls, active: bool) -> Iterator["Termination"]:
        """Note SIGINT and SIGTERM within the block; a signal that had no effect there takes effect after it.

        A second signal changes nothing: pressing Ctrl-C twice still gives a complete file. A signal that the process ignores, as
        a background job does with SIGINT, stays ignored.

        Args:
            active: False leaves the signals alone, as do all threads except the main one, since they cannot set handlers.
        """
        termination = cls()
        if active and threading.current_thread() is threading.main_thread():
            for number in _HELD:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    termination._before[number] = before
                    signal.signal(number, termination._note)
        try:
            yield termination
        finally:
            for noted, handler in termination._before.items():
                signal.signal(noted, handler)
        if termination._number is not None:
            signal.raise_signal(termination._number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._number is None:
            self._number = number

    def obey(self) -> None:
        """Let the noted signal take its usual effect; if the process survives, it notes the next signal.

        Raises:
            KeyboardInterrupt: SIGINT came, and Python's default handler is in place.
        """
        number, self._number = self._number, None
        if number is None:
            return
        signal.signal(number, self._before[number])
        try:
            signal.raise_signal(number)
        finally:
            signal.signal(number, self._note)

    def forget(self) -> None:
        """Drop a noted signal, since the work that it would have stopped is done."""
        self._number = None
