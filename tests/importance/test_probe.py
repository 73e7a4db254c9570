import numpy as np
import pytest
import torch
from denoisers import GROUPS, Apart, Denoiser, drawn, made
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import InputError
from prunekit.importance import DrawnLoss, Probe


@pytest.fixture
def model():
    return made(Denoiser)


def test_draws_are_spread_evenly_and_the_same_each_time():
    probe = Probe(drawn, GROUPS[1], samples=60, chunk=16, seed=5)
    first, again = list(probe.chunks()), list(probe.chunks())
    assert [len(t) for t, _ in first] == [16, 16, 16, 12]
    assert torch.cat([t for t, _ in first]).sort().values.tolist() == sorted([*range(30, 60), *range(30, 60)])
    for (t, generator), (u, other) in zip(first, again, strict=True):
        assert torch.equal(t, u)
        assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=other))


def test_chunks_do_not_share_their_noise():
    draws = [torch.rand(3, generator=g) for _, g in Probe(drawn, GROUPS[0], 32, chunk=8).chunks()]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_the_mean_weighs_chunks_by_their_size():
    probe = Probe(lambda m, t, g: m(t.double()).mean(), GROUPS[2], samples=40, chunk=16)
    assert probe.mean(nn.Identity()) == pytest.approx(np.mean(range(60, 100)))


def test_the_mean_is_taken_in_eval_mode_and_updates_no_statistics(model):
    model.train()
    statistics = model.norm.running_mean.clone()
    probe = Probe(drawn, GROUPS[0], 16, chunk=8)
    assert probe.mean(model) == probe.mean(model)
    assert torch.equal(model.norm.running_mean, statistics)
    assert model.training


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 4), (4, 4, 0, 0), (8.5, 4), ("8", 4), (True, 4)])
def test_needs_a_sample_a_batch_and_a_chunk(sizes):
    with pytest.raises(InputError, match="at least 1"):
        Probe(drawn, GROUPS[0], *sizes)


@pytest.mark.parametrize("seed", ["x", None, 1.5, -1, 2**70])
def test_a_seed_is_a_number_that_generators_take(seed):
    with pytest.raises(InputError, match=r"Got seed .*; expected a whole number from 0 to 4,294,967,295"):
        Probe(drawn, GROUPS[0], seed=seed)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 50))
def test_draws_depend_on_the_chunk_and_never_on_the_batch(samples, chunk, batch_size):
    class Seen(Apart):
        def drawn_losses(self, model, drawn, timesteps):
            self.calls.append((timesteps, drawn[0]))
            return model(drawn[0]).mean(1)

    loss = Seen()
    probe = Probe(loss, GROUPS[2], samples, batch_size, chunk=chunk)
    expected = [(timesteps, *loss.draw(timesteps, generator)) for timesteps, generator in probe.chunks()]
    counts = [count for _, count in probe.losses(nn.Identity())]
    assert sum(counts) == samples
    assert set(counts[:-1]) <= {batch_size}
    for seen, made_ in zip(zip(*loss.calls, strict=True), zip(*expected, strict=True), strict=True):
        assert torch.equal(torch.cat(seen), torch.cat(made_))


def test_one_by_one_keeps_the_draws_of_a_loss_that_draws_apart(model):
    model.eval()
    probe = Probe(Apart(), GROUPS[0], 12, 5, chunk=4)
    assert [count for _, count in probe.one_by_one().losses(model)] == [1] * 12
    assert probe.one_by_one().mean(model) == pytest.approx(probe.mean(model), rel=1e-6)
    assert [len(t) for t, _ in Probe(drawn, GROUPS[0], 12, 5, chunk=4).one_by_one().chunks()] == [1] * 12


def test_only_losses_that_draw_apart_are_taken_for_such():
    assert isinstance(Apart(), DrawnLoss)
    assert not isinstance(drawn, DrawnLoss)
