"""Ctrl-C (SIGINT) and SIGTERM, held back until what must not be cut short is done, and then let through."""

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
        """Whether a signal came that was not obeyed yet."""
        return self._number is not None

    @classmethod
    @contextmanager
    def noticed(cls, active: bool) -> Iterator["Termination"]:
        """Note SIGINT and SIGTERM within the block; a signal that was not obeyed there takes its effect after it.

        A second signal changes nothing: whoever presses Ctrl-C twice still gets a whole file. A signal that the process ignores,
        as a background job does with SIGINT, stays ignored.

        Args:
            active: False leaves the signals alone, as does any thread but the main one, where handlers cannot be set.
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
        """Let the signal that came do what it does without this class; the process may live on, and then notes the next one.

        Raises:
            KeyboardInterrupt: SIGINT came, and nobody has changed what Python does about it.
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
        """Let a signal that came have no effect, since what it would have stopped is done."""
        self._number = None
