"""The page about all runs in a folder: each run's facts, its finding and a link to its report."""

from collections.abc import Callable
from pathlib import Path

from prunekit._files import atomic_path, check_file
from prunekit._leftovers import restore_within
from prunekit._names import without_paths
from prunekit.errors import InputError, MissingFileError
from prunekit.report.document import Card, Cards, Document, Link, Links, sections_with
from prunekit.report.folder import PAGE
from prunekit.report.kinds import kind_of, report_writer
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
            f"{folder} has no manifest.json, and no folder in it has one; expected a run's folder or a folder of those."
        )
    check_overview(folder)
    for run in runs:
        write = report_writer(read_manifest(run))
        if write is not None:
            done(write(run))
    return write_overview(folder)


def check_overview(folder: Path) -> None:
    """Refuse a folder with an ``index.html`` that prunekit did not write, since the page of all runs would replace it.

    Raises:
        InputError: there is such a file, or no file can be written there.
    """
    page = folder / "index.html"
    check_file(page)
    if page.exists() and not PAGE.recognises(page):
        raise InputError(
            f"{page} is no page of prunekit's and would be lost; move it elsewhere, or choose another folder."
        )


def write_overview(folder: Path | str) -> Path:
    """Write ``index.html``: a list of the runs in a folder, newest first, and of the Markdown pages in its other folders.

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
    newest = sorted(runs, key=lambda run: manifests[run].created or "", reverse=True)
    others = _others(folder, set(runs))
    sections = sections_with(
        ("runs", "Runs", [Cards(tuple(_card(run, manifests[run]) for run in newest)) if runs else None]),
        ("others", "Other measurements", others),
    )
    found = f"{len(runs)} run{'s' if len(runs) != 1 else ''}, newest first, each with its finding in one sentence."
    page = Document("Reports", found, sections, kind="prunekit")
    with atomic_path(folder / "index.html") as part:
        part.write_text(render(page), encoding="utf-8")
    return folder / "index.html"


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
    )


def _others(folder: Path, runs: set[Path]) -> list[Links]:
    """Markdown pages in folders that are not runs."""
    apart = sorted(path for path in folder.iterdir() if path.is_dir() and path not in runs and path.name[0] != ".")
    lists = []
    for each in apart:
        links = tuple(Link(_heading(page), page.relative_to(folder).as_posix()) for page in sorted(each.rglob("*.md")))
        if links:
            lists.append(Links(each.name, links))
    return lists


def _heading(page: Path) -> str:
    """The first heading of a Markdown page; the file's name if it has none."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("#").strip() for line in lines if line.startswith("#")), page.stem)
