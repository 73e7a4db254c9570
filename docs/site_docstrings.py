"""A griffe extension: docstrings are written with Sphinx's roles and formulas, and the site reads Markdown."""

import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
ROLE = re.compile(r":(class|func|meth|attr|data|mod):`(~?)([\w.]+)`")
FORMULA = re.compile(r":math:`([^`]+)`")
DISPLAYED = re.compile(r"^( *)\.\. math:: (.+?)(?=\n *\n|\Z)", flags=re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n(.+)\n *\2\n((?:.+\n)+?) *\2$", flags=re.MULTILINE)


class Markdown(griffe.Extension):
    """Turns every docstring into Markdown before it is parsed, and finds functions that are called like their module."""

    def on_alias_instance(self, *, alias: griffe.Alias, **_: Any) -> None:
        """Point ``from prunekit.graph import trace`` at the function; griffe would take the module of that name."""
        alias.target_path = function_path(alias.target_path)

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """The docstring with links, MathML, Markdown tables, and the section names that griffe knows."""
    text = DISPLAYED.sub(lambda match: match[1] + formula(match[2], "block"), text)
    text = FORMULA.sub(lambda match: formula(match[1], "inline"), text)
    text = TABLE.sub(table, text)
    text = ROLE.sub(reference, text)
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    return re.sub(r"(?<=\w)::$", ":", text, flags=re.MULTILINE)


def formula(latex: str, display: str) -> str:
    """MathML, which browsers show by themselves."""
    return convert(" ".join(latex.split()), display=display)


def reference(role: re.Match[str]) -> str:
    """The name that a role shows, linked where it is a full name of this package that some page shows."""
    kind, short, name = role.groups()
    shown = name.rsplit(".", 1)[-1] if short else name
    if not name.startswith("prunekit."):
        return f"`{shown}`"
    return f'<autoref optional identifier="{name if kind == "mod" else function_path(name)}">`{shown}`</autoref>'


def function_path(path: str) -> str:
    """Where a name is defined, for ``pkg.name`` that ``pkg`` exports and ``pkg/name.py`` defines: ``pkg.name.name``."""
    package, _, name = path.rpartition(".")
    place = ROOT.joinpath(*package.split("."))
    if not place.joinpath(f"{name}.py").is_file():
        return path
    exported = re.search(
        rf'^    "{name}",$', place.joinpath("__init__.py").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    return f"{path}.{name}" if exported else path


def table(match: re.Match[str]) -> str:
    """A simple table of reStructuredText in Markdown."""
    indent, rule, head, body = match.groups()
    starts = [cell.start() for cell in re.finditer("=+", rule)]

    def row(line: str) -> str:
        line = line.removeprefix(indent)
        ends = [*starts[1:], len(line)]
        return f"{indent}| " + " | ".join(line[a:b].strip() for a, b in zip(starts, ends, strict=True)) + " |"

    return "\n".join([row(head), f"{indent}|" + "---|" * len(starts), *map(row, body.splitlines())])
