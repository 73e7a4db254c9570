"""What pruning diffusion networks gets wrong without an error, each by its name: here it works, or is refused with a reason."""

import inspect
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Mlp, Network, rows, unet, unet_inputs
from test_families import conditional, dit, edm, guided
from test_flow import silenced
from torch import nn
from torch.utils.checkpoint import checkpoint

from prunekit.errors import GraphError
from prunekit.graph import PruningPlan, apply, trace
from prunekit.graph.forward_pass import run_once


def narrowest(network, **modes):
    """The network at its smallest widths, and its graph."""
    graph = trace(network.model, network.inputs, **modes)
    kept = {g.name: tuple(map(int, g.select(np.arange(g.size, dtype=float), int(g.widths[-1])))) for g in graph}
    return apply(network.model, graph, PruningPlan(kept, graph.fingerprint)), graph


def resampler_channels():
    network = Network(unet(), unet_inputs())
    pruned, _ = narrowest(network)
    found = [module for module in pruned.modules() if type(module).__name__ in ("Upsample2D", "Downsample2D")]
    assert found
    assert all(module.channels == module.conv.in_channels for module in found)


def attention_attributes():
    network = Network(unet(), unet_inputs())
    pruned, _ = narrowest(network)
    found = [module for module in pruned.modules() if type(module).__name__ == "Attention"]
    assert found
    for module in found:
        assert module.inner_dim == module.to_q.out_features
        assert module.query_dim == module.to_q.in_features
        assert module.inner_dim == 4 * module.heads
        assert module.scale == pytest.approx((module.inner_dim // module.heads) ** -0.5)


def edm_in_channels():
    network = edm()
    pruned, _ = narrowest(network)
    assert run_once(pruned, network.inputs).shape == (1, 3, 8, 8)  # skips are taken by it
    for block in (*list(pruned.enc.values())[1:], *pruned.dec.values()):
        assert block.in_channels == block.conv0.in_channels == block.conv0.weight.shape[1]


def dit_positions():
    network = dit()
    pruned, graph = narrowest(network)
    assert pruned.pos_embed.pos_embed.shape[-1] == pruned.pos_embed.proj.out_channels
    assert any(member.layer == "pos_embed.pos_embed" for group in graph for member in group.members)


def conditional_output():
    network = conditional()
    pruned, graph = narrowest(network)
    assert "output" in graph.left_whole["conv_out"]
    assert run_once(pruned, network.inputs).sample.shape == (1, 4, 8, 8)


def scrambled_heads():
    for heads in (1, 2, 4):
        network = guided(heads=heads)
        same_as_silenced(network, ("mix.qkv", "mix2.qkv"))


def scale_shift():
    network = guided(scale_shift=True)
    graph = trace(network.model, network.inputs)
    doubled = [m for group in graph for m in group.members if m.layer.endswith("emb_layers.1") and m.axis == "out"]
    assert all(len(m.positions) == 2 * len(np.unique(m.roots)) for m in doubled)
    assert len(doubled) == 5


def same_as_silenced(network, names):
    graph = trace(network.model, network.inputs)
    kept = {}
    for name in names:
        group = next(g for g in graph if any(m.layer == name and m.axis == "out" for m in g.members))
        kept[group.name] = tuple(map(int, group.select(np.arange(group.size, dtype=float), int(group.widths[1]))))
    plan = PruningPlan(kept, graph.fingerprint)
    found = run_once(apply(network.model, graph, plan), network.inputs)
    expected = run_once(silenced(network.model, graph, plan), network.inputs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def norm_steps():
    for mode in ("even", "whole"):
        pruned, _ = narrowest(Network(unet(), unet_inputs()), norm_mode=mode)
        for module in pruned.modules():
            if isinstance(module, nn.GroupNorm):
                assert module.num_channels % module.num_groups == 0


class Checkpointed(Mlp):
    reentrant = True

    def forward(self, x):
        h = checkpoint(lambda y: self.norm(F.gelu(self.first(y))), x, use_reentrant=self.reentrant)
        return self.out(F.gelu(self.wide(h + F.gelu(self.second(h)))))


def checkpointing():
    for reentrant in (True, False):
        model = Checkpointed().eval()
        model.reentrant = reentrant
        start = time.monotonic()
        assert set(trace(model, (rows(1, 6),)).index) == {"first", "wide"}
        assert time.monotonic() - start < 20
    assert len(trace(guided().model, guided().inputs)) >= 10  # an autograd function of its own


def own_layer_classes():
    _, graph = narrowest(edm(heads=2))
    assert [layer for layer, why in graph.left_whole.items() if why != "they are a kernel's"] == ["out_conv"]


def mutable_defaults():
    first = trace(unet(), unet_inputs())
    trace(Mlp(), (rows(1, 6),))
    assert trace(unet(), unet_inputs()).fingerprint == first.fingerprint
    for function in (trace, apply):
        for parameter in inspect.signature(function).parameters.values():
            assert not isinstance(parameter.default, dict | list | set)


def callers_parameters():
    network = Network(Mlp().eval(), (rows(1, 6),))
    before = {name: (parameter, parameter.clone()) for name, parameter in network.model.named_parameters()}
    pruned, _ = narrowest(network)
    assert all(network.model.get_parameter(name) is parameter for name, (parameter, _) in before.items())
    assert all(torch.equal(parameter, value) for parameter, value in before.values())
    assert not {id(p) for p in pruned.parameters()} & {id(p) for p in network.model.parameters()}


FAILURES = {
    "channels of a resampling layer go stale": resampler_channels,
    "an attention's scale, inner_dim, query_dim and heads go stale": attention_attributes,
    "EDM's in_channels go stale": edm_in_channels,
    "DiT's table of positions is not sliced": dit_positions,
    "a conditional U-Net loses an output channel": conditional_output,
    "heads are scrambled": scrambled_heads,
    "scale and shift are not followed": scale_shift,
    "norm groups do not divide the channels": norm_steps,
    "checkpointing hides operations, or never ends": checkpointing,
    "layer classes of one's own are not seen": own_layer_classes,
    "defaults that are changed leak between calls": mutable_defaults,
    "the caller's parameters are replaced": callers_parameters,
}


@pytest.mark.slow_cases("heads*", "norm groups*", "a conditional*", "defaults*")
@pytest.mark.parametrize("failure", FAILURES)
def test_what_fails_silently_elsewhere(failure):
    FAILURES[failure]()


class Slow(nn.Module):
    """Each layer takes a second on a clock of its own."""

    clock: ClassVar[list[float]] = [0.0]  # shared by all copies

    def __init__(self):
        super().__init__()
        self.layers, self.runs = nn.ModuleList(nn.Linear(6, 6) for _ in range(40)), [0]

    def forward(self, x):
        self.runs[0] += 1  # an attribute of its own would get its value back
        for layer in self.layers:
            self.clock[0] += 1
            x = F.relu(layer(x))
        return x


@pytest.fixture
def slow(monkeypatch):
    """A network whose passes of 40 s alone make time pass."""
    monkeypatch.setattr("prunekit.graph.deadline.time.thread_time", lambda: Slow.clock[0])
    return Slow().train()


def test_a_limit_ends_a_long_network_in_the_middle_and_leaves_nothing_behind(slow):
    with pytest.raises(GraphError, match=r"within 60 s"):
        trace(slow, (rows(1, 6),), seconds=60)
    assert slow.runs == [2]  # a first pass, and the one that is followed
    assert slow.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in slow.modules())
    assert torch.relu(torch.ones(1)) == 1  # nothing is followed any longer


def test_the_limit_holds_for_trials_too(slow):
    with pytest.raises(GraphError, match=r"within 100 s"):
        trace(slow, (rows(1, 6),), seconds=100)
    assert slow.runs == [2]  # both were finished


class Odd(nn.Module):
    """A layer that never runs, one that runs twice, tensors of no layer, outputs in a dict."""

    def __init__(self):
        super().__init__()
        self.first, self.never, self.twice = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 8)
        self.out = nn.ModuleList([nn.ModuleDict({"last": nn.Linear(8, 2)})])
        self.unused = nn.Parameter(torch.zeros(3))
        self.register_buffer("table", torch.ones(8), persistent=False)
        self.register_buffer("kept", torch.ones(8))

    def forward(self, x):
        x = self.twice(F.relu(self.twice(F.relu(self.first(x))))) * self.table + self.kept
        return {"out": self.out[0]["last"](x), "pair": (x.sum(), None)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_odd_networks_in_any_precision_and_batch(dtype, batch):
    model = Odd().to(dtype).train()
    inputs = (rows(batch, 6).to(dtype),)
    rng = torch.get_rng_state()
    graph = trace(model, inputs)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    assert list(graph.index) == ["first"]
    pruned = apply(model, graph, PruningPlan({"first": (1, 4)}, graph.fingerprint))
    assert pruned.table.shape == pruned.kept.shape == (2,)
    assert run_once(pruned, inputs)["out"].dtype == dtype


@pytest.mark.slow
def test_channels_last_and_timesteps_without_a_dimension_change_nothing():
    expected = trace(unet(), unet_inputs()).fingerprint
    sample = unet_inputs()["sample"].to(memory_format=torch.channels_last)
    model = unet().to(memory_format=torch.channels_last)
    assert trace(model, {"sample": sample, "timestep": torch.tensor(7)}).fingerprint == expected
    assert trace(model, {"sample": sample, "timestep": 7}).fingerprint == expected


def test_a_network_of_complex_numbers_is_left_whole_or_refused():
    model = nn.Sequential(nn.Linear(6, 8, dtype=torch.complex64), nn.Linear(8, 2, dtype=torch.complex64))
    graph = trace(model, (rows(1, 6).to(torch.complex64),))
    assert set(graph.index) | set(graph.left_whole) >= {"0", "1"}


def test_torchs_transformer_layers_are_pruned_inside():
    model = nn.Sequential(
        nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)
    ).eval()
    graph = trace(model, (rows(1, 4, 5),))
    assert "1.linear1" in graph.index
    pruned = apply(model, graph, PruningPlan({"1.linear1": (0, 3)}, graph.fingerprint))
    assert run_once(pruned, (rows(1, 4, 5),)).shape == (1, 4, 3)
