"""How far a whole run is, and the time left: by the cost model's work for each stage, at the speed that was measured so far."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

__all__ = ["Overall", "OverallOfJobs", "said_seconds"]

_WHOLE_STAGES = ("importance of timestep groups", "search", "training")
_MOST = 0.99  # share of a stage that is judged by its time


class _InWords(ABC):
    """Says share and time left."""

    @property
    @abstractmethod
    def share(self) -> float:
        """Share of the work that is done."""

    @property
    @abstractmethod
    def seconds_left(self) -> float | None:
        """Seconds left; None before anything is measured."""

    @property
    @abstractmethod
    def is_late(self) -> bool:
        """Whether the running stage takes longer than it should by the stages before, so that nothing is known of the rest."""

    @property
    def time_left(self) -> str:
        """The time left in words; empty before anything is measured."""
        if self.is_late:
            return "longer than expected"
        return "" if (left := self.seconds_left) is None else f"about {said_seconds(left)}"

    def said(self) -> str:
        """Share and time left of the whole run in words; empty before anything is measured."""
        left, share = self.time_left, min(self.share, _MOST) if self.is_late else self.share
        return f"run: {100 * share:.0f} %, {left}{'' if self.is_late else ' left'}" if left else ""


class Overall(_InWords):
    """How far a run is whose stages follow each other.

    Args:
        weights: work of each stage by name.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._left = dict(weights)
        self._kept = self._done = self._current = self._seconds = 0.0
        self._within, self._began = 0.0, time.monotonic()
        self._name, self._parts, self._by_time = "", False, False

    def begin(self, stage: str, kept: bool) -> None:
        """A stage begins, or is kept; the one before is over.

        A stage within another one, as in ``experts 0.8, seed 0: importance``, is a part of it.
        """
        if self._name and stage.startswith(f"{self._name}: "):
            self._parts = True
            return
        self._name, self._parts = stage, False
        now = time.monotonic()
        if self._current:  # stages without weight take time that no rate explains
            self._done, self._seconds = self._done + self._current, self._seconds + now - self._began
        weight = self._left.pop(stage, 0.0)
        self._kept += weight if kept else 0.0
        self._current, self._within, self._began, self._by_time = (0.0 if kept else weight), 0.0, now, False

    def within(self, share: float, label: str = "") -> None:
        """The share of the running stage that is done, if ``label`` is all that the stage does.

        The share of any other stage is its time so far, compared with the time that it should take by the stages before.
        """
        if not label or (label in _WHOLE_STAGES and not self._parts):
            self._within, self._by_time = max(self._within, share), False
        elif self._current and self._seconds:
            expected = self._current * self._seconds / self._done
            self._within = max(self._within, min(_MOST, (time.monotonic() - self._began) / expected))
            self._by_time = True

    @property
    def share(self) -> float:
        """Share of the work that is done."""
        done = self._kept + self._done + self._current * self._within
        total = self._kept + self._done + self._current + sum(self._left.values())
        return done / total if total else 1.0

    @property
    def is_late(self) -> bool:
        """See the base class."""
        return self._by_time and self._within >= _MOST

    @property
    def seconds_left(self) -> float | None:
        """Seconds left; None before anything is measured."""
        done = self._done + self._current * self._within
        seconds = self._seconds + (time.monotonic() - self._began if self._current else 0.0)
        if not done or not seconds:
            return None
        return seconds / done * (self._current * (1 - self._within) + sum(self._left.values()))


class OverallOfJobs(_InWords):
    """How far a run is whose timestep groups are made at the same time, by jobs.

    A stage is over when a stage of the same group begins, or one of no group. The time left is the time so far, in proportion to
    the work.

    Args:
        weights: work of each stage by name.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights, self._left = dict(weights), dict(weights)
        self._running: dict[str, float] = {}
        self._kept = self._done = 0.0
        self._began: float | None = None
        self._latest, self._by_time = 0.0, ""  # when the last stage began, and the one that is judged by its time

    def begin(self, stage: str, kept: bool) -> None:
        """A stage begins, or is kept; a stage within another one is a part of it."""
        if any(stage.startswith(f"{name}: ") for name in self._running):
            return
        for name in [name for name in self._running if _follows(stage, name)]:
            self._done += self._weights.get(name, 0.0)
            del self._running[name]
        weight = self._left.pop(stage, 0.0)
        if kept:
            self._kept += weight
            return
        self._running[stage], self._latest = 0.0, time.monotonic()
        if self._began is None and weight:
            self._began = time.monotonic()

    def within(self, share: float, label: str = "") -> None:
        """The share that is done of a group's running stage, if ``label`` is the group.

        The share of a stage that runs alone is its time so far, compared with the time that it should take by the stages before.
        """
        for name in self._running:
            if label and (name == label or name.endswith(f" {label}")):
                self._running[name] = max(self._running[name], share)
        if label and self._began is not None and self._done and len(self._running) == 1:
            (name,) = self._running
            before = self._latest - self._began
            if before > 0 and self._weights.get(name):
                expected = self._weights[name] * before / self._done
                spent = time.monotonic() - self._latest
                self._running[name], self._by_time = max(self._running[name], min(_MOST, spent / expected)), name

    @property
    def share(self) -> float:
        """Share of the work that is done."""
        total = sum(self._weights.values())
        return (self._kept + self._finished) / total if total else 1.0

    @property
    def is_late(self) -> bool:
        """See the base class."""
        return self._by_time in self._running and self._running[self._by_time] >= _MOST

    @property
    def seconds_left(self) -> float | None:
        """Seconds left; None before anything is measured."""
        done = self._finished
        if self._began is None or not done:
            return None
        left = sum(self._weights.values()) - self._kept - done
        return max(0.0, (time.monotonic() - self._began) * left / done)

    @property
    def _finished(self) -> float:
        return self._done + sum(self._weights.get(name, 0.0) * share for name, share in self._running.items())


def _follows(stage: str, before: str) -> bool:
    """Whether a stage begins only after another one is over: different groups, and trainings to compare, run at the same time."""
    own, other = (name.partition(" group ")[2] or (name if ", seed " in name else "") for name in (stage, before))
    return not own or not other or own == other


def said_seconds(seconds: float) -> str:
    """A time in words.

    Example:
        >>> said_seconds(42.4), said_seconds(150), said_seconds(7300)
        ('42 s', '2 min 30 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
