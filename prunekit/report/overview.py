"""The page about all runs in a folder: each run's facts, its finding and a link to its report."""

from collections.abc import Callable
from pathlib import Path

from prunekit._files import atomic_path, check_file
from prunekit._leftovers import restore_within
from prunekit._names import without_paths
from prunekit.errors import InputError, MissingFileError
from prunekit.report.document import Card, Cards, Document, Link, sections_with
from prunekit.report.folder import PAGE
from prunekit.report.kinds import KINDS, kind_of, report_writer
from prunekit.report.measurements import MEASUREMENTS, measurement_links, read_measurements, write_measurements
from prunekit.report.rendering import render
from prunekit.results.reading_manifests import Manifest, read_manifest

__all__ = ["check_overview", "run_folders", "write_all_reports", "write_overview"]

_PAGE = "report/index.html"
_SHOWN_COMMIT = 10  # digits; the run's page has all


def run_folders(folder: Path) -> list[Path]:
    """Folders of runs in a folder, by name."""
    restore_within(folder)
    return sorted(path.parent for path in folder.glob("[!.]*/manifest.json"))


def write_all_reports(folder: Path | str, done: Callable[[Path], None] = lambda page: None) -> Path:
    """Write the reports of all runs in a folder again from their manifests, and an ``index.html``; returns the index.

    Args:
        folder: has the folders of runs.
        done: called with each run's page after it is written.

    Raises:
        MissingFileError: there is no run in the folder.
        FileFormatError: a manifest, or another file of a run, cannot be read.
    """
    folder = Path(folder)
    runs = run_folders(folder)
    if not runs:
        raise MissingFileError(
            f"{folder} has no run and no allocation.json; expected the folder of a run, of several runs, or one in which "
            "`prunekit allocate` was typed."
        )
    check_overview(folder)
    for run in runs:
        write = report_writer(read_manifest(run))
        if write is not None:
            done(write(run))
    return write_overview(folder)


def check_overview(folder: Path) -> None:
    """Refuse a folder with an ``index.html`` or ``measurements.html`` that prunekit did not write, since it would be replaced.

    Raises:
        InputError: there is such a file, or no file can be written there.
    """
    for page in (folder / "index.html", folder / MEASUREMENTS):
        check_file(page)
        if page.exists() and not PAGE.recognises(page):
            raise InputError(
                f"{page} is no page of prunekit's and would be lost; move it elsewhere, or choose another folder."
            )


def write_overview(folder: Path | str) -> Path:
    """Write ``index.html``: the runs in a folder, the most important kinds first, and the Markdown reports in its other folders.

    The Markdown reports are shown on a page of their own, ``measurements.html``.

    Returns:
        Path of the page.

    Raises:
        InputError: see :func:`check_overview`.
        FileFormatError: a manifest cannot be read.
    """
    folder = Path(folder)
    check_overview(folder)
    runs = run_folders(folder)
    manifests = {run: read_manifest(run) for run in runs}
    ordered = sorted(runs, key=lambda run: manifests[run].created or "", reverse=True)
    ordered.sort(key=lambda run: _rank(manifests[run]))
    measured = read_measurements(folder, set(runs))
    sections = sections_with(
        ("runs", "Runs", [Cards(tuple(_card(run, manifests[run]) for run in ordered)) if runs else None]),
        ("others", "Other measurements", measurement_links(measured)),
    )
    found = f"{len(runs)} run{'s' if len(runs) != 1 else ''}, each with its finding; comparisons with baselines first."
    page = Document("Reports", found, sections, kind="prunekit")
    write_measurements(folder, measured)
    with atomic_path(folder / "index.html") as part:
        part.write_text(render(page), encoding="utf-8")
    return folder / "index.html"


def _rank(manifest: Manifest) -> int:
    """Place of a run's kind, the most important first."""
    kinds = list(KINDS)
    return kinds.index(manifest.kind) if manifest.kind in KINDS else len(kinds)


def _card(run: Path, manifest: Manifest) -> Card:
    kind = kind_of(manifest)
    facts = (
        manifest.kind.title,
        (manifest.created or "").split("T")[0],
        f"prunekit {manifest.prunekit}" if manifest.prunekit else "",
        f"commit {manifest.commit[:_SHOWN_COMMIT]}" if manifest.commit else "",
    )
    has_page = (run / _PAGE).is_file()
    return Card(
        Link(run.name, f"{run.name}/{_PAGE if has_page else 'manifest.json'}"),
        tuple(filter(None, facts)),
        str(without_paths(manifest.settings.description) or ""),
        "" if kind is None else kind.claim(manifest),
        (Link("manifest", f"{run.name}/manifest.json"),) if has_page else (),
        () if kind is None else kind.thumbs(run, manifest),
    )
