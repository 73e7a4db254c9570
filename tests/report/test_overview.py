"""The page over all runs of a folder."""

import re
import shutil

import pytest
from evidence_manifest import make_evidence

from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.report import kind_of, write_all_reports, write_overview


def test_every_run_is_there_with_its_claim_and_its_page(reports):
    page = (reports / "index.html").read_text()
    for name in ("experts", "large", "stages", "curricula", "evidence"):
        assert f'href="{name}/report/index.html"' in page
    for title in ("timestep experts", "networks for stages", "ways to train", "experts beside baselines"):
        assert title in page
    assert "At 0.8 of the base&#39;s sampling MACs" in page
    places = [page.index(f"{name}/report") for name in ("evidence", "experts", "stages", "curricula")]
    assert places == sorted(places)  # the most important kind first
    assert '<a href="measurements.html#m0-speed-speed">How fast it is</a>' in page
    assert page.count("8 images of ") == 6  # of base and experts
    assert page.count("Learning curves of ") == 2
    assert not re.search(r"(src|href)=\"(https?:)?//", page)


@pytest.mark.slow
def test_reports_are_made_again_alike(reports, tmp_path):
    copy = shutil.copytree(reports, tmp_path / "copy")
    for run in ("experts", "large", "stages", "curricula", "evidence"):
        shutil.rmtree(copy / run / "report")
    done_pages = []
    assert write_all_reports(copy, done_pages.append) == copy / "index.html"
    assert len(done_pages) == 5
    before, after = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in (reports, copy)
    )
    assert before == after


def test_a_run_without_a_report_leads_to_its_manifest(tmp_path):
    write_json(
        tmp_path / "base" / "manifest.json", {"format": "prunekit-manifest/1", "config": {"description": "a <b>"}}
    )
    assert kind_of(read_json(tmp_path / "base" / "manifest.json")) is None
    page = write_overview(tmp_path).read_text()
    assert 'href="base/manifest.json"' in page
    assert "a &lt;b&gt;" in page


def test_a_folder_without_runs_and_a_damaged_manifest_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match="has no run and no allocation"):
        write_all_reports(tmp_path)
    write_json(tmp_path / "run" / "manifest.json", {**make_evidence(), "evidence": []})
    with pytest.raises(FileFormatError, match=r"manifest\.json cannot be read \(evidence is a list of 0"):
        write_all_reports(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_a_damaged_manifest_leaves_the_page_as_it_was(tmp_path):
    write_json(tmp_path / "base" / "manifest.json", {"format": "prunekit-manifest/1"})
    before = write_overview(tmp_path).read_bytes()
    (tmp_path / "base" / "manifest.json").write_text("{")
    with pytest.raises(FileFormatError):
        write_overview(tmp_path)
    assert (tmp_path / "index.html").read_bytes() == before


def test_markdown_reports_are_shown_on_a_page_of_their_own(reports):
    page = (reports / "measurements.html").read_text()
    assert '<h2 id="m0-speed-speed-title">How fast it is</h2>' in page
    assert "<h3>In numbers</h3>" in page
    assert "2.0 ± 0.1" in page
    assert 'alt="A white picture of the speed"' in page
    assert "fast.png" not in page  # it is in the page
    assert ".md" not in page


def test_a_page_of_measurements_is_removed_with_the_last_report_and_a_foreign_one_is_refused(tmp_path):
    write_json(tmp_path / "base" / "manifest.json", {"format": "prunekit-manifest/1"})
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "speed.md").write_text("Fast.")
    write_overview(tmp_path)
    assert "<p>Fast.</p>" in (tmp_path / "measurements.html").read_text()
    (tmp_path / "speed" / "speed.md").unlink()
    write_overview(tmp_path)
    assert not (tmp_path / "measurements.html").exists()
    (tmp_path / "measurements.html").write_text("mine")
    with pytest.raises(InputError, match=r"measurements\.html is no page of prunekit's"):
        write_overview(tmp_path)
    assert (tmp_path / "measurements.html").read_text() == "mine"
