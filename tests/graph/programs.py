"""Random networks: short programs of tensor operations between layers, as a research code base might have them.

Every step takes and gives a sequence of shape (batch, 4, width). Sizes are read off the tensors, as code that survives pruning has
to do, or kept from the day when the network was made, as other code does.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

LENGTH = 4


class Program(nn.Module):
    """A network of named steps; layers are made on the first pass, as wide as they have to be."""

    def __init__(self, steps: list[str], seed: int = 0) -> None:
        super().__init__()
        self.steps, self.layers, self.tables = steps, nn.ModuleList(), nn.ParameterList()
        self.sizes: list[int] = []
        self.making = True
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            self(torch.randn(1, LENGTH, 5))
        self.making = False

    def forward(self, x: Tensor) -> Tensor:
        self.place = {"layers": 0, "tables": 0, "sizes": 0}
        x = self.linear(x, 8)
        for step in self.steps:
            if self.size(x.shape[-1] % 4 != 0 or x.shape[-1] > 24):
                x = self.linear(x, 8)
            x = STEPS[step](self, x)
        return self.linear(x, 3)

    def _next(self, kind: str, make: Callable[[], Any]) -> Any:
        known = getattr(self, kind)
        if self.making:
            known.append(make())
        self.place[kind] += 1
        return known[self.place[kind] - 1]

    def layer(self, make: Callable[[], nn.Module]) -> Any:
        return self._next("layers", make)

    def linear(self, x: Tensor, width: int, **options: Any) -> Tensor:
        return self.layer(lambda: nn.Linear(x.shape[-1], width, **options))(x)

    def same(self, x: Tensor, times: int = 1) -> Tensor:
        """A layer as wide as its input, or a multiple."""
        return self.linear(x, times * x.shape[-1])

    def conv(self, x: Tensor, make: Callable[[int], nn.Module]) -> Tensor:
        return self.layer(lambda: make(x.shape[-1]))(x.transpose(1, 2)).transpose(1, 2)

    def image(self, x: Tensor, make: Callable[[int], nn.Module]) -> Tensor:
        """A layer on the positions as a picture of 2×2."""
        picture = x.transpose(1, 2).unflatten(2, (2, 2))
        return self.layer(lambda: make(x.shape[-1]))(picture).flatten(2).transpose(1, 2)

    def table(self, *shape: int) -> Any:
        return self._next("tables", lambda: nn.Parameter(torch.randn(shape)))

    def size(self, value: int) -> int:
        """A size that is kept from the day of making."""
        return int(self._next("sizes", lambda: int(value)))


def gated(net: Program, x: Tensor) -> Tensor:
    value, gate = net.same(x, 2).chunk(2, dim=-1)
    return value * F.gelu(gate)


def thirds(net: Program, x: Tensor) -> Tensor:
    y = net.same(x, 3)
    q, k, v = y.split(y.shape[-1] // 3, dim=-1)
    return q.sigmoid() * k + v


def unequal(net: Program, x: Tensor) -> Tensor:
    y = net.same(x, 2)
    a, b = y[..., : net.size(6)], y[..., net.size(6) :]
    return torch.cat([b, a], -1)


def heads(net: Program, x: Tensor, fused: bool = False, number: int = 2) -> Tensor:
    q, k, v = (net.same(x).unflatten(-1, (number, -1)).transpose(1, 2) for _ in range(3))
    if fused:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    weights = torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def scattered_heads(net: Program, x: Tensor) -> Tensor:
    """Heads are the fast axis."""
    q, k, v = (net.same(x).unflatten(-1, (-1, 2)).permute(0, 3, 1, 2) for _ in range(3))
    return F.scaled_dot_product_attention(q, k, v).permute(0, 2, 3, 1).flatten(2)


def wrongly_merged_heads(net: Program, x: Tensor) -> Tensor:
    y = net.same(x).unflatten(-1, (2, -1))
    return y.transpose(2, 3).flatten(2) + x


def packed_heads(net: Program, x: Tensor) -> Tensor:
    q, k, v = net.same(x, 3).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def one_head(net: Program, x: Tensor) -> Tensor:
    q, k, v = net.same(x, 3).chunk(3, dim=-1)
    weights = torch.einsum("btc,bsc->bts", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bts,bsc->btc", weights.softmax(-1), v)


def linear_attention(net: Program, x: Tensor) -> Tensor:
    q, k, v = (net.same(x).unflatten(-1, (2, -1)) for _ in range(3))
    context = torch.einsum("bthd,bthe->bhde", k.softmax(1), v)
    return torch.einsum("bhde,bthd->bthe", context, q.softmax(-1)).flatten(2)


def channel_attention(net: Program, x: Tensor) -> Tensor:
    q, k, v = (net.same(x) for _ in range(3))
    return v @ torch.softmax(q.transpose(1, 2) @ k, -1).transpose(1, 2)


def torch_attention(net: Program, x: Tensor) -> Tensor:
    mix = net.layer(lambda: nn.MultiheadAttention(x.shape[-1], 2, batch_first=True))
    return x + mix(x, x, x)[0]


def written_in_place(net: Program, x: Tensor) -> Tensor:
    y = net.same(x).clone()
    y[..., 0] = 0.5
    return y


def half_written(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    y[..., : y.shape[-1] // 2] += x[..., : x.shape[-1] // 2]
    return y


def half_written_through_a_view(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    half = y[:, :, : y.shape[-1] // 2]
    half.mul_(2).add_(net.linear(x, net.size(half.shape[-1])))
    return y


def added_in_place(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    y.add_(x).mul_(net.same(x).sigmoid())
    return y


def gathered(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    return y[..., torch.arange(y.shape[-1]).flip(0)] + x


def masked(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    return torch.where(y > 0, y, x).masked_fill(x > 2, 0.25)


def interleaved(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    return torch.cat([y[..., ::2] * y[..., 1::2], y[..., ::2]], -1)


def rotated(net: Program, x: Tensor) -> Tensor:
    """Rotary embedding by pairs."""
    y = net.same(x)
    a, b = y.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-b, a], -1).flatten(2) + y


def rotated_by_halves(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    a, b = y.chunk(2, -1)
    return torch.cat([-b, a], -1) * 0.5 + y


def complex_rotation(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    z = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(z * z.conj()).flatten(2)


def fourier(net: Program, x: Tensor) -> Tensor:
    return torch.fft.rfft(net.same(x), dim=1).abs().mean(1, keepdim=True) + x


def channel_mean(net: Program, x: Tensor) -> Tensor:
    return x + net.same(x).mean(-1, keepdim=True)


def channel_max(net: Program, x: Tensor) -> Tensor:
    return x * net.same(x).amax(-1, keepdim=True).sigmoid()


def channel_norm(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    return y / (1 + y.pow(2).sum(-1, keepdim=True))


def squeezed(net: Program, x: Tensor) -> Tensor:
    return x * net.same(x.mean(1)).sigmoid()[:, None]


def spread(net: Program, x: Tensor) -> Tensor:
    return net.same(x).sum(-1, keepdim=True).expand(-1, -1, x.shape[-1]) + x


def flattened(net: Program, x: Tensor) -> Tensor:
    y = net.linear(x.flatten(1), 4 * LENGTH)
    return y.unflatten(1, (LENGTH, -1))


def mixed_positions(net: Program, x: Tensor) -> Tensor:
    return net.linear(x.transpose(1, 2), LENGTH).transpose(1, 2) + x


def scaled_by_a_table(net: Program, x: Tensor) -> Tensor:
    return net.same(x) * net.table(x.shape[-1]) + net.table(1, LENGTH, x.shape[-1])


def gated_from_zero(net: Program, x: Tensor) -> Tensor:
    gate = net.table(1)
    if net.making:
        nn.init.zeros_(gate)
    y = net.same(x)
    return x + gate * y.mean(-1, keepdim=True)


def product_of_tables(net: Program, x: Tensor) -> Tensor:
    return x @ net.table(x.shape[-1], 8)


def raw_product(net: Program, x: Tensor) -> Tensor:
    layer = net.layer(lambda: nn.Linear(x.shape[-1], 12, bias=False))
    return torch.einsum("btc,oc->bto", x, layer.weight)


def twice(net: Program, x: Tensor) -> Tensor:
    layer = net.layer(lambda: nn.Linear(x.shape[-1], x.shape[-1]))
    return layer(F.silu(layer(x)))


def tied(net: Program, x: Tensor) -> Tensor:
    layer = net.layer(lambda: nn.Linear(x.shape[-1], 12))
    return F.linear(F.silu(layer(x)), layer.weight.t())


def embedded(net: Program, x: Tensor) -> Tensor:
    table = net.layer(lambda: nn.Embedding(LENGTH, x.shape[-1]))
    return x + table(torch.arange(LENGTH))


def remembered(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    return y.view(1, LENGTH, net.size(x.shape[-1])) + x


def remembered_half(net: Program, x: Tensor) -> Tensor:
    y = net.same(x)
    return torch.cat([y[..., : net.size(3)], x], -1)


def remembered_scale(net: Program, x: Tensor) -> Tensor:
    return net.same(x) * net.size(x.shape[-1]) ** -0.5


def scale_of_now(net: Program, x: Tensor) -> Tensor:
    return net.same(x) * x.shape[-1] ** -0.5


def of_now(net: Program, x: Tensor) -> Tensor:
    return x + torch.arange(x.shape[-1]) / 8


def of_the_middle(net: Program, x: Tensor) -> Tensor:
    return x + net.same(x)[..., x.shape[-1] // 2, None]


def recomputed(net: Program, x: Tensor) -> Tensor:
    first = net.layer(lambda: nn.Linear(x.shape[-1], 12))
    second = net.layer(lambda: nn.Linear(12, x.shape[-1]))
    return x + checkpoint(lambda y: second(F.silu(first(y))), x, use_reentrant=bool(net.size(x.shape[-1] % 8 == 0)))


def shuffled(net: Program, x: Tensor) -> Tensor:
    y = F.pixel_shuffle(net.same(x).transpose(1, 2).unflatten(2, (2, 2)), 2)
    return F.pixel_unshuffle(F.silu(y), 2).flatten(2).transpose(1, 2)


def patched(net: Program, x: Tensor) -> Tensor:
    """Two positions become channels, and back."""
    y = net.same(x)
    b, t, c = y.shape
    y = net.linear(y.reshape(b, t // 2, 2 * c), 16)
    return y.reshape(b, t, -1)


def resized(net: Program, x: Tensor) -> Tensor:
    y = F.interpolate(net.same(x).transpose(1, 2), scale_factor=2)
    return F.avg_pool1d(F.silu(y), 2).transpose(1, 2)


def rotary_heads(net: Program, x: Tensor, in_place: bool = False) -> Tensor:
    """Heads whose queries and keys are turned by angles that are computed on the way."""
    q, k, v = (net.same(x).unflatten(-1, (2, -1)).transpose(1, 2) for _ in range(3))
    width = net.size(q.shape[-1] // 2)
    angle = torch.arange(LENGTH)[:, None] / torch.arange(1, width + 1)
    cos, sin = angle.cos(), angle.sin()

    def turned(y: Tensor) -> Tensor:
        if in_place:
            out = torch.empty_like(y)
            out[..., 0::2] = y[..., 0::2] * cos - y[..., 1::2] * sin
            out[..., 1::2] = y[..., 0::2] * sin + y[..., 1::2] * cos
            return out
        a, b = y.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    return F.scaled_dot_product_attention(turned(q), turned(k), v).transpose(1, 2).flatten(2)


def shared_keys(net: Program, x: Tensor, repeated: bool = False) -> Tensor:
    """Two queries for each key."""
    width = net.size(x.shape[-1] // 4)
    q, k, v = (
        y.unflatten(-1, (-1, width)).transpose(1, 2)
        for y in (net.same(x), net.linear(x, 2 * width), net.linear(x, 2 * width))
    )
    if repeated:
        k, v = (y.repeat_interleave(q.shape[1] // k.shape[1], 1) for y in (k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=not repeated).transpose(1, 2).flatten(2)


def modulated(net: Program, x: Tensor) -> Tensor:
    """A table on a projection, cut into shift, scale and gate."""
    rows = net.same(x.mean(1), 3).unflatten(1, (3, -1)) + net.table(1, 3, x.shape[-1])
    shift, scale, gate = rows.chunk(3, 1)
    return x + gate * net.same(x * (1 + scale) + shift)


def merged_by_width(net: Program, x: Tensor) -> Tensor:
    """Heads are put together by the width of something else."""
    b, n, c = x.shape
    q, k, v = net.same(x, 3).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    return x + net.same(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


def adapted(net: Program, x: Tensor) -> Tensor:
    """A low-rank path besides a layer."""
    return net.linear(x, 12) + 0.5 * (x @ net.table(x.shape[-1], 2) @ net.table(2, 12))


def scaled_weight(net: Program, x: Tensor) -> Tensor:
    """A weight that is divided by the root of its width."""
    weight = net.table(12, x.shape[-1])
    return F.linear(x, weight / weight.shape[1] ** 0.5)


def normed_weight(net: Program, x: Tensor) -> Tensor:
    """A weight whose rows are of length one."""
    return F.linear(net.linear(x.detach(), 12), F.normalize(net.table(12, 12), dim=1))


def diagonal_kernel(net: Program, x: Tensor) -> Tensor:
    """A kernel for each channel alone, built on the way."""
    y = net.same(x).transpose(1, 2)
    kernel = y.new_zeros(y.shape[1], y.shape[1], 3)
    places = torch.arange(y.shape[1])
    kernel[places, places] = torch.tensor([0.25, 0.5, 0.25])
    return F.conv1d(y, kernel, padding=1).transpose(1, 2)


def from_zeros(net: Program, x: Tensor) -> Tensor:
    """A state that starts as zeros like the values."""
    y = net.same(x)
    return y + F.silu(net.same(torch.zeros_like(y)))


def biased_heads(net: Program, x: Tensor) -> Tensor:
    """Attention with a bias for each head that a layer makes."""
    q, k, v = (net.same(x).unflatten(-1, (2, -1)).transpose(1, 2) for _ in range(3))
    bias = net.linear(x, 2).transpose(1, 2).unsqueeze(-1)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(-1, -1, -1, x.shape[1]))
    return y.transpose(1, 2).flatten(2)


def flexible_heads(net: Program, x: Tensor) -> Tensor:
    q, k, v = (net.same(x).unflatten(-1, (2, -1)).transpose(1, 2) for _ in range(3))
    return flex_attention(q, k, v).transpose(1, 2).flatten(2)


def volume(net: Program, x: Tensor) -> Tensor:
    """The positions as a volume of 2×2×1."""
    cube = x.transpose(1, 2).unflatten(2, (2, 2, 1))
    return net.layer(lambda: nn.Conv3d(x.shape[-1], 12, (3, 3, 1), padding=(1, 1, 0)))(cube).flatten(2).transpose(1, 2)


def packed_rows(net: Program, x: Tensor) -> Tensor:
    """Tokens that are written into some rows of a longer sequence, and read from there."""
    y = net.same(x)
    rows = y.new_zeros(len(x), LENGTH + 2, y.shape[-1])
    rows[:, torch.arange(LENGTH) + 1] = y
    return rows[:, torch.tensor([1, 2, 3, 4])] * 2


def joined_rows(net: Program, x: Tensor) -> Tensor:
    """Two kinds of rows that are written, one after the other, into a sequence made of zeros."""
    y, z = net.linear(x, 12), net.linear(x[:, :2], 12)
    joined = y.new_zeros(len(x), LENGTH + 2, y.shape[-1])
    joined[:, :LENGTH] = y
    joined[:, LENGTH:] = z
    return joined[:, 1 : LENGTH + 1]


def filtered(net: Program, x: Tensor) -> Tensor:
    """A fixed filter over channels that are put into the batch."""
    y = net.same(x).transpose(1, 2)
    b, c, n = y.shape
    kernel = torch.tensor([[[0.25, 0.5, 0.25]]])
    return F.conv1d(y.reshape(b * c, 1, n), kernel, padding=1).reshape(b, c, n).transpose(1, 2)


def turned_by_matrices(net: Program, x: Tensor) -> Tensor:
    """Pairs of each head's channels are turned by a matrix for each position, made of a table."""
    q, k, v = (net.same(x).unflatten(-1, (2, -1)) for _ in range(3))
    angle = net.table(LENGTH, net.size(q.shape[-1] // 2))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))[:, None]
    q, k = ((turn * y.unflatten(-1, (-1, 1, 2))).sum(-1).flatten(3) for y in (q, k))
    q, k, v = (y.transpose(1, 2) for y in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def single_key(net: Program, x: Tensor) -> Tensor:
    """Two queries with one key, which has positions of a fixed width."""
    width = net.size(x.shape[-1] // 2)
    q, k, v = (y.unflatten(-1, (-1, width)) for y in (net.same(x), net.linear(x, width), net.linear(x, width)))
    angle = torch.arange(LENGTH)[:, None, None] / torch.arange(1, width + 1)
    q, k, v = ((y * by).transpose(1, 2) for y, by in ((q, angle.cos()), (k, angle.cos()), (v, 1)))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


def flat_normed_weight(net: Program, x: Tensor) -> Tensor:
    """A convolution whose weight is normed as a matrix, with its kernel beside its inputs."""
    weight = net.table(12, x.shape[-1], 3)
    flat = F.normalize(weight.flatten(1), dim=1)
    return F.conv1d(x.transpose(1, 2), flat.view(weight.shape), padding=1).transpose(1, 2)


def scattered_rows(net: Program, x: Tensor) -> Tensor:
    """Rows that are added where numbers say."""
    y = net.linear(x, 12)
    rows = torch.tensor([2, 0, 0, 3])
    added = torch.zeros_like(y).index_add(1, rows, net.linear(x, 12))
    return y.scatter_add(1, rows[None, :, None].expand(y.shape), added)


def skipped_where_equal(net: Program, x: Tensor) -> Tensor:
    """A shortcut that is used only where the widths differ."""
    y, shortcut = net.linear(F.silu(x), 12), net.linear(x, 12)
    return y + (shortcut if x.shape[-1] != y.shape[-1] else x)


def rest_of_heads(net: Program, x: Tensor) -> Tensor:
    """Rotary positions on as much of a head as they are wide, here all of it; the rest is passed on."""
    q, k, v = (net.same(x).unflatten(-1, (2, -1)).transpose(1, 2) for _ in range(3))
    width = net.size(q.shape[-1])
    angle = torch.arange(float(LENGTH))[:, None] * torch.ones(width)

    def turned(h: Tensor) -> Tensor:
        a, b = h[..., :width].chunk(2, -1)
        return torch.cat([h[..., :width] * angle.cos() + torch.cat([-b, a], -1) * angle.sin(), h[..., width:]], -1)

    return F.scaled_dot_product_attention(turned(q), turned(k), v).transpose(1, 2).flatten(2)


STEPS: dict[str, Callable[[Program, Tensor], Tensor]] = {
    "linear": lambda net, x: F.gelu(net.linear(x, 12)),
    "residual": lambda net, x: x + net.same(F.silu(x)),
    "gated": gated,
    "glu": lambda net, x: F.glu(net.same(x, 2), -1),
    "thirds": thirds,
    "unequal": unequal,
    "heads": heads,
    "fused heads": lambda net, x: heads(net, x, fused=True),
    "four heads": lambda net, x: heads(net, x, fused=True, number=4),
    "scattered heads": scattered_heads,
    "wrongly merged heads": wrongly_merged_heads,
    "packed heads": packed_heads,
    "one head": one_head,
    "linear attention": linear_attention,
    "channel attention": channel_attention,
    "torch attention": torch_attention,
    "written in place": written_in_place,
    "half written": half_written,
    "half written through a view": half_written_through_a_view,
    "added in place": added_in_place,
    "gathered": gathered,
    "masked": masked,
    "interleaved": interleaved,
    "rotated": rotated,
    "rotated by halves": rotated_by_halves,
    "complex": complex_rotation,
    "fourier": fourier,
    "channel mean": channel_mean,
    "channel max": channel_max,
    "channel norm": channel_norm,
    "squeezed": squeezed,
    "spread": spread,
    "flattened": flattened,
    "mixed positions": mixed_positions,
    "table": scaled_by_a_table,
    "gated from zero": gated_from_zero,
    "product of tables": product_of_tables,
    "raw product": raw_product,
    "twice": twice,
    "tied": tied,
    "embedded": embedded,
    "remembered": remembered,
    "remembered half": remembered_half,
    "remembered scale": remembered_scale,
    "scale of now": scale_of_now,
    "of now": of_now,
    "of the middle": of_the_middle,
    "recomputed": recomputed,
    "shuffled": shuffled,
    "patched": patched,
    "resized": resized,
    "conv": lambda net, x: net.conv(F.silu(x), lambda c: nn.Conv1d(c, 12, 3, padding=1)),
    "depthwise": lambda net, x: net.conv(x, lambda c: nn.Conv1d(c, c, 3, padding=1, groups=c)),
    "grouped": lambda net, x: net.conv(x, lambda c: nn.Conv1d(c, c, 3, padding=1, groups=2)),
    "transposed": lambda net, x: net.conv(x, lambda c: nn.ConvTranspose1d(c, 12, 3, padding=1)),
    "image": lambda net, x: net.image(F.silu(x), lambda c: nn.Conv2d(c, 12, 3, padding=1)),
    "batch norm": lambda net, x: net.conv(x, nn.BatchNorm1d),
    "flip": lambda net, x: net.same(x) + x.flip(-1),
    "roll": lambda net, x: net.same(x) + x.roll(1, -1),
    "flip positions": lambda net, x: net.same(x) + x.flip(1),
    "skip": lambda net, x: torch.cat([x, net.linear(F.silu(x), 4)], -1),
    "skip twice": lambda net, x: torch.cat([x, net.same(x), x], -1),
    "prefix": lambda net, x: torch.cat([torch.ones_like(x[..., :1]).expand(-1, -1, 4), net.same(x)], -1),
    "padded": lambda net, x: F.pad(net.same(x), (1, 3)),
    "repeated": lambda net, x: net.same(x).repeat(1, 1, 2),
    "repeated each": lambda net, x: net.same(x).repeat_interleave(2, -1),
    "softmax": lambda net, x: net.same(x).softmax(-1) + x,
    "softmax over positions": lambda net, x: net.same(x).softmax(1) * x,
    "cumulated": lambda net, x: net.same(x).cumsum(-1) + x,
    "cumulated positions": lambda net, x: net.same(x).cumsum(1) + x,
    "sorted": lambda net, x: net.same(x).sort(-1).values,
    "prelu": lambda net, x: net.conv(x, nn.PReLU),
    "outer": lambda net, x: torch.einsum("btc,btd->btcd", net.linear(x, 4), net.linear(x, 4)).flatten(2),
    "tiled": lambda net, x: net.same(x).tile(2),
    "meshed": lambda net, x: (net.linear(x, 4)[..., None] + net.linear(x, 4)[..., None, :]).flatten(2),
    "lerp": lambda net, x: torch.lerp(net.same(x), x, net.same(x).sigmoid()),
    "addcmul": lambda net, x: torch.addcmul(x, net.same(x), net.same(x)),
    "narrow": lambda net, x: net.same(x, 2).narrow(-1, 2, net.size(x.shape[-1])) * 2,
    "swapped": lambda net, x: torch.cat(net.same(x).chunk(2, -1)[::-1], -1) + x,
    "minimum": lambda net, x: torch.minimum(net.same(x), x),
    "rotary heads": rotary_heads,
    "rotary heads in place": lambda net, x: rotary_heads(net, x, in_place=True),
    "shared keys": shared_keys,
    "repeated keys": lambda net, x: shared_keys(net, x, repeated=True),
    "modulated": modulated,
    "merged by width": merged_by_width,
    "adapted": adapted,
    "scaled weight": scaled_weight,
    "normed weight": normed_weight,
    "diagonal kernel": diagonal_kernel,
    "from zeros": from_zeros,
    "biased heads": biased_heads,
    "flexible heads": flexible_heads,
    "rest of heads": rest_of_heads,
    "packed rows": packed_rows,
    "joined rows": joined_rows,
    "filtered": filtered,
    "turned by matrices": turned_by_matrices,
    "single key": single_key,
    "flat normed weight": flat_normed_weight,
    "scattered rows": scattered_rows,
    "skipped where equal": skipped_where_equal,
    "volume": volume,
    "transposed image": lambda net, x: net.image(x, lambda c: nn.ConvTranspose2d(c, 12, 3, padding=1)),
    "grouped image": lambda net, x: net.image(x, lambda c: nn.Conv2d(c, c, 3, padding=1, groups=4)),
    "spectral norm": lambda net, x: net.layer(
        lambda: parametrizations.spectral_norm(nn.Linear(x.shape[-1], 12)).eval()
    )(x),
    "weight norm": lambda net, x: net.layer(lambda: parametrizations.weight_norm(nn.Linear(x.shape[-1], 12)))(x),
    "clamped": lambda net, x: net.same(x).clamp(-1, 1) * x.detach(),
}
