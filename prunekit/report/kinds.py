"""Which report a run's manifest asks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit._types import JsonDict
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
    """A kind of run.

    Args:
        title: what its runs are, for a list of them.
        claim: what a manifest of this kind found, in one sentence.
        write: takes the run's folder, writes its report and returns the page.
    """

    title: str
    claim: Callable[[JsonDict], str]
    write: Callable[[Path], Path]


KINDS: Mapping[str, Kind] = {
    "evidence": Kind("experts beside baselines", evidence_claim, write_evidence_report),
    "multistage": Kind("networks for stages", multistage_claim, write_multistage_report),
    "curriculum": Kind("ways to train", curriculum_claim, write_curriculum_report),
    "allocation": Kind("timestep experts", lambda manifest: claim(RunResults.from_manifest(manifest)), write_report),
}
"""Kinds of runs by the manifest's entry that they show; the first that is there counts."""


def kind_of(manifest: Mapping[str, Any]) -> Kind | None:
    """The kind of a manifest; None for a run that has nothing to show but the manifest."""
    return next((kind for entry, kind in KINDS.items() if entry in manifest), None)


def report_writer(manifest: Mapping[str, Any]) -> Callable[[Path], Path] | None:
    """The writer for a manifest; None for a run that has nothing to show but the manifest."""
    kind = kind_of(manifest)
    return None if kind is None else kind.write


def write_any_report(folder: Path | str) -> Path:
    """The report of a run of any kind, in its folder; returns its page."""
    folder = Path(folder)
    writer = report_writer(read_manifest(folder)) or write_report
    return writer(folder)
