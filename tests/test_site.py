"""The documentation site: its pages, formulas and links, and docstrings as Markdown."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs")
pytest.importorskip("griffe")


@pytest.fixture
def docstrings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import site_docstrings

    return site_docstrings


def test_roles_become_links_to_the_function_and_not_to_its_module(docstrings: ModuleType) -> None:
    found = docstrings.markdown("See :func:`~prunekit.graph.trace`, :mod:`prunekit.graph.trace` and :class:`Tensor`.")
    assert 'identifier="prunekit.graph.trace.trace">`trace`<' in found
    assert 'identifier="prunekit.graph.trace">`prunekit.graph.trace`<' in found
    assert "and `Tensor`." in found


def test_formulas_become_mathml(docstrings: ModuleType) -> None:
    found = docstrings.markdown("Inline :math:`a_t`.\n\n    .. math:: x = \\frac{1}{2}\n        + y\n\n    over all t.")
    assert found.count("<math") == 2
    assert 'display="block"' in found
    assert "\\frac" not in found
    assert found.endswith("over all t.")


def test_tables_and_examples_become_markdown(docstrings: ModuleType) -> None:
    table = "====  =====\nname  value\n====  =====\n``a``  1\n====  =====\n"
    assert docstrings.markdown(table).splitlines()[:2] == ["| name | value |", "|---|---|"]
    assert docstrings.markdown("Example:\n    >>> 1").startswith("Examples:\n")


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_takes_in_what_pages_link_to(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    assert (site / "reports" / "fashion-tdc" / "report" / "evidence.html").is_file()
    assert (site / "tutorial.ipynb").is_file()
    assert 'id="prunekit.graph.trace.trace"' in (site / "reference" / "graph.html").read_text(encoding="utf-8")
    assert "prunekit finetune" in (site / "reference" / "cli.html").read_text(encoding="utf-8")
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.glob("*.html")}
    assert [name for name, text in pages.items() if "$$" in text] == []
    assert 'href="reports/engine/targets.html"' in pages["engine.html"]
