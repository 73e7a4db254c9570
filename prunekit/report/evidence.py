"""Results of a comparison of experts with baselines at equal training: the entries over their seeds, and the claim."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prunekit._json import JsonDict
from prunekit._types import FloatArray
from prunekit.errors import FileFormatError
from prunekit.report.claims import contradiction
from prunekit.report.doubts import doubt_of, doubt_sentence
from prunekit.report.wording import clear, estimate_text, large_text, number_text, short_ratio, unpaired
from prunekit.results.estimate import Estimate
from prunekit.results.evidence_results import EvidenceManifest, EvidenceMetrics, EvidenceRow, Quality
from prunekit.results.reading_manifests import Manifest, of_kind

__all__ = ["TRAININGS", "Entry", "Evidence", "evidence_claim", "evidence_doubt", "gap", "gap_text", "short_gap"]

TRAININGS = ("base", "search", "fine-tuning")
"""The uses of the MACs for making an entry."""
_NEARLY = 1.005  # fine-tuning takes whole steps, so equal trainings differ a little
_ROLES = ("base", "experts", "baseline", "ablation")
_NUMBERS = ("sampling_macs", "params", "loss")
_OF_IMAGES = ("ssim", "fid", "kid", "agreement", "fid_sampling_error")
_PAIRED = ("fid", "agreement")  # measures whose difference from the base has an error of its own
_HIGHER = ("agreement",)  # measures of which higher is better


@dataclass(frozen=True)
class Entry:
    """One way to spend the training MACs, over its fine-tuning seeds.

    Args:
        name: its name in tables and pictures.
        role: ``base``, ``experts``, ``baseline`` or ``ablation``.
        seeds: seeds of its fine-tuning, in order; None if it is not fine-tuned.
        values: one number for each seed by measure: ``sampling_macs``, ``params``, ``loss``, ``ssim``, and if measured ``fid``,
            ``kid``, ``agreement``, ``fid_sampling_error``, ``fid_error`` and ``agreement_error`` (of the paired difference from the
            base) and ``seconds_per_image``.
        training: MACs for each seed by use, see :data:`TRAININGS`.
        losses: held-out losses, shape (seeds, timestep groups of the evaluation).
        guided: the measures of images at other scales of guidance, by scale.
    """

    name: str
    role: str
    seeds: tuple[int | None, ...]
    values: Mapping[str, FloatArray]
    training: Mapping[str, FloatArray]
    losses: FloatArray
    guided: Mapping[float, Mapping[str, FloatArray]] = field(default_factory=dict)

    def at(self, scale: float | None) -> "Entry":
        """The entry with the measures of its images at another scale of guidance; None for the comparison's own."""
        return self if scale is None else replace(self, values={**self.values, **self.guided[scale]})

    def estimate(self, measure: str) -> Estimate | None:
        """Mean and standard error over the seeds; None if the measure was not taken."""
        return Estimate.over(self.values[measure]) if measure in self.values else None

    def mean(self, measure: str) -> float:
        """Mean over the seeds."""
        return float(self.values[measure].mean())

    @property
    def total(self) -> float:
        """Total training MACs, mean over the seeds."""
        return float(sum(part.mean() for part in self.training.values()))


@dataclass(frozen=True)
class Evidence:
    """All entries of a manifest.

    Args:
        entries: by name; sorted by role, then in the manifest's order.
        reference: the entry that the others are compared with.
        headline: the entry that the claim is about.
        cuts: between the timestep groups of the evaluation.
        metrics: the manifest's description of how FID and KID were measured.
    """

    entries: Mapping[str, Entry]
    reference: Entry
    headline: Entry
    cuts: tuple[int, ...]
    metrics: EvidenceMetrics

    @classmethod
    def from_manifest(cls, manifest: Manifest | JsonDict) -> "Evidence":
        """Read a manifest, as JSON or as read before.

        Raises:
            FileFormatError: the manifest is not one of such a comparison, or an entry that it names is missing.
        """
        found = of_kind(EvidenceManifest, manifest, "The manifest's comparison of experts with baselines")
        try:
            by_entry: dict[str, list[EvidenceRow]] = {}
            for row in found.evidence:
                by_entry.setdefault(row.entry, []).append(row)
            made = [_entry(name, rows) for name, rows in by_entry.items()]
            entries = {entry.name: entry for entry in sorted(made, key=lambda entry: _ROLES.index(entry.role))}
            cuts = tuple(found.groups)
            reference, headline = entries[found.reference], entries[found.headline]
            entries["base"]
            if any(entry.losses.shape[1] != len(cuts) + 1 for entry in entries.values()):
                raise ValueError(f"losses of {len(cuts) + 1} timestep groups were expected")
            return cls(entries, reference, headline, cuts, found.metrics)
        except (KeyError, ValueError, IndexError) as error:
            raise FileFormatError(
                f"The manifest holds no comparison of experts with baselines ({type(error).__name__}: {error}); make it again "
                "with `prunekit run`."
            ) from error

    @property
    def base(self) -> Entry:
        """The unchanged base."""
        return self.entries["base"]

    def ratio(self, entry: Entry) -> float:
        """Mean MACs while sampling as a fraction of the base's."""
        return entry.mean("sampling_macs") / self.base.mean("sampling_macs")

    def label(self, measure: str) -> str:
        """FID or KID with features and count, since the number means nothing without them."""
        return self.metrics.label(measure)

    @property
    def has_fid(self) -> bool:
        """Whether FID was measured for every entry."""
        return all("fid" in entry.values for entry in self.entries.values())

    @property
    def has_agreement(self) -> bool:
        """Whether the agreement of images with their captions was measured for every entry."""
        return all("agreement" in entry.values for entry in self.entries.values())

    @property
    def error_note(self) -> str:
        """What the errors of the entries contain, and what they leave out."""
        known = [
            entry.mean("fid_sampling_error") for entry in self.entries.values() if "fid_sampling_error" in entry.values
        ]
        sampled = (
            f" Other images from the same network would move an FID by {number_text(max(known), 1)} (standard deviation, "
            "bootstrap)."
            if known
            else ""
        )
        if all(len(entry.seeds) == 1 for entry in self.entries.values()):
            over = "One base and one fine-tuning seed: what another training would change is not known."
        else:
            over = (
                "± is one standard error over fine-tuning seeds, all from one base and sampled from the same noise. What another "
                "base would change is not in it."
            )
        return over + sampled

    @property
    def scales(self) -> tuple[float | None, ...]:
        """The scales of guidance at which all entries were measured: the comparison's own first, as None."""
        known = [scale for scale in self.base.guided if all(scale in entry.guided for entry in self.entries.values())]
        return (None, *known)

    @property
    def seed_count(self) -> int:
        """Number of fine-tuning seeds of the headline entry."""
        return len(self.headline.seeds)


def evidence_claim(manifest: Manifest | JsonDict) -> str:
    """The finding of the comparison, in one sentence made from its numbers.

    Raises:
        FileFormatError: the manifest is not one of such a comparison.
    """
    manifest = of_kind(EvidenceManifest, manifest, "The manifest's comparison of experts with baselines")
    evidence = Evidence.from_manifest(manifest)
    headline, reference = evidence.headline, evidence.reference
    doubt = evidence_doubt(manifest, evidence)
    measure = "loss" if doubt or not evidence.has_fid else "fid"
    name = "the held-out loss" if measure == "loss" else evidence.label("FID")
    found = _found(evidence, measure, name)
    if measure == "fid":
        differences = [gap(headline, reference, each) for each in ("fid", "loss")]
        against = contradiction(differences[0], differences[1], reference.mean("loss"))
        loss = _found(evidence, "loss", "the held-out loss")
        if against == "far":
            found = f"two measures contradict each other, so no gain is claimed: {loss}; but {found}"
        elif against:
            found = f"{found}; {loss}"
    sentence = (
        f"At {short_ratio(evidence.ratio(headline))} of the base's sampling MACs and {_training(evidence)}, {found}."
    )
    return " ".join(filter(None, [sentence, doubt_sentence(evidence.label("FID"), evidence.metrics, doubt)]))


def evidence_doubt(manifest: EvidenceManifest, evidence: Evidence) -> str:
    """Why the claim must not rest on FID; empty if it may."""
    data = manifest.base.data if manifest.base else None
    return doubt_of(evidence.metrics, data or manifest.settings.data or {})


def _found(evidence: Evidence, measure: str, name: str) -> str:
    """The headline's measure compared with the reference's."""
    headline, reference = evidence.headline, evidence.reference
    seeds = f"{evidence.seed_count} fine-tuning seed{'s' if evidence.seed_count != 1 else ''}"
    return (
        f"{name} of {headline.name} is {gap_text(headline, reference, measure)} "
        f"({estimate_text(headline.estimate(measure))} against {estimate_text(reference.estimate(measure))}, {seeds})"
    )


def gap(one: Entry, other: Entry, measure: str) -> Estimate:
    """Difference one − other: seed by seed if both have the same ones, otherwise with independent errors.

    An entry with one seed adds no error, and the difference has none if both have one. For FID and agreement compared with the
    base, whose images start from the same noise, the interval is at least the paired one over images, if measured; this also works
    for one seed.
    """
    if one.seeds == other.seeds and len(one.seeds) > 1:
        return Estimate.over(one.values[measure] - other.values[measure])
    own, its = Estimate.over(one.values[measure]), Estimate.over(other.values[measure])
    spread = next((each for each in (own, its) if each.se is not None), own)
    if own.se is not None and its.se is not None:
        spread = unpaired(own, its)
    found = Estimate(mean=own.mean - its.mean, se=spread.se, df=spread.df)
    if measure not in _PAIRED or other.role != "base" or f"{measure}_error" not in one.values:
        return found
    over_images = Estimate(mean=found.mean, se=one.mean(f"{measure}_error"))
    return max(found, over_images, key=lambda each: each.half_width or 0.0)


def gap_text(one: Entry, other: Entry, measure: str) -> str:
    """``0.31 ± 0.05 better than the base's``.

    If the 95 % interval contains zero, or without an error, it is ``not clearly better than the base's, by 0.04 ± 0.05``.

    Args:
        one: the entry to judge.
        other: the entry to compare it with.
        measure: ``fid``, ``kid``, ``loss`` or ``agreement``.
    """
    name = "the base's" if other.role == "base" else f"that of {other.name}"
    difference = gap(one, other, measure)
    if difference.mean == 0:
        return f"equal to {name}"
    better, size = (
        _direction(difference, measure),
        estimate_text(Estimate(mean=abs(difference.mean), se=difference.se)),
    )
    lone = _alone(one, other, difference)
    if not clear(difference):
        return f"not clearly {better} than {name}, by {size}{lone}"
    return f"{size} {better} than {name}{lone}"


def short_gap(one: Entry, other: Entry, measure: str) -> str:
    """:func:`gap_text` for a table's cell."""
    difference = gap(one, other, measure)
    if difference.mean == 0:
        return "equal"
    size = estimate_text(Estimate(mean=abs(difference.mean), se=difference.se))
    return f"{size} {_direction(difference, measure)}{', not clearly' if not clear(difference) else ''}"


def _direction(difference: Estimate, measure: str) -> str:
    return "better" if (difference.mean < 0) != (measure in _HIGHER) else "worse"


def _alone(one: Entry, other: Entry, difference: Estimate) -> str:
    """A note on entries with a single training, whose spread is unknown; the base is one model by design."""
    if difference.se is None:
        return " (one seed, no standard error)"
    single = [entry.name for entry in (one, other) if len(entry.seeds) == 1 and entry.role != "base"]
    return f" ({single[0]} has one seed, whose spread is not in the error)" if single else ""


def _training(evidence: Evidence) -> str:
    """How the headline's training MACs compare with the reference's, in words."""
    own, other = evidence.headline.total, evidence.reference.total
    name = "the base" if evidence.reference is evidence.base else evidence.reference.name
    if own <= other:
        return f"no more training than {name}"
    if other == 0:
        return f"{large_text(own)} MACs of training"
    if own < _NEARLY * other:
        return f"training within {100 * (_NEARLY - 1):.1f} % of that of {name}"
    return f"{short_ratio(own / other)} times the training MACs of {name}"


def _entry(name: str, rows: list[EvidenceRow]) -> Entry:
    values = {key: _over_seeds(rows, key) for key in _NUMBERS}
    if all(row.seconds_per_image is not None for row in rows):
        values["seconds_per_image"] = _over_seeds(rows, "seconds_per_image")
    values |= _of_images(rows)
    by_scale = [{one.guidance_scale: one for one in row.guided or ()} for row in rows]
    scales = [scale for scale in by_scale[0] if all(scale in found for found in by_scale)]
    guided = {scale: _of_images([found[scale] for found in by_scale]) for scale in scales}
    training = {
        part: np.array([row.training_macs.get(part, 0) for row in rows], dtype=np.float64) for part in TRAININGS
    }
    return Entry(
        name,
        rows[0].group,
        tuple(row.seed for row in rows),
        values,
        training,
        np.array([[loss.mean for loss in row.losses] for row in rows], dtype=np.float64),
        guided,
    )


def _of_images(rows: Sequence[Quality]) -> dict[str, FloatArray]:
    """The measures of images that were taken for every seed, and the errors of their paired differences."""
    values = {key: _over_seeds(rows, key) for key in _OF_IMAGES if all(getattr(row, key) is not None for row in rows)}
    for key in _PAIRED:
        found = [getattr(row, f"{key}_difference") for row in rows]
        errors = [None if difference is None else difference.se for difference in found]
        if None not in errors:
            values[f"{key}_error"] = np.array(errors, dtype=np.float64)
    return values


def _over_seeds(rows: Sequence[Quality], key: str) -> FloatArray:
    """A number of every row."""
    return np.array([getattr(row, key) for row in rows], dtype=np.float64)
