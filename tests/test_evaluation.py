import json
import math

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from prunekit.data import load_images
from prunekit.errors import InputError
from prunekit.evaluation import GroupLoss, group_losses, image_metrics, mean_and_standard_error, paired_difference
from prunekit.features import load_features
from prunekit.groups import TimestepGroups
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.training import DenoisingObjective


@pytest.fixture(scope="module")
def digits():
    images = load_images("digits").train.images  # in the order of their writers, who differ
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


@pytest.fixture(scope="module")
def extractor():
    return load_features("digits-cnn")


def noisy(images, amount, seed=0):
    generator = torch.Generator().manual_seed(seed)
    added = torch.randn(images.shape, generator=generator) * amount
    return (images + added).round().clamp(0, 255).to(torch.uint8)


def test_a_set_has_no_distance_from_itself(digits, extractor):
    metrics = image_metrics(digits[:400], digits[:400], extractor, kid_subset_size=400)
    assert metrics.fid == pytest.approx(0, abs=1e-6)
    assert metrics.kid <= 0  # the unbiased estimate counts the equal pairs on one side only
    assert (metrics.count_real, metrics.count_fake, metrics.kid_subset_size) == (400, 400, 400)
    assert json.loads(json.dumps(metrics.to_json()))["count_fake"] == 400


def test_both_distances_grow_with_noise(digits, extractor):
    real, other = digits[:600], digits[600:1200]
    metrics = [image_metrics(real, noisy(other, amount), extractor) for amount in (0, 40, 80, 120)]
    assert [m.fid for m in metrics] == sorted(m.fid for m in metrics)
    assert [m.kid for m in metrics] == sorted(m.kid for m in metrics)
    assert metrics[-1].fid > 5 * metrics[0].fid


def test_fid_is_the_formula_on_the_same_features(digits, extractor):
    real, fake = digits[:500], noisy(digits[500:900], 30)
    a, b = (extractor.features(images).numpy() for images in (real, fake))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert image_metrics(real, fake, extractor).fid == pytest.approx(expected, rel=1e-6)


def test_kid_of_whole_sets_is_the_formula_on_the_same_features(digits, extractor):
    real, fake = digits[:150], noisy(digits[150:300], 30)
    a, b = (extractor.features(images).numpy() for images in (real, fake))
    n = len(a)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    same = sum(kernel(x, x)[~np.eye(n, dtype=bool)].mean() for x in (a, b))
    expected = same - 2 * kernel(a, b).mean()
    metrics = image_metrics(real, fake, extractor, kid_subset_size=1000, kid_subsets=2)
    assert metrics.kid == pytest.approx(expected, rel=1e-6)
    assert metrics.kid_subset_size == n


def test_metrics_repeat_whatever_the_global_generator_and_leave_it_alone(digits, extractor):
    real, fake = digits[:300], noisy(digits[300:600], 30)
    before = torch.get_rng_state()
    first = image_metrics(real, fake, extractor, kid_subset_size=50, kid_subsets=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    assert image_metrics(real, fake, extractor, kid_subset_size=50, kid_subsets=5) == first
    other = image_metrics(real, fake, extractor, kid_subset_size=50, kid_subsets=5, seed=1)
    assert other.kid != first.kid
    assert other.fid == first.fid


@pytest.mark.filterwarnings("error")
def test_metrics_warn_of_nothing(digits, extractor):
    image_metrics(digits[:50], digits[50:100], extractor)


@pytest.mark.parametrize(("real", "options"), [(1, {}), (5, {"kid_subset_size": 1}), (5, {"kid_subsets": 0})])
def test_sets_and_subsets_that_are_too_small_are_refused(digits, extractor, real, options):
    with pytest.raises(InputError, match="expected at least two"):
        image_metrics(digits[:real], digits[:5], extractor, **options)


def test_images_that_are_not_uint8_are_refused(digits, extractor):
    with pytest.raises(InputError, match="expected uint8"):
        image_metrics(digits[:5], digits[:5].float(), extractor)


def test_mean_and_standard_error():
    mean, error = mean_and_standard_error([1.0, 2.0, 4.0, 9.0])
    assert mean == 4.0
    assert error == pytest.approx(math.sqrt((9 + 4 + 0 + 25) / 3) / 2)
    assert mean_and_standard_error([3.5]) == (3.5, None)
    with pytest.raises(InputError, match="at least one"):
        mean_and_standard_error([])


class Recorder(nn.Module):
    """Predicts ``scale`` times its input and remembers what it was shown."""

    def __init__(self, scale=0.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.frozen = nn.Dropout(0.5).eval()
        self.timesteps = []

    def forward(self, noisy, timesteps):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.timesteps += timesteps.tolist()
        return self.scale * self.frozen(noisy)


@pytest.fixture
def objective(digits):
    return DenoisingObjective(digits, Parameterization(NoiseSchedule.cosine(100)))


GROUPS = TimestepGroups.from_cuts(100, [10, 50])
SIZES = {"batches": 4, "batch_size": 16, "seed": 3}


def test_group_losses_repeat_bit_for_bit_whatever_the_global_generator(objective):
    before = torch.get_rng_state()
    first = group_losses(Recorder(0.3), objective, GROUPS, **SIZES)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    second = group_losses(Recorder(0.3), objective, GROUPS, **SIZES)
    for a, b in zip(first, second, strict=True):
        assert a.losses.dtype == np.float64
        assert np.array_equal(a.losses, b.losses)
        assert a.draw == b.draw
        assert paired_difference(a, b) == (0.0, 0.0)


def test_draws_differ_between_groups_and_between_seeds(objective):
    first = group_losses(Recorder(), objective, GROUPS, **SIZES)
    second = group_losses(Recorder(), objective, GROUPS, **{**SIZES, "seed": 4})
    draws = [loss.draw for loss in (*first, *second)]
    assert len(set(draws)) == len(draws)
    # the loss of a prediction of zero is the noise's mean square, so equal losses would be equal noise
    assert not np.isclose(first[0].losses[:, None], first[1].losses[None]).all(1).any()
    assert not np.array_equal(first[0].losses, second[0].losses)


def test_a_prediction_of_zero_has_the_loss_of_unit_noise(objective):
    for loss in group_losses(Recorder(0), objective, GROUPS, **SIZES):
        assert loss.count == 64
        assert loss.mean == pytest.approx(1, abs=6 * math.sqrt(2 / (64 * 64)))  # mean of 64 · 64 squares
        assert (loss.mean, loss.standard_error) == mean_and_standard_error(loss.losses)
        assert set(json.loads(json.dumps(loss.to_json()))) == {"index", "mean", "standard_error", "count", "draw"}


@pytest.mark.parametrize("batches", [1, 4, 25])
def test_timesteps_are_spread_evenly_through_every_group(objective, batches):
    model = Recorder()
    group_losses(model, objective, GROUPS, batches=batches, batch_size=8, seed=0)
    seen = np.array(model.timesteps).reshape(3, -1)
    for group, timesteps in zip(GROUPS, seen, strict=True):
        assert ((timesteps >= group.start) & (timesteps < group.stop)).all()
        counts = np.bincount(timesteps - group.start, minlength=len(group))
        assert counts.max() - counts.min() <= 1
        assert timesteps.mean() == pytest.approx((group.start + group.stop - 1) / 2, abs=0.51)


def test_a_paired_difference_has_the_sign_of_b_minus_a_and_a_smaller_error(objective):
    close, closer = (group_losses(Recorder(scale), objective, GROUPS, **SIZES)[2] for scale in (0.8, 0.9))
    mean, error = paired_difference(close, closer)
    assert mean == pytest.approx(closer.mean - close.mean)
    assert mean < 0  # the noisiest timesteps are nearly all noise
    assert error < 0.5 * math.hypot(close.standard_error, closer.standard_error)


def test_differences_that_are_not_paired_are_refused(objective):
    a = group_losses(Recorder(), objective, GROUPS, **SIZES)
    b = group_losses(Recorder(), objective, GROUPS, **{**SIZES, "seed": 4})
    for pair in ((a[0], b[0]), (a[0], a[1])):
        with pytest.raises(InputError, match="different images, timesteps or noise"):
            paired_difference(*pair)
    one = GroupLoss(0, np.ones(1), "x")
    assert one.standard_error is None
    with pytest.raises(InputError, match="at least two"):
        paired_difference(one, one)


def test_each_modules_mode_is_as_it_was(objective):
    model = Recorder().train()
    model.frozen.eval()
    group_losses(model, objective, GROUPS, **SIZES)
    assert model.training
    assert not model.frozen.training


@pytest.mark.parametrize("change", [{"batches": 0}, {"batch_size": 0}, {"seed": -1}])
def test_impossible_sizes_are_refused(objective, change):
    with pytest.raises(InputError, match="expected at least 1 of 1"):
        group_losses(Recorder(), objective, GROUPS, **{**SIZES, **change})
