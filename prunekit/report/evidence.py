"""What a comparison of experts with baselines at equal training found: the entries over their seeds, and the claim."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunekit._json import checked
from prunekit._types import FloatArray, JsonDict
from prunekit.errors import FileFormatError
from prunekit.report.estimate import Estimate
from prunekit.report.forms import AGAIN, EvidenceForm
from prunekit.report.wording import estimate_text, large_text, short_ratio, unclear

__all__ = ["TRAININGS", "Entry", "Evidence", "evidence_claim", "gap", "gap_text", "short_gap"]

TRAININGS = ("base", "search", "fine-tuning")
"""What the MACs of making an entry went to."""
_NEARLY = 1.005  # steps of fine-tuning are whole, so that equal trainings differ by a little
_ROLES = ("base", "experts", "baseline", "ablation")
_NUMBERS = ("sampling_macs", "params", "loss", "fid", "kid", "ssim")


@dataclass(frozen=True)
class Entry:
    """One way to spend the training MACs, over its fine-tuning seeds.

    Args:
        name: what tables and pictures call it.
        role: ``base``, ``experts``, ``baseline`` or ``ablation``.
        seeds: of its fine-tuning, in order; None for what is not fine-tuned.
        values: one number for each seed by measure: ``sampling_macs``, ``params``, ``loss``, ``fid``, ``kid``, ``ssim``, and
            ``seconds_per_image`` where it was measured.
        training: MACs by what they went to, see :data:`TRAININGS`, likewise.
        losses: held-out losses, shape (seeds, timestep groups of the evaluation).
    """

    name: str
    role: str
    seeds: tuple[int | None, ...]
    values: Mapping[str, FloatArray]
    training: Mapping[str, FloatArray]
    losses: FloatArray

    def estimate(self, measure: str) -> Estimate | None:
        """Mean and standard error over the seeds; None for what was not measured."""
        return Estimate.over(self.values[measure]) if measure in self.values else None

    def mean(self, measure: str) -> float:
        """Mean over the seeds."""
        return float(self.values[measure].mean())

    @property
    def total(self) -> float:
        """Training MACs in all, mean over the seeds."""
        return float(sum(part.mean() for part in self.training.values()))


@dataclass(frozen=True)
class Evidence:
    """All entries of a manifest.

    Args:
        entries: by name; those of a role together, else in the manifest's order.
        reference: what the others are compared with.
        headline: what the claim is about.
        cuts: between the timestep groups of the evaluation.
        metrics: what FID and KID were measured with, as the manifest says it.
    """

    entries: Mapping[str, Entry]
    reference: Entry
    headline: Entry
    cuts: tuple[int, ...]
    metrics: Mapping[str, Any]

    @classmethod
    def from_manifest(cls, manifest: JsonDict) -> "Evidence":
        """Read a manifest.

        Raises:
            FileFormatError: it is no manifest of such a comparison, or it lacks an entry that it speaks of.
        """
        checked(EvidenceForm, manifest, "The manifest's comparison of experts with baselines", AGAIN)
        try:
            by_entry: dict[str, list[JsonDict]] = {}
            for row in manifest["evidence"]:
                by_entry.setdefault(str(row["entry"]), []).append(row)
            made = [_entry(name, rows) for name, rows in by_entry.items()]
            entries = {entry.name: entry for entry in sorted(made, key=lambda entry: _ROLES.index(entry.role))}
            metrics = manifest["metrics"]
            features = metrics["features"]
            named = features if isinstance(features, Mapping) else {"name": str(features)}
            cuts = tuple(map(int, manifest["groups"]))
            reference, headline = (entries[str(manifest[key])] for key in ("reference", "headline"))
            entries["base"]
            if any(entry.losses.shape[1] != len(cuts) + 1 for entry in entries.values()):
                raise ValueError(f"losses of {len(cuts) + 1} timestep groups were expected")
            return cls(
                entries, reference, headline, cuts, {**metrics, "features": named, "count": int(metrics["count"])}
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise FileFormatError(
                f"The manifest holds no comparison of experts with baselines ({type(error).__name__}: {error}); make it again "
                "with `prunekit run`."
            ) from error

    @property
    def base(self) -> Entry:
        """The base as it was."""
        return self.entries["base"]

    def ratio(self, entry: Entry) -> float:
        """Mean MACs while sampling as a fraction of the base's."""
        return entry.mean("sampling_macs") / self.base.mean("sampling_macs")

    def label(self, measure: str) -> str:
        """FID or KID with its features and count, without which the number means nothing."""
        features = self.metrics["features"].get("name", "not named")
        return f"{measure} (features: {features}, n = {self.metrics['count']})"

    @property
    def seed_count(self) -> int:
        """How many fine-tuning seeds the entry that the claim is about has."""
        return len(self.headline.seeds)


def evidence_claim(manifest: JsonDict) -> str:
    """What the comparison found, in one sentence made from its numbers.

    Raises:
        FileFormatError: it is no manifest of such a comparison.
    """
    evidence = Evidence.from_manifest(manifest)
    headline, reference = evidence.headline, evidence.reference
    found = (
        f"{evidence.label('FID')} of {headline.name} is {gap_text(headline, reference, 'fid')} "
        f"({estimate_text(headline.estimate('fid'))} against {estimate_text(reference.estimate('fid'))}, "
        f"{evidence.seed_count} fine-tuning seed{'s' if evidence.seed_count != 1 else ''})"
    )
    return f"At {short_ratio(evidence.ratio(headline))} of the base's sampling MACs and {_training(evidence)}, {found}."


def gap(one: Entry, other: Entry, measure: str) -> Estimate:
    """Difference one − other with the two errors combined as independent; an entry of one seed adds none.

    Without an error where both have one seed.
    """
    errors = [value.se for entry in (one, other) if (value := entry.estimate(measure)) and value.se is not None]
    return Estimate(one.mean(measure) - other.mean(measure), float(np.hypot.reduce(errors)) if errors else None)


def gap_text(one: Entry, other: Entry, measure: str) -> str:
    """``0.31 ± 0.05 better than the base's``, for a measure of which lower is better.

    Within two standard errors of nothing it is ``not clearly better than the base's, by 0.04 ± 0.05``.

    Args:
        one: what is judged.
        other: what it is judged against.
        measure: ``fid``, ``kid`` or ``loss``.
    """
    name = "the base's" if other.role == "base" else f"that of {other.name}"
    difference = gap(one, other, measure)
    if difference.mean == 0:
        return f"equal to {name}"
    better, size = _direction(difference), estimate_text(Estimate(abs(difference.mean), difference.se))
    lone = _alone(one, other, difference)
    if unclear(difference):
        return f"not clearly {better} than {name}, by {size}{lone}"
    return f"{size} {better} than {name}{lone}"


def short_gap(one: Entry, other: Entry, measure: str) -> str:
    """:func:`gap_text` for a table's cell."""
    difference = gap(one, other, measure)
    if difference.mean == 0:
        return "equal"
    size = estimate_text(Estimate(abs(difference.mean), difference.se))
    return f"{size} {_direction(difference)}{', not clearly' if unclear(difference) else ''}"


def _direction(difference: Estimate) -> str:
    return "better" if difference.mean < 0 else "worse"


def _alone(one: Entry, other: Entry, difference: Estimate) -> str:
    """What a single training keeps from being known; the base is one model, and meant as that."""
    if difference.se is None:
        return " (one seed, no standard error)"
    single = [entry.name for entry in (one, other) if len(entry.seeds) == 1 and entry.role != "base"]
    return f" ({single[0]} has one seed, whose spread is not in the error)" if single else ""


def _training(evidence: Evidence) -> str:
    """How the headline's training MACs stand to the reference's, in words."""
    own, other = evidence.headline.total, evidence.reference.total
    name = "the base" if evidence.reference is evidence.base else evidence.reference.name
    if own <= other:
        return f"no more training than {name}"
    if other == 0:
        return f"{large_text(own)} MACs of training"
    if own < _NEARLY * other:
        return f"training within {100 * (_NEARLY - 1):.1f} % of that of {name}"
    return f"{short_ratio(own / other)} times the training MACs of {name}"


def _entry(name: str, rows: list[JsonDict]) -> Entry:
    values = {key: np.array([row[key] for row in rows], dtype=np.float64) for key in _NUMBERS}
    if all(row.get("seconds_per_image") is not None for row in rows):
        values["seconds_per_image"] = np.array([row["seconds_per_image"] for row in rows], dtype=np.float64)
    training = {
        part: np.array([row["training_macs"].get(part, 0) for row in rows], dtype=np.float64) for part in TRAININGS
    }
    return Entry(
        name,
        str(rows[0]["group"]),
        tuple(None if row["seed"] is None else int(row["seed"]) for row in rows),
        values,
        training,
        np.array([[loss["mean"] for loss in row["losses"]] for row in rows], dtype=np.float64),
    )
