"""What a user says about pruning holds for every plan, and what makes no sense is refused in one sentence."""

from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import unet, unet_inputs
from test_flow import silenced
from torch import nn

from prunekit.cost import CostModel, count_macs
from prunekit.errors import InputError, PlanError
from prunekit.graph import Constraints, PruningPlan, apply, trace
from prunekit.graph.forward_pass import run_once

KEPT = ("conv_in", "down_blocks.0", "mid_block", "up_blocks.*.resnets")
LIMITED = ("down_blocks.1", "*.to_q", "*.conv1")
TIES = ((), (("mid_block.resnets.*.conv1",),), (("down_blocks.1.*.conv1", "mid_block.*.conv1"),))


@pytest.fixture(scope="module")
def network():
    return unet(), unet_inputs()


def names(pattern, layer):
    parts = layer.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def made(model):
    """Channels that each layer makes."""
    return {name: len(m.weight) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    keep=st.lists(st.sampled_from(KEPT), max_size=1),
    limit=st.dictionaries(st.sampled_from(LIMITED), st.one_of(st.floats(0.1, 0.9), st.integers(1, 8)), max_size=2),
    ties=st.sampled_from(TIES),
    norm=st.sampled_from([{}, {"mid_block": "whole"}, {"up_blocks.1": "whole", "mid_block": "even"}]),
    head=st.sampled_from([{}, {"mid_block": "even"}, {"*.to_q": "even"}]),
    seed=st.integers(0, 999),
)
def test_every_plan_respects_any_constraints_and_costs_what_is_predicted(network, keep, limit, ties, norm, head, seed):
    model, inputs = network
    graph = trace(model, inputs, constraints=Constraints(tuple(keep), ties, limit, {}, norm, head))
    cost, rng, before = CostModel.of(model, graph, inputs), np.random.default_rng(seed), made(model)
    for widths in ([g.widths[-1] for g in graph], [int(rng.choice(g.widths)) for g in graph]):
        widths = np.array(widths)
        scores = {group.name: rng.random(group.size) for group in graph}
        pruned = apply(model, graph, PruningPlan.from_widths(graph, widths, scores))
        counted, left = count_macs(pruned, inputs), made(pruned)
        assert (counted.macs, counted.params) == (int(cost.macs(widths)), int(cost.params(widths)))
        for layer, now in left.items():
            if any(names(pattern, layer) for pattern in keep):
                assert now == before[layer]
            for pattern, least in limit.items():
                if names(pattern, layer):
                    assert now >= min(before[layer], least * before[layer] if least < 1 else least)
        for patterns in ties:
            assert len({now for layer, now in left.items() if any(names(p, layer) for p in patterns)}) == 1


def test_a_plan_that_goes_against_a_constraint_is_refused(network):
    model, inputs = network
    free, kept = (trace(model, inputs, constraints=c) for c in (None, Constraints(keep=("mid_block",))))
    name = "mid_block.resnets.0.conv1"
    plan = PruningPlan({name: tuple(range(0, 16, 2))}, free.fingerprint)
    plan.check(free)
    with pytest.raises(PlanError, match=r"keeps 8 of 16 channels .* at least 16"):
        plan.check(kept)
    assert "keep" in kept.left_whole[name]


def test_without_constraints_nothing_changes(network):
    model, inputs = network
    assert trace(model, inputs, constraints=Constraints()).fingerprint == trace(model, inputs).fingerprint
    assert not Constraints()


def test_modes_hold_for_the_layers_that_are_named_and_for_no_others(network):
    model, inputs = network
    asked = Constraints(norm_mode_of={"up_blocks.1": "whole"}, head_mode_of={"mid_block": "even"})
    graph, plain = trace(model, inputs, constraints=asked), trace(model, inputs)
    changed = {
        one.name for one, other in zip(graph, plain, strict=True) if (one.whole, one.step) != (other.whole, other.step)
    }
    assert changed == {
        "mid_block.attentions.0.to_q",
        *(f"up_blocks.1.resnets.{layer}" for layer in ("0.conv1", "1.conv1", "1.conv2")),
    }
    name = "up_blocks.1.resnets.0.conv1"
    pruned = apply(model, graph, PruningPlan({name: (0, 1, 4, 5)}, graph.fingerprint))
    assert pruned.get_submodule("up_blocks.1.resnets.0.norm2").num_groups == 2
    assert pruned.get_submodule("mid_block.resnets.0.norm2").num_groups == 4


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"keep": ("mid_blok",)}, "No layer is named mid_blok, which keep asks for; expected mid_block"),
        ({"keep": ("mid_block.resnets.0.norm1",)}, "expected mid_block.resnets.0"),
        ({"limit": {"up_block.*": 0.5}}, "which limit asks for; expected up_blocks"),
        ({"tie": (("conv_in", "conv_on"),)}, "No layer is named conv_on, which tie asks for; expected conv_in"),
        ({"tie": (("conv_in",),)}, "names conv_in only; expected at least two"),
        ({"tie": (("conv_in", "mid_block.*.conv1"),)}, "conv_in has 8 .* has 16; expected layers with equally many"),
        ({"keep": ("mid_block",), "limit": {"mid_block.*": 0.5}}, "keep keeps whole, .* expected one of the two"),
        ({"limit": {"conv_in": 40}}, "conv_in has 8 channels that leave together; expected at most that many"),
        ({"norm_mode_of": {"mid_block": "whole", "*.conv2": "even"}}, "which both name .* expected one mode"),
        ({"norm_mode_of": {"time_embedding": "even"}}, "No layer with a group norm is named time_embedding"),
        ({"head_mode_of": {"conv_in": "even"}}, "No attention is named conv_in"),
        ({"declare": {"Dropuot": "conv"}}, "no module of class Dropuot, which declare asks for; expected Dropout"),
        ({"declare": {"ResnetBlock2D": "conv"}}, "expected a layer that takes one tensor"),
        ({"limit": {"conv_in": 1.0}}, "keep keeps all"),
        ({"limit": {"conv_in": 0}}, "expected a fraction between 0 and 1"),
        ({"limit": {"conv_in": True}}, "expected a fraction between 0 and 1"),
        ({"keep": ("",)}, "empty name"),
        ({"tie": ((),)}, "tie of no layers"),
        ({"norm_mode_of": {"conv_in": "odd"}}, "expected one of even, whole"),
        ({"declare": {"Conv": "norm"}}, "expected one of conv, linear"),
    ],
)
def test_what_names_no_layer_or_contradicts_itself_gets_one_sentence(network, asked, sentence):
    model, inputs = network
    with pytest.raises(InputError, match=sentence) as caught:
        trace(model, inputs, constraints=Constraints(**asked))
    assert "\n" not in str(caught.value)


class Spectral(nn.Module):
    """A linear layer computed in the frequency domain: no operator in it is known to carry channels."""

    def __init__(self, reads, makes):
        super().__init__()
        self.w, self.gain = nn.Parameter(torch.randn(makes, reads) / reads**0.5), nn.Parameter(torch.rand(makes))

    def forward(self, x):
        product = torch.fft.fft(torch.fft.ifft(x.unsqueeze(-2) * self.w, dim=-1), dim=-1).real
        return product.sum(-1) * self.gain


class Sorted(nn.Module):
    """A convolution whose weight takes a detour through a sort."""

    def __init__(self, reads, makes, wrong=False):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(makes, reads, 3, 3) / 9), nn.Parameter(torch.randn(makes))
        self.wrong = wrong

    def forward(self, x):
        values, places = self.weight.flatten(1).sort(dim=1)
        weight = torch.zeros_like(values).scatter(1, places, values).view_as(self.weight)
        y = torch.nn.functional.conv2d(x, weight, self.bias, padding=1)
        return y.flip(1) if self.wrong else y


def behind(layer, first, last):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(first(), nn.ReLU(), layer(), nn.ReLU(), last()).eval()


DECLARED = {
    "linear": (
        lambda: behind(lambda: Spectral(12, 10), lambda: nn.Linear(6, 12), lambda: nn.Linear(10, 3)),
        (1, 6),
        {"Spectral": "linear"},
    ),
    "conv": (
        lambda: behind(lambda: Sorted(12, 10), lambda: nn.Conv2d(3, 12, 3), lambda: nn.Conv2d(10, 3, 1)),
        (1, 3, 6, 6),
        {"Sorted": "conv"},
    ),
}


@pytest.mark.parametrize("kind", DECLARED)
def test_a_declared_class_is_pruned_as_the_silenced_network_says(kind):
    make, shape, declare = DECLARED[kind]
    model, inputs = make(), (torch.randn(*shape, generator=torch.Generator().manual_seed(1)),)
    forward = type(model[2]).forward
    plain, graph = (trace(model, inputs, constraints=c) for c in (None, Constraints(declare=declare)))
    assert not any(len(group.widths) > 1 for group in plain)
    assert {group.size for group in graph} == {12, 10}
    assert type(model[2]).forward is forward
    cost, rng = CostModel.of(model, graph, inputs), np.random.default_rng(0)
    for _ in range(4):
        widths = np.array([int(rng.choice(group.widths)) for group in graph])
        plan = PruningPlan.from_widths(graph, widths, {group.name: rng.random(group.size) for group in graph})
        pruned = apply(model, graph, plan)
        counted = count_macs(pruned, inputs)
        assert (counted.macs, counted.params) == (int(cost.macs(widths)), int(cost.params(widths)))
        expected = run_once(silenced(model, graph, plan), inputs)
        torch.testing.assert_close(run_once(pruned, inputs), expected, rtol=1e-4, atol=1e-5)


def test_a_class_that_is_not_what_it_is_declared_to_be_stays_whole():
    model = behind(lambda: Sorted(12, 10, wrong=True), lambda: nn.Conv2d(3, 12, 3), lambda: nn.Conv2d(10, 3, 1))
    graph = trace(model, (torch.randn(1, 3, 6, 6),), constraints=Constraints(declare={"Sorted": "conv"}))
    assert [group.size for group in graph if len(group.widths) > 1] == [12]
    assert "call_layer of 2" in " ".join(graph.left_whole.values())
