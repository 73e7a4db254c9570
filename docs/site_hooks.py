"""Hooks of the documentation site: files outside docs/, formulas, and the command line's page.

Pages link to reports, recipes and other files of the repository as they lie there. The site takes in every file that a page
links to, so that these links work in the repository and in the site.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from urllib.parse import urlsplit

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")
FORMULA = re.compile(r"^\$\$(.+?)\$\$$", flags=re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)
CLI_PAGE = "reference/cli.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the command line's page, and every file outside docs/ that a page links to, directly or through another."""
    files.append(File.generated(config, CLI_PAGE, content=command_line()))
    waiting = [file for file in files if file.is_documentation_page() and file.src_uri != CLI_PAGE]
    while waiting:
        file = waiting.pop()
        for target in linked(file.content_string, in_repository(file.src_uri)):
            source = ROOT / target
            if target.startswith("docs/") or not source.is_file() or target in files.src_uris:
                continue
            added = File.generated(config, target, abs_src_path=str(source))
            files.append(added)
            if added.is_documentation_page():
                waiting.append(added)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's copy of a file, and make formulas MathML, which browsers show by themselves."""
    place = in_repository(page.file.src_uri)

    def pointed(match: re.Match[str]) -> str:
        target = repository_path(match[0], place)
        if target is None:
            return match[0]
        uri = target.removeprefix("docs/")
        anchor = urlsplit(match[0]).fragment
        return relpath(uri, str(PurePosixPath(page.file.src_uri).parent)) + (f"#{anchor}" if anchor else "")

    def shown(match: re.Match[str]) -> str:
        return convert(match[1], display="block")

    return outside_code(markdown, lambda text: LINK.sub(pointed, FORMULA.sub(shown, text)))


def command_line() -> str:
    """The page that typer's own documentation command writes for the application."""
    from typer.cli import app as typer_app
    from typer.testing import CliRunner

    result = CliRunner().invoke(typer_app, ["prunekit.cli.app", "utils", "docs", "--name", "prunekit"])
    if result.exit_code != 0:
        raise RuntimeError(f"typer could not document the command line: {result.output or result.exception}")
    opening, _, commands = result.output.partition("**Commands**:")  # a list of cut-off sentences; the headings have the names
    return opening.replace("# `prunekit`\n", "# Command line\n", 1) + commands[commands.index("\n## ") :]


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Markdown with a change made to everything that is not a fenced block."""
    parts, start = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*parts, change(markdown[start:])])


def in_repository(src_uri: str) -> str:
    """Where a page of the site lies in the repository."""
    return f"docs/{src_uri}" if (ROOT / "docs" / src_uri).exists() else src_uri


def repository_path(link: str, page: str) -> str | None:
    """The file of the repository that a link of a page leads to; None if it leads elsewhere."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return None
    return normpath(str(PurePosixPath(page).parent / parts.path))


def linked(markdown: str, page: str) -> Iterator[str]:
    """Files of the repository that a page links to."""
    for match in LINK.finditer(FENCE.sub("", markdown)):
        target = repository_path(match[0], page)
        if target is not None:
            yield target
