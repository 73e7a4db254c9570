"""More kinds of layers, found by measuring published networks, each in a small network of its own."""

import pytest
import torch
import torch.nn.functional as F
from test_kinds import made, pruned_as_silenced, seeded
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from prunekit.graph import trace


class Filtered(nn.Module):
    """A filter for each channel alone, written on the diagonal of a kernel that mixes no channels, unless it is ``shifted``."""

    def __init__(self, way="fixed", transposed=False):
        super().__init__()
        self.way, self.transposed = way, transposed
        self.first, self.last = nn.Conv1d(5, 12, 1), nn.Conv1d(12, 3, 1)
        filters = torch.tensor([0.25, 0.5, 0.25])
        if way == "learned":
            self.filters = nn.Parameter(torch.randn(12, 3))
        else:
            self.register_buffer("filters", filters)

    def forward(self, x):
        x = F.silu(self.first(x))
        width = x.shape[1]
        kernel, places = x.new_zeros([width, width, 3]), torch.arange(width)
        others = places.flip(0) if self.way == "shifted" else places
        kernel[places, others] = self.filters if self.way == "learned" else self.filters.expand(width, -1)
        convolve = F.conv_transpose1d if self.transposed else F.conv1d
        return self.last(F.silu(convolve(x, kernel, padding=1)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("way", ["fixed", "learned"])
def test_filters_on_a_diagonal_let_channels_leave(way, transposed):
    graph = pruned_as_silenced(lambda: Filtered(way, transposed), 1, 5, 8)
    assert {"first"} <= made(graph), graph.left_whole
    assert graph["first"].widths[-1] == 1
    assert way == "fixed" or "filters" in {member.layer for member in graph["first"].members}


def test_filters_beside_the_diagonal_keep_all_channels():
    graph = pruned_as_silenced(lambda: Filtered("shifted"), 1, 5, 8)
    assert "first" in graph.left_whole


class Counting(nn.Module):
    """Numbers of channels that are also used as numbers: they change for the channels that stay."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(5, 12, 1), nn.Conv1d(12, 3, 1)

    def forward(self, x):
        x = F.silu(self.first(x))
        kernel, places = x.new_zeros([x.shape[1], x.shape[1], 1]), torch.arange(x.shape[1])
        kernel[places, places] = 1.0
        return self.last(F.conv1d(x, kernel) * places.float()[:, None].cos())


def test_channels_that_depend_on_their_number_stay():
    graph = pruned_as_silenced(Counting, 1, 5, 8)
    assert "first" in graph.left_whole


class Branching(nn.Module):
    """A width that decides which layers run is put into parts by the root, before an attention of its own class."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.qkv, self.out = 4, nn.Linear(12, 3 * 32), nn.Linear(32, 12)
            self.register_buffer("turn", torch.randn(8))

        def forward(self, x):
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
            y = F.scaled_dot_product_attention(q * self.turn.cos(), k * self.turn.cos(), v)
            return x + self.out(y.transpose(1, 2).flatten(2))

    def __init__(self):
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(5, 12), self.Attention(), nn.Linear(12, 3)
        self.parts = nn.Linear(4, 2 * 12)

    def forward(self, x):
        x, parts = self.first(x), self.parts(x[:, :, :4])
        if x.shape[-1] > 11:
            shift, scale = parts.unflatten(-1, (2, -1)).unbind(-2)
            x = x * scale + shift
        return self.last(self.attention(x))


def test_how_the_roots_channels_shrink_leaves_other_attentions_alone():
    graph = trace(seeded(Branching), (torch.randn(1, 4, 5),))
    assert "first" in graph.left_whole
    assert graph["attention.qkv"].whole, graph.left_whole
    assert graph["attention.qkv"].rows == 4


class Padded(nn.Module):
    """Flexible attention over a length that is padded, so that the last rows see nothing."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 48), nn.Linear(5, 48), nn.Linear(5, 48), nn.Linear(48, 3)

    def forward(self, x):
        length = x.shape[1]
        q, k, v = (layer(x).unflatten(-1, (-1, 16)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k, v = (F.pad(one, (0, 0, 0, 128 - length)) for one in (q, k, v))
        mask = create_block_mask(lambda b, h, i, j: (i < length) & (j < length), None, None, 128, 128, device="cpu")
        return self.o(flex_attention(q, k, v, block_mask=mask)[:, :, :length].transpose(1, 2).flatten(2))


def test_rows_of_a_flexible_attention_that_see_nothing_are_no_fault():
    graph = pruned_as_silenced(Padded, 1, 6, 5)
    assert (graph["q"].rows, graph["q"].whole) == (3, True)


class Cycle(nn.Module):
    """A state that starts as zeros like the values, behind a norm and a layer of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.norm, self.back = nn.RMSNorm(12), nn.Linear(12, 12)

    def forward(self, x):
        x = self.first(x)
        before = torch.zeros_like(x)
        for _ in range(2):
            before = F.silu(x + self.back(self.norm(before)))
        return self.last(before)


def test_states_that_start_as_zeros_shrink_with_what_they_are_like():
    graph = pruned_as_silenced(Cycle, 1, 4, 5, exact=False)
    assert {"first", "back"} <= made(graph), graph.left_whole
    assert {"norm", "back"} <= {member.layer for member in graph["first"].members}


class Biased(nn.Module):
    """Attention with a bias for each head, made by a layer; its result is reshaped to its own width, or to its input's."""

    def __init__(self, own_width):
        super().__init__()
        self.own_width, self.heads = own_width, 4
        self.first, self.bias, self.last = nn.Linear(5, 24), nn.Linear(5, 4), nn.Linear(24, 3)
        self.norm_q, self.q, self.k, self.v, self.out = nn.RMSNorm(24), *(nn.Linear(24, 24) for _ in range(4))

    def forward(self, x):
        bias = self.bias(x[:, None] * x[:, :, None]).permute(0, 3, 1, 2)
        x = self.first(x)
        q, k, v = self.norm_q(self.q(x)), self.k(x), self.v(x)
        q, k, v = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
        return self.last(x + self.out(y.flatten(2) if self.own_width else y.reshape(x.shape)))


@pytest.mark.parametrize("own_width", [True, False])
def test_heads_leave_with_their_biases(own_width):
    graph = pruned_as_silenced(lambda: Biased(own_width), 1, 6, 5, exact=False)
    assert {"first", "q", "k", "v", "bias"} <= made(graph), graph.left_whole
    heads = next(group for group in graph if "bias" in group.makers)
    assert heads.size == 4
    assert ("first" in heads.makers) != own_width  # as many of its channels leave as a head has
