import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d

from prunekit.consistency import Likeness, image_likeness, ssim_window, state_likeness
from prunekit.errors import InputError


def images(count=4, side=8, channels=1, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def ssim_by_hand(a, b, sigma, width):
    """Wang et al., equation 13, in every pixel of every channel; the border is reflected."""
    at = np.arange(width) - width // 2
    window = np.exp(-0.5 * (at / sigma) ** 2)
    window /= window.sum()

    def blurred(x):
        return correlate1d(correlate1d(x, window, -1, mode="mirror"), window, -2, mode="mirror")

    mean_a, mean_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((-3, -2, -1))


@pytest.mark.parametrize(("side", "channels"), [(3, 1), (8, 1), (8, 3), (11, 1), (16, 3)])
def test_ssim_is_the_published_formula_with_the_stated_window(side, channels):
    a, b = images(side=side, channels=channels), images(side=side, channels=channels, seed=1)
    b = 0.7 * a + 0.3 * b
    sigma, width = ssim_window(side, side)
    expected = ssim_by_hand((a.double().numpy() + 1) / 2, (b.double().numpy() + 1) / 2, sigma, width)
    np.testing.assert_allclose(image_likeness(a, b).values["ssim"], expected, rtol=1e-6)


@given(st.integers(3, 300), st.integers(3, 300))
def test_the_window_fits_into_the_image(height, width):
    sigma, window = ssim_window(height, width)
    assert window % 2 == 1
    assert window <= min(height, width)
    assert window == 2 * int(3.5 * sigma + 0.5) + 1  # what torchmetrics makes of σ
    assert (sigma, window) == (1.5, 11) or min(height, width) < 11


@pytest.mark.parametrize("side", [1, 2])
def test_images_without_room_for_a_window_are_refused(side):
    with pytest.raises(InputError, match="at least 3×3"):
        image_likeness(images(side=side), images(side=side))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 8, 12]), st.sampled_from([1, 3]))
def test_an_image_is_like_itself(seed, side, channels):
    values = image_likeness(*[images(side=side, channels=channels, seed=seed)] * 2).values
    assert values["correlation"].tolist() == [1.0] * 4
    assert values["mse"].tolist() == [0.0] * 4
    np.testing.assert_allclose(values["ssim"], 1, rtol=0, atol=1e-12)


def test_correlation_is_pearsons_over_all_pixels_and_channels():
    a, b = images(channels=3), images(channels=3, seed=1)
    found = image_likeness(a, b).values["correlation"]
    expected = [np.corrcoef(x.double().flatten(), y.double().flatten())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(image_likeness(a, -a).values["correlation"], -1)


def test_images_are_clamped_and_the_difference_is_in_units_of_the_pixel_range():
    a = torch.full((2, 1, 4, 4), -3.0)
    b = torch.stack([torch.full((1, 4, 4), 9.0), torch.full((1, 4, 4), -1.0)])
    assert image_likeness(a, b).values["mse"].tolist() == [1.0, 0.0]


def test_states_are_taken_as_they_are():
    a = 3 * images()
    values = state_likeness(a, a + 2).values
    assert set(values) == {"correlation", "mse"}
    np.testing.assert_allclose(values["mse"], 4, rtol=1e-6)
    np.testing.assert_allclose(values["correlation"], 1, rtol=1e-9)


def test_a_constant_image_has_no_correlation_and_is_left_out_and_counted():
    a, b = images(3), images(3, seed=1)
    b[1] = 0.1  # whose mean is not exact in floating point
    likeness = image_likeness(a, b)
    assert np.isnan(likeness.values["correlation"]).tolist() == [False, True, False]
    told = likeness.to_json()["correlation"]
    assert told["undefined"] == 1
    assert told["mean"] == likeness.values["correlation"][[0, 2]].mean()
    assert likeness.to_json()["mse"]["undefined"] == 0
    alone = image_likeness(b[1:2], b[1:2])
    assert alone.to_json()["correlation"] == {"mean": None, "se": None, "undefined": 1}
    assert alone.mean("correlation") is None
    assert alone.mean("mse") == 0


def test_the_standard_error_is_over_pairs():
    values = np.array([0.1, 0.4, 0.7])
    told = Likeness({"ssim": values}).to_json()["ssim"]
    assert told["mean"] == pytest.approx(0.4)
    assert told["se"] == pytest.approx(values.std(ddof=1) / np.sqrt(3))


def test_batches_are_joined_in_order():
    a, b = images(5), images(5, seed=1)
    whole = image_likeness(a, b)
    joined = Likeness.joined([image_likeness(a[:2], b[:2]), image_likeness(a[2:], b[2:])])
    for name, values in whole.values.items():
        np.testing.assert_allclose(joined.values[name], values, rtol=1e-9)
