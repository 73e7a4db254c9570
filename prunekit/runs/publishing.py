"""Copies a run's results, without its weights, to a folder of reports."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from prunekit._files import atomic_folder, check_folder, write_json
from prunekit._json import JsonDict, read_json
from prunekit._kinds import FolderKind, has_format
from prunekit._names import public_manifest
from prunekit.errors import FileFormatError, InputError
from prunekit.recipe.comparisons import slug
from prunekit.report import report_writer, write_overview
from prunekit.report.folder import FOLDER as REPORT
from prunekit.report.multistage import network_title
from prunekit.report.overview import check_overview
from prunekit.results.formats import MANIFEST
from prunekit.results.reading_manifests import read_manifest
from prunekit.runs.run_folder import check_links

__all__ = ["check_place", "publish"]


_FILES = ("groups.json", "allocation.json", "importance.json")
_GROUPINGS = FolderKind(
    "groupings", tuple(f"{n}.{suffix}" for n in ("[0-9]", "[0-9][0-9]") for suffix in ("json", "png"))
)


def _kind(*folders: Path) -> FolderKind:
    """The files of a published run, including the samples that the manifests in these folders name."""
    ours, names = has_format(MANIFEST), ["base", "experts"]
    for path in (folder / "manifest.json" for folder in folders):
        if ours(path):
            names += map(slug, _names_with_images(read_json(path)))
    samples = FolderKind("samples", tuple(f"{name}.npz" for name in names))
    parts = {"report": REPORT, "samples": samples, "groupings": _GROUPINGS}
    return FolderKind("published run", _FILES, parts, marker="manifest.json", is_ours=ours)


def _names_with_images(manifest: JsonDict) -> Iterator[str]:
    """Names of the entries or networks of which a run may have kept images."""
    config = manifest.get("config")
    evidence = config.get("evidence") if isinstance(config, dict) else None
    entries = evidence.get("entries") if isinstance(evidence, dict) else None
    names = ["base", *map(str, entries if isinstance(entries, dict) else ())]
    yield from names
    evaluation = config.get("evaluation") if isinstance(config, dict) else None
    scales = evaluation.get("other_guidance_scales") if isinstance(evaluation, dict) else None
    for scale in scales if isinstance(scales, list) else ():
        if isinstance(scale, int | float):
            yield from (f"{name} guidance {scale:g}" for name in names)
    for row in _rows(manifest, "multistage"):
        yield network_title(str(row.get("network")), str(row.get("grouping") or ""))
    for row in _rows(manifest, "curriculum"):
        yield str(row.get("entry"))


def _rows(manifest: JsonDict, part: str) -> list[JsonDict]:
    found = manifest.get(part)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def check_place(name: str, reports: Path) -> None:
    """Refuse, before a run starts, a folder of reports in which :func:`publish` could not write the run of this name.

    Raises:
        InputError: the folder has files that prunekit did not write.
    """
    if not name or "/" in name or name.startswith("."):
        raise InputError(f"Got a run named {name!r}; expected a name that a folder in {reports} can have.")
    check_folder(reports / name, _kind(reports / name))
    check_overview(reports)


def publish(run_folder: Path | str, reports: Path | str) -> Path:
    """Copy the results of a run (not its weights) to ``reports/<recipe>/`` with its report, and update the page of all runs.

    Paths in the copied files are replaced by names.

    Raises:
        InputError: see :func:`check_place`.
        FileFormatError: the run's manifest cannot be read, or its name is not valid as a folder's.
    """
    run_folder = Path(run_folder)
    reports = Path(reports)
    check_links(run_folder)  # files outside the run's folder must not be published
    manifest = read_manifest(run_folder)
    name = manifest.recipe
    if not name or "/" in name or name.startswith("."):
        raise FileFormatError(f"{run_folder / 'manifest.json'} names recipe {name!r}, which cannot be a folder.")
    check_place(name, reports)
    target = reports / name
    kind = _kind(run_folder, target)
    with atomic_folder(target, kind) as part:
        for source in (run_folder / item for item in ("manifest.json", *kind.files)):
            if source.is_file():
                shutil.copy2(source, part)
        for item in ("samples", "groupings"):
            for source in sorted((run_folder / item).glob("*")):
                if kind.folders[item].knows(source.name):
                    (part / item).mkdir(exist_ok=True)
                    shutil.copy2(source, part / item)
        for path in part.rglob("*.json"):
            _drop_paths(path)
        write = report_writer(read_manifest(part))
        if write is not None:
            write(part)
    write_overview(reports)
    return target


def _drop_paths(path: Path) -> None:
    """Remove absolute paths from a file; earlier versions wrote them."""
    content = read_json(path)
    if (public := public_manifest(content)) != content:
        write_json(path, public)
