"""The optimal denoiser: equal to the sum over all images, to the closed form of a Gaussian, and in any chunks."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.groups import OptimalDenoiser


def brute_force(images, noisy, signal, spread):
    """The paper's formula, term by term in extended precision."""
    answers = []
    for x in noisy.astype(np.longdouble):
        logits = np.array([-((x - signal * y) ** 2).sum() / (2 * spread**2) for y in images.astype(np.longdouble)])
        weights = np.exp(logits - logits.max())
        mean = sum(w * y for w, y in zip(weights, images, strict=True)) / weights.sum()
        answers.append((x - signal * mean) / spread)
    return np.array(answers, dtype=np.float64)


def some(seed, count=20, pixels=6):
    return np.random.default_rng(seed).uniform(-1, 1, (count, pixels))


@pytest.mark.parametrize(("signal", "spread"), [(0.999, 0.04), (0.8, 0.6), (0.1, 0.995), (1.0, 0.01), (1.0, 80.0)])
def test_it_is_the_sum_over_all_images(signal, spread):
    images, random = some(0), np.random.default_rng(1)
    noisy = signal * images[:5] + spread * random.standard_normal((5, 6))
    found = OptimalDenoiser(images).noise(noisy, signal, spread)
    np.testing.assert_allclose(found, brute_force(images, noisy, signal, spread), rtol=1e-10, atol=1e-12)


def test_pairs_along_sigmas_are_asked_one_by_one():
    images, random = some(2), np.random.default_rng(3)
    denoiser, clean, noise = OptimalDenoiser(images), images[3:7], random.standard_normal((4, 6))
    sigmas = np.geomspace(0.01, 50, 9)
    ((pairs, found),) = denoiser.noise_along(clean, noise, sigmas)
    assert (pairs.start, pairs.stop) == (0, 4)
    for i, sigma in enumerate(sigmas):
        alone = denoiser.noise(clean + sigma * noise, 1.0, sigma)
        np.testing.assert_allclose(found[:, i], alone, rtol=1e-9, atol=1e-10)


def test_a_dense_grid_of_a_gaussian_gives_the_gaussians_denoiser():
    """Points at the quantiles of N(0.3, 0.5²): the posterior mean is linear in x, (s²x + σ²m)/(s² + σ²)."""
    mean, spread, sigma = 0.3, 0.5, 0.7
    points = np.linspace(-8, 8, 4001)
    copies = np.round(2000 * np.exp(-(points**2) / 2)).astype(int)  # the density, as numbers of equal images
    images = np.repeat(mean + spread * points, copies)[:, None]
    noisy = np.array([[-1.0], [0.0], [0.3], [1.5]])
    expected = (spread**2 * noisy + sigma**2 * mean) / (spread**2 + sigma**2)
    np.testing.assert_allclose(OptimalDenoiser(images).posterior_mean(noisy, sigma), expected, atol=1e-4)


def test_one_image_is_always_the_answer():
    image = some(4, count=1)
    denoiser = OptimalDenoiser(image)
    noisy = np.random.default_rng(0).standard_normal((3, 6)) * 100
    np.testing.assert_allclose(denoiser.posterior_mean(noisy, np.array([0.01, 1, 100])), np.repeat(image, 3, axis=0))


def test_without_noise_it_is_the_nearest_image_and_in_noise_alone_the_mean():
    images = some(5)
    denoiser = OptimalDenoiser(images)
    np.testing.assert_allclose(denoiser.posterior_mean(images + 1e-3, 1e-4), images, atol=1e-12)
    np.testing.assert_allclose(denoiser.posterior_mean(images, 1e6), np.repeat(images.mean(0)[None], 20, 0), atol=1e-9)
    np.testing.assert_allclose(denoiser.mean_image, images.mean(axis=0))


def test_uint8_is_the_range_from_minus_one_to_one():
    pixels = np.random.default_rng(6).integers(0, 256, (12, 1, 2, 3), dtype=np.uint8)
    scaled = pixels.reshape(12, 6) / 127.5 - 1
    noisy = np.random.default_rng(7).standard_normal((4, 6))
    np.testing.assert_allclose(
        OptimalDenoiser(pixels).posterior_mean(noisy, 0.5),
        OptimalDenoiser(scaled).posterior_mean(noisy, 0.5),
        rtol=1e-12,
    )
    assert OptimalDenoiser(pixels).take(slice(None)).min() >= -1


@given(
    memory=st.integers(2_000, 40_000),
    count=st.integers(1, 60),
    rows=st.integers(1, 12),
    sigma=st.floats(0.01, 100),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_memory_gives_the_same_answer(memory, count, rows, sigma, seed):
    images, random = some(seed, count), np.random.default_rng(seed + 1)
    noisy = images[random.integers(count, size=rows)] + sigma * random.standard_normal((rows, 6))
    whole = OptimalDenoiser(images).posterior_mean(noisy, sigma)
    np.testing.assert_allclose(
        OptimalDenoiser(images, memory).posterior_mean(noisy, sigma), whole, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("mebibytes", [4, 16])
def test_the_memory_is_not_exceeded(mebibytes):
    images = np.random.default_rng(0).integers(0, 256, (20_000, 64), dtype=np.uint8)
    denoiser = OptimalDenoiser(images, mebibytes * 2**20)
    clean, noise = denoiser.take(slice(0, 64)), np.random.default_rng(1).standard_normal((64, 64))
    tracemalloc.start()
    try:
        for _ in denoiser.noise_along(clean, noise, np.geomspace(0.01, 80, 16)):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= mebibytes * 2**20


def test_too_little_memory_is_refused_with_what_is_needed():
    denoiser = OptimalDenoiser(some(0), 100)
    with pytest.raises(InputError, match=r"Got 100 bytes of memory .* expected 360 or more"):
        denoiser.posterior_mean(some(1, 1), 1.0)
    assert OptimalDenoiser(some(0), 360).posterior_mean(some(1, 1), 1.0).shape == (1, 6)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((0, 3)), "shape"),
        (np.zeros(3), "shape"),
        (np.array([[np.nan]]), "NaN"),
    ],
)
def test_images_that_are_none_are_refused(images, said):
    with pytest.raises(InputError, match=said):
        OptimalDenoiser(images)


@pytest.mark.parametrize(("noisy", "sigma"), [(np.zeros((2, 5)), 1.0), (np.zeros((2, 6)), 0.0), (np.zeros(6), 1.0)])
def test_noisy_images_that_do_not_fit_are_refused(noisy, sigma):
    with pytest.raises(InputError, match="noisy images of shape"):
        OptimalDenoiser(some(0)).posterior_mean(noisy, sigma)
