"""Finds the report for a run's manifest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from markupsafe import Markup

from prunekit._json import JsonDict
from prunekit.experiments import Experiment
from prunekit.report.claims import claim
from prunekit.report.curriculum_page import curriculum_claim, training_curves, write_curriculum_report
from prunekit.report.evidence import Evidence, evidence_claim
from prunekit.report.evidence_page import write_evidence_report
from prunekit.report.gallery import letters, thumbs
from prunekit.report.illustrations import Picture
from prunekit.report.learning_charts import learning_spark
from prunekit.report.multistage import entries_of, multistage_claim, write_multistage_report
from prunekit.report.page import write_report
from prunekit.report.run import RunResults, read_samples
from prunekit.results.expert_results import ExpertsManifest
from prunekit.results.reading_manifests import Manifest, manifest_of, of_kind, read_manifest

Thumbs: TypeAlias = tuple[Picture | Markup, ...]
__all__ = ["KINDS", "Kind", "kind_of", "report_writer", "write_any_report"]


@dataclass(frozen=True)
class Kind:
    """The report of a kind of run.

    Args:
        claim: takes a manifest, as JSON or as read before, and returns its finding in one sentence.
        write: takes the run's folder, writes its report and returns the page.
        thumbs: takes the run's folder and manifest, and returns small pictures for the list of runs.
    """

    claim: Callable[[Manifest | JsonDict], str]
    write: Callable[[Path], Path]
    thumbs: Callable[[Path, Manifest], Thumbs]


def _experts_claim(manifest: Manifest | JsonDict) -> str:
    return claim(RunResults.from_manifest(of_kind(ExpertsManifest, manifest)))


def _evidence_thumbs(folder: Path, manifest: Manifest) -> Thumbs:
    headline = Evidence.from_manifest(manifest).headline.name
    samples = {headline if letters(n) == letters(headline) else n: found for n, found in read_samples(folder).items()}
    return thumbs(folder.name, samples, ("base", headline))


def _experts_thumbs(folder: Path, manifest: Manifest) -> Thumbs:
    return thumbs(folder.name, read_samples(folder), ("base", "experts"))


def _multistage_thumbs(folder: Path, manifest: Manifest) -> Thumbs:
    return (learning_spark([entry.curve for entry in entries_of(manifest)], folder.name),)


def _curriculum_thumbs(folder: Path, manifest: Manifest) -> Thumbs:
    return (learning_spark(training_curves(manifest), folder.name),)


KINDS: Mapping[Experiment, Kind] = {
    Experiment.EVIDENCE: Kind(evidence_claim, write_evidence_report, _evidence_thumbs),
    Experiment.EXPERTS: Kind(_experts_claim, write_report, _experts_thumbs),
    Experiment.MULTISTAGE: Kind(multistage_claim, write_multistage_report, _multistage_thumbs),
    Experiment.CURRICULUM: Kind(curriculum_claim, write_curriculum_report, _curriculum_thumbs),
}
"""The report of every kind of run that has one, the most important kind first."""


def kind_of(manifest: Manifest | JsonDict) -> Kind | None:
    """The kind of report for a manifest, as JSON or as read before; None for a run without a report."""
    return KINDS.get(manifest_of(manifest).kind)


def report_writer(manifest: Manifest | JsonDict) -> Callable[[Path], Path] | None:
    """The report writer for a manifest; None for a run without a report."""
    kind = kind_of(manifest)
    return None if kind is None else kind.write


def write_any_report(folder: Path | str) -> Path:
    """Write the report of a run of any kind into its folder; returns the page."""
    folder = Path(folder)
    writer = report_writer(read_manifest(folder)) or write_report
    return writer(folder)
