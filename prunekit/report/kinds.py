"""Which report a run's manifest asks for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prunekit._files import read_json
from prunekit.report.curriculum import write_curriculum_report
from prunekit.report.multistage import write_multistage_report
from prunekit.report.page import write_report
from prunekit.report.run import MANIFEST_FORMAT

__all__ = ["WRITERS", "report_writer", "write_any_report"]

WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "multistage": write_multistage_report,
    "curriculum": write_curriculum_report,
    "allocation": write_report,
}
"""Writers of reports by the manifest's entry that they show; each takes the run's folder and returns its first file."""


def report_writer(manifest: Mapping[str, Any]) -> Callable[[Path], Path] | None:
    """The writer for a manifest; None for a run that has nothing to show but the manifest."""
    return next((writer for entry, writer in WRITERS.items() if entry in manifest), None)


def write_any_report(folder: Path) -> Path:
    """The report of a run of any kind, in its folder; returns its first file."""
    writer = report_writer(read_json(folder / "manifest.json", MANIFEST_FORMAT)) or write_report
    return writer(folder)
