import numpy as np
from PIL import Image

from prunekit.report import heatmap_png
from prunekit.report.heatmap import Heatmap, draw_panels


def test_heatmap_shows_what_was_left_whole_as_not_measured(importance):
    importance["scores"][2][0] = [1e9] * 32  # a left-whole group with scores is still not drawn as high
    heatmap = Heatmap.of(importance)
    columns = [heatmap.names.index(name) for name in importance["left_whole"]]
    assert columns == [0, len(heatmap.names) - 1]
    assert np.isnan(heatmap.values[:, columns]).all()
    assert np.isfinite(np.delete(heatmap.values, columns, axis=1)).all()
    axes = draw_panels([heatmap]).axes[0]
    hatched = [patch for patch in axes.patches if patch.get_hatch()]
    assert len(hatched) == 2
    assert [text.get_text() for text in axes.texts] == ["not removable"] * 2
    assert "not removable" in heatmap.caption
    assert "2 of them not removable" in heatmap.alt


def test_heatmap_values_are_mean_scores_over_the_rows_maximum(importance):
    heatmap = Heatmap.of(importance)
    means = [np.mean(scores) for scores in importance["scores"][3][1:]]
    np.testing.assert_allclose(heatmap.values[3, 1:-1], np.array(means) / max(means))
    assert heatmap.scale == "log"
    assert "log scale" in heatmap.caption


def test_heatmap_ranks_scores_that_are_not_positive(importance):
    importance["scores"][0][1:5] = [[-1.0], [0.0], [0.0], [-3.0]]
    heatmap = Heatmap.of(importance)
    assert heatmap.scale == "rank"
    assert "rank" in heatmap.caption
    row = heatmap.values[0, 1:-1]
    assert (row[3], row[0], row.max()) == (0.0, 1 / 18, 1.0)
    assert row[1] == row[2] == 2.5 / 18
    draw_panels([heatmap])


def test_heatmap_png_alone(tmp_path, importance):
    heatmap_png(importance, tmp_path / "deep" / "heat.png")
    with Image.open(tmp_path / "deep" / "heat.png") as picture:
        picture.load()
        assert picture.width > picture.height
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["heat.png"]
