"""Hooks of the documentation site: files outside docs/, formulas, and the command line's page.

Pages link to reports, recipes and other files of the repository as they lie there. The site takes in every file that a page
links to, so that these links work in the repository and in the site.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from urllib.parse import urlsplit

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_docstrings import function_path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")
FETCHED = re.compile(r"<(?:img|script|iframe|source|link(?![^>]*canonical))\b[^>]*(?:src|href)=.?(?:https?:)?//[^>]*>")
FORMULA = re.compile(r"^\$\$(.+?)\$\$$", flags=re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", flags=re.MULTILINE | re.DOTALL)
DIRECTIVE = re.compile(r"^::: (prunekit[\w.]*)$", flags=re.MULTILINE)
CLI_PAGE, API_PAGE = "reference/cli.md", "reference/api.md"


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
    """Point links at the site's copy of a file, make formulas MathML, and show names that griffe takes for modules."""
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

    for package in DIRECTIVE.findall(markdown):
        markdown += "".join(shown_by_itself(path, page.file.src_uri == API_PAGE) for path in hidden_names(package))
    return outside_code(markdown, lambda text: LINK.sub(pointed, FORMULA.sub(shown, text)))


def on_post_build(config: MkDocsConfig) -> None:
    """Fail if a page would fetch something from another host: the site must be readable without a network."""
    for page in sorted(Path(config.site_dir).rglob("*.html")):
        for tag in FETCHED.findall(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.name} fetches from another host: {tag}; expected files of the site only.")


def command_line() -> str:
    """The page that typer's own documentation command writes for the application."""
    from typer.cli import app as typer_app
    from typer.testing import CliRunner

    result = CliRunner().invoke(typer_app, ["prunekit.cli.app", "utils", "docs", "--name", "prunekit"])
    if result.exit_code != 0:
        raise RuntimeError(f"typer could not document the command line: {result.output or result.exception}")
    # typer's list of commands cuts sentences off, and the headings have the names
    opening, _, commands = result.output.partition("**Commands**:")
    return opening.replace("# `prunekit`\n", "# Command line\n", 1) + commands[commands.index("\n## ") :]


def hidden_names(package: str) -> list[str]:
    """Where a package's exports are defined that have the name of one of its modules, such as ``prunekit.graph.trace``."""
    place = ROOT.joinpath(*package.split("."))
    if not place.is_dir():
        return []
    names = {}
    for node in ast.walk(ast.parse(place.joinpath("__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    taken = {path.stem for path in place.iterdir() if path.suffix == ".py" or path.joinpath("__init__.py").is_file()}
    return [
        function_path(path) for name, path in sorted(names.items()) if name in taken and path != f"{package}.{name}"
    ]


def shown_by_itself(path: str, again: bool) -> str:
    """A directive for one object; ``again`` if another page has the object and links should lead there."""
    options = "show_root_heading: true, show_root_toc_entry: true, heading_level: 2"
    return f"\n::: {path}\n    options: {{{options}{', skip_local_inventory: true' if again else ''}}}\n"


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
