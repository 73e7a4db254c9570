"""Residual branches in heatmaps and in the pages of runs."""

import numpy as np
import pytest
from PIL import Image

from prunekit.report import heatmap_png, write_report
from prunekit.report.heatmap import Heatmap, draw_panels, panels_of

HELD = {
    "branch:mid_block.resnets.0": {"layers": ["mid_block.resnets.0.conv1"], "channel_groups": []},
    "branch:up_blocks.0.attentions.0": {"layers": ["up_blocks.0.attentions.0.to_out.0"], "channel_groups": []},
}


@pytest.fixture
def with_branches(importance):
    importance["channel_groups"] += [{"name": name, "size": 1} for name in HELD]
    importance["branches"] = HELD
    for row, scores in enumerate(importance["scores"]):
        scores += [[4.0], [row + 1.0]]
    return importance


@pytest.fixture
def folder(write_run, manifest, with_branches):
    manifest["experts"][3]["removed"] = ["branch:up_blocks.0.attentions.0"]
    manifest["experts"][4]["removed"] = list(HELD)
    return write_run(manifest, with_branches)


def test_branches_have_a_panel_of_their_own_whose_colours_compare_within_a_row(with_branches):
    channels, branches = panels_of(with_branches)
    assert branches.names == tuple(HELD)
    np.testing.assert_allclose(branches.values, [[1, 0.25], [1, 0.5], [1, 0.75], [1, 1], [0.8, 1]])
    assert not {*HELD} & {*channels.names}
    assert "2 residual branches, 0 of them not removable" in branches.alt
    assert "residual branches" in branches.caption
    assert "per channel" not in branches.caption
    assert "not removable" in channels.caption


def test_channels_look_the_same_with_and_without_branches(with_branches):
    channels = panels_of(with_branches)[0]
    del with_branches["branches"]
    with_branches["channel_groups"] = with_branches["channel_groups"][:-2]
    with_branches["scores"] = [scores[:-2] for scores in with_branches["scores"]]
    (alone,) = panels_of(with_branches)
    assert alone.names == channels.names
    np.testing.assert_array_equal(alone.values, channels.values)
    assert alone.caption == channels.caption


def test_a_branch_that_a_constraint_keeps_is_hatched(with_branches):
    with_branches["left_whole"]["branch:mid_block.resnets.0"] = "a constraint keeps it"
    branches = Heatmap.of(with_branches, of_branches=True)
    assert np.isnan(branches.values[:, 0]).all()
    assert branches.names == tuple(HELD)
    assert "branch:mid_block.resnets.0" not in panels_of(with_branches)[0].names


def test_branches_alone_are_shown_where_only_they_can_be_removed(with_branches):
    for group in with_branches["channel_groups"][:-2]:
        with_branches["left_whole"][group["name"]] = "channels are kept, since only branches are removed"
    (branches,) = panels_of(with_branches)
    assert branches.of_branches


def test_the_picture_has_both_panels_one_below_the_other(with_branches, tmp_path):
    panels = panels_of(with_branches)
    titles = [axes.get_title(loc="left") for axes in draw_panels(panels).axes]
    assert [title for title in titles if title] == [
        "Importance (taylor), higher = keep",
        "Importance of residual branches (taylor), higher = keep",
    ]
    heatmap_png(with_branches, tmp_path / "both.png")
    with Image.open(tmp_path / "both.png") as picture:
        height = picture.height
    assert height > 1.5 * draw_panels(panels[:1]).get_figheight() * 100


def test_the_page_shows_which_branches_each_expert_is_without(folder):
    write_report(folder)
    page = (folder / "report" / "index.html").read_text()
    assert "group 4, mid · res 0: removed" in page
    assert "group 3, mid · res 0: kept" in page
    assert "Removed, cleanest group first: 0, 0, 0, 1, 2." in page
    assert "Layers of the residual branches (2)" in page
    assert "branches removed: 0, 0, 0, 1, 2" in page
    assert "2 residual branches" in page
    table = (folder / "report" / "table.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in table[1:7]] == ["", "0", "0", "0", "1", "2"]


def test_a_page_without_removed_branches_does_not_speak_of_them(write_run, manifest, importance):
    folder = write_run(manifest, importance)
    write_report(folder)
    page = (folder / "report" / "index.html").read_text()
    assert "residual branch" not in page
    assert "ranches removed" not in page
