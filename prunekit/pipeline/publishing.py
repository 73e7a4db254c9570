"""Copy a run's results, not its weights, to where they are kept and shown."""

import shutil
from pathlib import Path

from prunekit._files import atomic_folder, read_json, write_json
from prunekit._names import public_manifest
from prunekit.errors import FileFormatError
from prunekit.report import report_writer, write_overview

__all__ = ["publish"]

_PUBLISHED = ("manifest.json", "groups.json", "allocation.json", "importance.json", "samples", "groupings")


def publish(run_folder: Path, reports: Path) -> Path:
    """Copy the results of a run (not its weights) to ``reports/<recipe>/``, make its report and the page over all runs.

    Names stand there in place of paths.
    """
    manifest = read_json(run_folder / "manifest.json")
    name = str(manifest.get("recipe"))
    if not name or "/" in name or name.startswith("."):
        raise FileFormatError(f"{run_folder / 'manifest.json'} names recipe {name!r}, which cannot be a folder.")
    target = reports / name
    with atomic_folder(target) as part:
        for item in _PUBLISHED:
            source = run_folder / item
            if source.is_dir():
                shutil.copytree(source, part / item)
            elif source.exists():
                shutil.copy2(source, part / item)
        for path in part.rglob("*.json"):
            _drop_paths(path)
    write = report_writer(manifest)
    if write is not None:
        write(target)
    write_overview(reports)
    return target


def _drop_paths(path: Path) -> None:
    """Runs of earlier versions have absolute paths in their files."""
    content = read_json(path)
    if (public := public_manifest(content)) != content:
        write_json(path, public)
