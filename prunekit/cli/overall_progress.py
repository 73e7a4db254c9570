"""How far a whole run is, and the time left: by the cost model's work for each stage, at the speed that was measured so far."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

__all__ = ["Overall", "OverallOfJobs", "said_seconds"]

_WHOLE_STAGES = ("importance of timestep groups", "search", "training")
_LAST_PARTS = ("sampling", "timing single images")  # after them a stage has hardly anything left to do
_MOST = 0.99  # share of a stage that is judged by its parts


class _Pace:
    """How fast a part of a stage goes, by what was seen of it."""

    def __init__(self) -> None:
        self._label, self._began, self._first, self._share = "", 0.0, 0.0, 0.0

    def see(self, label: str, share: float) -> None:
        """A share of the part is done; another name, or a share that falls, is a new part."""
        if label != self._label or self._share >= 1 or share < self._share:
            self._label, self._began, self._first = label, time.monotonic(), share
        self._share = share

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the part is done; None before its pace is known."""
        if self._share >= 1:
            return 0.0
        if self._share <= self._first:
            return None
        return (time.monotonic() - self._began) / (self._share - self._first) * (1 - self._share)

    def of_stage(self, spent: float, expected: float) -> tuple[float, float | None]:
        """Seconds that a stage takes at least, and its share that is done, or None if the part tells nothing yet.

        Args:
            spent: seconds of the stage so far.
            expected: seconds that it should take by the stages before.
        """
        left = self.seconds_left
        least = max(expected, spent + (left or 0.0))
        if left is None:
            return least, None
        # Nobody knows what follows a late part: as much again as it is late.
        total = least if self._label in _LAST_PARTS else 2 * least - expected
        return least, min(_MOST, spent / total)


class _InWords(ABC):
    """Says share and time left."""

    @property
    @abstractmethod
    def share(self) -> float:
        """Share of the work that is done."""

    @property
    @abstractmethod
    def seconds_left(self) -> float | None:
        """Seconds left, at least those of the running stage; None while nothing is known of them."""

    @property
    @abstractmethod
    def is_late(self) -> bool:
        """Whether the running stage takes longer than it should by the stages before."""

    @property
    def time_left(self) -> str:
        """The time left in words; empty before anything is measured."""
        if (left := self.seconds_left) is None:
            return "longer than expected" if self.is_late else ""
        return f"{'at least' if self.is_late else 'about'} {said_seconds(left)}"

    def said(self) -> str:
        """Share and time left of the whole run in words; empty before anything is measured."""
        left, share = self.time_left, min(self.share, _MOST) if self.is_late else self.share
        return f"run: {100 * share:.0f} %, {left}{'' if self.seconds_left is None else ' left'}" if left else ""


class Overall(_InWords):
    """How far a run is whose stages follow each other.

    Args:
        weights: work of each stage by name.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._left = dict(weights)
        self._kept = self._done = self._current = self._seconds = 0.0
        self._within, self._began = 0.0, time.monotonic()
        self._name, self._parts = "", False
        self._pace = _Pace()
        self._expected = self._least = 0.0  # seconds of a stage that is judged by its parts

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
        self._current, self._within, self._began = (0.0 if kept else weight), 0.0, now
        self._pace, self._expected = _Pace(), 0.0

    def within(self, share: float, label: str = "") -> None:
        """The share of the running stage that is done, or of one of its parts; the stage is over without a label.

        The share of a stage with several parts is its time so far, compared with the time that it should take by the stages before,
        and with the time that the running part takes by what is done of it.
        """
        if not label:
            self._within, self._pace, self._expected = max(self._within, share), _Pace(), 0.0
            return
        self._pace.see(label, share)
        if label in _WHOLE_STAGES and not self._parts:
            self._within, self._expected = share if self._expected else max(self._within, share), 0.0
        elif self._current and self._seconds:
            self._expected = self._current * self._seconds / self._done
            self._least, reached = self._pace.of_stage(time.monotonic() - self._began, self._expected)
            self._within = self._within if reached is None else reached

    @property
    def share(self) -> float:
        """Share of the work that is done."""
        done = self._kept + self._done + self._current * self._within
        total = self._kept + self._done + self._current + sum(self._left.values())
        return done / total if total else 1.0

    @property
    def is_late(self) -> bool:
        """See the base class."""
        return self._expected > 0 and self._least > self._expected

    @property
    def seconds_left(self) -> float | None:
        """See the base class."""
        done = self._done + self._current * self._within
        spent = time.monotonic() - self._began if self._current else 0.0
        own, rest = self._pace.seconds_left, sum(self._left.values())
        if self._expected:
            if self.is_late and own is None:
                return None
            return max(0.0, self._least - spent) + self._seconds / self._done * rest
        if not done or not self._seconds + spent:
            return None
        rate = (self._seconds + spent) / done
        return (rate * self._current * (1 - self._within) if own is None else own) + rate * rest


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
        self._paces: dict[str, _Pace] = {}
        self._kept = self._done = 0.0
        self._began: float | None = None
        self._latest = 0.0  # when the last stage began
        self._expected = self._least = 0.0  # seconds of a stage that is judged by its parts

    def begin(self, stage: str, kept: bool) -> None:
        """A stage begins, or is kept; a stage within another one is a part of it."""
        if any(stage.startswith(f"{name}: ") for name in self._running):
            return
        for name in [name for name in self._running if _follows(stage, name)]:
            self._done += self._weights.get(name, 0.0)
            del self._running[name], self._paces[name]
        weight = self._left.pop(stage, 0.0)
        self._expected = 0.0
        if kept:
            self._kept += weight
            return
        self._running[stage], self._paces[stage], self._latest = 0.0, _Pace(), time.monotonic()
        if self._began is None and weight:
            self._began = time.monotonic()

    def within(self, share: float, label: str = "") -> None:
        """The share that is done of a group's running stage, if ``label`` is the group.

        The share of another stage that runs alone is judged by its parts, see :meth:`Overall.within`.
        """
        if not label:
            return
        groups = [name for name in self._running if name == label or name.endswith(f" {label}")]
        for name in groups:
            self._running[name] = max(self._running[name], share)
            self._paces[name].see(label, share)
        if not groups and len(self._running) == 1:
            (name,) = self._running
            self._paces[name].see(label, share)
            weight, before = self._weights.get(name, 0.0), 0.0 if self._began is None else self._latest - self._began
            if weight and self._done and before > 0:
                self._expected = weight * before / self._done
                spent = time.monotonic() - self._latest
                self._least, reached = self._paces[name].of_stage(spent, self._expected)
                self._running[name] = self._running[name] if reached is None else reached

    @property
    def share(self) -> float:
        """Share of the work that is done."""
        total = sum(self._weights.values())
        return (self._kept + self._finished) / total if total else 1.0

    @property
    def is_late(self) -> bool:
        """See the base class."""
        return self._expected > 0 and self._least > self._expected

    @property
    def seconds_left(self) -> float | None:
        """See the base class."""
        known = [left for pace in self._paces.values() if (left := pace.seconds_left) is not None]
        if self._began is None or (self.is_late and not known):
            return None
        if self._expected:
            rate = (self._latest - self._began) / self._done
            return max(0.0, self._latest + self._least - time.monotonic()) + rate * sum(self._left.values())
        if not (done := self._finished):
            return None
        left = sum(self._weights.values()) - self._kept - done
        return max(0.0, (time.monotonic() - self._began) * left / done, *known)

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
