"""Which report a run's manifest asks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit._types import JsonDict
from prunekit.experiments import Experiment
from prunekit.report.claims import claim
from prunekit.report.curriculum import curriculum_claim, write_curriculum_report
from prunekit.report.evidence import evidence_claim
from prunekit.report.evidence_page import write_evidence_report
from prunekit.report.forms import read_manifest
from prunekit.report.multistage import multistage_claim, write_multistage_report
from prunekit.report.page import write_report
from prunekit.report.run import RunResults

__all__ = ["KINDS", "Kind", "kind_of", "report_writer", "write_any_report"]


@dataclass(frozen=True)
class Kind:
    """What a kind of run shows.

    Args:
        claim: what a manifest of this kind found, in one sentence.
        write: takes the run's folder, writes its report and returns the page.
    """

    claim: Callable[[JsonDict], str]
    write: Callable[[Path], Path]


KINDS: Mapping[Experiment, Kind] = {
    Experiment.EVIDENCE: Kind(evidence_claim, write_evidence_report),
    Experiment.MULTISTAGE: Kind(multistage_claim, write_multistage_report),
    Experiment.CURRICULUM: Kind(curriculum_claim, write_curriculum_report),
    Experiment.EXPERTS: Kind(lambda manifest: claim(RunResults.from_manifest(manifest)), write_report),
}
"""Every kind of run with something to show."""


def kind_of(manifest: Mapping[str, Any]) -> Kind | None:
    """The kind of a manifest; None for a run that has nothing to show but the manifest."""
    return KINDS.get(Experiment.shown_by(manifest))


def report_writer(manifest: Mapping[str, Any]) -> Callable[[Path], Path] | None:
    """The writer for a manifest; None for a run that has nothing to show but the manifest."""
    kind = kind_of(manifest)
    return None if kind is None else kind.write


def write_any_report(folder: Path | str) -> Path:
    """The report of a run of any kind, in its folder; returns its page."""
    folder = Path(folder)
    writer = report_writer(read_manifest(folder)) or write_report
    return writer(folder)
