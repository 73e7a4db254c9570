"""The Markdown reports of a folder as one page: measurements that are not runs."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote, unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from prunekit._files import atomic_path
from prunekit.report.document import Document, Link, Links, Prose, Section
from prunekit.report.folder import PAGE
from prunekit.report.rendering import render

__all__ = ["MEASUREMENTS", "Measurement", "measurement_links", "read_measurements", "write_measurements"]

MEASUREMENTS = "measurements.html"
"""Name of the page."""
_LONG = 24  # letters of a cell that may break into lines
_LARGEST = 4_000_000  # bytes of a picture that the page includes


@dataclass(frozen=True)
class Measurement:
    """A Markdown report.

    Args:
        folder: name of the folder in which it is grouped.
        path: path of the file.
        title: its first heading; the file's name if it has none.
        anchor: its id on the page.
    """

    folder: str
    path: Path
    title: str
    anchor: str


def read_measurements(folder: Path, runs: set[Path]) -> list[Measurement]:
    """The Markdown reports in folders that are not runs.

    Args:
        folder: has the folders of runs and of reports.
        runs: folders of runs.
    """
    apart = sorted(path for path in folder.iterdir() if path.is_dir() and path not in runs and path.name[0] != ".")
    found: list[Measurement] = []
    for each in apart:
        for path in sorted(each.rglob("*.md")):
            anchor = re.sub(r"[^a-z0-9]+", "-", path.relative_to(folder).with_suffix("").as_posix().lower()).strip("-")
            found.append(Measurement(each.name, path, _heading(path), f"m{len(found)}-{anchor}"))
    return found


def measurement_links(measured: Sequence[Measurement]) -> list[Links]:
    """Links to the places of the page, by folder."""
    folders = dict.fromkeys(each.folder for each in measured)
    return [
        Links(
            folder,
            tuple(Link(each.title, MEASUREMENTS, part=each.anchor) for each in measured if each.folder == folder),
        )
        for folder in folders
    ]


def write_measurements(folder: Path, measured: Sequence[Measurement]) -> None:
    """Write the page into the folder; without measurements, an earlier page is removed."""
    path = folder / MEASUREMENTS
    if not measured:
        if PAGE.recognises(path):
            path.unlink()
        return
    sections = tuple(
        Section(each.anchor, each.title, (Prose(_html(each, folder, measured)),), f"{each.folder}: {each.title}")
        for each in measured
    )
    page = Document(
        "Measurements", "Measurements that are not runs, each with how it was made.", sections, kind="prunekit"
    )
    with atomic_path(path) as part:
        part.write_text(render(page), encoding="utf-8")


def _heading(page: Path) -> str:
    """The first heading of a Markdown page; the file's name if it has none."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("#").strip().replace("`", "") for line in lines if line.startswith("#")), page.stem)


def _html(measured: Measurement, folder: Path, others: Sequence[Measurement]) -> Markup:
    """A report as HTML without its first heading; HTML in it is text, pictures are included, and links stay in the folder."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(measured.path.read_text(encoding="utf-8"))
    if tokens and tokens[0].type == "heading_open":
        tokens = tokens[3:]
    for cell, content in pairwise(tokens):
        if cell.type == "td_open" and len(content.content) > _LONG:
            cell.attrSet("class", "words")
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}" if token.tag != "h1" else "h3"
        opened = ""
        for child in token.children or ():
            _mend(child, measured.path, folder, others)
            opened = child.tag if child.type == "link_open" else opened
            child.tag = opened if child.type == "link_close" else child.tag
    html = parser.renderer.render(tokens, parser.options, {})
    label = escape(f"Table of {measured.title}")
    table = f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table class="wide">'
    cue = '</table></div><p class="cue" aria-hidden="true">Scroll sideways for more →</p>'
    html = html.replace("<table>", table).replace("</table>", cue)
    html = html.replace(
        "<pre>", f'<div class="scroll" role="region" tabindex="0" aria-label="Code of {escape(measured.title)}"><pre>'
    )
    return Markup(html.replace("</pre>", "</pre></div>"))  # noqa: S704 - markdown-it escapes HTML


def _mend(token: Token, source: Path, folder: Path, others: Sequence[Measurement]) -> None:
    """Include a picture, and lead a link to a report's place on the page; a link to elsewhere becomes plain text."""
    if token.type == "image":
        picture = _within(source, str(token.attrs.get("src", "")), folder)
        if picture is not None and picture.suffix == ".png" and picture.stat().st_size <= _LARGEST:
            token.attrs["src"] = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
            token.attrs["class"] = "shot"
        else:
            token.type, token.tag = "text", ""
    elif token.type == "link_open":
        target = _within(source, str(token.attrs.get("href", "")), folder)
        known = {each.path.resolve(): each.anchor for each in others}
        if target is not None and target in known:
            token.attrs["href"] = f"#{known[target]}"
        elif target is not None and target.suffix != ".md":
            token.attrs["href"] = quote(target.relative_to(folder.resolve()).as_posix())
        else:
            token.tag = "span"
            token.attrs.pop("href", None)


def _within(source: Path, link: str, folder: Path) -> Path | None:
    """The file that a link in a report leads to; None unless it is in the folder."""
    if not link or ":" in link or link.startswith(("/", "#")):
        return None
    path = (source.parent / unquote(link.partition("#")[0])).resolve()
    return path if path.is_file() and path.is_relative_to(folder.resolve()) else None
