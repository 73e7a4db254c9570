import io
from collections import defaultdict, deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from prunekit.errors import InputError
from prunekit.training import LearningSampler, LossSecondMoment, RangeTimesteps

RANGE = RangeTimesteps(5, 17, 20)


def filled(seed=0, within=RANGE, **options):
    sampler = LossSecondMoment(within, **options)
    timesteps = torch.arange(within.start, within.stop).repeat(sampler.history)
    sampler.learn(timesteps, torch.rand(len(timesteps), generator=Generator().manual_seed(seed)) + 0.1)
    return sampler


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(5, 16), min_size=1, max_size=60), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_it_keeps_what_a_queue_for_every_timestep_would_keep(batches, history, seed):
    """As the public code does it, one loss after the other; also where one batch has more losses of a timestep than are kept."""
    sampler = LossSecondMoment(RANGE, history)
    queues: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=history))
    generator = Generator().manual_seed(seed)
    for batch in [*batches, list(range(5, 17)) * history]:
        losses = torch.rand(len(batch), generator=generator)
        sampler.learn(torch.tensor(batch), losses)
        for t, loss in zip(batch, losses.tolist(), strict=True):
            queues[t].append(loss)
    size = np.array([np.sqrt(np.mean(np.square(queues[t]))) for t in range(5, 17)])
    expected = np.zeros(20)
    expected[5:17] = 0.999 * size / size.sum() + 0.001 / 12
    np.testing.assert_allclose(sampler.probabilities(0).numpy(), expected, rtol=1e-12)


def test_it_is_uniform_until_every_timestep_has_its_history():
    sampler = LossSecondMoment(RANGE, history=3)
    timesteps = torch.arange(5, 17).repeat(3)
    losses = torch.linspace(1, 2, 36)
    sampler.learn(timesteps[:-1], losses[:-1])
    assert torch.equal(sampler.probabilities(0), RANGE.probabilities(0))
    assert (sampler.sample(100, 0, Generator().manual_seed(0))[1] == 1).all()
    assert not sampler.warmed_up
    sampler.learn(timesteps[-1:], losses[-1:])
    assert sampler.warmed_up
    assert not torch.equal(sampler.probabilities(0), RANGE.probabilities(0))


def test_losses_that_are_all_nought_leave_it_uniform():
    sampler = LossSecondMoment(RANGE, history=1)
    sampler.learn(torch.arange(5, 17), torch.zeros(12))
    assert torch.equal(sampler.probabilities(0), RANGE.probabilities(0))


@given(st.integers(0, 1000), st.floats(1e-3, 1))
def test_weighted_means_are_the_uniform_draws_means(seed, uniform):
    sampler = filled(seed, uniform=uniform)
    timesteps, weights = sampler.sample(400, 0, Generator().manual_seed(seed))
    probabilities = sampler.probabilities(0)
    np.testing.assert_allclose(weights, 1 / (12 * probabilities[timesteps]), rtol=1e-6)
    assert float(weights.max()) <= (1 + 1e-6) / uniform
    table = torch.zeros(20, dtype=torch.float64)
    table[timesteps] = weights.double()
    met = table > 0  # every timestep, unless its turn did not come in 400 draws
    function = torch.rand(20, generator=Generator().manual_seed(seed + 1), dtype=torch.float64)
    found = (probabilities * table * function)[met].sum()
    assert float(found) == pytest.approx(float(function[met].sum() / 12), rel=1e-6)


def test_draws_by_learnt_losses_make_a_far_steadier_mean():
    within = RangeTimesteps(0, 200)
    loss = torch.logspace(-3, 0, 200, dtype=torch.float64)
    sampler = LossSecondMoment(within)
    sampler.learn(torch.arange(200).repeat(10), loss.repeat(10))
    timesteps, weights = sampler.sample(5000, 0, Generator().manual_seed(0))
    found = weights.double() * loss[timesteps]
    assert float(found.mean()) == pytest.approx(float(loss.mean()), rel=0.01)
    assert float(found.std()) < 0.2 * float(loss.std())


def test_it_resumes_in_the_middle_and_goes_on_bit_equal():
    def step(sampler, index):
        timesteps, weights = sampler.sample(64, index, Generator().manual_seed(index))
        sampler.learn(timesteps, torch.rand(64, generator=Generator().manual_seed(1000 + index)) * timesteps)
        return timesteps, weights

    whole = LossSecondMoment(RANGE, history=4)
    first = LossSecondMoment(RANGE, history=4)
    for index in range(7):
        step(whole, index)
        step(first, index)
    buffer, state = io.BytesIO(), first.state_dict()
    step(first, 7)  # what is to be saved is no view of what goes on
    torch.save(state, buffer)
    buffer.seek(0)
    second = LossSecondMoment(RANGE, history=4)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for index in range(7, 40):
        expected, found = step(whole, index), step(second, index)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert whole.warmed_up
    assert torch.equal(second.losses, whole.losses)


def test_processes_that_learn_the_gathered_batch_in_the_samplers_order_stay_together():
    """Two processes have every second sample each; what all-gather gives, process by process, goes back into the draw's order."""
    alone, pair = filled(), [filled(), filled()]
    for index in range(20):
        timesteps, _ = alone.sample(32, index, Generator().manual_seed(index))
        losses = torch.rand(32, generator=Generator().manual_seed(50 + index))
        gathered = torch.cat([losses[rank::2] for rank in range(2)])
        restored = gathered.reshape(2, -1).T.reshape(-1)
        alone.learn(timesteps, losses)
        for sampler in pair:
            own, _ = sampler.sample(32, index, Generator().manual_seed(index))
            sampler.learn(own, restored)
    for sampler in pair:
        assert torch.equal(sampler.losses, alone.losses)
        assert torch.equal(sampler.seen, alone.seen)


def test_it_is_a_learning_sampler_that_takes_losses_with_a_gradient_and_of_half_precision():
    sampler = LossSecondMoment(RANGE, history=1)
    assert isinstance(sampler, LearningSampler)
    assert sampler.learns
    sampler.learn(torch.arange(5, 17), torch.full((12,), 0.5, dtype=torch.bfloat16, requires_grad=True))
    assert not sampler.losses.requires_grad
    assert (sampler.losses == 0.5).all()


@pytest.mark.parametrize(
    ("timesteps", "losses", "message"),
    [
        ([5, 6], [1.0], r"\(2,\).*\(1,\)"),
        ([[5, 6]], [[1.0, 2.0]], r"\(1, 2\).*expected \(batch,\)"),
        ([5, 17], [1.0, 1.0], "5 to 17.*5 to 16"),
        ([4, 6], [1.0, 1.0], "4 to 6.*5 to 16"),
        ([5, 6], [1.0, float("nan")], "loss of nan"),
        ([5, 6], [float("inf"), 1.0], "loss of inf"),
    ],
)
def test_what_cannot_be_learnt_is_refused_and_changes_nothing(timesteps, losses, message):
    sampler = filled()
    before = sampler.state_dict()
    with pytest.raises(InputError, match=message):
        sampler.learn(torch.tensor(timesteps), torch.tensor(losses))
    assert torch.equal(sampler.losses, before["losses"])
    assert torch.equal(sampler.seen, before["seen"])


@pytest.mark.parametrize("options", [{"history": 0}, {"uniform": 0.0}, {"uniform": 1.5}])
def test_options_that_make_no_sampler_are_refused(options):
    with pytest.raises(InputError, match=r"at least 1 and a share in \(0, 1\]"):
        LossSecondMoment(RANGE, **options)


def test_another_samplers_state_is_refused():
    with pytest.raises(InputError, match=r"\(12, 10\).*expected \(12, 3\)"):
        LossSecondMoment(RANGE, history=3).load_state_dict(filled().state_dict())
