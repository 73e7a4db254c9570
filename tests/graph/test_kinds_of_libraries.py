"""Kinds of layers that published libraries have, each in a small network of its own: followed, and pruned as predicted."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_kinds import made, pruned_as_silenced, seeded
from torch import nn

from prunekit.cost import count_macs
from prunekit.graph import PruningPlan, apply, trace
from prunekit.graph.forward_pass import run_once
from prunekit.graph.retrying import Retries
from prunekit.graph.weightless import LARGE


class Joint(nn.Module):
    """Text and image tokens that are written into slices of one sequence of zeros; or a fixed text, which ties the width."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed, self.text, self.image = fixed, nn.Linear(5, 12), nn.Linear(5, 12)
        self.norm, self.up, self.down = nn.RMSNorm(12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        joint = torch.zeros(len(x), 6, 12 if self.fixed else self.image.weight.shape[0])
        joint[:, :2] = torch.linspace(0, 1, 12).expand(2, 12) if self.fixed else self.text(x[:, :2])
        joint[:, 2:] = self.image(x)
        return self.down(F.silu(self.up(self.norm(joint))))


def test_rows_that_are_written_into_zeros_keep_their_channels():
    graph = pruned_as_silenced(lambda: Joint(False), 1, 4, 5, exact=False)
    assert {"text", "image"} <= made(graph), graph.left_whole
    assert {m.layer for m in graph["text"].members} >= {"image", "norm", "up"}


def test_rows_that_are_written_beside_something_fixed_are_fixed():
    graph = pruned_as_silenced(lambda: Joint(True), 1, 4, 5, exact=False)
    assert made(graph) == {"up"}
    assert "part of another tensor" in graph.left_whole["image"]


class Turned(nn.Module):
    """Attention whose queries and keys are turned by 2 × 2 matrices made of a buffer, as wide as half a head."""

    def __init__(self, heads=4, width=6):
        super().__init__()
        self.heads = heads
        self.register_buffer("angles", torch.randn(4, width // 2))
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, heads * width) for _ in range(3))
        self.out = nn.Linear(heads * width, 8)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))
        cos, sin = self.angles.cos(), self.angles.sin()
        turn = torch.stack([cos, -sin, sin, cos], -1).view(*cos.shape, 2, 2).unsqueeze(-4)
        q, k = ((turn * y.reshape(*y.shape[:-1], -1, 1, 2)).sum(-1).reshape(y.shape) for y in (q, k))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_heads_that_are_turned_by_matrices_leave_whole():
    graph = pruned_as_silenced(Turned, 1, 4, 8)
    assert {"to_q", "to_k", "to_v"} <= made(graph), graph.left_whole
    assert graph["to_q"].whole
    assert graph["to_q"].rows == 4


class SingleKey(nn.Module):
    """Four queries with one key and value; positions fix the width of a head."""

    def __init__(self, by_hand):
        super().__init__()
        self.by_hand, self.heads = by_hand, 4
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 24), nn.Linear(8, 6), nn.Linear(8, 6)
        self.gate, self.out = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 6)) for layer in (self.to_q, self.to_k, self.to_v))
        angle = torch.arange(x.shape[1])[:, None, None] / torch.arange(1, 7)
        q, k = q * angle.cos(), k * angle.cos()
        if self.by_hand:
            k, v = (y.repeat_interleave(self.heads, 2) for y in (k, v))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=not self.by_hand).transpose(1, 2).flatten(2)
        return x + self.out(y * self.gate(x).sigmoid())


@pytest.mark.parametrize("by_hand", [False, True])
def test_queries_that_share_a_single_key_leave(by_hand):
    graph = pruned_as_silenced(lambda: SingleKey(by_hand), 1, 4, 8)
    assert {"to_q", "gate"} <= made(graph), graph.left_whole
    assert graph["to_q"].rows == 4


class FlatNorm(nn.Module):
    """Convolutions whose weights are normed as matrices, kernel and inputs on one axis."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.second = nn.Parameter(torch.randn(3, 8, 3, 3))

    def forward(self, x):
        for weight in (self.first, self.second):
            flat = weight.flatten(1)
            x = F.silu(F.conv2d(x, (flat / flat.norm(dim=1, keepdim=True)).view(weight.shape), padding=1))
        return x


def test_weights_that_are_normed_as_matrices_are_followed():
    graph = pruned_as_silenced(FlatNorm, 1, 3, 4, 4, exact=False)
    assert made(graph) == {"first"}, graph.left_whole


class Filtered(nn.Module):
    """A fixed low-pass filter over channels that are put into the batch."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        y = F.silu(self.first(x))
        b, c, h, w = y.shape
        y = F.conv2d(y.reshape(b * c, 1, h, w), torch.full((1, 1, 2, 2), 0.25), stride=2)
        return self.last(y.reshape(b, c, *y.shape[2:]))


def test_filters_over_a_batch_of_channels_cost_what_is_predicted():
    assert made(pruned_as_silenced(Filtered, 1, 3, 4, 4)) == {"first"}


class Experts(nn.Module):
    """Tokens are sent to one of four equal experts, by number; what they give is added where it belongs."""

    class Expert(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

        def forward(self, x):
            return self.down(F.silu(self.up(x)))

    def __init__(self):
        super().__init__()
        self.first, self.last, self.gate = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(5, 4)
        self.experts = nn.ModuleList(self.Expert() for _ in range(4))

    def forward(self, x):
        y, chosen = self.first(x)[0], self.gate(x)[0].argmax(-1)
        given = torch.zeros_like(y)
        order, ends = chosen.argsort(), chosen.bincount(minlength=4).cumsum(0).tolist()
        for expert, start, end in zip(self.experts, [0, *ends], ends, strict=False):
            rows = order[start:end]
            if len(rows):
                given.scatter_add_(0, rows[:, None].repeat(1, y.shape[-1]), expert(y[rows]))
        return self.last(y + given)[None]


def test_experts_shrink_together_whichever_the_tokens_are_sent_to():
    net = seeded(Experts)
    few, many = (torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8))
    few = few[:, :1].expand(-1, 6, -1)  # all of them to one expert
    graph = trace(net, (few,))
    ran = {f"experts.{i}.{layer}" for i in range(4) for layer in ("up", "down")}
    assert ran | {"first"} <= made(graph), graph.left_whole
    plan = PruningPlan.from_widths(
        graph,
        [int(group.widths[2]) for group in graph],
        {group.name: torch.randn(group.size).numpy() for group in graph},
    )
    slim = apply(net, graph, plan)
    assert run_once(slim, (many,)).shape == (1, 6, 3)
    assert count_macs(slim, (many,)).macs == count_macs(slim, (few,)).macs


class TwoWidths(nn.Module):
    """Keeps a width that equals its input's, and reshapes the heads by it: both are 24 wide."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.inner = nn.Linear(5, 24), nn.Linear(24, 3), self.Inner()

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.dim, self.up, self.down = 24, nn.Linear(24, 24), nn.Linear(24, 24)

        def forward(self, x):
            return x + self.down(F.silu(self.up(x)).reshape(*x.shape[:2], self.dim))

    def forward(self, x):
        return self.last(self.inner(self.first(x)))


def test_a_width_that_is_kept_is_found_to_be_another_layers():
    graph = pruned_as_silenced(TwoWidths, 1, 4, 5)
    assert {"first", "inner.up"} <= made(graph), graph.left_whole
    assert len(graph) == 2


class SharedWidth(nn.Module):
    """Blocks that each keep the width of what they all add to."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.down = 12, nn.Linear(12, 12)

        def forward(self, x):
            return x + self.down(F.silu(x).flatten(1).reshape(*x.shape[:2], self.wide))

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList(self.Block() for _ in range(6))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def test_a_width_that_all_blocks_share_and_keep_is_taken_up_in_all_at_once(monkeypatch):
    tried, after = [], Retries.after
    monkeypatch.setattr(Retries, "after", lambda *args: tried.append(args) or after(*args))
    assert "first" in made(pruned_as_silenced(SharedWidth, 1, 4, 5))
    assert len(tried) <= 3


def test_only_the_latest_ties_of_a_group_are_undone():
    retries = Retries(("whole",))
    retries.ties, retries._tied_in = [("a", "b"), ("c", "b"), ("d", "e")], {("a", "b"): 1, ("c", "b"): 2, ("d", "e"): 2}
    assert retries._untie("b")
    assert retries.ties == [("a", "b"), ("d", "e")]
    assert retries._untie("b")
    assert retries.ties == [("d", "e")]
    assert not retries._untie("b")


def test_layers_of_one_block_that_differ_by_a_number_are_no_blocks_of_a_stack():
    groups = [SimpleNamespace(name=f"{block}.mlp.fc{i}", size=8) for block in ("blocks.0", "blocks.1") for i in (1, 2)]
    graph = type("Graph", (list,), {"__getitem__": lambda self, name: next(one for one in self if one.name == name)})(
        groups
    )
    assert [one.name for one in Retries(("whole",))._alike("blocks.0.mlp.fc1", graph)] == ["blocks.1.mlp.fc1"]


class Compiled(nn.Module):
    """A function inside that torch is asked to compile."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.compiled = []
        self.inner = torch.compile(lambda x: F.silu(x) * 2, backend=self.backend)

    def backend(self, graph, _):
        self.compiled.append(graph)
        return graph.forward

    def forward(self, x):
        return self.last(self.inner(self.first(x)))


def test_functions_that_compile_run_as_they_are_written():
    net = seeded(Compiled)
    assert made(trace(net, (torch.randn(1, 4),))) == {"first"}
    assert not net.compiled


class Cast(nn.Module):
    """A buffer that no file stores and that is cast to the type that it has."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8 + 3, 4)
        self.register_buffer("table", torch.arange(3)[None], persistent=False)

    def forward(self, x):
        return self.last(torch.cat([F.silu(self.first(x)), self.table.to(torch.int64).repeat(len(x), 1) / 3], -1))


@pytest.mark.parametrize("parameters", [0, LARGE.parameters])
def test_a_cast_that_changes_nothing_is_no_fault_with_or_without_values(monkeypatch, parameters):
    monkeypatch.setattr(LARGE, "parameters", parameters)
    assert "first" in made(pruned_as_silenced(Cast, 1, 4))
