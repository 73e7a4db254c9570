"""Training one network for several timestep groups."""

import json
import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from forking import forked, forked_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import UNET_CONFIG
from scipy.stats import chisquare
from torch import Generator

from prunekit.errors import FileFormatError, InputError
from prunekit.groups import TimestepGroups
from prunekit.nets import MultiDecoderUNet
from prunekit.schedule import NoiseSchedule
from prunekit.training import (
    DenoisingObjective,
    EarlyStop,
    LossSecondMoment,
    RangeTimesteps,
    Snapshots,
    StageTimesteps,
    TrainOptions,
    train,
)

T = 60
GROUPS = TimestepGroups.from_cuts(T, [5, 40])
DRAWS = ("uniform", "proportional", "mixed")
CONFIG = {
    **UNET_CONFIG,
    "sample_size": 4,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 2,
    "add_attention": False,
}
OPTIONS = TrainOptions(steps=12, batch_size=8, warmup_steps=2, log_every=3, checkpoint_every=3, ema_decay=0.9)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MultiDecoderUNet(CONFIG, GROUPS, [[4, 4], [8, 8], [12, 8]])


def objective():
    images = torch.randint(0, 256, (32, 1, 4, 4), dtype=torch.uint8, generator=Generator().manual_seed(1))
    return DenoisingObjective(images, NoiseSchedule.linear(T))


def draws(sampler, steps, batch=8):
    for step in range(steps):
        yield sampler.sample(batch, step, Generator().manual_seed(step))


@pytest.mark.parametrize("draw", DRAWS)
def test_batches_are_proper_and_the_same_for_a_seed(draw):
    sampler = StageTimesteps(GROUPS, draw)
    for (timesteps, weights), (again, _) in zip(draws(sampler, 20), draws(sampler, 20), strict=True):
        assert timesteps.dtype == torch.int64
        assert weights.shape == timesteps.shape == (8,)
        assert weights.mean() == pytest.approx(1)
        assert bool(((timesteps >= 0) & (timesteps < T)).all())
        assert torch.equal(timesteps, again)


@pytest.mark.parametrize(("draw", "shares"), [("uniform", [1 / 3] * 3), ("proportional", [5 / 60, 35 / 60, 20 / 60])])
def test_a_batch_is_of_one_stage_in_the_stated_shares(draw, shares):
    counts = Counter()
    for timesteps, _ in draws(StageTimesteps(GROUPS, draw), 3000, 4):
        (stage,) = set(GROUPS.index_of(timesteps.numpy()).tolist())
        counts[stage] += 1
    assert chisquare([counts[i] for i in range(3)], np.array(shares) * 3000).pvalue > 1e-3


@pytest.mark.parametrize("draw", DRAWS)
def test_timesteps_of_a_stage_are_equally_likely(draw):
    seen = torch.cat([timesteps for timesteps, _ in draws(StageTimesteps(GROUPS, draw), 2000, 12)])
    for group in GROUPS:
        own = seen[(seen >= group.start) & (seen < group.stop)] - group.start
        assert chisquare(torch.bincount(own, minlength=len(group)).numpy()).pvalue > 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 100))
def test_mixed_batches_starve_no_stage_and_weigh_all_alike(batch, step):
    timesteps, weights = StageTimesteps(GROUPS, "mixed").sample(batch, step, Generator().manual_seed(step))
    stages = torch.from_numpy(GROUPS.index_of(timesteps.numpy()))
    counts = torch.bincount(stages, minlength=3)
    assert counts.max() - counts.min() <= 1
    totals = torch.zeros(3).index_add(0, stages, weights)
    assert torch.allclose(totals[counts > 0], torch.tensor(batch / min(batch, 3)))


def test_unknown_draws_and_impossible_stops_are_refused():
    with pytest.raises(InputError, match="Unknown draw of stages 'some'"):
        StageTimesteps(GROUPS, "some")
    for wrong in ({"every": 0}, {"patience": 0}, {"improvement": 1.0}):
        with pytest.raises(InputError, match="expected at least 1"):
            EarlyStop(lambda *_: 0.0, **wrong)


class Losses:
    """Held-out losses by look and stage."""

    def __init__(self, *by_stage):
        self.by_stage, self.asked = by_stage, [0] * len(by_stage)

    def __call__(self, model, group):
        self.asked[group.index] += 1
        losses = self.by_stage[group.index]
        return losses[min(self.asked[group.index], len(losses)) - 1]


def test_a_stage_that_no_longer_improves_is_left_out_and_comes_back_when_it_gets_worse():
    flat, falling, last = [1.0, 1.0, 1.0, 1.0, 1.2], [1.0, 0.9, 0.8, 0.7, 0.6], [1.0, 0.9, 0.9, 0.9, 0.9]
    sampler = StageTimesteps(GROUPS, "uniform", EarlyStop(Losses(flat, falling, last), every=2, patience=2))
    active = []
    for look in range(5):
        assert sampler.observe(torch.nn.Identity(), 2 * look + 2)
        active.append(sampler.active)
    assert active == [[0, 1, 2], [0, 1, 2], [1, 2], [1], [0, 1]]
    for draw in DRAWS:
        sampler.draw = draw
        seen = torch.cat([timesteps for timesteps, _ in draws(sampler, 60)])
        assert set(GROUPS.index_of(seen.numpy()).tolist()) == {0, 1}


def test_training_ends_when_no_stage_is_left_and_says_what_it_saw(tmp_path):
    stop = EarlyStop(Losses([1.0], [1.0], [1.0]), every=2, patience=2)
    sampler = StageTimesteps(GROUPS, "mixed", stop)
    result = train(network(), objective(), sampler, OPTIONS, tmp_path)
    assert result.losses[-1][0] == 6
    assert int(result.seen.sum()) == result.samples == 6 * 8
    assert [step for step, _, _ in sampler.history] == [2, 4, 6]
    again = StageTimesteps(GROUPS, "mixed", stop)
    resumed = train(network(), objective(), again, OPTIONS, tmp_path)
    assert (resumed.losses, again.history) == (result.losses, sampler.history)


@pytest.mark.slow
def test_a_run_that_stops_early_and_is_interrupted_ends_as_an_uninterrupted_one(tmp_path):
    def sampler():
        def loss(model, group):
            x = torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)
            with torch.no_grad():
                return float(model.eval()(x, group.start).sample.square().mean())

        return StageTimesteps(GROUPS, "uniform", EarlyStop(loss, every=2, patience=1, improvement=0.05))

    first = sampler()
    whole = train(network(), objective(), first, OPTIONS)

    class Interrupted(Exception):
        pass

    def interrupt(progress):
        if progress.step == 9:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(network(), objective(), sampler(), OPTIONS, tmp_path, interrupt)
    second = sampler()
    resumed = train(network(), objective(), second, OPTIONS, tmp_path)
    assert second.history == first.history
    assert torch.equal(resumed.seen, whole.seen)
    pairs = zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(FileFormatError, match="other options"):
        train(network(), objective(), StageTimesteps(GROUPS, "mixed"), OPTIONS, tmp_path)


@pytest.mark.slow_but("uniform")
@pytest.mark.parametrize("draw", DRAWS)
def test_every_stage_learns(draw):
    net, aim = network(), objective()
    options = replace(OPTIONS, steps=150, batch_size=24, learning_rate=3e-3, log_every=150)
    probe = [torch.arange(group.start, group.stop) for group in GROUPS]

    @torch.no_grad()
    def losses(model):
        return [float(aim(model.eval(), timesteps, Generator().manual_seed(3))) for timesteps in probe]

    before = losses(net)
    after = losses(train(net, aim, StageTimesteps(GROUPS, draw), options).model)
    assert all(low < 0.9 * high for low, high in zip(after, before, strict=True))


def sums(folder):
    """Train with both draws; the sums of the weights are written by rank and number of processes."""
    torch.set_num_threads(1)
    found = {}
    for draw in ("uniform", "mixed"):
        result = train(network(), objective(), StageTimesteps(GROUPS, draw), OPTIONS)
        found[draw] = [float(t.double().sum()) for t in result.model.state_dict().values()]
    own = "-".join(os.environ.get(key, "") for key in ("RANK", "WORLD_SIZE"))
    (folder / own).write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_train_as_one_though_batches_leave_decoders_out(tmp_path):
    for process in [forked(sums, tmp_path), *forked_ranks(2, sums, tmp_path)]:
        process.join(120)
    told = [json.loads((tmp_path / name).read_text()) for name in ("-", "0-2", "1-2")]
    assert told[1] == told[2]
    for draw in ("uniform", "mixed"):
        np.testing.assert_allclose(told[1][draw], told[0][draw], rtol=1e-3, atol=1e-4)


def test_snapshots_pass_on_what_a_sampler_learns_and_when_it_looks():
    inner = LossSecondMoment(RangeTimesteps(0, T), history=1)
    watched = Snapshots(inner, 6)
    whole = train(network(), objective(), watched, OPTIONS)
    assert int(inner.seen.sum()) == OPTIONS.steps * OPTIONS.batch_size
    assert [step for step, _ in watched.kept] == [6, 12]
    state = watched.state_dict()
    again = Snapshots(LossSecondMoment(RangeTimesteps(0, T), history=1), 6)
    again.load_state_dict(state)
    assert torch.equal(again.sampler.losses, inner.losses)
    *_, last = again.networks(network())
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), whole.model.parameters(), strict=True))
    stop = EarlyStop(lambda model, group: 1.0, every=4)
    with pytest.raises(InputError, match="looks every 4"):
        Snapshots(StageTimesteps(GROUPS, stop=stop), 6)
