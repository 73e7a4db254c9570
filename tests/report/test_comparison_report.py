"""What a comparison's page shows beside its table and curves."""

from collections.abc import Callable
from pathlib import Path

import pytest
from comparison_manifest import make_multistage

from prunekit.report.multistage import _table, entries_of, write_multistage_report


def test_networks_for_stages_are_set_against_what_they_cost(reports: Path) -> None:
    report = reports / "stages" / "report"
    page = (report / "index.html").read_text()
    assert "Quality against cost" in page
    assert "FID against the fraction of the unified network&#39;s MACs while sampling: unified 0.50" in page
    assert "tailored decoders, uniform 0.620 ± 0.010 at 0.75" in page
    assert {path.name for path in report.glob("pareto_*")} == {"pareto_fid.png", "pareto_loss.png"}


@pytest.mark.parametrize("kind", ["stages", "curricula"])
def test_nothing_is_set_against_costs_that_are_all_the_same(
    kind: str, reports: Path, write_run: Callable[..., Path]
) -> None:
    report = reports / "curricula" / "report"
    if kind == "stages":
        manifest = make_multistage()
        manifest["multistage"] = [row for row in manifest["multistage"] if row["network"] != "tailored"]
        report = write_multistage_report(write_run(manifest)).parent
    assert "Quality against cost" not in (report / "index.html").read_text()
    assert list(report.glob("pareto_*")) == []


def test_shares_that_no_training_has_are_no_columns_of_dashes() -> None:
    manifest = make_multistage()
    table = multistage_table(manifest)
    assert "share to its FID" in table
    for row in manifest["multistage"]:
        if row["network"] != "unified":
            for look in row["curve"]:
                look["loss"], look["fid"] = look["loss"] + 1, look["fid"] + 9
    assert "share" not in multistage_table(manifest)


def test_two_groupings_with_the_same_cuts_are_two_networks() -> None:
    manifest = make_multistage()
    rows = manifest["multistage"]
    for number, row in enumerate(rows):
        row["seed"] = number % 2
    rows += [row for row in rows if row["network"] == "tailored"]
    curves = [entry.curve for entry in entries_of(manifest) if entry.network == "tailored"]
    assert [curve.losses.shape[0] for curve in curves] == [2, 2]


def multistage_table(manifest: dict[str, object]) -> str:
    return _table(entries_of(manifest)).markdown


def test_a_run_with_images_of_its_networks_shows_them_with_a_slider(reports: Path) -> None:
    page = (reports / "stages" / "report" / "index.html").read_text()
    assert "generated images of unified." in page
    assert "generated images of separate networks, uniform." in page
    assert 'aria-label="Share of each image that shows unified"' in page
    assert "<input" not in (reports / "curricula" / "report" / "index.html").read_text()
