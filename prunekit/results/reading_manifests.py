"""Reads the manifest of a run of any kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from prunekit._json import read_json
from prunekit.experiments import Experiment
from prunekit.results.evidence_results import EvidenceManifest
from prunekit.results.expert_results import BaseManifest, ExpertsManifest
from prunekit.results.formats import MANIFEST
from prunekit.results.learning_results import CurriculumManifest, MultistageManifest
from prunekit.results.manifest_head import Head
from prunekit.results.versions import manifest_as_now

__all__ = ["AGAIN", "MANIFESTS", "Manifest", "manifest_of", "of_kind", "read_manifest"]

AGAIN = "make it again with `prunekit run`"
"""Advice for a manifest that cannot be read."""
Manifest = BaseManifest | ExpertsManifest | CurriculumManifest | MultistageManifest | EvidenceManifest
_Form = TypeVar("_Form", bound=Head)
MANIFESTS: Mapping[Experiment, type[Manifest]] = {
    Experiment.EVIDENCE: EvidenceManifest,
    Experiment.MULTISTAGE: MultistageManifest,
    Experiment.CURRICULUM: CurriculumManifest,
    Experiment.EXPERTS: ExpertsManifest,
    Experiment.BASE: BaseManifest,
}
"""The manifest of every kind of run."""


def manifest_of(data: Mapping[str, object] | Manifest, what: str = "The manifest") -> Manifest:
    """The content of a ``manifest.json`` as an object of the class for its kind of run.

    Args:
        data: JSON; a manifest that has been read is returned unchanged.
        what: where it comes from, as error messages name it.

    Raises:
        FileFormatError: a key is missing, or a value is of another type or out of its range.
    """
    if isinstance(data, Manifest):
        return data
    return MANIFESTS[Experiment.shown_by(data)].of(manifest_as_now(data), what, AGAIN)


def of_kind(form: type[_Form], data: Mapping[str, object] | Manifest, what: str = "The manifest") -> _Form:
    """The content of a ``manifest.json`` of a known kind of run.

    Args:
        form: the class for the kind.
        data: JSON, or a manifest that has been read.
        what: where it comes from, as error messages name it.

    Raises:
        FileFormatError: see :func:`manifest_of`, or the manifest is of another kind of run.
    """
    return form.of(manifest_as_now(data) if isinstance(data, Mapping) else data, what, AGAIN)


def read_manifest(folder: Path | str) -> Manifest:
    """``manifest.json`` of a run's folder.

    Raises:
        MissingFileError: there is no manifest.
        FileFormatError: it cannot be read.
    """
    path = Path(folder) / "manifest.json"
    return manifest_of(read_json(path, MANIFEST), str(path))
