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
from prunekit.schedule import NoiseSchedule, Parameterization
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
    return DenoisingObjective(images, Parameterization(NoiseSchedule.linear(T)))


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
    with pytest.raises(InputError, match="Got draw 'some'"):
        StageTimesteps(GROUPS, "some")
    for wrong in ({"every": 0}, {"patience": 0}, {"improvement": 1.0}):
        with pytest.raises(InputError, match="expected at least 1"):
            EarlyStop(GROUPS, lambda *_: 0.0, **wrong)


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
    stop = EarlyStop(GROUPS, Losses(flat, falling, last), every=2, patience=2)
    active = []
    for look in range(5):
        assert stop.observe(torch.nn.Identity(), 2 * look + 2)
        active.append(StageTimesteps(GROUPS, "uniform", stop).active)
    assert active == [[0, 1, 2], [0, 1, 2], [1, 2], [1], [0, 1]]
    for draw in DRAWS:
        seen = torch.cat([timesteps for timesteps, _ in draws(StageTimesteps(GROUPS, draw, stop), 60)])
        assert set(GROUPS.index_of(seen.numpy()).tolist()) == {0, 1}


def test_a_stage_whose_loss_rises_while_it_is_trained_is_stopped_and_gets_new_patience_when_others_make_it_worse():
    overfitted = [1.0, 1.1, 1.2, 1.2, 1.2, 1.3, 1.3, 1.3]
    stop = EarlyStop(GROUPS, Losses(overfitted, [2.0**-look for look in range(8)], [1.0]), every=1, patience=2)
    for step in range(8):
        stop.observe(torch.nn.Identity(), step)
    assert [on[0] for _, _, on in stop.history] == [True, True, False, False, False, True, True, False]
    assert [on[2] for _, _, on in stop.history] == [True, True, *[False] * 6]


def test_training_ends_when_no_stage_is_left_and_says_what_it_saw(tmp_path):
    def trained():
        stop = EarlyStop(GROUPS, Losses([1.0], [1.0], [1.0]), every=2, patience=2)
        sampler = StageTimesteps(GROUPS, "mixed", stop)
        return train(network(), objective(), sampler, OPTIONS, tmp_path, callbacks=[stop]), stop

    result, stop = trained()
    assert result.losses[-1][0] == 6
    assert int(result.seen.sum()) == result.samples == 6 * 8
    assert [step for step, _, _ in stop.history] == [2, 4, 6]
    resumed, again = trained()
    assert (resumed.losses, again.history) == (result.losses, stop.history)


def test_an_early_stop_that_is_no_callback_is_refused():
    stop = EarlyStop(GROUPS, Losses([1.0], [1.0], [1.0]), every=2)
    with pytest.raises(InputError, match="no callback of the training; give it to both"):
        train(network(), objective(), StageTimesteps(GROUPS, "mixed", stop), OPTIONS)


@pytest.mark.slow
def test_a_run_that_stops_early_and_is_interrupted_ends_as_an_uninterrupted_one(tmp_path):
    def loss(model, group):
        x = torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)
        with torch.no_grad():
            return float(model.eval()(x, group.start).sample.square().mean())

    def trained(checkpoints=None, report=None):
        stop = EarlyStop(GROUPS, loss, every=2, patience=1, improvement=0.05)
        sampler = StageTimesteps(GROUPS, "uniform", stop)
        return train(network(), objective(), sampler, OPTIONS, checkpoints, report, [stop]), stop

    whole, first = trained()

    class Interrupted(Exception):
        pass

    def interrupt(progress):
        if progress.step == 9:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(tmp_path, interrupt)
    resumed, second = trained(tmp_path)
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
    assert all(low < 0.97 * high for low, high in zip(after, before, strict=True))  # the cleanest stage has 4 channels
    assert sum(low < 0.5 * high for low, high in zip(after, before, strict=True)) >= 2


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


def test_snapshots_are_kept_and_saved_whatever_the_sampler_learns(tmp_path):
    def trained(sampler, snapshots):
        return train(network(), objective(), sampler, OPTIONS, tmp_path, callbacks=[snapshots])

    sampler, snapshots = LossSecondMoment(RangeTimesteps(0, T), history=1), Snapshots(6)
    whole = trained(sampler, snapshots)
    assert int(sampler.seen.sum()) == OPTIONS.steps * OPTIONS.batch_size
    assert [step for step, _ in snapshots.kept] == [6, 12]
    other, again = LossSecondMoment(RangeTimesteps(0, T), history=1), Snapshots(6)
    trained(other, again)
    assert torch.equal(other.losses, sampler.losses)
    assert [step for step, _ in again.kept] == [6, 12]
    *_, last = again.networks(network())
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), whole.model.parameters(), strict=True))
    with pytest.raises(FileFormatError, match="other options"):
        trained(LossSecondMoment(RangeTimesteps(0, T), history=1), Snapshots(4))


@pytest.mark.parametrize("every", [0, -1])
def test_snapshots_need_an_interval(every):
    with pytest.raises(InputError, match="at least 1"):
        Snapshots(every)
