"""Charts as SVG: where labels are, what they are called, and that text cannot become markup."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.report.charts.cells import Cell, Sheet, draw_cells
from prunekit.report.charts.layout import NARROW, WIDE, Scale, cut_text, spread, text_width, tick_text
from prunekit.report.charts.lines import Plot, Series, draw_lines
from prunekit.report.charts.marks import Key, tag
from prunekit.report.charts.points import Spot, draw_points

places = st.lists(st.floats(0, 300), min_size=1, max_size=20)


@given(places)
def test_labels_are_apart_in_order_and_within_bounds(wanted):
    found = spread(wanted, 13.0, 0.0, 300.0)
    order = np.argsort(wanted, kind="stable")
    ordered = np.array(found)[order]
    assert (np.diff(ordered) >= 13.0 - 1e-6).all()
    assert ordered[0] >= -1e-6
    assert ordered[-1] <= 300.0 + 1e-6 or len(wanted) * 13.0 > 300.0


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_an_axis_begins_and_ends_near_the_values(values):
    scale = Scale.around(values, 300, 0)
    assert all(0 <= scale(value) <= 300 for value in values)
    span = max(values) - min(values)
    if span > 1e-3 * max(map(abs, values)):
        assert scale.high - scale.low <= 1.2 * span
    assert all(scale.low <= tick <= scale.high or abs(tick - scale.low) < 1e-6 * abs(scale.high - scale.low) or
               abs(tick - scale.high) < 1e-6 * abs(scale.high - scale.low) for tick in scale.ticks)  # fmt: skip


@pytest.mark.parametrize("values", [[0.4, 0.6, 0.8, 1.0], [0.681, 1.136], [0.08, 0.087], [1.0, 20.0]])
def test_an_axis_has_several_numbers(values):
    for log in (False, True):
        assert 3 <= len(Scale.around(values, 0, 100, log).ticks) <= 7


@given(st.floats(1e-6, 1e6), st.floats(0, 1e-3), st.booleans())
def test_an_axis_of_values_that_hardly_differ_has_numbers_that_do(value, apart, log):
    scale = Scale.around([value, value * (1 + apart)], 0, 100, log)
    assert len(scale.ticks) >= 2
    assert len({tick_text(tick) for tick in scale.ticks}) == len(scale.ticks)


@given(st.text(st.characters(codec="ascii", exclude_categories=("C",)), min_size=1), st.floats(20, 200))
def test_a_text_that_was_cut_fits(text, width):
    found = cut_text(text, width)
    assert text_width(found) <= width
    assert found == text or "…" in found


def test_text_and_attributes_are_escaped():
    made = str(tag("text", "<script>", aria_label='"><script>', class_="a&b"))
    assert made == '<text aria-label="&#34;&gt;&lt;script&gt;" class="a&amp;b">&lt;script&gt;</text>'
    spot = Spot(0.5, 1.0, 0.0, "<b>\"'", "circle", "s0")
    assert not any("<b>" in chart for chart in draw_points([spot], ("<b>", "<b>"), "<b>", []))


def test_points_of_equal_cost_have_numbers_that_do_not_overlap():
    spots = [Spot(0.8, 2.0 + 0.001 * i, 0.01, f"point {i}", "circle", "s0") for i in range(12)]
    for chart in draw_points([*spots, Spot(1.0, 2.5, 0.0, "base", "square", "ink")], ("cost", "quality"), "words", []):
        rows = sorted(float(y) for y in re.findall(r'y="([\d.]+)" class="number"', chart))
        assert len(rows) == 13
        assert (np.diff(rows[:-1]) >= 12.9).all() or (np.diff(rows[1:]) >= 12.9).all()


def test_both_layouts_have_all_points_and_one_of_them_is_in_the_order_of_tabs():
    series = [Series("a", [0, 1, 2], [1.0, 2.0, np.nan], {0: "first", 1: "second", 2: "a gap"})]
    for chart in draw_lines(series, Plot("words", ("x", "y"))):
        assert re.findall(r'aria-label="(\w+)"', chart) == ["words", "first", "second"]
        assert chart.count('tabindex="0"') == 1


@pytest.mark.parametrize("columns", [3, 40, 400])
@pytest.mark.parametrize("layout", [WIDE, NARROW])
def test_cells_of_any_number_of_columns_stay_within_the_chart(columns, layout):
    cells = [[Cell("said", text="128")] * columns] * 5
    chart = draw_cells(Sheet("words", ["a row"] * 5, ["a column with a name"] * columns, cells), layout)
    ends = [
        float(x) + float(width) for x, width in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart)
    ]
    assert len(ends) == 5 * columns
    assert max(ends) <= layout.width
    assert (">128<" in chart) == (columns == 3)


def test_a_long_name_of_an_axis_stays_within_the_chart():
    name = "MACs while sampling, fraction of the unified network's"
    series = [Series("a", [0, 1], [100000.5, 100000.9])]
    narrow = draw_lines(series, Plot("words", (name, "y")))[1]
    middle = float(re.search(rf'x="([\d.]+)"[^>]*>{name.replace(chr(39), "&#39;")}', narrow)[1])
    assert middle + text_width(name) / 2 <= NARROW.width + 0.1


def test_a_key_shows_its_mark():
    assert "mark diamond" in Key("text", "s2", "diamond").swatch
    assert Key("text", form="none").swatch == ""
    assert tick_text(-0.5) == "−0.5"
