"""The files that a public project has: they agree with the package and with each other."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import prunekit

ROOT = Path(__file__).resolve().parents[1]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_has_the_packages_version_and_license() -> None:
    citation = read("CITATION.cff")
    assert str(citation["version"]) == prunekit.__version__
    assert citation["license"] == "Apache-2.0"


def test_continuous_integration_runs_the_one_script_and_keeps_the_site() -> None:
    workflow = read(".github/workflows/ci.yml")
    for job in workflow["jobs"].values():
        assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
        assert job["timeout-minutes"] <= 120
    assert workflow["permissions"] == {"contents": "read"}
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"make check", "make test-all"} <= set(script.splitlines())
    assert re.search(r"^check: .*\bdocs\b", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_hooks_before_a_commit_are_the_checks_of_make_check_and_need_no_network() -> None:
    config = read(".pre-commit-config.yaml")
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ncheck:")[1].split("\n\n")[0]
    tools = [" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in hooks]
    assert sorted(tools) == ["lint-imports", "mypy", "ruff check", "ruff format"]
    assert [tool for tool in tools if f"$(BIN)/{tool}" not in makefile] == []


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_ask_something_that_must_be_answered(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    asked = [item for item in content["body"] if item["type"] != "markdown"]
    assert len({item["id"] for item in asked}) == len(asked)
    assert any(item.get("validations", {}).get("required") for item in asked)


def test_the_site_lists_every_page_and_every_reference_page_once() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    listed = re.findall(r"^ +- [^#\n]+: (\S+\.md)$", nav, flags=re.MULTILINE)
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    assert sorted(listed) == sorted({*pages, "reference/cli.md"})


def test_the_page_of_file_formats_names_formats_that_exist() -> None:
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(prunekit-[a-z]+/\d+)`", page))
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "prunekit").rglob("*.py"))
    known = set(re.findall(r'"(prunekit-[a-z-]+/\d+)"', sources))
    assert named <= known
    internal = {"prunekit-stage/1", "prunekit-state/1", "prunekit-job/1", "prunekit-images/1"}
    assert known - named == internal | {"prunekit-features/1", "prunekit-feature-statistics/1"}


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 80


def test_no_two_modules_have_one_file_name() -> None:
    names = [path.name for path in (ROOT / "prunekit").rglob("*.py") if path.name != "__init__.py"]
    assert len(names) > 200
    assert {name: number for name, number in Counter(names).items() if number > 1} == {}


def test_few_types_are_any_and_no_assert_is_in_the_library() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "prunekit").rglob("*.py")]
    lines = sum(text.count("\n") for text in texts)
    assert 1000 * sum(len(re.findall(r"\bAny\b", text)) for text in texts) / lines < 10
    assert [text for text in texts if "noqa: S101" in text] == []


def refusing(tree: ast.Module) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """Public classes whose constructors raise an error, and public functions and methods that do."""

    def raises(node: ast.AST) -> bool:
        made = [
            part.exc.func for part in ast.walk(node) if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call)
        ]
        return any(isinstance(name, ast.Name) and name.id.endswith("Error") for name in made)

    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and raises(node):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            if any(raises(method) for method in methods if method.name in ("__init__", "__post_init__")):
                yield node
            yield from (method for method in methods if not method.name.startswith("_") and raises(method))


def test_whatever_refuses_something_says_so_in_its_documentation() -> None:
    """Commands are left out, because their docstrings are their help texts."""
    paths = [path for path in (ROOT / "prunekit").rglob("*.py") if path.parent.name != "cli"]
    found = [(path.name, node) for path in paths for node in refusing(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(found) > 300
    silent = [f"{name}: {node.name}" for name, node in found if "Raises:" not in (ast.get_docstring(node) or "")]
    assert silent == []
