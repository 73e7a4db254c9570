"""Kinds of layers that research code has, each in a small network of its own: followed, and pruned as the silenced network says."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_flow import silenced
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from prunekit.cost import CostModel, count_macs
from prunekit.errors import GraphError
from prunekit.graph import PruningPlan, apply, trace
from prunekit.graph.deadline import Deadline
from prunekit.graph.forward_pass import run_once
from prunekit.graph.retrying import Retries


def plan_of(graph, seed):
    rng = np.random.default_rng(seed)
    kept = {group.name: group.select(rng.random(group.size), int(rng.choice(group.widths))) for group in graph}
    return PruningPlan({name: tuple(map(int, channels)) for name, channels in kept.items()}, graph.fingerprint)


def pruned_as_silenced(net, *shape, exact=True, plans=3):
    """The graph; random plans cost what they are predicted to cost, and compute what the silenced network computes."""
    net = seeded(net)
    inputs = (torch.randn(*shape, generator=torch.Generator().manual_seed(1)),)
    graph = trace(net, inputs)
    cost = CostModel.of(net, graph, inputs)
    for seed in range(plans):
        plan = plan_of(graph, seed)
        slim, widths = apply(net, graph, plan), plan.widths(graph)
        counted = count_macs(slim, inputs)
        assert (int(cost.macs(widths)), int(cost.params(widths))) == (counted.macs, counted.params)
        if exact:
            expected = run_once(silenced(net, graph, plan), inputs)
            torch.testing.assert_close(run_once(slim, inputs), expected, rtol=1e-3, atol=1e-4)
    return graph


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().eval()


def made(graph):
    """Layers whose outputs some group has."""
    return {member.layer for group in graph for member in group.members if member.axis in ("out", "0")}


class Deep(nn.Module):
    """Blocks behind norms, with weights that would overflow without these, and a wrong block at the start."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.first, self.second, self.width = wrong, nn.Linear(8, 24), nn.Linear(24, 8), 24
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.RMSNorm(8), nn.Linear(8, 20), nn.Linear(20, 8)]) for _ in range(12)
        )
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter)

    def forward(self, x):
        h = F.gelu(self.first(x))
        x = x + self.second(h * (h.shape[-1] / self.width) if self.wrong else h)
        for norm, up, down in self.blocks:
            x = x + down(up(norm(x)).square())
        return x


@pytest.mark.parametrize("wrong", [False, True])
def test_depth_hides_no_group_and_no_fault(wrong):
    graph = trace(seeded(lambda: Deep(wrong)), (torch.randn(1, 3, 8),))
    assert set(graph.index) == {f"blocks.{i}.1" for i in range(12)} | (set() if wrong else {"first"})
    if wrong:
        assert "linear of second" in graph.left_whole["first"]


class Overflowing(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b((self.a(x).abs() + 10).pow(60))


def test_numbers_that_overflow_never_pass():
    graph = trace(seeded(Overflowing), (torch.randn(1, 4),))
    assert len(graph) == 0
    assert "overflow" in graph.left_whole["a"]


class Pair(nn.Module):
    """Two layers of which each can shrink, though not both: their outputs are told apart by their number."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 12), nn.Linear(12, 4)
        self.d, self.e = nn.Linear(4, 10), nn.Linear(10, 4)

    def forward(self, x):
        h, x = self.a(x), x + self.e(F.relu(self.d(x)))
        y = self.b(F.silu(h))
        assert h.shape[-1] + y.shape[-1] > 24
        return x + self.c(F.silu(y))


def test_only_the_smallest_set_that_fails_is_left_whole():
    graph = trace(seeded(Pair), (torch.randn(1, 4),))
    assert "d" in graph.index
    assert {"a", "b"} & set(graph.left_whole)
    assert all("stops the network" in graph.left_whole[name] for name in {"a", "b"} & set(graph.left_whole))


class Skipping(nn.Module):
    """A shortcut that runs only while the numbers of channels differ, in every block of the kind."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        self.conv, self.short = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        h = self.conv(F.silu(x))
        return h + (self.short(x) if self.in_channels != self.out_channels else x)


def skipping():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), Skipping(8, 12), Skipping(12, 12), Skipping(12, 20), nn.SiLU(), nn.Conv2d(20, 3, 1)
    )


def test_attributes_that_decide_which_layers_run_are_let_be():
    graph = pruned_as_silenced(skipping, 1, 3, 6, 6)
    assert {"0", "1.conv", "3.conv"} <= made(graph)
    assert not any(attribute.module.startswith("1") for attribute in graph.attributes)
    kept = {name: tuple(range(8)) for name in graph.index if graph[name].size > 8}
    slim = apply(seeded(skipping), graph, PruningPlan(kept, graph.fingerprint))
    assert slim[1].short.out_channels == slim[1].short.in_channels == 8  # as wide as each other, and it still runs


class Weighing(nn.Module):
    """A layer that is skipped once its weight is narrow."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        h = self.a(x)
        if len(self.a.weight) > 1:
            h = h + self.b(h) * 0.1
        return self.c(h)


def test_a_model_that_runs_other_layers_is_refused_when_it_is_made():
    graph = trace(seeded(Weighing), (torch.randn(1, 4),))
    if "a" in graph.index and graph["a"].widths[-1] == 1:
        with pytest.raises(GraphError, match="runs other layers"):
            apply(seeded(Weighing), graph, PruningPlan({"a": (3,)}, graph.fingerprint))


class HandNorm(nn.Module):
    """A norm over channels, written out."""

    def __init__(self, width, kind):
        super().__init__()
        self.kind, self.g = kind, nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        if self.kind == "variance":
            x = (x - x.mean(-1, keepdim=True)) * (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
        elif self.kind == "squares":
            x = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        elif self.kind == "unit":
            x = F.normalize(x, dim=-1) * x.shape[-1] ** 0.5
        else:
            x = x * torch.mean(x**2, -1, keepdim=True).clamp(min=1e-6).rsqrt().to(x.dtype)
        return x * self.g


@pytest.mark.parametrize("kind", ["variance", "squares", "unit", "clamped"])
def test_norms_written_out_are_norms(kind):
    graph = pruned_as_silenced(
        lambda: nn.Sequential(nn.Linear(6, 16), HandNorm(16, kind), nn.Linear(16, 3)), 1, 5, 6, exact=False
    )
    assert "0" in graph.index


class Straying(nn.Module):
    """A mean over channels that goes elsewhere."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x):
        return self.c(self.b(x) * (self.a(x).pow(2).mean(-1, keepdim=True) + 1).rsqrt())


def test_a_mean_that_goes_elsewhere_is_no_norm():
    graph = trace(seeded(Straying), (torch.randn(1, 4, 6),))
    assert "a" in graph.left_whole
    assert "b" in graph.index


class Positions(nn.Module):
    """Rotary positions of many makes, computed on the way or kept."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.heads = kind, 3
        self.q, self.k, self.v, self.o = nn.Linear(5, 24), nn.Linear(5, 24), nn.Linear(5, 24), nn.Linear(24, 3)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.5, 0.2, 0.1]))

    def turned(self, x):
        angle = torch.arange(x.shape[1]).float()[:, None] * self.frequencies
        if self.kind == "complex":
            turn = torch.polar(torch.ones_like(angle), angle)[:, None]
            return torch.view_as_real(torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) * turn).flatten(3)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        if self.kind == "in place":
            out = torch.empty_like(x)
            out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
            out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
            return out
        if self.kind == "stacked":
            a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (self.turned(q), self.turned(k), v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", ["complex", "in place", "stacked", "halves"])
def test_heads_leave_whole_whatever_turns_them(kind):
    graph = pruned_as_silenced(lambda: Positions(kind), 1, 4, 5)
    group = graph["q"]
    assert (group.rows, group.whole) == (3, True)
    assert {"q", "k", "v"} <= made(graph)


class QueryNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.norm_q, self.norm_k = 4, nn.RMSNorm(6), nn.RMSNorm(6)
        self.qkv, self.o = nn.Linear(5, 72), nn.Linear(24, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.o(F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v).transpose(1, 2).flatten(2))


def test_norms_of_queries_and_keys_let_heads_leave():
    graph = pruned_as_silenced(QueryNorms, 1, 4, 5)
    assert any(group.whole and group.rows == 4 for group in graph), graph.left_whole


class Shared(nn.Module):
    """Two queries for each key."""

    def __init__(self, by_hand):
        super().__init__()
        self.by_hand = by_hand
        self.q, self.k, self.v, self.o = nn.Linear(5, 24), nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(24, 3)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.by_hand:
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=not self.by_hand)
        return self.o(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("by_hand", [True, False])
def test_keys_that_queries_share_leave_with_them(by_hand):
    graph = pruned_as_silenced(lambda: Shared(by_hand), 1, 4, 5)
    assert {"q", "k", "v"} <= made(graph), graph.left_whole


class Modulated(nn.Module):
    """A table on top of a projection, cut into shift, scale and gate."""

    def __init__(self):
        super().__init__()
        self.table, self.time = nn.Parameter(torch.randn(1, 3, 16)), nn.Linear(4, 48)
        self.into, self.norm, self.mix, self.out = (
            nn.Linear(4, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 16),
            nn.Linear(16, 4),
        )

    def forward(self, x):
        shift, scale, gate = (self.table + self.time(x.mean(1)).unflatten(1, (3, -1))).chunk(3, 1)
        h = self.into(x)
        h = h + gate * self.mix(self.norm(h) * (1 + scale) + shift)
        return self.out(h * (1 + scale.squeeze(1)[:, None]))


def test_modulation_tables_are_followed():
    graph = pruned_as_silenced(Modulated, 1, 6, 4, exact=False)
    assert {"into", "time", "table"} <= {member.layer for group in graph for member in group.members}, graph.left_whole


class Merged(nn.Module):
    """The heads' results are put together by the width of something else."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.into, self.qkv, self.proj, self.out = (
            nn.Linear(5, 24),
            nn.Linear(24, 72),
            nn.Linear(24, 24),
            nn.Linear(24, 3),
        )

    def forward(self, x):
        x = self.into(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.out(x + self.proj(h))


def test_a_reshape_by_the_width_of_the_residual_ties_heads_to_it():
    graph = pruned_as_silenced(Merged, 1, 6, 5)
    assert {"into", "qkv", "proj"} <= made(graph), graph.left_whole


def test_where_time_runs_short_groups_are_left_whole_and_that_is_no_error(monkeypatch):
    monkeypatch.setattr(Deadline, "is_early", lambda _: False)
    graph = trace(seeded(Merged), (torch.randn(1, 6, 5),))
    assert any("reshape" in reason for reason in graph.left_whole.values())
    assert not {"into", "qkv", "proj"} <= made(graph)


class Unit(nn.Module):
    """A convolution whose weights are normed in the forward pass, as EDM2's."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.out_channels, self.weight = outputs, nn.Parameter(torch.randn(outputs, inputs, 3, 3))

    def forward(self, x):
        w = self.weight.float()
        norm = torch.linalg.vector_norm(w, dim=[1, 2, 3], keepdim=True, dtype=torch.float32)
        norm = torch.add(1e-4, norm, alpha=(norm.numel() / w.numel()) ** 0.5)
        w = (w / norm).to(x.dtype) * (1.5 / w[0].numel() ** 0.5)
        return F.conv2d(x, w, padding=1)


def test_convolutions_with_normed_weights_are_followed():
    graph = pruned_as_silenced(
        lambda: nn.Sequential(Unit(3, 16), nn.SiLU(), Unit(16, 12), nn.SiLU(), Unit(12, 3)), 1, 3, 6, 6, exact=False
    )
    assert len(graph) == 2, graph.left_whole


class Noisy(nn.Module):
    """Draws random numbers in its forward pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = self.a(x)
        h = h + 0.1 * torch.randn_like(h)
        return self.b(F.dropout(h * torch.rand(1), 0.2, training=True))


def test_random_numbers_in_the_forward_pass_are_no_fault():
    net = seeded(Noisy)
    state = torch.get_rng_state()
    graph = trace(net, (torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0)),))
    assert "a" in graph.index, graph.left_whole
    assert torch.equal(torch.get_rng_state(), state)


class Adapted(nn.Module):
    """A low-rank adapter beside a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.down, self.up = nn.Parameter(torch.randn(2, 16)), nn.Parameter(torch.randn(12, 2))

    def forward(self, x):
        h = F.silu(self.a(x))
        return self.c(F.silu(self.b(h) + 0.5 * (h @ self.down.T @ self.up.T)))


def test_adapters_shrink_with_what_they_adapt():
    graph = pruned_as_silenced(Adapted, 1, 4, 5)
    assert {"a", "b"} <= set(graph.index), graph.left_whole


def test_parametrized_layers_shrink():
    norm = nn.utils.parametrizations.weight_norm
    graph = pruned_as_silenced(
        lambda: nn.Sequential(norm(nn.Linear(5, 16)), nn.SiLU(), norm(nn.Linear(16, 12)), nn.SiLU(), nn.Linear(12, 3)),
        *(1, 4, 5),
        exact=False,
    )
    assert len(graph) == 2, graph.left_whole


class Remembered(nn.Module):
    """Keeps its width under a name of its own."""

    def __init__(self):
        super().__init__()
        self.in_ch, self.heads_of_mine = 16, 4
        self.a, self.b, self.c = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = self.b(F.silu(self.a(x)))
        return self.c(h.reshape(len(h), -1, self.in_ch))


def test_widths_are_followed_under_any_name():
    graph = pruned_as_silenced(Remembered, 1, 4, 5)
    assert "b" in graph.index, graph.left_whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_half_precision_that_cast_inside_are_followed(dtype):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 16, 1), nn.GroupNorm(4, 16), nn.Conv2d(16, 3, 1)
            self.a.to(dtype), self.b.to(dtype)

        def forward(self, x):
            h = self.a(x.to(dtype))
            return self.b(self.norm(h.float()).type(h.dtype)).to(x.dtype)

    graph = trace(seeded(Half), (torch.randn(1, 3, 4, 4),))
    assert "a" in graph.index, graph.left_whole


class Grouped(nn.Module):
    """Queries that share keys, with both numbers of heads kept."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.num_kv_heads = 6, 3
        self.q, self.k, self.v, self.o = nn.Linear(5, 24), nn.Linear(5, 12), nn.Linear(5, 12), nn.Linear(24, 3)

    def forward(self, x):
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2) for layer in (self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def test_both_numbers_of_heads_follow_where_queries_share_keys():
    graph = pruned_as_silenced(Grouped, 1, 4, 5)
    assert (graph["k" if "k" in graph.index else "q"].rows, {"q", "k", "v"} <= made(graph)) == (3, True)
    plan = PruningPlan({group.name: tuple(range(group.size // 3)) for group in graph}, graph.fingerprint)
    slim = apply(seeded(Grouped), graph, plan)
    assert (slim.num_heads, slim.num_kv_heads) == (2, 1)


class Flexible(nn.Module):
    """Torch's flexible attention, with a mask of its own."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 24), nn.Linear(5, 24), nn.Linear(5, 24), nn.Linear(24, 3)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: torch.where(i >= j, score, -9.0))
        return self.o(out.transpose(1, 2).flatten(2))


def test_flexible_attention_is_followed_and_counted():
    graph = pruned_as_silenced(Flexible, 1, 4, 5)
    assert (graph["q"].rows, graph["q"].whole) == (3, True)
    counted = count_macs(seeded(Flexible), (torch.randn(1, 4, 5),))
    assert counted.by_operator["scaled_dot_product_attention"] == 2 * 4 * 4 * 24
    assert "flex_attention" not in counted.unknown


def test_rows_that_are_normed_and_silenced_are_no_fault():
    norm = nn.utils.parametrizations.weight_norm
    graph = pruned_as_silenced(
        lambda: nn.Sequential(norm(nn.Linear(5, 16)), nn.SiLU(), norm(nn.Linear(16, 12)), nn.SiLU(), nn.Linear(12, 3)),
        *(1, 4, 5),
        exact=False,
    )
    assert len(graph) == 2, graph.left_whole


class Undefined(nn.Module):
    """Divides by zero in channels that stay."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.nan_to_num((h - h) / (h - h)))


def test_numbers_that_are_none_never_pass_in_channels_that_stay():
    graph = trace(seeded(Undefined), (torch.randn(1, 4),))
    assert "overflow" in graph.left_whole["a"]


class PerHead(nn.Module):
    """Attention whose queries and keys are normed head by head, with a scale and a shift."""

    def __init__(self):
        super().__init__()
        self.heads, self.norm_q, self.norm_k = 4, nn.LayerNorm(6), nn.LayerNorm(6, bias=False)
        self.q, self.k, self.v, self.o = nn.Linear(5, 24), nn.Linear(5, 24), nn.Linear(5, 24), nn.Linear(24, 3)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v).transpose(1, 2).flatten(2))


def test_layer_norms_of_single_heads_let_heads_leave():
    graph = pruned_as_silenced(PerHead, 1, 4, 5)
    assert [(group.name, group.whole) for group in graph] == [("q", True)]


class PartlyRotated(nn.Module):
    """Heads of which the part past the rotary width, here nothing, is passed on."""

    def __init__(self):
        super().__init__()
        self.heads, self.qkv, self.o = 4, nn.Linear(5, 72), nn.Linear(24, 3)

    def turned(self, x):
        angle = torch.arange(4.0)[:, None] * torch.ones(6)
        x, rest = x[..., :6], x[..., 6:]
        a, b = x.chunk(2, -1)
        return torch.cat([x * angle.cos() + torch.cat([-b, a], -1) * angle.sin(), rest], -1)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.o(F.scaled_dot_product_attention(self.turned(q), self.turned(k), v).transpose(1, 2).flatten(2))


def test_an_empty_rest_of_a_head_is_no_fault():
    graph = pruned_as_silenced(PartlyRotated, 1, 4, 5)
    assert any(group.whole and group.rows == 4 for group in graph), graph.left_whole


class Packed(nn.Module):
    """Text and image tokens that are written into rows of one sequence and read from there, by numbers and by a mask."""

    def __init__(self, masked):
        super().__init__()
        self.masked, self.text, self.image = masked, nn.Linear(5, 12), nn.Linear(5, 12)
        self.up, self.down = nn.Linear(12, 16), nn.Linear(12 + 16, 3)

    def forward(self, x):
        rows = torch.tensor([False, True, True, False])
        rows, others = (rows, ~rows) if self.masked else (torch.tensor([2, 1]), torch.tensor([3, 0]))
        text, image = self.text(x[0, :2]), self.image(x[0, 2:])
        packed = text.new_zeros(4, text.shape[1])
        packed[rows] = text
        packed[others] = image
        picked = packed[rows]
        return self.down(torch.cat([picked, F.silu(self.up(F.silu(picked)))], -1))


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_that_are_packed_by_row_numbers_keep_their_channels(masked):
    graph = pruned_as_silenced(lambda: Packed(masked), 1, 4, 5)
    assert {"text", "image", "up"} <= made(graph), graph.left_whole


class Learned(nn.Module):
    """Learned queries, of which a slice goes into a module."""

    def __init__(self):
        super().__init__()
        self.queries, self.up, self.down = nn.Parameter(torch.randn(6, 8)), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.down(F.silu(self.up(self.queries[:4].unsqueeze(0).expand(len(x), -1, -1)))) + x


def test_slices_of_parameters_that_enter_a_module_are_counted():
    graph = pruned_as_silenced(Learned, 1, 4, 3)
    assert "up" in made(graph)


class Caching(nn.Module):
    """Makes a table in its first pass and keeps it."""

    def __init__(self):
        super().__init__()
        self.table, self.up, self.down = None, nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(4.0)[:, None].cos()
        return self.down(F.silu(self.up(x)) * self.table)


def test_what_the_first_pass_keeps_for_later_ones_is_no_fault():
    assert "up" in made(pruned_as_silenced(Caching, 1, 4, 5))


class Remembering(nn.Module):
    """Asks another module for a table, which keeps it for each copy of itself."""

    class Angles(nn.Module):
        @functools.lru_cache(maxsize=4)  # noqa: B019 - as libraries have it
        def table(self, length):
            return torch.arange(float(length))[:, None].cos()

    def __init__(self):
        super().__init__()
        self.angles, self.up, self.down = self.Angles(), nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.down(F.silu(self.up(x)) * self.angles.table(x.shape[1]))


def test_what_each_copy_keeps_for_itself_is_no_fault():
    assert "up" in made(pruned_as_silenced(Remembering, 1, 4, 5))


class Masked(nn.Module):
    """A mask made by mapping a function, which reads a table, over all pairs of positions."""

    def __init__(self):
        super().__init__()
        self.heads, self.qkv, self.o = 4, nn.Linear(5, 72), nn.Linear(24, 3)

    def forward(self, x):
        table = torch.tensor([0, 0, 1, 1])
        pairs = torch.arange(4)
        allowed = torch.vmap(torch.vmap(lambda q, k: table[q,] >= table[k,], (None, 0)), (0, None))(pairs, pairs)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.o(F.scaled_dot_product_attention(q, k, v, allowed.expand(4, 4)).transpose(1, 2).flatten(2))


def test_masks_that_are_mapped_over_positions_are_no_fault():
    graph = pruned_as_silenced(Masked, 1, 4, 5)
    assert any(group.rows == 4 for group in graph), graph.left_whole


class Stack(nn.Module):
    """Blocks that reshape by a width which each of them keeps."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.up, self.down = 24, nn.Linear(10, 24), nn.Linear(24, 10)

        def forward(self, x):
            return x + self.down(F.silu(self.up(x)).reshape(*x.shape[:2], self.wide))

    def __init__(self, depth):
        super().__init__()
        self.first, self.last = nn.Linear(5, 10), nn.Linear(10, 3)
        self.blocks = nn.ModuleList(self.Block() for _ in range(depth))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def test_what_one_block_needs_is_tried_in_all_blocks_at_once(monkeypatch):
    tried, after = [], Retries.after
    monkeypatch.setattr(Retries, "after", lambda *args: tried.append(args) or after(*args))
    graph = trace(seeded(lambda: Stack(6)), (torch.randn(1, 4, 5),))
    assert {f"blocks.{i}.up" for i in range(6)} <= made(graph), graph.left_whole
    assert len(tried) <= 3
