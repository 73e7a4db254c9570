import numpy as np
import pytest
from scipy import linalg

from prunekit.errors import InputError
from prunekit.frechet import FeatureStatistics, frechet_distance, paired_error, sampling_error


def draws(count, seed, width=6, shift=0.0):
    generator = np.random.default_rng(seed)
    return generator.normal(shift, 1, (count, width)) @ np.random.default_rng(99).normal(0, 1, (width, width))


def test_the_distance_is_the_formula():
    one, other = (FeatureStatistics.of(draws(300, seed, shift=0.3 * seed)) for seed in (0, 1))
    root = linalg.sqrtm(one.covariance @ other.covariance).real
    expected = np.square(one.mean - other.mean).sum() + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(other, one) == pytest.approx(expected)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_the_paired_error_is_the_spread_over_fresh_samples_and_far_below_the_unpaired_one():
    real, count = FeatureStatistics.of(draws(2000, 7)), 200
    pairs = [
        (own, own + 0.3 * draws(count, 1000 + seed))
        for seed, own in enumerate(draws(count, 500 + s) for s in range(60))
    ]
    distances = np.array([[frechet_distance(real, FeatureStatistics.of(part)) for part in pair] for pair in pairs])
    spread = (distances[:, 1] - distances[:, 0]).std(ddof=1)
    found = np.mean([paired_error(real, other, own) for own, other in pairs[:5]])
    assert 0.6 * spread < found < 2 * spread
    assert found < 0.8 * np.hypot(*distances.std(axis=0, ddof=1))


def test_the_sampling_error_is_the_spread_over_fresh_samples():
    real, count = FeatureStatistics.of(draws(2000, 7)), 200
    models = [draws(count, 300 + seed, shift=0.2) for seed in range(60)]
    spread = np.std([frechet_distance(real, FeatureStatistics.of(own)) for own in models], ddof=1)
    assert np.mean([sampling_error(real, own) for own in models[:5]]) == pytest.approx(spread, rel=0.35)
    assert sampling_error(real, models[0]) == sampling_error(real, models[0]) != sampling_error(real, models[0], seed=1)


def test_the_sampling_error_of_more_images_is_smaller():
    real = FeatureStatistics.of(draws(2000, 7))
    few, many = (sampling_error(real, draws(count, 3, shift=0.2)) for count in (100, 1600))
    assert few / many == pytest.approx(4, rel=0.4)


def test_the_paired_error_repeats_and_is_none_of_a_model_against_itself():
    real, own, other = FeatureStatistics.of(draws(200, 7)), draws(50, 1), draws(50, 2)
    assert paired_error(real, own, own) == 0
    assert paired_error(real, own, other) == paired_error(real, own, other) == paired_error(real, other, own) > 0
    assert paired_error(real, own, other, seed=1) != paired_error(real, own, other)


def test_features_that_are_no_pairs_are_refused():
    real = FeatureStatistics.of(draws(200, 7))
    with pytest.raises(InputError, match="same number of images"):
        paired_error(real, draws(50, 1), draws(49, 1))
    with pytest.raises(InputError, match="at least two images"):
        FeatureStatistics.of(draws(1, 1))
    with pytest.raises(InputError, match="at least two images"):
        sampling_error(real, draws(1, 1))
