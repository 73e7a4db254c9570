"""The report of experts beside baselines: what it claims, and what it shows."""

import json
from dataclasses import replace

import numpy as np
import pytest
from evidence_manifest import make_evidence, make_strips
from matplotlib.text import Text

from prunekit.errors import FileFormatError
from prunekit.report import write_any_report
from prunekit.report.evidence import Evidence, evidence_claim, gap, gap_text
from prunekit.report.evidence_page import _tiles, _timed_together
from prunekit.report.evidence_tables import (
    entry_table,
    group_table,
    points_of,
    result_table,
    training_blocks,
    training_table,
)
from prunekit.report.pareto import draw_pareto
from prunekit.results.estimate import Estimate
from prunekit.results.evidence_results import EvidenceManifest


def with_fid(manifest, entry, values):
    """The manifest with an entry's FIDs, one for each seed."""
    rows = [row for row in manifest["evidence"] if row["entry"] == entry]
    for row, value in zip(rows, values, strict=True):
        row["fid"] = value
    return manifest


def test_the_claim_says_cost_training_gain_and_error():
    claim = evidence_claim(with_fid(make_evidence(), "experts 0.8", [2.0, 2.1, 2.2]))
    assert claim == (
        "At 0.8 of the base's sampling MACs and 1.15 times the training MACs of the base, FID (features: fashion-cnn, n = 10000) "
        "of experts 0.8 is 0.40 ± 0.06 better than the base's (2.10 ± 0.06 against 2.500, 3 fine-tuning seeds)."
    )


@pytest.mark.parametrize(
    ("fids", "said"),
    [
        ([2.4, 2.5, 2.55], "is not clearly better than the base's, by 0.02 ± 0.04 ("),
        ([2.4, 2.6, 2.6], "is not clearly worse than the base's, by 0.03 ± 0.07 ("),
        ([2.7, 2.7, 2.8], "is 0.233 ± 0.033 worse than the base's ("),
        ([2.5, 2.5, 2.5], "is equal to the base's ("),
    ],
)
def test_within_two_standard_errors_nothing_is_claimed(fids, said):
    assert said in evidence_claim(with_fid(make_evidence(), "experts 0.8", fids))


@pytest.mark.parametrize(
    ("timed", "label"),
    [
        (None, "of the base's time for an image"),
        (64, "of the base's time per image, 64 at a time"),
        (1000, "of the base's time for an image"),  # in several batches
    ],
)
def test_the_relative_time_says_how_many_images_were_sampled_together(timed, label):
    manifest = make_evidence()
    manifest["config"]["evidence"] = {} if timed is None else {"timed_images": timed}
    read = EvidenceManifest.of(manifest, "The manifest")
    tiles = _tiles(Evidence.from_manifest(read), "fid", _timed_together(read))
    assert label in [tile.label for tile in tiles]


def test_one_seed_has_no_error_and_says_so():
    manifest = with_fid(make_evidence((0,)), "experts 0.8", [2.1])
    assert (
        "is not clearly better than the base's, by 0.4000 (one seed, no standard error) (2.100 against 2.500, 1 fine-tuning seed)"
        in evidence_claim(manifest)
    )
    evidence = Evidence.from_manifest(manifest)
    assert not any("±" in cell.text for line in entry_table(evidence).cells for cell in line)


def test_the_table_says_what_its_errors_contain_and_what_not():
    many, one = make_evidence(), make_evidence((0,))
    note = entry_table(Evidence.from_manifest(many)).note
    assert note.startswith(
        "± is one standard error over fine-tuning seeds, all from one base and sampled from the same noise."
    )
    assert "another base would change is not in it" in note
    assert "bootstrap" not in note
    for row in many["evidence"]:
        row["fid_sampling_error"] = 0.08
    evidence = Evidence.from_manifest(many)
    for table in (entry_table(evidence), result_table(evidence)):
        assert "would move an FID by 0.08 (standard deviation, bootstrap)" in table.note
    assert entry_table(Evidence.from_manifest(one)).note.startswith("One base and one fine-tuning seed:")


def test_a_rival_of_one_seed_is_said_to_have_one():
    manifest = with_fid(make_evidence(), "experts 0.8", [2.0, 2.1, 2.2])
    manifest["evidence"] = [
        row for row in manifest["evidence"] if row["entry"] != "small from scratch 0.8" or row["seed"] == 2
    ]
    manifest = with_fid(manifest, "small from scratch 0.8", [2.4])
    entries = Evidence.from_manifest(manifest).entries
    rival, own = entries["small from scratch 0.8"], entries["experts 0.8"]
    assert gap_text(own, rival, "fid") == (
        "0.30 ± 0.06 better than that of small from scratch 0.8 "
        "(small from scratch 0.8 has one seed, whose spread is not in the error)"
    )
    assert "one seed" not in gap_text(own, entries["base"], "fid")
    assert "one seed" not in gap_text(own, entries["experts 0.6"], "fid")


def test_entries_are_compared_seed_by_seed_where_they_share_the_seeds():
    manifest = with_fid(make_evidence(), "experts 0.8", [2.0, 2.1, 2.2])
    entries = Evidence.from_manifest(with_fid(manifest, "experts 0.6", [2.3, 2.4, 2.53])).entries
    one, other = entries["experts 0.8"], entries["experts 0.6"]
    paired, apart = gap(one, other, "fid"), gap(one, replace(other, seeds=(7, 8, 9)), "fid")
    assert [paired.mean, apart.mean] == pytest.approx([-0.31, -0.31])
    assert paired.se == pytest.approx(0.01)
    assert paired.df == 2
    assert apart.se == pytest.approx(np.sqrt(0.1**2 / 3 + np.var([2.3, 2.4, 2.53], ddof=1) / 3))
    assert apart.df == pytest.approx(4, abs=0.2)  # Welch's
    assert gap(entries["base"], entries["base"], "fid") == Estimate(mean=0.0)
    assert gap_text(entries["experts 0.8"], entries["experts 0.6"], "fid").endswith("better than that of experts 0.6")


def test_entries_of_a_role_stand_together():
    manifest = make_evidence()
    manifest["evidence"].reverse()
    roles = [entry.role for entry in Evidence.from_manifest(manifest).entries.values()]
    assert roles == ["base", *["experts"] * 3, *["baseline"] * 3, "ablation"]


def test_tables_have_every_entry_and_measure():
    evidence = Evidence.from_manifest(make_evidence())
    table = entry_table(evidence)
    assert [row["entry"] for row in table.rows] == list(evidence.entries)
    headings = " ".join(column.heading for column in table.columns)
    for word in (
        "FID",
        "KID",
        "Loss",
        "SSIM",
        "Seconds per image",
        "Parameters stored",
        "Training MACs",
        "Sampling MACs",
    ):
        assert word in headings
    assert len(group_table(evidence).rows) == len(evidence.entries) - 1
    first = training_table(evidence).rows[1]
    assert first["base"] + first["search"] + first["fine-tuning"] == pytest.approx(first["total"])


def test_names_in_the_plot_cover_neither_each_other_nor_a_point():
    names = {f"experts 0.8, variant {i}": 2.5 + 0.001 * i for i in range(12)}
    manifest = make_evidence((0, 1))
    row = next(row for row in manifest["evidence"] if row["entry"] == "experts 0.8")
    manifest["evidence"] += [{**row, "entry": name, "fid": fid} for name, fid in names.items()]
    points = points_of(Evidence.from_manifest(manifest), "fid")
    figure = draw_pareto(points, "FID")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    marks = axes.transData.transform([[point.ratio, point.value.mean] for point in points])
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[:i])
        assert not any(one.contains(x, y) for x, y in marks)
        assert 0 <= one.x0 < one.x1 <= figure.bbox.x1


@pytest.mark.slow
def test_a_report_has_a_page_tables_and_pictures(tmp_path, manifest):
    (tmp_path / "samples").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps({**make_evidence(), "method": manifest}))
    for name, images in make_strips().items():
        np.savez(tmp_path / "samples" / f"{name}.npz", images=images)
    page = write_any_report(tmp_path).read_text()
    assert page.count("generated images of") == 7  # five entries, and two for the slider
    for section in ("entries", "pareto", "samples", "losses", "training", "widths", "ledger", "provenance", "again"):
        assert f'<section id="{section}"' in page
    assert "Compared with base trained on: FID of experts 0.8, at training MACs equal within 1 %, is" in page.replace(
        "\xa0", " "
    )
    assert (
        (tmp_path / "report" / "evidence.md").read_text().startswith("# Experts and baselines at equal training: tdc")
    )
    assert {path.name for path in (tmp_path / "report").glob("*.csv")} == {"evidence.csv", "losses.csv", "training.csv"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda manifest: manifest.update(headline="nothing"),
        lambda manifest: manifest.pop("metrics"),
        lambda manifest: manifest.update(groups=[500]),
        lambda manifest: manifest["evidence"].pop(0),
        lambda manifest: manifest["evidence"][1].update(losses=[]),
        lambda manifest: manifest.update(evidence=None),
    ],
)
def test_a_manifest_that_lacks_something_is_refused(spoil):
    manifest = make_evidence()
    spoil(manifest)
    with pytest.raises(FileFormatError, match="comparison of experts with baselines"):
        evidence_claim(manifest)


def test_equal_costs_are_a_sentence_and_others_are_bars():
    manifest = make_evidence()
    words, fold = training_blocks(Evidence.from_manifest(manifest))
    assert (
        words.text
        == "Every entry took 46.0 T MACs of training, search included and equal within 2 %: 1.15 times the 40.0 T of base."
    )
    assert fold.blocks[0].name == "training"
    for row in manifest["evidence"]:
        if row["entry"] == "experts 0.6":
            row["training_macs"]["fine-tuning"] *= 3
    chart, _ = training_blocks(Evidence.from_manifest(manifest))
    assert all("experts 0.6: the base&#39;s training" in drawing for drawing in chart.drawings)
    assert [key.text for key in chart.keys] == ["the base's training", "search", "fine-tuning"]


def test_the_first_table_marks_the_headline_and_has_costs_without_further_measures():
    table = result_table(Evidence.from_manifest(make_evidence()))
    assert [place for place in range(len(table.rows)) if table.is_strong(place)] == [1]
    headings = [column.heading for column in table.shown]
    assert "Seconds per image" in headings
    assert "Parameters stored" in headings
    assert not any("KID" in heading or "SSIM" in heading for heading in headings)
