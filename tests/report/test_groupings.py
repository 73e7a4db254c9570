import numpy as np
import pytest
from PIL import Image

from prunekit.groups import Evidence, Explicit, Grouping, TimestepGroups
from prunekit.report import describe_grouping, grouping_png
from prunekit.report.groupings import draw_grouping
from prunekit.schedule import NoiseSchedule


@pytest.fixture
def grouping():
    at = np.array([0, 50, 99])
    matrix = np.array([[1.0, 0.8, 0.2], [0.8, 1.0, 0.4], [0.2, 0.4, 1.0]])
    curves = {"to_clean": np.array([1.0, 0.7, 0.2]), "to_noise": np.array([0.1, 0.3, 1.0])}
    facts = {"alpha": 0.9, "alpha_from": "given", "eta": 0.01}
    return Grouping(TimestepGroups.from_cuts(100, [60, 62], "similarity"), Evidence(at, curves, matrix, facts))


def test_curves_map_and_cuts_are_drawn(grouping):
    figure = draw_grouping(grouping)
    left, right, _ = figure.axes
    assert len(left.get_legend().get_texts()) == 3
    assert [text.get_text() for text in left.texts] == ["60"]  # 62 has no room
    assert [box.get_x() for box in right.patches] == [0, 60, 62]
    mesh = right.collections[0]
    np.testing.assert_array_equal(mesh.get_array().reshape(3, 3), grouping.evidence.matrix)


def test_a_grouping_in_words(grouping):
    words = describe_grouping(grouping)
    assert "3 timestep groups by method similarity: 0–59, 60–61, 62–99." in words
    assert "α = 0.9" in words
    assert "within the groups: 0.90, 1.00, 1.00" in words


def test_without_a_map_there_is_one_picture(tmp_path):
    grouping = Explicit((40,))(NoiseSchedule.linear(100), 2)
    grouping_png(grouping, tmp_path / "groups.png")
    with Image.open(tmp_path / "groups.png") as picture:
        assert picture.width < 1300
    assert len(draw_grouping(grouping).axes) == 1
    assert "within" not in describe_grouping(grouping)
