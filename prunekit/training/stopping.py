"""SIGTERM, which a cluster sends before it takes a machine away: the training notes it, saves its state and then dies of it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["Termination"]


@dataclass(eq=False)
class Termination:
    """Whether the process has been asked to end."""

    asked: bool = False
    _before: Any = signal.SIG_DFL

    @classmethod
    @contextmanager
    def noticed(cls, active: bool) -> Iterator["Termination"]:
        """Note SIGTERM within the block instead of dying at once.

        Args:
            active: False leaves the signal alone, as does any thread but the main one, where handlers cannot be set.
        """
        termination = cls()
        if not active or threading.current_thread() is not threading.main_thread():
            yield termination
            return

        termination._before = signal.signal(signal.SIGTERM, termination._note)
        try:
            yield termination
        finally:
            signal.signal(signal.SIGTERM, termination._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def obey(self) -> None:
        """Die of the signal, if it came, as the process would have without this class; it may have been made to live on."""
        if self.asked:
            self.asked = False
            signal.signal(signal.SIGTERM, self._before)
            os.kill(os.getpid(), signal.SIGTERM)
            signal.signal(signal.SIGTERM, self._note)
