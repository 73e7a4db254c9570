import copy

import numpy as np
import pytest
from PIL import Image

from prunekit.report import curves_png, describe_consistency, pairs_png
from prunekit.report.consistency import draw_curves, draw_pairs
from prunekit.results.formats import CONSISTENCY


def told(mean, se=0.01):
    return {"mean": mean, "se": se, "undefined": 0}


def likeness(level, mse):
    return {"ssim": told(level), "correlation": told(level), "mse": told(mse)}


@pytest.fixture
def data():
    steps = [
        {
            "timestep": float(t),
            "groups": {"a": None, "b": t // 50},
            "same": likeness(0.9, 1e-6 * (t + 1)),
            "shuffled": likeness(0.2, 0.1),
            "state": {"correlation": told(0.95), "mse": told(0.0)},
            "forced": likeness(0.97, 1e-6),
        }
        for t in (75, 50, 25, 0)
    ]
    differences = {name: told(0.1) for name in ("jump", "cleaner", "noisier", "ratio")}
    model = {"name": "base", "architecture": "UNet2DModel", "prediction_type": "epsilon", "weights_sha256": "ab"}
    settings = {"sampler": "ddim", "steps": 4, "count": 6, "seed": 0, "teacher_forced": True, "batch_size": 2}
    return {
        "format": CONSISTENCY,
        "prunekit": "0.1.0",
        "models": {"a": {**model, "groups": None}, "b": {**model, "groups": [[0, 50], [50, 100]]}},
        "noise_schedule": {"kind": "linear", "num_timesteps": 100},
        "settings": {**settings, "shape": [1, 8, 8]},
        "ssim": {"data_range": 1.0, "sigma": 0.9, "window": 7, "k1": 0.01, "k2": 0.03},
        "images": {"same": likeness(0.912, 0.01), "shuffled": likeness(0.25, 0.1)},
        "steps": steps,
        "seams": [{"model": "b", "timestep": 50, "groups": [0, 1], **differences}],
    }


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_every_measure_is_drawn_over_the_timesteps_with_its_seams(data):
    ssim, correlation, mse = draw_curves(data).axes
    assert [len(lines(axes)) for axes in (ssim, correlation, mse)] == [3, 4, 3]
    np.testing.assert_array_equal(lines(ssim)["shuffled pairs"].get_xdata(), [75, 50, 25, 0])
    assert set(lines(ssim)["shuffled pairs"].get_ydata()) == {0.2}
    for axes in (ssim, correlation, mse):
        assert [line.get_xdata()[0] for line in axes.lines if line.get_label().startswith("_")] == [50]
    assert mse.get_yscale() == "log"


def test_what_was_not_measured_or_is_undefined_leaves_a_gap(data):
    for step in data["steps"]:
        step["forced"] = None
    data["steps"][1]["same"]["correlation"] = {"mean": None, "se": None, "undefined": 6}
    _, correlation, _ = draw_curves(data).axes
    assert len(lines(correlation)) == 3
    assert np.isnan(lines(correlation)["same noise, each model on its own trajectory"].get_ydata()).tolist() == [
        0,
        1,
        0,
        0,
    ]


def test_models_without_a_difference_are_drawn_on_a_linear_scale(data, tmp_path):
    for step in data["steps"]:
        step["same"] = step["forced"] = likeness(1.0, 0.0)
    assert draw_curves(data).axes[2].get_yscale() == "linear"
    one = {**copy.deepcopy(data), "steps": data["steps"][:1], "seams": []}
    curves_png(one, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        picture.verify()


@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_are_drawn_beside_their_differences(images, channels):
    a = images.repeat(channels, axis=3)
    b, shuffled = a // 2, np.roll(a // 2, 1, axis=0)
    figure = draw_pairs(a, b, shuffled, ("base.pt", "a$b/experts"))
    grid = np.array(figure.axes).reshape(8, 5)
    assert [axes.get_title() for axes in grid[0]] == [
        "A",
        "B, same noise",
        "|A − B|",
        "B, shuffled",
        "|A − B shuffled|",
    ]
    shown = [np.asarray(axes.images[0].get_array()).reshape(8, 8, channels) for axes in grid[3]]
    np.testing.assert_array_equal(shown[0], a[3])
    np.testing.assert_array_equal(shown[2], a[3] - b[3])
    np.testing.assert_array_equal(shown[3], b[2])
    np.testing.assert_array_equal(shown[4], np.abs(a[3].astype(int) - b[2]))
    assert figure.get_suptitle() == "A = base.pt\nB = a$b/experts"


def test_of_a_long_path_the_end_is_shown(images):
    path = "folder/" * 20 + "base.pt"
    title = draw_pairs(images, images, images, (path, "b")).get_suptitle()
    assert title.startswith("A = …")
    assert title.endswith("/base.pt\nB = b")
    assert len(title.splitlines()[0]) == 60


def test_fewer_pairs_are_fewer_rows(images, tmp_path):
    pairs_png(images[:2], images[:2], images[:2], ("a", "b"), tmp_path / "pairs.png")
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.width > picture.height


def test_the_figures_in_words(data):
    words = describe_consistency(data)
    assert "SSIM 0.912 ± 0.010 and pixel correlation 0.912 ± 0.010; shuffled pairs have 0.250" in words
    data["images"]["same"]["correlation"] = {"mean": None, "se": None, "undefined": 6}
    assert "pixel correlation undefined;" in describe_consistency(data)
