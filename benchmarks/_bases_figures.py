"""Figures over several bases, from the manifests of studies on each of them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from prunekit._types import FloatArray
from prunekit.results.estimate import Estimate

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""The networks of each base, as the manifests have them."""
Fids = Mapping[str, Mapping[str, Mapping[int | None, float]]]
"""FID by base, entry and the seed of the fine-tuning; None for a base, which had none."""

SEEDS_APART = 10
"""Seeds N, N + 10, N + 20, … belong to base N, so that no two bases have the same one."""
CHOSEN_ON = "base-0"
"""The base on which all learning rates were chosen, which may favour it."""


@dataclass(frozen=True)
class Design:
    """FID with one choice of the fine-tuning's seed on every base.

    Args:
        own: whether each base has seeds of its own; otherwise all have seed 0, and so the same batches and the same noise.
        fids: FID by base and entry, the mean over the seeds.
        seeds: number of seeds by base and entry.
        differences: the pairs.
    """

    own: bool
    fids: dict[str, dict[str, float]]
    seeds: dict[str, dict[str, int]]
    differences: list["Difference"]

    @classmethod
    def of(cls, rows: Rows, own: bool, pairs: Iterable[tuple[str, str]]) -> "Design":
        """The networks with these seeds; bases of which nothing is fine-tuned so are left out."""
        fids = {base: _by_seed(_tuned(base, found, own)) for base, found in rows.items()}
        fids = {base: found for base, found in fids.items() if len(found) > 1}
        means = {
            base: {entry: float(np.mean([*by.values()])) for entry, by in own.items()} for base, own in fids.items()
        }
        seeds = {base: {entry: len(by) for entry, by in own.items()} for base, own in fids.items()}
        found = [pair for entry, other in pairs if (pair := difference(fids, entry, other)) is not None]
        return cls(own, means, seeds, found)


def _tuned(base: str, rows: Sequence[Mapping[str, Any]], own: bool) -> list[Mapping[str, Any]]:
    """Those whose fine-tuning had one of the base's own seeds, or seed 0, and the base itself, which had none."""
    number = int(base.rpartition("-")[2])
    return [
        row for row in rows if row["seed"] is None or (row["seed"] % SEEDS_APART == number if own else row["seed"] == 0)
    ]


def _by_seed(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[int | None, float]]:
    found: dict[str, dict[int | None, float]] = {}
    for row in rows:
        found.setdefault(row["entry"], {})[row["seed"]] = row["fid"]
    return found


@dataclass(frozen=True)
class Difference:
    """An entry's FID minus another's on the same bases and with the same fine-tuning seeds, whose mean counts for a base.

    Args:
        entry: the entry.
        other: what it is compared with.
        bases: number of bases that have both.
        pairs: number of seeds on all of these.
        mean: mean difference.
        low: lower end of the 95 % interval of the mean over bases; None for one base.
        high: its upper end.
        relative: mean of the difference as a part of the other's FID on the same base.
        better: on how many bases the entry's FID is lower.
        rest: mean, lower and upper end without :data:`CHOSEN_ON`; None if fewer than two bases remain.
    """

    entry: str
    other: str
    bases: int
    pairs: int
    mean: float
    low: float | None
    high: float | None
    relative: float
    better: int
    rest: tuple[float, float, float] | None


@dataclass(frozen=True)
class Spread:
    """How much an entry's FID varies, by cause.

    Args:
        entry: the entry.
        bases: standard deviation over bases, each with one fine-tuning seed of its own; None for one base.
        tuning: standard deviation over fine-tuning seeds on one base, with the same noise for the images; None for one seed.
        sampling: standard deviation over the images of one network, from a bootstrap; None if it is not known.
        paired: the same of the difference from the base, sampled from the same noise.
    """

    entry: str
    bases: float | None
    tuning: float | None
    sampling: float | None
    paired: float | None


def difference(fids: Fids, entry: str, other: str) -> Difference | None:
    """The paired difference of two entries, Student's interval over bases; None if no base has both.

    Args:
        fids: FID by base, entry and seed.
        entry: the entry.
        other: what it is compared with.
    """
    shared = {base: _shared(own.get(entry, {}), own.get(other, {})) for base, own in fids.items()}
    pairs = {base: np.mean(found, axis=0) for base, found in shared.items() if found}
    if not pairs:
        return None
    mine, others = np.array([*pairs.values()]).T
    gaps = mine - others
    better, relative = int((gaps < 0).sum()), float((gaps / others).mean())
    rest = _interval(gaps[[base != CHOSEN_ON for base in pairs]])
    ends = _interval(gaps) or (float(gaps.mean()), None, None)
    return Difference(entry, other, len(pairs), sum(map(len, shared.values())), *ends, relative, better, rest)


def _interval(gaps: FloatArray) -> tuple[float, float, float] | None:
    """Mean and Student's 95 % interval of the mean; None for fewer than two values."""
    if len(gaps) < 2 or (half := Estimate.over(gaps).half_width) is None:
        return None
    mean = float(gaps.mean())
    return mean, mean - half, mean + half


def _shared(mine: Mapping[int | None, float], others: Mapping[int | None, float]) -> list[tuple[float, float]]:
    """Pairs of the same seed; a base is the other of every seed."""
    if None in others:
        return [(value, others[None]) for value in mine.values()]
    return [(value, others[seed]) for seed, value in mine.items() if seed in others]


def rows_of(
    manifests: Mapping[str, Mapping[str, Mapping[str, Any]]], training: Collection[str]
) -> dict[str, list[dict[str, Any]]]:
    """The networks of every base.

    Args:
        manifests: by study and file, whose name starts with the base's.
        training: studies that train bases of their own, which no other study has: their base counts as an entry of its own.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for study, own in manifests.items():
        for file, manifest in own.items():
            base = file.partition("-seed-")[0]
            for row in manifest["evidence"]:
                name = row["entry"] if study not in training or row["entry"] != "base" else f"base of {study}"
                if name != "base" or not any(known["entry"] == "base" for known in found.get(base, ())):
                    found.setdefault(base, []).append({**row, "entry": name})
    return dict(sorted(found.items()))


def spreads_of(rows: Rows) -> list[Spread]:
    """How much every entry's FID varies, by cause."""
    entries = list(dict.fromkeys(row["entry"] for own in rows.values() for row in own))
    return [_spread(entry, rows) for entry in entries]


def _spread(entry: str, rows: Rows) -> Spread:
    own = {base: [row for row in found if row["entry"] == entry] for base, found in rows.items()}
    tuned_own = [_tuned(base, found, own=True) for base, found in own.items()]
    over = [found[0]["fid"] for found in tuned_own if found]
    tuned = [np.var([row["fid"] for row in found], ddof=1) for found in own.values() if len(found) > 1]
    every = [row for found in own.values() for row in found]
    sampled = [row["fid_sampling_error"] for row in every if row.get("fid_sampling_error") is not None]
    paired = [row["fid_difference"]["se"] for row in every if (row.get("fid_difference") or {}).get("se") is not None]
    return Spread(
        entry,
        float(np.std(over, ddof=1)) if len(over) > 1 else None,
        float(np.sqrt(np.mean(tuned))) if tuned else None,
        float(np.mean(sampled)) if sampled else None,
        float(np.mean(paired)) if paired else None,
    )


@dataclass(frozen=True)
class Following:
    """How FID follows the held-out loss of each timestep group, over all entries and bases.

    Args:
        groups: first timestep of each group after the first.
        changes: entry → change of each group's loss from the base's in per cent, the mean over bases.
        ranks: Spearman's correlation of each group's change with the change of FID.
        weighed: the same of the summed change, weighed by the amplification that a sensitivity measured; None if none did.
        pairs: number of entries on bases.
    """

    groups: list[int]
    changes: dict[str, list[float]]
    ranks: list[float]
    weighed: float | None
    pairs: int


def following(rows: Rows, groups: Sequence[int], amplification: Sequence[float] | None) -> Following:
    """Compare the networks of every base with the base itself.

    Args:
        rows: the networks of every base.
        groups: first timestep of each group after the first, for which the losses are.
        amplification: weight of each group's loss.
    """
    relative, absolute, fids = list[FloatArray](), list[FloatArray](), list[float]()
    by_entry: dict[str, list[FloatArray]] = {}
    for own in rows.values():
        (base,) = (row for row in own if row["entry"] == "base")
        before = _losses(base)
        for row in own:
            if row["entry"] != "base" and len(row["losses"]) == len(before):
                absolute.append(_losses(row) - before)
                relative.append(100 * absolute[-1] / before)
                fids.append(row["fid"] - base["fid"])
                by_entry.setdefault(row["entry"], []).append(relative[-1])
    changes = {name: np.mean(found, axis=0).tolist() for name, found in by_entry.items()}
    ranks = [float(spearmanr(column, fids).statistic) for column in np.array(relative).T]
    summed = None if amplification is None else np.array(absolute) @ np.array(amplification)
    weighed = None if summed is None else float(spearmanr(summed, fids).statistic)
    return Following(list(groups), changes, ranks, weighed, len(fids))


def _losses(row: Mapping[str, Any]) -> FloatArray:
    return np.array([loss["mean"] for loss in row["losses"]])


def amplification_of(manifests: Mapping[str, Mapping[str, Any]], groups: int) -> list[float] | None:
    """The mean over bases of what the sensitivities measured; None if there is none for that number of groups."""
    found = [manifest["method"]["allocation"].get("sensitivity") for manifest in manifests.values()]
    every = [[group["amplification"] for group in one["groups"]] for one in found if one is not None]
    every = [one for one in every if len(one) == groups]
    return np.mean(every, axis=0).tolist() if every else None
