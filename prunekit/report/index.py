"""The page over all runs of a folder, such as ``reports/``: what each found, and where its page is."""

from pathlib import Path

from prunekit._files import atomic_path, read_json
from prunekit._types import JsonDict
from prunekit.errors import InputError
from prunekit.report.document import Card, Cards, Document, Link, Links, Section
from prunekit.report.kinds import KINDS, Kind, kind_of
from prunekit.report.rendering import render
from prunekit.report.run import MANIFEST_FORMAT

__all__ = ["published_runs", "write_index"]


def published_runs(folder: Path) -> list[Path]:
    """Folders right below this one that hold a run, by name."""
    return sorted(manifest.parent for manifest in folder.glob("*/manifest.json"))


def write_index(folder: Path) -> Path:
    """Write ``index.html`` over the runs and the measurements right below a folder; returns it. Atomic.

    Args:
        folder: its subfolders with a ``manifest.json`` are runs, and pages ``*.md`` in the others are measurements.

    Raises:
        FileFormatError: a manifest cannot be read.
        InputError: there is no run.
    """
    runs = published_runs(folder)
    if not runs:
        raise InputError(
            f"{folder} holds no run; expected folders with a manifest.json in it, as `prunekit run --publish {folder}` makes."
        )
    cards: dict[str, list[Card]] = {}
    for run in runs:
        manifest = read_json(run / "manifest.json", MANIFEST_FORMAT)
        kind = kind_of(manifest)
        cards.setdefault("other runs" if kind is None else kind.title, []).append(_card(run, manifest, kind))
    titles = [title for title in (*(kind.title for kind in KINDS.values()), "other runs") if title in cards]
    sections = [
        Section(f"runs-{i}", title.capitalize(), (Cards(tuple(cards[title])),)) for i, title in enumerate(titles)
    ]
    if pages := [page for page in sorted(folder.glob("*/*.md")) if page.parent not in runs]:
        links = tuple(Link(_heading(page), page.relative_to(folder).as_posix()) for page in pages)
        sections.append(
            Section("measurements", "Measurements", (Links("Of the engine, the search, groups and training", links),))
        )
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    claim = f"{count}, each with its figures, its cost and what it takes to make it again."
    page = Document(folder.resolve().name, claim, tuple(sections), kind="prunekit reports")
    with atomic_path(folder / "index.html") as part:
        part.write_text(render(page), encoding="utf-8")
    return folder / "index.html"


def _card(run: Path, manifest: JsonDict, kind: Kind | None) -> Card:
    page = run / "report" / "index.html"
    shown = page if page.is_file() else run / "manifest.json"
    facts = [str(manifest["created"])[:10]] if manifest.get("created") else []
    facts += [f"commit {str(manifest['commit'])[:7]}"] if manifest.get("commit") else []
    return Card(
        Link(str(manifest.get("recipe", run.name)), f"{run.name}/{shown.relative_to(run).as_posix()}"),
        tuple(facts),
        str((manifest.get("config") or {}).get("description") or ""),
        kind.claim(manifest) if kind else "",
        (Link("manifest", f"{run.name}/manifest.json"),),
    )


def _heading(page: Path) -> str:
    """The first heading of a Markdown page, else its name."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), page.stem)
