import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from prunekit.errors import InputError
from prunekit.training import InverseLoss, LearningSampler, LossSecondMoment, RangeTimesteps

T = 20
ALL = RangeTimesteps(0, T, T)


def taught(power=1.0, bins=4, batches=30, seed=0, **options):
    """Losses of about 1, 2, 3, 4 in four bins."""
    sampler, generator = InverseLoss(ALL, T, power, bins, **options), Generator().manual_seed(seed)
    for _ in range(batches):
        timesteps = torch.randint(0, T, (16,), generator=generator)
        noise = 1 + 0.01 * torch.rand(16, generator=generator)
        sampler.learn(timesteps, (1 + timesteps // 5) * noise)
    return sampler


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_weights_are_the_inverse_power_of_the_usual_loss_and_have_mean_one(power):
    weights = taught(power).weights()
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64) ** -power
    torch.testing.assert_close(weights, expected / expected.mean(), rtol=0.01, atol=0)
    assert float(weights.mean()) == pytest.approx(1)


def test_with_power_one_all_bins_contribute_alike():
    sampler = taught()
    timesteps, weights = sampler.sample(20_000, 0, Generator().manual_seed(1))
    losses = weights * (1 + timesteps // 5)
    shares = torch.stack([losses[timesteps // 5 == bin].mean() for bin in range(4)])
    torch.testing.assert_close(shares, shares.mean().expand(4), rtol=0.02, atol=0)


def test_the_draws_and_the_weights_of_the_sampler_within_are_kept():
    inner = LossSecondMoment(ALL, history=1)
    sampler = InverseLoss(inner, T, bins=4, patience=1)
    timesteps = torch.arange(T)
    sampler.learn(timesteps, 1.0 + timesteps)
    assert inner.warmed_up  # it gets the losses too
    drawn, weights = sampler.sample(64, 0, Generator().manual_seed(3))
    plain, own = inner.sample(64, 0, Generator().manual_seed(3))
    assert torch.equal(drawn, plain)
    torch.testing.assert_close(weights, own * sampler.weights()[drawn // 5].float())
    assert torch.equal(sampler.probabilities(0), inner.probabilities(0))


def test_bins_without_enough_losses_have_weight_one():
    sampler = InverseLoss(ALL, T, bins=4, patience=3)
    sampler.learn(torch.tensor([0, 1, 2, 5, 6, 7, 10]), torch.tensor([1.0, 1, 1, 3, 3, 3, 9]))
    assert sampler.weights().tolist() == pytest.approx([1.5, 0.5, 1, 1])
    assert InverseLoss(ALL, T).weights().unique().tolist() == [1.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, T - 1), min_size=1, max_size=30), min_size=1, max_size=10), st.integers(0, 9))
def test_the_running_mean_is_within_the_losses_and_a_checkpoint_goes_on_the_same(batches, seed):
    sampler, other = (InverseLoss(ALL, T, bins=4, decay=0.9) for _ in range(2))
    generator = Generator().manual_seed(seed)
    for number, batch in enumerate(batches):
        if number == len(batches) // 2:
            file = io.BytesIO()
            torch.save(sampler.state_dict(), file)
            file.seek(0)
            other.load_state_dict(torch.load(file, weights_only=True))
        losses = 1 + torch.rand(len(batch), generator=generator)
        for each in (sampler, other) if number >= len(batches) // 2 else (sampler,):
            each.learn(torch.tensor(batch), losses)
    assert torch.equal(sampler.weights(), other.weights())
    means = sampler.state["means"][sampler.state["seen"] > 0]
    assert bool(((means >= 1) & (means <= 2)).all())


def test_old_losses_are_forgotten():
    sampler = taught(decay=0.9)
    for _ in range(20):
        sampler.learn(torch.arange(T), torch.full((T,), 2.0))
    torch.testing.assert_close(sampler.weights(), torch.ones(4, dtype=torch.float64), rtol=0.01, atol=0)


def test_what_cannot_be_learnt_is_refused():
    sampler = InverseLoss(ALL, T)
    assert isinstance(sampler, LearningSampler)
    for timesteps, losses, said in (
        (torch.arange(3), torch.ones(2), "expected"),
        (torch.tensor([T]), torch.ones(1), "Got timestep 20 of 20"),
        (torch.tensor([1]), torch.tensor([torch.nan]), "finite"),
    ):
        with pytest.raises(InputError, match=said):
            sampler.learn(timesteps, losses)
    for changes in ({"bins": 0}, {"patience": 0}, {"power": -1.0}, {"decay": 1.0}):
        with pytest.raises(InputError, match="expected at least"):
            InverseLoss(ALL, T, **changes)
    with pytest.raises(InputError, match="Got a state of 4 bins; expected 20"):
        sampler.load_state_dict(taught().state_dict())
