"""The picture of a sensitivity, and what a page says of it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from matplotlib.figure import Figure
from PIL import Image

from prunekit.allocation import GroupSensitivity, Sensitivity
from prunekit.report.document import Words
from prunekit.report.illustrations import Chart
from prunekit.report.run import RunResults
from prunekit.report.sensitivities import (
    describe_sensitivity,
    draw_sensitivity,
    sensitivity_blocks,
    sensitivity_png,
    sensitivity_table,
)


def found(*values: float, linearity: float | None = 1.0) -> Sensitivity:
    groups = tuple(
        GroupSensitivity(i, 10 * i, 10 * i + 10, 2, 4e-4, value, 0.2 * value, linearity)
        if value
        else GroupSensitivity(i, 10 * i, 10 * i + 10, 0, 0.0, 0.0)
        for i, value in enumerate(values)
    )
    return Sensitivity(10 * len(values), "ddim", 10, 1.0, "pixels", 32, 0, 0.02, 0.04, False, groups)


def results(sensitivity: Sensitivity | None) -> RunResults:
    return cast(RunResults, SimpleNamespace(allocation=SimpleNamespace(sensitivity=sensitivity)))


def tops(figure: Figure) -> list[float]:
    return [bar.get_y() + bar.get_height() for bar in figure.axes[0].patches]


def test_bars_end_at_the_amplifications_on_a_logarithmic_axis() -> None:
    figure = draw_sensitivity(found(0.01, 0.0, 20.0))
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert tops(figure) == pytest.approx([0.01, 20.0])
    assert "no steps" in [text.get_text() for text in axes.texts]
    assert axes.get_ylim()[0] < 0.008
    assert axes.get_ylim()[1] > 24.0


def test_groups_that_are_not_linear_are_marked_and_said() -> None:
    doubtful = found(0.5, 2.0, linearity=3.0)
    assert "not proportional" in draw_sensitivity(doubtful).axes[0].get_title(loc="left")
    assert "× 3 in group 1" in describe_sensitivity(doubtful)
    assert "not proportional" not in draw_sensitivity(found(0.5, 2.0)).axes[0].get_title(loc="left")


def test_a_picture_is_written_even_if_nothing_changes(tmp_path) -> None:
    for name, each in (("some", found(0.1, 3.0)), ("none", found(0.0, 0.0))):
        sensitivity_png(each, tmp_path / f"{name}.png")
        assert min(Image.open(tmp_path / f"{name}.png").size) > 300


def test_a_page_says_what_was_weighed_with_chart_and_table() -> None:
    there = results(found(0.1, 3.0))
    table = sensitivity_table(there)
    assert table is not None
    assert [row["amplification"] for row in table.rows] == [0.1, 3.0]
    words, chart, shown = sensitivity_blocks(there, table)
    assert isinstance(words, Words)
    assert "weighed each timestep group's loss by its amplification" in words.text
    assert isinstance(chart, Chart)
    assert shown is table
    assert sensitivity_table(results(None)) is None
    assert sensitivity_blocks(results(None), None) == []
    alone = replace(found(0.0, 0.0), checked_size=None)
    assert len(sensitivity_blocks(results(alone), sensitivity_table(results(alone)))) == 2
