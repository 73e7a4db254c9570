"""The page over all runs of a folder, and the command that makes them all again."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from prunekit.cli.app import app
from prunekit.errors import FileFormatError, MissingFileError
from prunekit.report import write_all_reports, write_overview


@pytest.fixture
def published(tmp_path, full_run):
    """A folder with a run, one that has nothing to show but its manifest, and a benchmark."""
    shutil.copytree(full_run, tmp_path / "digits")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "manifest.json").write_text(
        json.dumps({"format": "prunekit-manifest/1", "config": {"description": "bare <b>"}})
    )
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "speed.md").write_text("Words first.\n\n# Speed & size\n")
    return tmp_path


def test_runs_are_listed_with_what_they_found_and_measurements_by_their_headings(published):
    page = write_overview(published).read_text(encoding="utf-8")
    claim = (published / "digits" / "report" / "index.html").read_text(encoding="utf-8")
    claim = claim.split('<p class="claim">')[1].split("</p>")[0]
    assert claim in page
    assert 'href="digits/report/index.html"' in page
    assert 'href="bare/manifest.json"' in page
    assert "bare &lt;b&gt;" in page
    assert '<a href="engine/speed.md">Speed &amp; size</a>' in page
    assert page.index(">digits</a>") < page.index("bare &lt;b&gt;") < page.index(">engine</h3>")


def test_the_command_makes_all_reports_again_and_the_index(published):
    shutil.rmtree(published / "bare")
    before = (published / "digits" / "report" / "index.html").read_bytes()
    shutil.rmtree(published / "digits" / "report")
    result = CliRunner().invoke(app, ["report", str(published), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output) == {
        "reports": [str(published / "digits" / "report" / "index.html")],
        "index": str(published / "index.html"),
    }
    assert (published / "digits" / "report" / "index.html").read_bytes() == before


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"has no manifest\.json, and no folder in it has one"):
        write_all_reports(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_manifest_leaves_the_index_as_it_was(published):
    write_overview(published)
    before = (published / "index.html").read_bytes()
    (published / "bare" / "manifest.json").write_text("{")
    with pytest.raises(FileFormatError):
        write_overview(published)
    assert (published / "index.html").read_bytes() == before
