"""Closed-form repair: exact where what is lost can be told from what stays, and never worse than no repair where it is fitted."""

import sys

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS
from torch import nn

from prunekit.graph import PruningPlan, apply, trace
from prunekit.groups import TimestepGroup
from prunekit.importance import Probe
from prunekit.search import Repair

KINDS = ["none", "bias", "least-squares"]


def perceptron(seed=0, bias=True):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4, bias=bias)).eval()


def convolutions(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 1)).eval()


def rows(model, seed=1):
    draws = torch.Generator().manual_seed(seed)
    shape = (64, 5, 6, 6) if isinstance(model[0], nn.Conv2d) else (256, 5)
    return torch.randn(shape, generator=draws)


def fitted(model, inputs):
    """Channel group and probe whose calibration set is ``inputs``."""
    graph = trace(model, (inputs[:1],))
    probe = Probe(
        lambda network, timesteps, generator: network(inputs).square().mean(), TimestepGroup(0, 0, 10), samples=1
    )
    return graph, probe


def without(graph, gone):
    group = graph.groups[0]
    return PruningPlan({group.name: tuple(c for c in range(group.size) if c not in gone)}, graph.fingerprint)


@torch.no_grad()
def error(model, pruned, inputs):
    return float((pruned(inputs) - model(inputs)).double().square().mean())


def test_a_channel_that_is_a_mixture_of_others_is_lost_without_a_trace():
    model = perceptron()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = (
            2 * model[0].weight[6],
            2 * model[0].bias[6],
        )  # through a ReLU: still twice
    inputs = rows(model)
    graph, probe = fitted(model, inputs)
    plan = without(graph, {3})
    errors = {kind: error(model, Repair.of(model, graph, probe, kind).apply(plan), inputs) for kind in KINDS}
    assert errors["least-squares"] < 1e-4 * errors["bias"] < errors["none"]


def test_a_constant_channel_goes_to_the_bias_exactly():
    model = perceptron()
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0.0, 3.0
    inputs = rows(model)
    graph, probe = fitted(model, inputs)
    plan = without(graph, {2})
    for kind in ("bias", "least-squares"):
        assert error(model, Repair.of(model, graph, probe, kind).apply(plan), inputs) < 1e-10
    assert error(model, apply(model, graph, plan), inputs) > 1e-3


@examples(30)
@given(
    st.sampled_from([perceptron, convolutions]), st.integers(0, 50), st.sets(st.integers(0, 7), min_size=1, max_size=6)
)
def test_on_its_calibration_set_a_reader_errs_no_more_with_more_repair(make, seed, gone):
    model = make(seed)
    inputs = rows(model, seed)
    graph, probe = fitted(model, inputs)
    plan = without(graph, gone)
    none, bias, squares = (error(model, Repair.of(model, graph, probe, kind).apply(plan), inputs) for kind in KINDS)
    assert squares <= bias * (1 + 1e-6) + 1e-12
    assert bias <= none * (1 + 1e-6) + 1e-12


def test_a_reader_without_a_bias_keeps_having_none():
    model = perceptron(bias=False)
    inputs = rows(model)
    graph, probe = fitted(model, inputs)
    for kind in KINDS:
        assert Repair.of(model, graph, probe, kind).apply(without(graph, {0, 1}))[2].bias is None


class Viewed(nn.Module):
    """Takes it for granted that a layer's output is laid out in order, as it is behind a weight that torch laid out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(5, 8, 1), nn.Conv1d(8, 6, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))).view(len(x), 3, -1)


def test_repaired_weights_are_laid_out_as_torch_lays_them_out():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Viewed().eval()
    inputs = torch.randn(16, 5, 7, generator=torch.Generator().manual_seed(1))
    graph, probe = fitted(model, inputs)
    for kind in KINDS:
        repaired = Repair.of(model, graph, probe, kind).apply(without(graph, {1, 4}))
        assert repaired(inputs).shape == (16, 3, 14)
        for parameter in repaired.parameters():
            assert parameter.stride() == torch.empty(parameter.shape).stride()


@pytest.mark.slow_cases("unet-[!s]*")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_any_network_is_repaired_in_the_shapes_of_the_plan_and_stays_as_it_was(bench, name, kind):
    tiny = bench(name)
    inputs = tiny.inputs

    def loss(network, timesteps, generator):
        made = network(**inputs) if isinstance(inputs, dict) else network(*inputs)
        return (made if isinstance(made, torch.Tensor) else made.sample).square().mean()

    probe = Probe(loss, TimestepGroup(0, 0, 10), samples=1)
    state = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    plan = tiny.random_plan(5)
    plain, repaired = apply(tiny.model, tiny.graph, plan), Repair.of(tiny.model, tiny.graph, probe, kind).apply(plan)
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (plain, repaired)]
    assert shapes[0] == shapes[1]
    assert np.isfinite(probe.mean(repaired))
    again = apply(tiny.model, tiny.graph, plan)
    told = Repair.of(tiny.model, tiny.graph, probe, kind).mend(again, plan)
    assert (told is None) == (kind == "none")
    if told is not None:
        assert float(told) == probe.mean(repaired) == probe.mean(again, first=told)
    assert all(torch.equal(value, state[key]) for key, value in tiny.model.state_dict().items())
    if kind == "none":
        pairs = zip(plain.state_dict().values(), repaired.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


class Averaging(nn.Module):
    """Reads a stream through a layer norm, and averages it over tokens, as attention does."""

    def __init__(self):
        super().__init__()
        self.stream, self.norm, self.value, self.out = (
            nn.Linear(5, 8),
            nn.LayerNorm(8),
            nn.Linear(8, 6),
            nn.Linear(6, 4),
        )

    def forward(self, inputs):
        values = self.value(self.norm(self.stream(inputs)))
        return self.out((inputs @ inputs.transpose(1, 2)).softmax(-1) @ values)


def test_inputs_that_hardly_vary_get_no_huge_weights(monkeypatch):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Averaging().eval()
    inputs = torch.randn(16, 9, 5, generator=torch.Generator().manual_seed(1))
    graph, probe = fitted(model, inputs)
    (stream,) = (group for group in graph.groups if group.size == 8)
    plan = PruningPlan({stream.name: (3,)}, graph.fingerprint)  # a layer norm of one channel gives a constant

    def largest():
        repaired = Repair.of(model, graph, probe).apply(plan)
        return max(float(parameter.detach().abs().max()) for parameter in repaired.parameters())

    assert largest() < 10
    monkeypatch.setattr(sys.modules[Repair.__module__], "FAINT", 0.0)
    assert largest() > 10  # rounding errors of the averages, fitted
