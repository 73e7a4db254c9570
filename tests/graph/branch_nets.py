"""Small networks with residual branches of every form, and networks that only look as if they had some."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from networks import Network, rows
from torch import Tensor, nn


class Block(nn.Module):
    """x + f(x), or another function of both."""

    def __init__(self, width: int = 8, join: Callable[[Tensor, Tensor], Tensor] = torch.add) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(width), nn.Linear(width, 12), nn.Linear(12, width)
        self.join = join

    def inner(self, x: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.wide(self.norm(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.inner(x))


class Body(nn.Module):
    """A layer in, some blocks, a layer out."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(5, 8), nn.ModuleList(blocks), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(torch.tanh(x))


class Widening(nn.Module):
    """A branch beside a convolution, and group norms."""

    def __init__(self, into: int = 4, out: int = 8) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, into), nn.Conv2d(into, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(2, out), nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(into, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return (self.shortcut(x) + h) / 2


class BiasApart(nn.Module):
    """A convolution that adds its bias itself, in place."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(out, into, 1, 1) / 2), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight).add_(self.bias.reshape(1, -1, 1, 1))


class WideningInPlace(Widening):
    """The shortcut ends with a sum, and is added to the branch in place."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = BiasApart(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h.add_(self.shortcut(x))


class WideningRows(nn.Module):
    """A linear shortcut of three dimensions, which ends with a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.shortcut = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.narrow(F.gelu(self.wide(x)))


class Shifted(nn.Module):
    """The last norm is shifted by what the input was modulated by, too: one shift for all positions, no stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.time, self.last = nn.Linear(5, 8), nn.Linear(2, 8), nn.Linear(8, 3)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.time(time).unsqueeze(1), torch.tanh(self.time(time)).unsqueeze(1)
        return self.last(self.norm(torch.tanh(self.first(x) + shift)) * scale + shift)


class Wrapped(nn.Module):
    """The input plus all that the network computes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flip(x + self.inner(x), [0])


class Remembering(Body):
    """Computes a table once, and keeps it."""

    def __init__(self) -> None:
        super().__init__(Block())
        self.table: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.table:
            self.table += torch.arange(6.0, device=x.device).neg().exp().split(3)
        return super().forward(x * self.table[0][0].to(x.dtype))


class Images(nn.Module):
    """A convolution in, a block, a convolution out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Conv2d(3, 4, 3, padding=1), block, nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.silu(self.block(self.first(x))))


class Modulated(nn.Module):
    """Two branches with gates that a condition makes, as in a DiT: what makes the numbers of one block is one layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.mix, self.wide, self.narrow = nn.Linear(width, width), nn.Linear(width, 12), nn.Linear(12, width)
        self.condition = nn.Linear(6, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        a, b, gate, d, e, other = self.condition(F.silu(c)).unsqueeze(1).chunk(6, -1)
        x = x + gate * self.mix(self.norm1(x) * (1 + a) + b)
        return x + other * self.narrow(F.gelu(self.wide(self.norm2(x) * (1 + d) + e)))


class Conditioned(nn.Module):
    """Modulated blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.embed, self.last = nn.Linear(5, 8), nn.Linear(2, 6), nn.Linear(8, 3)
        self.blocks = nn.ModuleList([Modulated(), Modulated()])

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x, c = self.first(x), self.embed(c)
        for block in self.blocks:
            x = block(x, c)
        return self.last(x)


class JointAttention(nn.Module):
    """Attention over the tokens of two streams, with a result for each."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv, self.words_qkv = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.out, self.words_out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([self.qkv(x), self.words_qkv(words)], 1).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*both).transpose(1, 2).flatten(2)
        return self.out(mixed[:, : x.shape[1]]), self.words_out(mixed[:, x.shape[1] :])


class TwoStreams(nn.Module):
    """A block of joint attention: both of its sums are outside of the attention."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.words_norm, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), JointAttention(width)
        self.feed, self.words_feed = Block(width), Block(width)

    def forward(self, x: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        mixed, spoken = self.attention(self.norm(x), self.words_norm(words))
        return self.feed(x + mixed), self.words_feed(words + spoken)


class Joint(nn.Module):
    """Two streams whose tokens meet in each block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.words, self.last = nn.Linear(5, 8), nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList([TwoStreams(), TwoStreams()])

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        x, words = self.first(x), self.words(words)
        for block in self.blocks:
            x, words = block(x, words)
        return self.last(torch.cat([x, words], 1).mean(1))


class Parallel(nn.Module):
    """Two branches that read the same and are added together, as in a parallel transformer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.one = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        self.other = nn.Sequential(nn.Linear(width, 10), nn.Tanh(), nn.Linear(10, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.one(h) + self.other(h)


class AddedOutside(nn.Module):
    """The layers are modules; the sums are the holder's."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(5, 8), nn.Linear(8, 3), scale
        self.norm, self.feed = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.scale * self.feed(self.norm(x))
        return self.last(x)


class InPlace(Block):
    """The sum is written into the input."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        x += h
        return x


class WithTime(nn.Module):
    """Features that an embedding is added to: not computed from them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.time, self.last = nn.Linear(5, 8), nn.Linear(2, 8), nn.Linear(8, 3)
        self.more = nn.Linear(8, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.more(F.silu(self.first(x))) + self.time(t).unsqueeze(1)
        return self.last(F.silu(h))


class TwoInputs(nn.Module):
    """A sum of two things that have nothing to do with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last(torch.tanh(self.one(x) + self.other(y)))


class ReadTwice(nn.Module):
    """What is added is read by something else, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        h = self.inner(torch.tanh(x))
        return self.last(torch.cat([x + h, h], -1))


class CalledTwice(nn.Module):
    """One block, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(5, 8), Block(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.block(self.first(x))))


class Denoiser(nn.Module):
    """The network's output is its input and what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(5, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.tanh(self.wide(x)))


def _made(make: Callable[[], nn.Module], *inputs: Tensor) -> Callable[[], Network]:
    def make_one() -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return Network(make().eval(), inputs)

    return make_one


def _picture() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _scaled(x: Tensor, h: Tensor) -> Tensor:
    return (x + 0.5 * h) / 2**0.5


_X = rows(1, 4, 5)

FOUND: dict[str, tuple[Callable[[], Network], dict[str, int]]] = {
    "identity": (_made(lambda: Body(Block(), Block()), _X), {"blocks.0": 1, "blocks.1": 1}),
    "scaled": (_made(lambda: Body(Block(join=_scaled)), _X), {"blocks.0": 1}),
    "subtracted": (_made(lambda: Body(Block(join=torch.sub)), _X), {"blocks.0": 1}),
    "in place": (_made(lambda: Body(InPlace()), _X), {"blocks.0": 1}),
    "shortcut convolution": (_made(lambda: Images(Widening()), _picture()), {"block": 1}),
    "shortcut in place": (_made(lambda: Images(WideningInPlace()), _picture()), {"block": 1}),
    "shortcut of rows": (_made(lambda: Body(Block(), WideningRows()), _X), {"blocks.0": 1, "blocks.1": 1}),
    "computed once": (_made(Remembering, _X), {"blocks.0": 1}),
    "nested": (
        _made(lambda: Body(nn.Sequential(Block(), Block())), _X),
        {"blocks.0": 2, "blocks.0.0": 1, "blocks.0.1": 1},
    ),
    "sum of sums": (_made(lambda: Body(Block(join=lambda x, h: x + (h + torch.tanh(h)))), _X), {"blocks.0": 1}),
    "added outside": (_made(AddedOutside, _X), {"feed": 1}),
    "added outside, scaled": (_made(lambda: AddedOutside(0.3), _X), {"feed": 1}),
    "parallel": (
        _made(lambda: Body(Parallel()), _X),
        {"blocks.0": 2, "blocks.0.one": 1, "blocks.0.other": 1},
    ),
    "modulated": (
        _made(Conditioned, _X, rows(1, 2)),
        {f"blocks.{i}{part}": depth for i in (0, 1) for part, depth in (("", 2), (".mix", 1), (".narrow", 1))},
    ),
    "joint attention": (
        _made(Joint, _X, rows(1, 3, 6)),
        {
            f"blocks.{i}{part}": depth
            for i in (0, 1)
            for part, depth in (("", 4), (".attention", 2), (".feed", 1), (".words_feed", 1))
        },
    ),
}
"""What makes each network, and the modules that hold its branches, with the number of sums."""

NOT_FOUND: dict[str, Callable[[], Network]] = {
    "time embedding": _made(WithTime, _X, rows(1, 2)),
    "two inputs": _made(TwoInputs, _X, rows(1, 4, 5) + 1),
    "read elsewhere": _made(ReadTwice, _X),
    "called twice": _made(CalledTwice, _X),
    "network's output": _made(Denoiser, _X),
    "shift": _made(Shifted, _X, rows(1, 2)),
    "whole network": _made(Wrapped, _X),
}


def network(name: str) -> Any:
    """One of both tables."""
    return FOUND[name][0]() if name in FOUND else NOT_FOUND[name]()


class Reshaping(nn.Module):
    """Reshapes what a projection of a second input makes, by the width of the first, before it is attended to."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.proj, self.leave = nn.Linear(4, 12), nn.Linear(6, 12), nn.Linear(12, 4)
        self.cross = Attending(12)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.enter(x)
        context = self.proj(context).view(len(x), -1, x.shape[-1])
        return self.leave(x + self.cross(x, context))


class Attending(nn.Module):
    """One head of attention to a context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.out = nn.Linear(width, 8), nn.Linear(width, 8), nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        scores = torch.softmax(self.query(x) @ self.key(context).transpose(1, 2), -1)
        return self.out(scores @ context)
