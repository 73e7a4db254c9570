"""Small networks in the manner of improved-/guided-diffusion and of EDM, written from the descriptions of what makes them hard.

In guided-diffusion's manner: blocks that run under a checkpointing autograd function of their own, group norms in float32, a time
embedding that scales and shifts (twice as wide as the channels), attention as a 1-D convolution, a reshape that folds heads into
the batch and a split, resampling that asserts on the width it was made with.

In EDM's manner: convolution, linear and norm classes that are no ``torch.nn`` layers, resampling by a fixed filter tiled over the
channels, skips concatenated when a block's remembered input width says so, attention whose inner channels are reshaped by the
block's own width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoid(t: Tensor, width: int) -> Tensor:
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Recomputed(torch.autograd.Function):
    """Runs a function without a graph, and again with one on the way back."""

    @staticmethod
    def forward(ctx: Any, function: Any, count: int, *values: Tensor) -> Tensor:
        ctx.function, ctx.count, ctx.values = function, count, values
        with torch.no_grad():
            return function(*values[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        values = [value.detach().requires_grad_(True) for value in ctx.values[: ctx.count]]
        with torch.enable_grad():
            out = ctx.function(*values)
        wanted = (*values, *ctx.values[ctx.count :])
        return (None, None, *torch.autograd.grad(out, wanted, gradients, allow_unused=True))


class FloatNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


def norm(channels: int) -> FloatNorm:
    return FloatNorm(4, channels)


class Resample(nn.Module):
    """Up or down by two, with or without a convolution."""

    def __init__(self, channels: int, up: bool, conv: bool = True) -> None:
        super().__init__()
        self.channels, self.up = channels, up
        self.op = nn.Conv2d(channels, channels, 3, padding=1, stride=1 if up else 2) if conv else nn.Identity()
        self.pool = not up and not conv

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.pool else self.op(x)


class ResBlock(nn.Module):
    def __init__(self, channels: int, emb: int, out: int, scale_shift: bool = True, resample: str = "") -> None:
        super().__init__()
        self.channels, self.out_channels, self.scale_shift = channels, out, scale_shift
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.h_resample, self.x_resample = (
            Resample(channels, resample == "up", conv=False) if resample else nn.Identity() for _ in range(2)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return Recomputed.apply(self._forward, 2, x, emb, *self.parameters())

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.h_resample(self.in_layers[:2](x)))
        x = self.x_resample(x)
        shift = self.emb_layers(emb).type(h.dtype)
        while shift.ndim < h.ndim:
            shift = shift[..., None]
        if self.scale_shift:
            scale, shift = torch.chunk(shift, 2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + shift)
        return self.skip(x) + h


class FoldedAttention(nn.Module):
    """Heads in the batch; per head query, key and value follow each other."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        batch, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = qkv.reshape(batch * self.n_heads, ch * 3, length).split(ch, dim=1)
        scale = 1 / math.sqrt(math.sqrt(ch))
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale).float(), dim=-1)
        return torch.einsum("bts,bcs->bct", weight, v).reshape(batch, -1, length)


class PartedAttention(FoldedAttention):
    """All queries first, then all keys, then all values."""

    def forward(self, qkv: Tensor) -> Tensor:
        batch, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = (part.reshape(batch * self.n_heads, ch, length) for part in qkv.chunk(3, dim=1))
        scale = 1 / math.sqrt(math.sqrt(ch))
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale), dim=-1)
        return torch.einsum("bts,bcs->bct", weight, v).reshape(batch, -1, length)


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, heads: int, attention: type[FoldedAttention]) -> None:
        super().__init__()
        self.channels, self.num_heads = channels, heads
        self.norm, self.qkv = norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.attention, self.proj_out = attention(heads), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return Recomputed.apply(self._forward, 1, x, *self.parameters())

    def _forward(self, x: Tensor) -> Tensor:
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        h = self.proj_out(self.attention(self.qkv(self.norm(x))))
        return (x + h).reshape(b, c, *spatial)


class GuidedUNet(nn.Module):
    """Two resolutions, attention at the lower one."""

    def __init__(
        self,
        width: int = 8,
        heads: int = 2,
        scale_shift: bool = True,
        attention: type[FoldedAttention] = FoldedAttention,
        resblock_updown: bool = False,
    ) -> None:
        super().__init__()
        self.width, emb, wide = width, 4 * width, 2 * width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.down1 = ResBlock(width, emb, width, scale_shift)
        self.shrink = ResBlock(width, emb, width, scale_shift, "down") if resblock_updown else Resample(width, up=False)
        self.down2, self.mix = ResBlock(width, emb, wide, scale_shift), AttentionBlock(wide, heads, attention)
        self.middle = ResBlock(wide, emb, wide, scale_shift)
        self.up2, self.mix2 = ResBlock(2 * wide, emb, wide, scale_shift), AttentionBlock(wide, heads, attention)
        self.grow = ResBlock(wide, emb, wide, scale_shift, "up") if resblock_updown else Resample(wide, up=True)
        self.up1 = ResBlock(wide + width, emb, width, scale_shift)
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, 6, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        emb = self.time_embed(sinusoid(timesteps, self.width))

        def resampled(module: nn.Module, h: Tensor) -> Tensor:
            return module(h, emb) if isinstance(module, ResBlock) else module(h)

        h1 = self.down1(self.head(x), emb)
        h2 = self.mix(self.down2(resampled(self.shrink, h1), emb))
        h = self.mix2(self.up2(torch.cat([self.middle(h2, emb), h2], dim=1), emb))
        return self.out(self.up1(torch.cat([resampled(self.grow, h), h1], dim=1), emb))


class EdmLinear(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / in_features**0.5)
        self.bias = nn.Parameter(torch.randn(out_features) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.to(x.dtype).t()).add_(self.bias.to(x.dtype))


class EdmConv(nn.Module):
    """A convolution, a resampling by a fixed filter, or both."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, up: bool = False, down: bool = False) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.up, self.down = in_channels, out_channels, up, down
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = nn.Parameter(torch.randn(shape) / (in_channels * kernel**2) ** 0.5) if kernel else None
        self.bias = nn.Parameter(torch.randn(out_channels) / 4) if kernel else None
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25) if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            f = self.resample_filter.mul(4).tile([self.in_channels, 1, 1, 1])
            x = F.conv_transpose2d(x, f, groups=self.in_channels, stride=2)
        if self.down:
            f = self.resample_filter.tile([self.in_channels, 1, 1, 1])
            x = F.conv2d(x, f, groups=self.in_channels, stride=2)
        if self.weight is not None:
            x = F.conv2d(x, self.weight.to(x.dtype), padding=self.weight.shape[-1] // 2)
            x = x.add_(self.bias.to(x.dtype).reshape(1, -1, 1, 1))
        return x


class EdmNorm(nn.Module):
    def __init__(self, num_channels: int, num_groups: int = 4) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.weight, self.bias = (
            nn.Parameter(torch.rand(num_channels) + 0.5),
            nn.Parameter(torch.randn(num_channels) / 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), 1e-5)


class Weights(torch.autograd.Function):
    """Attention weights in float32, with a gradient of their own."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        w = torch.einsum("ncq,nck->nqk", q.float(), (k / k.shape[1] ** 0.5).float()).softmax(dim=2).to(q.dtype)
        ctx.save_for_backward(q, k, w)
        return w

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> Any:
        q, k, w = ctx.saved_tensors
        db = torch._softmax_backward_data(dw, w, 2, torch.float32)
        scale = k.shape[1] ** 0.5
        return torch.einsum("nck,nqk->ncq", k, db) / scale, torch.einsum("ncq,nqk->nck", q, db) / scale


class UNetBlock(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, emb: int, heads: int = 0, adaptive: bool = True, **resample: bool
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.num_heads, self.adaptive = in_channels, out_channels, heads, adaptive
        self.norm0, self.conv0 = EdmNorm(in_channels), EdmConv(in_channels, out_channels, 3, **resample)
        self.affine = EdmLinear(emb, out_channels * (2 if adaptive else 1))
        self.norm1, self.conv1 = EdmNorm(out_channels), EdmConv(out_channels, out_channels, 3)
        kernel = 1 if in_channels != out_channels else 0
        self.skip = EdmConv(in_channels, out_channels, kernel, **resample) if kernel or resample else None
        if heads:
            self.norm2, self.qkv = EdmNorm(out_channels), EdmConv(out_channels, 3 * out_channels, 1)
            self.proj = EdmConv(out_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        before = x
        x = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(emb)[..., None, None]
        if self.adaptive:
            scale, shift = params.chunk(2, dim=1)
            x = F.silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        else:
            x = F.silu(self.norm1(x.add_(params)))
        x = self.conv1(x)
        x = x.add_(self.skip(before) if self.skip is not None else before) * 0.5**0.5
        if self.num_heads:
            qkv = self.qkv(self.norm2(x))
            q, k, v = qkv.reshape(x.shape[0] * self.num_heads, x.shape[1] // self.num_heads, 3, -1).unbind(2)
            a = torch.einsum("nqk,nck->ncq", Weights.apply(q, k), v)
            x = self.proj(a.reshape(*x.shape)).add_(x) * 0.5**0.5
        return x


class EdmNetwork(nn.Module):
    """What EDM's U-Nets do, however deep: the decoder takes a skip whenever a block remembers a wider input than it is given."""

    def kept(self, skips: list[Tensor]) -> list[Tensor]:
        """What the decoder takes of all that the encoder's blocks gave, the last first."""
        return skips

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        emb = F.silu(self.map1(F.silu(self.map0(sinusoid(noise, self.width)))))
        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        skips = self.kept(skips)
        for block in self.dec.values():
            if x.shape[1] != block.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


class EdmUNet(EdmNetwork):
    """Two resolutions, two skips."""

    def __init__(self, width: int = 8, heads: int = 2, adaptive: bool = True) -> None:
        super().__init__()
        self.width, emb, wide = width, 4 * width, 2 * width
        self.map0, self.map1 = EdmLinear(width, emb), EdmLinear(emb, emb)
        block: Any = UNetBlock
        self.enc = nn.ModuleDict(
            {
                "conv": EdmConv(3, width, 3),
                "block": block(width, width, emb, adaptive=adaptive),
                "down": block(width, width, emb, down=True, adaptive=adaptive),
                "low": block(width, wide, emb, heads, adaptive=adaptive),
            }
        )
        self.dec = nn.ModuleDict(
            {
                "in": block(wide, wide, emb, heads, adaptive=adaptive),
                "low": block(2 * wide, wide, emb, adaptive=adaptive),
                "up": block(wide, wide, emb, up=True, adaptive=adaptive),
                "block": block(wide + width, width, emb, adaptive=adaptive),
            }
        )
        self.out_norm, self.out_conv = EdmNorm(width), EdmConv(width, 3, 3)

    def kept(self, skips: list[Tensor]) -> list[Tensor]:
        return [skips[1], skips[3]]
