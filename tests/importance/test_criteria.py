"""Each criterion against its formula, worked out another way."""

import copy

import numpy as np
import pytest
import torch
from denoisers import GROUPS, INPUTS, Apart, Coupled, Denoiser, Free, PositionsFirst, drawn, made, score
from torch import nn

from prunekit.errors import InputError
from prunekit.graph import trace
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.importance import DiffPruning, DrawnLoss, Probe, Proxy, importance
from prunekit.importance import gradients as gradient_criteria


@pytest.fixture
def model():
    return made(Denoiser)


def fixed(model, timesteps, generator):
    """Mean of one term per timestep; nothing is drawn."""
    x = torch.sin(timesteps[:, None] * torch.arange(1.0, 7.0))
    return (model(x, timesteps) - x).square().mean()


def test_magnitude_prefers_channels_of_large_weights(model):
    with torch.no_grad():
        model.first.weight[3] *= 50
        model.time.weight[:, 3] *= 50
        model.out.weight[:, 7] *= 1e-3
        model.second.weight[7] *= 1e-3
    found = score(model, "magnitude").of(0)
    assert found["first"].argmax() == 3
    assert found["second"].argmin() == 7


def test_magnitude_is_the_mean_of_norms_each_scaled_to_mean_one(model):
    def norms(weight, dim):
        lengths = weight.detach().double().movedim(dim, 0).flatten(1).norm(dim=1).numpy()
        return lengths / lengths.mean()

    expected = (norms(model.second.weight, 0) + norms(model.out.weight, 1)) / 2
    np.testing.assert_allclose(score(model, "magnitude").of(1)["second"], expected, rtol=1e-12)


def test_magnitude_weighs_no_layer_by_its_scale(model):
    before = score(model, "magnitude").of(0)["second"]
    with torch.no_grad():
        model.out.weight *= 1000
    np.testing.assert_allclose(score(model, "magnitude").of(0)["second"], before, rtol=1e-6)


def test_taylor_keeps_no_gradient_of_a_layer_that_is_done(model):
    kept = []

    class Watched(torch.autograd.Function):
        """Runs last in the backward pass, when all other layers are done."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            kept.append([name for name, each in model.named_parameters() if each.grad is not None])
            return gradient

    def loss(model, timesteps, generator):
        x = torch.randn(len(timesteps), 6, generator=generator).requires_grad_()
        return (model(Watched.apply(x), timesteps) - x.detach()).square().mean()

    score(model, "taylor", loss)
    assert len(kept) == len(GROUPS) * 24 // 8
    assert not any(kept)


def test_taylor_is_the_brute_force_product_of_weights_and_gradients():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return self.out(self.first(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Linear()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    loss = lambda model, timesteps, generator: model(x).square().sum()  # noqa: E731 - a lambda is a loss too
    found = importance(model, (x[:1],), loss, [TimestepGroup(0, 0, 10)], samples=6, batch_size=4).of(0)["first"]

    w, b, v = (p.detach().double() for p in (model.first.weight, model.first.bias, model.out.weight))
    h = x.double() @ w.T + b
    dh = 2 * (h @ v.T) @ v  # gradient of the sum of squares
    grad_w, grad_b, grad_v = dh.T @ x.double(), dh.sum(0), (2 * (h @ v.T)).T @ h
    expected = (w * grad_w).sum(1).abs() + (b * grad_b).abs() + (v * grad_v).sum(0).abs()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def draws_of(probe):
    """Every sample's timestep and draw."""
    loss = Apart()
    for timesteps, generator in probe.chunks():
        yield from zip(timesteps, loss.draw(timesteps, generator)[0], strict=True)


PROBE = Probe(drawn, GROUPS[1], samples=24, chunk=8)


def test_magnitude_l1_is_the_mean_of_l1_norms_each_scaled_to_mean_one(model):
    def norms(weight, dim):
        lengths = weight.detach().double().movedim(dim, 0).flatten(1).abs().sum(1).numpy()
        return lengths / lengths.mean()

    expected = (norms(model.second.weight, 0) + norms(model.out.weight, 1)) / 2
    np.testing.assert_allclose(score(model, "magnitude-l1").of(1)["second"], expected, rtol=1e-12)


def test_magnitude_counts_free_matrices_and_not_free_gains():
    model = made(Free)
    first, onward = model.first.weight.detach().double().norm(dim=1), model.onward.detach().double().norm(dim=1)
    expected = (first / first.mean() + onward / onward.mean()) / 2
    np.testing.assert_allclose(score(model, "magnitude").of(0)["first"], expected.numpy(), rtol=1e-12)


def test_fpgm_is_the_sum_of_distances_between_filters():
    model = made(Coupled)

    def distances(weight):
        w = weight.detach().double().numpy()
        found = np.array([sum(np.linalg.norm(a - b) for b in w) for a in w])
        return found / found.mean()

    expected = (distances(model.one.weight) + distances(model.two.weight)) / 2
    np.testing.assert_allclose(score(model, "fpgm").of(0)["one"], expected, rtol=1e-12)


def test_fpgm_lets_the_filter_in_the_middle_of_the_others_go_first():
    model = made(Coupled)
    with torch.no_grad():
        for layer in (model.one, model.two):
            layer.weight[6] = 0
            layer.weight[6] = layer.weight.sum(0) / 7
    assert score(model, "fpgm").of(0)["one"].argmin() == 6


def test_activation_is_the_norm_of_inputs_times_the_norm_of_columns(model):
    total = torch.zeros(10, dtype=torch.float64)
    model.eval()
    for t, x in draws_of(PROBE):
        with torch.no_grad():
            h = torch.tanh(model.first(x[None]) + model.time(t[None]))
            total += torch.tanh(model.norm(model.second(h)))[0].double().square()
    expected = (total / 24).sqrt() * model.out.weight.detach().double().norm(dim=0)
    np.testing.assert_allclose(
        score(model, "activation").of(1)["second"], (expected / expected.mean()).numpy(), rtol=1e-5
    )


def fisher_by_gates(model, gated):
    """Half the mean square of each sample's derivative by gates, ``gated(model, x, t, gate)`` being the gated output."""
    total = 0
    for t, x in draws_of(PROBE):
        gate = torch.ones(8, requires_grad=True)
        loss = (gated(model.eval(), x[None], t[None], gate) - x).square().mean()
        total = total + torch.autograd.grad(loss, gate)[0].double().square()
    return (total / 48).numpy()


def test_fisher_is_the_mean_square_of_the_derivative_by_a_gate_that_all_readers_share():
    def gated(model, x, t, gate):
        h = torch.relu(model.one(x) + model.two(x)) * gate
        return model.read(h) + model.also(h).abs()

    model = made(Coupled)
    np.testing.assert_allclose(score(model, "fisher").of(1)["one"], fisher_by_gates(model, gated), rtol=1e-4)


def test_fisher_puts_the_gate_where_channels_are_made_if_no_known_layer_reads_them():
    def gated(model, x, t, gate):
        return model.out(torch.tanh((torch.tanh(model.first(x) * gate) * model.gain) @ model.onward))

    model = made(Free)
    np.testing.assert_allclose(score(model, "fisher").of(1)["first"], fisher_by_gates(model, gated), rtol=1e-4)


@pytest.mark.parametrize("network", [Denoiser, Coupled, Free])
def test_fisher_by_batches_is_fisher_sample_by_sample(network, monkeypatch):
    found = score(made(network), "fisher", Apart())
    monkeypatch.setattr(gradient_criteria, "_by_gates", lambda *_: None)
    alone = score(made(network), "fisher", Apart())
    for one, other in zip(found.scores, alone.scores, strict=True):
        for name, values in one.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-4, atol=1e-9)


def test_fisher_takes_samples_one_by_one_where_rows_are_not_samples():
    class SamplesFirst(PositionsFirst):
        def forward(self, x, t):
            return self.out(torch.tanh(self.first(x.unflatten(1, (3, 2))))).flatten(1)

    loss = Apart()
    found = score(made(PositionsFirst), "fisher", loss, batch_size=8)
    assert set(loss.calls) == {1, 8}
    alike = score(made(SamplesFirst), "fisher", Apart()).of(2)["first"]
    np.testing.assert_allclose(found.of(2)["first"], alike, rtol=1e-4)
    assert np.isfinite(score(made(PositionsFirst), "fisher").of(2)["first"]).all()  # a plain loss gets other draws


def test_the_proxy_is_the_rise_without_the_channel():
    model = made(Coupled)
    found = score(model, "proxy").of(1)["one"]
    whole = PROBE.mean(model)
    for channel in range(8):
        silenced = copy.deepcopy(model)
        with torch.no_grad():
            silenced.read.weight[:, channel] = 0
            silenced.also.weight[:, channel] = 0
        assert found[channel] == pytest.approx(PROBE.mean(silenced) - whole, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("blocks", [2, 3, 5, 16])
def test_channels_share_the_rise_of_their_block_in_the_rankings_order(blocks):
    model = made(Coupled)
    group = trace(model, INPUTS)["one"]
    found = score(model, Proxy(blocks=blocks)).of(1)["one"]
    ranks = score(model, "taylor").of(1)["one"]
    sizes = np.unique(found.round(7), return_counts=True)[1]
    assert len(sizes) <= blocks
    assert sizes.max() - sizes.min() <= -(-8 // blocks)
    for value in np.unique(found.round(7)):
        block = np.flatnonzero(found.round(7) == value)
        np.testing.assert_array_equal(np.argsort(found[block]), np.argsort(ranks[block]))
    kept = group.select(found, group.size - int(sizes[0]))
    assert set(kept) == set(np.argsort(found)[sizes[0] :])


def test_the_proxys_blocks_are_what_norms_allow():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.out = nn.Conv2d(2, 12, 1), nn.GroupNorm(4, 12), nn.Conv2d(12, 2, 1)

        def forward(self, x):
            return self.out(torch.relu(self.norm(self.first(x))))

    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    loss = lambda model, timesteps, generator: (model(x) - x).square().mean()  # noqa: E731
    for mode in ("even", "whole"):
        found = importance(made(Normed), (x[:1],), loss, [GROUPS[0]], by="proxy", samples=2, norm_mode=mode).of(0)
        rows = found["first"].round(7).reshape(4, 3)
        if mode == "whole":
            assert all(len(set(row)) == 1 for row in rows)
            assert len(set(rows[:, 0])) == 4
        else:
            assert len(np.unique(rows)) == 3
            assert all(len(set(row)) == 3 for row in rows)


def falling(model, timesteps, generator):
    """A loss that falls with t as 1, 1/2, 1/3, …, times what the network makes of ones."""
    return model(torch.ones(len(timesteps), 6), timesteps).square().mean() / (1 + timesteps[0])


@pytest.mark.parametrize(("threshold", "last"), [(0.3, 2), (0.05, 19), (0.0, 99)])
def test_diff_pruning_stops_where_the_loss_is_a_fraction_of_the_largest(threshold, last):
    model, seen = made(Coupled), []

    def spy(model, timesteps, generator):
        seen.append(timesteps[0].item())
        return falling(model, timesteps, generator)

    found = score(model, DiffPruning(threshold), spy)
    _, _, *seen = seen  # whether the loss repeats is seen first
    assert seen == list(range(min(last + 2, 100)))  # the one that falls below is evaluated and left out
    loss = model(torch.ones(1, 6), None).square().mean() * sum(1 / (1 + t) for t in range(last + 1))
    model.zero_grad()
    loss.backward()
    expected = sum(
        (p * p.grad).detach().double().abs().movedim(dim, 0).reshape(8, -1).sum(1)
        for p, dim in [
            (model.one.weight, 0),
            (model.one.bias, 0),
            (model.two.weight, 0),
            (model.two.bias, 0),
            (model.read.weight, 1),
            (model.also.weight, 1),
        ]
    )
    for group in (0, 1, 2):
        np.testing.assert_allclose(found.of(group)["one"], expected.numpy(), rtol=1e-4)


def test_diff_pruning_has_the_same_draws_at_every_timestep_and_as_many_steps_as_it_is_told():
    draws, seen = set(), []

    def spy(model, timesteps, generator):
        seen.append(timesteps.tolist())
        x = torch.randn(len(timesteps), 6, generator=generator)
        draws.add(tuple(x.flatten().tolist()))
        return (model(x, timesteps) - x).square().mean()

    score(made(Denoiser), DiffPruning(0.0, steps=5), spy)
    _, _, *seen = seen  # whether the loss repeats is seen first
    draws = {draw for draw in draws if len(draw) == 8 * 6}
    assert [timesteps[0] for timesteps in seen] == [0, 25, 50, 74, 99]
    assert all(len(timesteps) == 8 and len(set(timesteps)) == 1 for timesteps in seen)
    assert len(draws) == 1


@pytest.mark.parametrize(
    "make", [lambda: DiffPruning(1.0), lambda: DiffPruning(-0.1), lambda: DiffPruning(steps=0), lambda: Proxy(blocks=1)]
)
def test_impossible_options_are_refused(make):
    with pytest.raises(InputError, match="at least"):
        make()


def test_drawn_losses_must_be_one_for_each_sample():
    class Mean(Apart):
        def drawn_losses(self, model, drawn, timesteps):
            return super().drawn_losses(model, drawn, timesteps).mean()

    assert isinstance(Mean(), DrawnLoss)
    with pytest.raises(InputError, match="one loss for each"):
        score(made(Denoiser), "taylor", Mean())


@pytest.mark.parametrize("loss", [drawn, Apart()])
def test_diff_pruning_of_a_part_of_a_calibration_set_draws_a_chunk_for_each_timestep(loss):
    """As many draws as the part has, or a chunk; which draws the part has of its set does not matter at other timesteps."""
    model = made(Denoiser)
    graph, whole = trace(model, INPUTS), Probe(loss, GROUPS[1], 48, 16, 0, 16)
    found = DiffPruning(0.0, steps=3)(model, graph, whole.part(24))
    expected = DiffPruning(0.0, steps=3)(model, graph, whole)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("how", ["torch.compile", "module.compile"])
@pytest.mark.parametrize("by", ["activation", "fisher", "taylor"])
def test_a_compiled_network_has_the_scores_of_the_plain_one(by, how):
    """Hooks on layers are not called inside compiled code; sums that stay zero would become magnitudes."""

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))

    def loss(model, timesteps, generator):
        noise = torch.randn(len(timesteps), 1, 8, 8, generator=generator)
        return (model(noise) - noise).square().mean()

    def scores(model):
        groups = TimestepGroups.from_cuts(1000, [500])
        return next(
            iter(importance(model, (torch.randn(1, 1, 8, 8),), loss, groups, by=by, samples=8, chunk=4).of(0).values())
        )

    expected, model = scores(network()), network()
    if how == "torch.compile":
        model = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
        model(torch.randn(4, 1, 8, 8))
    assert scores(model) == pytest.approx(expected)
