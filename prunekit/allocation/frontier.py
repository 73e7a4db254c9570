"""Frontiers: the losses that a search recorded for a timestep group at falling MACs."""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from prunekit._json import JsonDict, JsonObject, Many, Positive, checked, parse_json
from prunekit.allocation.recovery import Recovery, after_recovery
from prunekit.errors import FileFormatError, InputError, LimitError, MissingFileError
from prunekit.limits import check_limit

if TYPE_CHECKING:
    from prunekit.results.planning_files import FrontierPart

__all__ = ["RECORD", "Frontier", "read_frontier", "read_frontiers"]

RECORD = "record frontiers with `prunekit prune base.pt --target 0.3 --output frontiers` and give `journals` frontiers"
_MOST_MACS = 10**15  # so that sums over thousands of steps stay within 64 bits
_NO_LOSS = 1e30  # searches write this for a loss that is NaN
_JOURNAL = re.compile(r"(search|group)-(\d+)\.jsonl")


class _EntryForm(TypedDict):
    """The keys of a journal's line that a frontier uses."""

    round: NotRequired[int | None]
    macs: NotRequired[Positive | None]
    loss: NotRequired[float | None]
    steps: NotRequired[Many[int] | None]
    draws: NotRequired[Positive]
    sliced: NotRequired[bool]


@dataclass(frozen=True)
class Frontier:
    """Points of one timestep group that no other recorded point beats in both MACs and loss.

    Args:
        macs: MACs per sample per evaluation, rising.
        loss: the search's loss on the timestep group at these MACs, falling.
        base_macs: MACs of the whole network, at least the last of ``macs``.
        recoveries: networks before and after a short fine-tuning, for which ``loss`` is corrected; empty if it is the search's own.

    Raises:
        ValueError: there are no points, the two lists differ in length, or the points are out of order.
    """

    macs: tuple[int, ...]
    loss: tuple[float, ...]
    base_macs: int
    recoveries: tuple[Recovery, ...] = ()

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in itertools.pairwise((0, *self.macs)))
        falling = all(high > low for high, low in itertools.pairwise(self.loss))
        if not self.macs or len(self.macs) != len(self.loss) or not rising or not falling:
            raise ValueError("a frontier needs rising MACs with a falling loss each")
        if not self.macs[-1] <= self.base_macs <= _MOST_MACS or not all(math.isfinite(loss) for loss in self.loss):
            raise ValueError("a frontier needs finite losses and MACs of at most the base's")

    @classmethod
    def of(cls, points: Iterable[tuple[int, float]], base_macs: int) -> "Frontier":
        """Keep the undominated (MACs, loss) points: a point that another matches or beats in both MACs and loss is left out.

        The whole network is left out too if a smaller one has the same or a lower loss.
        """
        kept: list[tuple[int, float]] = []
        for macs, loss in sorted(points):
            if loss < _NO_LOSS and (not kept or loss < kept[-1][1]):
                kept.append((macs, loss))
        return cls(tuple(macs for macs, _ in kept), tuple(loss for _, loss in kept), base_macs)

    def corrected(self, recoveries: Sequence[Recovery]) -> "Frontier":
        """A frontier of the losses that a short fine-tuning is expected to leave, see :func:`after_recovery`.

        A point that a smaller network then beats is left out.

        Args:
            recoveries: networks of this timestep group, of different sizes; two or three are enough.

        Raises:
            InputError: there are no recoveries, the frontier was corrected before, it has a loss that is not positive, or the
                corrected losses are no finite numbers.
        """
        if self.recoveries:
            raise InputError("Got a frontier that is corrected for recoveries already; expected a search's own.")
        losses = after_recovery(self.loss, recoveries).tolist()
        try:
            made = Frontier.of(zip(self.macs, losses, strict=True), self.base_macs)
        except ValueError as error:
            raise InputError(
                f"The recoveries leave no frontier: the losses after them would go up to {max(losses):g}; record them again with "
                "`prunekit recover`."
            ) from error
        return replace(made, recoveries=tuple(recoveries))

    def loss_at(self, mac_ratio: float) -> float | None:
        """Loss at a fraction of the base's MACs, linear between recorded points; None below the lowest.

        Above the highest point the loss is constant, since more MACs did not lower it.
        """
        macs = self._macs(mac_ratio)
        return None if macs < self.macs[0] else float(np.interp(macs, self.macs, self.loss))

    def recorded_at(self, mac_ratio: float) -> float | None:
        """Loss of the best recorded point within a fraction of the base's MACs; None if there is none."""
        within = int(np.searchsorted(self.macs, self._macs(mac_ratio), side="right"))
        return self.loss[within - 1] if within else None

    def _macs(self, mac_ratio: float) -> float:
        macs = mac_ratio * self.base_macs
        return (
            round(macs) if abs(macs - round(macs)) <= 1e-12 * macs else macs
        )  # so that a point's own ratio finds it despite rounding

    def to_json(self) -> dict[str, object]:
        """A JSON object with ``base_macs``, ``macs`` and ``loss``, and with ``recoveries`` if there are some."""
        known = {"recoveries": [dict(vars(one)) for one in self.recoveries]} if self.recoveries else {}
        return {"base_macs": self.base_macs, "macs": list(self.macs), "loss": list(self.loss), **known}

    @classmethod
    def from_json(cls, data: "FrontierPart | JsonDict") -> "Frontier":
        """Read what :meth:`to_json` wrote.

        Raises:
            FileFormatError: a key is missing or of the wrong type.
            ValueError: the points are not a frontier.
        """
        from prunekit.results.planning_files import FrontierPart  # noqa: PLC0415 - loads pydantic

        known = FrontierPart.of(data, "A frontier", RECORD)
        recoveries = tuple(map(Recovery.of, known.recoveries or ()))
        return cls(tuple(known.macs), tuple(known.loss), known.base_macs, recoveries)


def read_frontier(path: Path | str) -> Frontier:
    """The frontier of a search's journal (JSON lines).

    Points are the whole network (the first measurement, in round 0, of no steps), the choice of every round, and the measurements
    that close the last stretch (round −1). Losses on some of the draws are converted to losses on all. Lines without MACs and loss,
    such as a header, and a torn last line are skipped. If a journal stores a choice without its MACs, they are taken from its
    measurement.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: a line is not a JSON object, or the whole network was not measured.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; {RECORD}.")
    base: int | None = None
    points: list[tuple[int, float]] = []
    measured: dict[tuple[Any, Any], Any] = {}
    entries = list(_entries(path))
    full = _as_on_all_draws(entries)
    for entry in entries:
        here = (entry.get("round"), entry.get("loss"))
        macs = entry.get("macs", measured.get(here) if "chosen" in entry else None)
        if macs is None or entry.get("loss") is None:
            continue
        measured[here] = macs
        if "draws" in entry and ("chosen" in entry or entry.get("sliced")):
            continue  # the next round begins with the choice repaired anew
        first = base is None and entry.get("round") == 0 and not any(entry.get("steps") or ())
        if first or "chosen" in entry or "draws" in entry or entry.get("round") == -1:
            points.append((macs, float(entry["loss"]) * full(entry)))
            base = points[-1][0] if first else base
    if base is None:
        raise FileFormatError(
            f"{path} has no measurement of the whole network; expected the journal of a search that measures, "
            f"such as greedy's, to a target below 1: {RECORD}."
        )
    try:
        return Frontier.of(points, base)
    except ValueError as error:
        raise FileFormatError(f"{path} holds no frontier ({error}); {RECORD}.") from error


def _as_on_all_draws(entries: Sequence[JsonObject]) -> Callable[[JsonObject], float]:
    """By what a loss that was measured on the first draws is to be multiplied, to compare with losses on all draws.

    The factor is known of networks that were measured both ways, such as the whole one and the search's result; between their MACs
    it is interpolated.
    """
    found: dict[tuple[int, ...], dict[int, float]] = {}
    macs: dict[tuple[int, ...], int] = {}
    for entry in entries:
        known = all(entry.get(key) is not None for key in ("steps", "macs", "loss"))
        if known and "chosen" not in entry and not entry.get("sliced"):
            steps = tuple(entry["steps"])
            found.setdefault(steps, {})[entry.get("draws", 0)] = float(entry["loss"])
            macs[steps] = entry["macs"]

    def factor(entry: JsonObject) -> float:
        draws = entry.get("draws", 0)
        if not draws:
            return 1.0
        both = sorted((macs[s], own[0] / own[draws]) for s, own in found.items() if own.get(draws) and 0 in own)
        return float(np.interp(entry["macs"], [at for at, _ in both], [ratio for _, ratio in both])) if both else 1.0

    return factor


def read_frontiers(folder: Path | str, count: int) -> tuple[Frontier, ...]:
    """The frontiers of timestep groups 0 … ``count`` − 1 from a folder with ``search-N.jsonl`` or ``group-N.jsonl``.

    Raises:
        MissingFileError: a group's journal is missing.
        FileFormatError: a journal cannot be read.
        InputError: the folder has journals of more groups, or of different networks.
    """
    folder = Path(folder)
    found = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    indices = [int(match[2]) for name in found if (match := _JOURNAL.fullmatch(name))]
    if not indices:
        raise MissingFileError(f"{folder} has no journals search-0.jsonl, search-1.jsonl, …; {RECORD}.")
    kind = "search" if any(name.startswith("search-") and _JOURNAL.fullmatch(name) for name in found) else "group"
    frontiers = [read_frontier(folder / f"{kind}-{index}.jsonl") for index in range(count)]
    if max(indices) >= count:
        raise InputError(
            f"{folder} has a journal of timestep group {max(indices)} and there are {count} groups; "
            f"expected journals of the same groups: {RECORD}."
        )
    return check_same_base(frontiers)


def check_same_base(frontiers: Sequence[Frontier]) -> tuple[Frontier, ...]:
    """The frontiers, after a check that they belong to one network.

    Raises:
        InputError: their whole networks cost different MACs.
    """
    bases = sorted({frontier.base_macs for frontier in frontiers})
    if len(bases) > 1:
        raise InputError(
            f"The journals are of networks of {bases[0]:,} and of {bases[-1]:,} MACs; expected one base: {RECORD}."
        )
    return tuple(frontiers)


def _entries(path: Path) -> list[JsonObject]:
    check_limit("json-bytes", path.stat().st_size, str(path))
    lines = path.read_bytes().splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number},"
        try:
            entry = parse_json(line, where)
        except LimitError:
            raise
        except FileFormatError:
            if number == len(lines):
                break  # a torn last line
            raise
        checked(_EntryForm, entry, where, RECORD)
        entries.append(entry)
    return entries
