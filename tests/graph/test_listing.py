"""Every layer with weights is in a channel group that can shrink, or is listed with the reason why not."""

import networks as shared
import pytest
import torch
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from networks import ConvNet, Embedded, Mlp, SelfAttention, TwoNorms
from programs import LENGTH, STEPS, Program
from torch import nn
from torch.nn.utils import parametrizations, prune

from prunekit.graph import trace


def unlisted(net, inputs):
    """Layers with weights that are neither in a group with several widths nor listed."""
    graph = trace(net, inputs)
    shrinking = [
        member.layer for group in graph if len(group.widths) > 1 for member in group.members if member.axis != "in"
    ]
    known = [*shrinking, *graph.left_whole]
    assert all(graph.left_whole.values())

    def is_known(name):
        return any(one == name or one.startswith(f"{name}.") or name.startswith(f"{one}.") for one in known)

    layers = [
        name
        for name, module in net.named_modules()
        if any(p.ndim > 1 for p in module._parameters.values() if p is not None)
    ]
    return [name for name in layers if name and not is_known(name)]


def convolutions(*changes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    for change in changes:
        change(net)
    return net


IMAGE = (torch.randn(1, 1, 8, 8),)
PICTURE = (torch.randn(1, 3, 16, 16),)
NETWORKS = {
    "masked weights": (lambda: convolutions(lambda net: prune.l1_unstructured(net[0], "weight", 0.5)), IMAGE),
    "weight norm": (lambda: convolutions(lambda net: parametrizations.weight_norm(net[2])), IMAGE),
    "spectral norm": (lambda: convolutions(lambda net: parametrizations.spectral_norm(net[0])), IMAGE),
    "one norm group for each channel": (lambda: convolutions(lambda net: net.insert(1, nn.GroupNorm(16, 16))), IMAGE),
    "convolutions": (ConvNet, (torch.randn(1, 3, 8, 8),)),
    "two norms": (TwoNorms, PICTURE),
    "residual sum": (Mlp, (torch.randn(1, 6),)),
    "table": (Embedded, (torch.randn(1, 4), torch.tensor([3]))),
    "attention": (SelfAttention, (torch.randn(1, 4, 5),)),
    "U-Net": (shared.unet, shared.unet_inputs()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_in_a_group_or_listed_with_a_reason(name):
    make, inputs = NETWORKS[name]
    assert unlisted(make().eval(), inputs) == []


@examples(10)
@example(["four heads"], 0)
@given(st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=4), st.integers(0, 1000))
def test_every_layer_of_a_program_is_in_a_group_or_listed(steps, seed):
    inputs = (torch.randn(1, LENGTH, 5, generator=torch.Generator().manual_seed(seed)),)
    assert unlisted(Program(steps, seed).eval(), inputs) == []


def test_a_layer_that_cannot_shrink_in_this_mode_is_listed():
    make, inputs = NETWORKS["one norm group for each channel"]
    assert "another norm or head mode" in trace(make(), inputs).left_whole["0"]
    assert "0" not in trace(make(), inputs, norm_mode="whole").left_whole


def test_a_layer_whose_mask_is_listed_is_listed_itself():
    make, inputs = NETWORKS["masked weights"]
    assert "by its weight" in trace(make(), inputs).left_whole["0"]


def test_a_layer_that_does_not_run_is_listed_as_such():
    net = convolutions(lambda net: net[1].register_module("spare", nn.Linear(4, 4)))
    assert trace(net, IMAGE).left_whole["1.spare"] == "it does not run"


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, 8), nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 5)

    def forward(self, x):
        return self.last(self.middle(self.first(x))[0])


def test_a_layer_that_runs_is_listed_with_what_became_of_its_weights():
    assert "through mkldnn_rnn_layer" in trace(Recurrent(), (torch.randn(1, 4, 5),)).left_whole["middle"]
    grouped = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ConvTranspose2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
    assert trace(grouped, IMAGE).left_whole["1"] == "1 is a grouped convolution"
