"""Large networks are followed without values and tried on a narrow copy: they must have the groups that a small one would have."""

import logging

import pytest
import torch
import torch.nn.functional as F
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from networks import unet, unet_inputs
from programs import STEPS, Program
from test_flow import PRUNABLE, UNSAFE, check, sequence
from test_kinds import Deep, Positions, Remembered, pruned_as_silenced, seeded, skipping
from torch import nn

from prunekit.cost import CostModel, count_macs
from prunekit.graph import trace
from prunekit.graph.forward_pass import run_once
from prunekit.graph.weightless import LARGE, hollow_inputs, skeleton, weightless


@pytest.fixture
def all_are_large(monkeypatch):
    monkeypatch.setattr(LARGE, "parameters", 0)


def both(model, inputs, monkeypatch):
    """The graphs that a small network and a large one would have."""
    small = trace(model, inputs)
    monkeypatch.setattr(LARGE, "parameters", 0)
    return small, trace(model, inputs)


@pytest.mark.parametrize("step", [*PRUNABLE, *UNSAFE])
def test_large_networks_have_the_groups_of_small_ones(step, monkeypatch):
    small, large = both(Program([step]).eval(), sequence(0), monkeypatch)
    assert small.fingerprint == large.fingerprint
    assert set(small.left_whole) == set(large.left_whole)


@pytest.mark.slow
def test_a_unet_has_the_same_groups_and_costs(monkeypatch):
    small, large = both(unet(), unet_inputs(), monkeypatch)
    assert (small.fingerprint, small.products, small.parameters) == (
        large.fingerprint,
        large.products,
        large.parameters,
    )
    assert small.attributes == large.attributes


@pytest.mark.usefixtures("all_are_large")
@examples(8)
@example(["gated", "remembered half", "wrongly merged heads"], 1)
@given(st.lists(st.sampled_from(list(STEPS)), min_size=2, max_size=4), st.integers(0, 10_000))
def test_programs_of_operations_are_pruned_rightly_when_they_are_large(steps, seed):
    check(Program(steps, seed).eval(), sequence(seed), seed)


@pytest.mark.usefixtures("all_are_large")
def test_faults_are_found_on_the_narrow_copy():
    graph = trace(seeded(lambda: Deep(True)), (torch.randn(1, 3, 8),))
    assert set(graph.index) == {f"blocks.{i}.1" for i in range(12)}
    assert "linear of second" in graph.left_whole["first"]


@pytest.mark.usefixtures("all_are_large")
def test_numbers_that_code_keeps_are_followed_without_values():
    assert "b" in pruned_as_silenced(Remembered, 1, 4, 5).index
    assert len(pruned_as_silenced(skipping, 1, 3, 6, 6)) > 1
    assert pruned_as_silenced(lambda: Positions("in place"), 1, 4, 5)["q"].whole


class Prefix(nn.Module):
    """Takes the first channels by a number, which a narrow copy has all of."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 32), nn.Linear(32, 4)

    def forward(self, x):
        h = self.a(x)
        return self.b(h + F.pad(h[..., :16], (0, h.shape[-1] - 16)))


@pytest.mark.usefixtures("all_are_large")
def test_a_slice_of_fixed_length_is_caught_though_a_narrow_copy_has_no_more():
    graph = trace(seeded(Prefix), (torch.randn(1, 4),))
    assert "a" in graph.left_whole


class Deciding(nn.Module):
    """Does something else for small values: it cannot be run without them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x):
        h = F.silu(self.a(x))
        return self.b(h if h.sum() < 1e9 else h / 2)


@pytest.mark.usefixtures("all_are_large")
def test_networks_that_look_at_values_are_run_with_them():
    assert set(trace(seeded(Deciding), (torch.randn(1, 4),)).index) == {"a"}


def test_a_pass_without_values_makes_the_same_calls_and_keeps_shapes():
    model, inputs = unet(), unet_inputs()
    bare, bare_inputs = skeleton(model), hollow_inputs(inputs)
    with weightless():
        hollow = run_once(bare, bare_inputs).sample
        counted = count_macs(bare, bare_inputs)
    assert hollow.is_meta
    assert hollow.shape == run_once(model, inputs).sample.shape
    assert counted == count_macs(model, inputs)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_networks_of_the_meta_device_are_traced_and_counted(device):
    """However small they are, and wherever their inputs are."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.GroupNorm(4, 32), nn.SiLU(), nn.Conv2d(32, 3, 1))
    inputs = (torch.zeros(1, 3, 4, 4, device=device),)
    graph = trace(net, inputs)
    assert set(graph.index) == {"0"}
    assert CostModel.of(net, graph, inputs).macs(graph.full_widths) == 2 * 16 * 3 * 32


@pytest.mark.usefixtures("all_are_large")
def test_progress_is_told_once_it_takes_long(monkeypatch, caplog):
    monkeypatch.setattr("prunekit.graph.deadline._PATIENCE", 0.0)
    said = []
    with caplog.at_level(logging.INFO, "prunekit"):
        trace(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)), (torch.randn(1, 4),), progress=said.append)
    assert [line.split(" (")[0] for line in said] == [
        "following Sequential through",
        "trying the shapes of all channel groups",
        "trying channel groups on a narrow copy",
        "following Sequential through",
    ]
    assert len(caplog.messages) == 4
