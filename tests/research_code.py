"""More small networks like those of research code, as deep as the real ones; written from descriptions of their blocks.

Of guided-diffusion and of EDM, the ladders here are as deep as published models, made of the blocks of :mod:`manners`. In
the manner of score_sde: linear layers applied by ``einsum`` over (in, out) weights, fixed low-pass filters over a reshaped
batch, shortcuts chosen by remembered widths. Of DDIM (and Diff-Pruning): attention that is reshaped by its queries' width.
Of EDM2: weights that are normalised where they are used, sums and concatenations that preserve magnitude. Of U-ViT: long
skips through linear layers.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from manners import (
    AttentionBlock,
    EdmConv,
    EdmLinear,
    EdmNetwork,
    EdmNorm,
    FoldedAttention,
    Resample,
    ResBlock,
    UNetBlock,
    sinusoid,
)
from torch import Tensor, nn


class GuidedLadder(nn.Module):
    """Four resolutions of two blocks, attention at the lowest two."""

    def __init__(  # noqa: C901 - one ladder, read from top to bottom
        self,
        width: int = 16,
        multiples: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        heads: int = 2,
        scale_shift: bool = True,
        attention: type[FoldedAttention] = FoldedAttention,
        resblock_updown: bool = True,
    ) -> None:
        super().__init__()
        self.width, emb = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, width, 3, padding=1)])])
        self.output_blocks = nn.ModuleList()
        now, skips = width, [width]

        def resampling(up: bool) -> nn.Module:
            if resblock_updown:
                return ResBlock(now, emb, now, scale_shift, "up" if up else "down")
            return Resample(now, up)

        for level, multiple in enumerate(multiples):
            for _ in range(blocks):
                layers: list[nn.Module] = [ResBlock(now, emb, multiple * width, scale_shift)]
                now = multiple * width
                if level >= len(multiples) - 2:
                    layers.append(AttentionBlock(now, heads, attention))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(now)
            if level < len(multiples) - 1:
                self.input_blocks.append(nn.ModuleList([resampling(up=False)]))
                skips.append(now)
        self.middle = nn.ModuleList(
            [
                ResBlock(now, emb, now, scale_shift),
                AttentionBlock(now, heads, attention),
                ResBlock(now, emb, now, scale_shift),
            ]
        )
        for level, multiple in reversed(list(enumerate(multiples))):
            for block in range(blocks + 1):
                layers = [ResBlock(now + skips.pop(), emb, multiple * width, scale_shift)]
                now = multiple * width
                if level >= len(multiples) - 2:
                    layers.append(AttentionBlock(now, heads, attention))
                if level and block == blocks:
                    layers.append(resampling(up=True))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(4, now), nn.SiLU(), nn.Conv2d(now, 6, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        emb = self.time_embed(sinusoid(timesteps, self.width))

        def run(layers: Any, h: Tensor) -> Tensor:
            for layer in layers:
                h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
            return h

        h, skips = x, []
        for layers in self.input_blocks:
            h = run(layers, h)
            skips.append(h)
        h = run(self.middle, h)
        for layers in self.output_blocks:
            h = run(layers, torch.cat([h, skips.pop()], dim=1))
        return self.out(h)


class EdmLadder(EdmNetwork):
    """Four resolutions of two blocks; ``adaptive`` as in ADM's settings, otherwise as in those of DDPM++."""

    def __init__(
        self,
        width: int = 16,
        multiples: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        heads: int = 2,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        self.width, emb = width, 4 * width
        self.map0, self.map1 = EdmLinear(width, emb), EdmLinear(emb, emb)
        self.enc, self.dec = nn.ModuleDict({"conv": EdmConv(3, width, 3)}), nn.ModuleDict()
        now, skips = width, [width]
        for level, multiple in enumerate(multiples):
            if level:
                self.enc[f"{level}_down"] = UNetBlock(now, now, emb, down=True, adaptive=adaptive)
                skips.append(now)
            for index in range(blocks):
                attends = heads if level == 1 else 0
                self.enc[f"{level}_block{index}"] = UNetBlock(now, multiple * width, emb, attends, adaptive=adaptive)
                now = multiple * width
                skips.append(now)
        for level, multiple in reversed(list(enumerate(multiples))):
            if level == len(multiples) - 1:
                self.dec[f"{level}_in0"] = UNetBlock(now, now, emb, heads, adaptive=adaptive)
                self.dec[f"{level}_in1"] = UNetBlock(now, now, emb, adaptive=adaptive)
            else:
                self.dec[f"{level}_up"] = UNetBlock(now, now, emb, up=True, adaptive=adaptive)
            for index in range(blocks + 1):
                attends = heads if level == 1 and index == blocks else 0
                self.dec[f"{level}_block{index}"] = UNetBlock(
                    now + skips.pop(), multiple * width, emb, attends, adaptive=adaptive
                )
                now = multiple * width
        self.out_norm, self.out_conv = EdmNorm(now), EdmConv(now, 3, 3)


class Nin(nn.Module):
    """A linear layer over channels whose weight is (in, out)."""

    def __init__(self, in_dim: int, num_units: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(in_dim, num_units) / in_dim**0.5)
        self.b = nn.Parameter(torch.zeros(num_units))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.einsum("bhwc,cd->bhwd", x.permute(0, 2, 3, 1), self.W) + self.b).permute(0, 3, 1, 2)


def filtered(x: Tensor, up: bool) -> Tensor:
    """Resampled by two with a fixed low-pass filter, channel after channel in the batch."""
    batch, channels, height, width = x.shape
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
    kernel = torch.outer(kernel, kernel)[None, None] / 64
    x = x.reshape(batch * channels, 1, height, width)
    if up:
        spread = x.new_zeros(batch * channels, 1, height, 2, width, 2)
        spread[:, :, :, 0, :, 0] = x[:, :]
        x = F.conv2d(F.pad(spread.reshape(-1, 1, 2 * height, 2 * width), (2, 1, 2, 1)), 4 * kernel)
    else:
        x = F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, stride=2)
    return x.reshape(batch, channels, x.shape[2], x.shape[3])


class ScoreAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(4, channels, eps=1e-6)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (Nin(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.GroupNorm_0(x)
        q, k, v = self.NIN_0(y), self.NIN_1(y), self.NIN_2(y)
        weight = torch.einsum("bchw,bcij->bhwij", q, k) * (int(c) ** (-0.5))
        weight = torch.reshape(weight, (b, h, w, h * w))
        weight = torch.reshape(F.softmax(weight, dim=-1), (b, h, w, h, w))
        y = self.NIN_3(torch.einsum("bhwij,bcij->bchw", weight, v))
        return (x + y) / np.sqrt(2.0)


class ScoreBlock(nn.Module):
    def __init__(self, in_ch: int, out_ch: int, temb: int, up: bool = False, down: bool = False) -> None:
        super().__init__()
        self.in_ch, self.out_ch, self.up, self.down = in_ch, out_ch, up, down
        self.GroupNorm_0, self.Conv_0 = nn.GroupNorm(4, in_ch, eps=1e-6), nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.Dense_0 = nn.Linear(temb, out_ch)
        self.GroupNorm_1, self.Conv_1 = nn.GroupNorm(4, out_ch, eps=1e-6), nn.Conv2d(out_ch, out_ch, 3, padding=1)
        if in_ch != out_ch or up or down:
            self.Conv_2 = nn.Conv2d(in_ch, out_ch, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.up or self.down:
            h, x = filtered(h, self.up), filtered(x, self.up)
        h = self.Conv_0(h)
        h = h + self.Dense_0(F.silu(temb))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        if self.in_ch != self.out_ch or self.up or self.down:
            x = self.Conv_2(x)
        return (x + h) / np.sqrt(2.0)


class ScoreNetwork(nn.Module):
    """NCSN++ with residual progressive input: three resolutions of two blocks, Fourier features of log sigma."""

    def __init__(self, width: int = 16, multiples: tuple[int, ...] = (1, 2, 2), blocks: int = 2) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width) * 16)
        temb = 4 * width
        self.dense = nn.Sequential(nn.Linear(2 * width, temb), nn.SiLU(), nn.Linear(temb, temb))
        self.first, now, skips = nn.Conv2d(3, width, 3, padding=1), width, [width]
        down, up = nn.ModuleList(), nn.ModuleList()
        for level, multiple in enumerate(multiples):
            for _ in range(blocks):
                attends = ScoreAttention(multiple * width) if level == 1 else nn.Identity()
                down.append(nn.ModuleList([ScoreBlock(now, multiple * width, temb), attends]))
                now = multiple * width
                skips.append(now)
            if level < len(multiples) - 1:
                shrink = ScoreBlock(now, now, temb, down=True)
                down.append(nn.ModuleList([shrink, nn.Conv2d(3, now, 1)]))
                skips.append(now)
        self.down = down
        self.middle0, self.attention = ScoreBlock(now, now, temb), ScoreAttention(now)
        self.middle1 = ScoreBlock(now, now, temb)
        for level, multiple in reversed(list(enumerate(multiples))):
            for _ in range(blocks + 1):
                up.append(ScoreBlock(now + skips.pop(), multiple * width, temb))
                now = multiple * width
            if level:
                up.append(ScoreBlock(now, now, temb, up=True))
        self.up = up
        self.norm, self.last = nn.GroupNorm(4, now, eps=1e-6), nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        angles = torch.log(sigma)[:, None] * self.frequencies[None, :] * 2 * np.pi
        temb = self.dense(torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1))
        pyramid, h = x, self.first(x)
        skips = [h]
        for block, side in self.down:
            h = block(h, temb)
            if isinstance(side, nn.Conv2d):
                pyramid = filtered(pyramid, up=False)
                h = h + side(pyramid)
            else:
                h = side(h)
            skips.append(h)
        h = self.middle1(self.attention(self.middle0(h, temb)), temb)
        for block in self.up:
            h = block(h, temb) if block.up else block(torch.cat([h, skips.pop()], dim=1), temb)
        return self.last(F.silu(self.norm(h))) / sigma[:, None, None, None]


class DdimBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, temb: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.norm1, self.conv1 = nn.GroupNorm(4, in_channels, eps=1e-6), nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        self.temb_proj = nn.Linear(temb, out_channels)
        self.norm2, self.conv2 = nn.GroupNorm(4, out_channels, eps=1e-6), nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h + self.temb_proj(F.silu(temb))[:, :, None, None])))
        if self.in_channels != self.out_channels:
            x = self.nin_shortcut(x)
        return x + h


class DdimAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = self.q(y), self.k(y), self.v(y)
        b, c, h, w = q.shape
        weight = torch.bmm(q.reshape(b, c, h * w).permute(0, 2, 1), k.reshape(b, c, h * w)) * (int(c) ** (-0.5))
        weight = F.softmax(weight, dim=2).permute(0, 2, 1)
        return x + self.proj_out(torch.bmm(v.reshape(b, c, h * w), weight).reshape(b, c, h, w))


class DdimUNet(nn.Module):
    """Four resolutions of two blocks, attention at the second."""

    def __init__(self, width: int = 16, multiples: tuple[int, ...] = (1, 2, 2, 2), blocks: int = 2) -> None:
        super().__init__()
        self.ch, temb, top = width, 4 * width, len(multiples) - 1
        self.dense = nn.ModuleList([nn.Linear(width, temb), nn.Linear(temb, temb)])
        self.conv_in, now, skips = nn.Conv2d(3, width, 3, padding=1), width, [width]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, multiple in enumerate(multiples):
            rung = nn.ModuleDict({"block": nn.ModuleList(), "attn": nn.ModuleList()})
            for _ in range(blocks):
                rung["block"].append(DdimBlock(now, multiple * width, temb))
                now = multiple * width
                skips.append(now)
                if level == 1:
                    rung["attn"].append(DdimAttention(now))
            if level < top:
                rung["downsample"] = nn.Conv2d(now, now, 3, stride=2)
                skips.append(now)
            self.down.append(rung)
        self.mid = nn.ModuleDict(
            {"block_1": DdimBlock(now, now, temb), "attn_1": DdimAttention(now), "block_2": DdimBlock(now, now, temb)}
        )
        for level, multiple in reversed(list(enumerate(multiples))):
            rung = nn.ModuleDict({"block": nn.ModuleList(), "attn": nn.ModuleList()})
            for _ in range(blocks + 1):
                rung["block"].append(DdimBlock(now + skips.pop(), multiple * width, temb))
                now = multiple * width
                if level == 1:
                    rung["attn"].append(DdimAttention(now))
            if level:
                rung["upsample"] = nn.Conv2d(now, now, 3, padding=1)
            self.up.append(rung)
        self.norm_out, self.conv_out = nn.GroupNorm(4, now, eps=1e-6), nn.Conv2d(now, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = self.dense[1](F.silu(self.dense[0](sinusoid(t, self.ch))))
        skips = [self.conv_in(x)]
        for rung in self.down:
            for index, block in enumerate(rung["block"]):
                h = block(skips[-1], temb)
                skips.append(rung["attn"][index](h) if len(rung["attn"]) else h)
            if "downsample" in rung:
                skips.append(rung["downsample"](F.pad(skips[-1], (0, 1, 0, 1))))
        h = self.mid["block_2"](self.mid["attn_1"](self.mid["block_1"](skips[-1], temb)), temb)
        for rung in self.up:
            for index, block in enumerate(rung["block"]):
                h = block(torch.cat([h, skips.pop()], dim=1), temb)
                h = rung["attn"][index](h) if len(rung["attn"]) else h
            if "upsample" in rung:
                h = rung["upsample"](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))


def unit(x: Tensor, dims: list[int] | None = None, eps: float = 1e-4) -> Tensor:
    """Scaled to root mean square 1 over ``dims``, all but the first if None."""
    dims = list(range(1, x.ndim)) if dims is None else dims
    length = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    length = torch.add(eps, length, alpha=np.sqrt(length.numel() / x.numel()))
    return x / length.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return a.lerp(b, t) / np.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    wide_a, wide_b = a.shape[1], b.shape[1]
    whole = np.sqrt((wide_a + wide_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([whole / np.sqrt(wide_a) * (1 - t) * a, whole / np.sqrt(wide_b) * t * b], dim=1)


class MpConv(nn.Module):
    """A convolution or a linear layer without bias, whose weights are normalised where they are used."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        w = unit(self.weight.to(torch.float32))
        w = (w * (gain / np.sqrt(w[0].numel()))).to(x.dtype)
        return x @ w.t() if w.ndim == 2 else F.conv2d(x, w, padding=(w.shape[-1] // 2,))


class MpBlock(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb: int,
        flavor: str,
        resample: str = "keep",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels, self.flavor, self.resample_mode = out_channels, flavor, resample
        self.num_heads = out_channels // 8 if attention else 0
        self.emb_gain = nn.Parameter(torch.ones([]))
        self.conv_res0 = MpConv(out_channels if flavor == "enc" else in_channels, out_channels, (3, 3))
        self.emb_linear = MpConv(emb, out_channels, ())
        self.conv_res1 = MpConv(out_channels, out_channels, (3, 3))
        self.conv_skip = MpConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        self.attn_qkv = MpConv(out_channels, 3 * out_channels, (1, 1)) if attention else None
        self.attn_proj = MpConv(out_channels, out_channels, (1, 1)) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample_mode != "keep":
            kernel = x.new_full((x.shape[1], 1, 2, 2), 0.25 if self.resample_mode == "down" else 1.0)
            move = F.conv2d if self.resample_mode == "down" else F.conv_transpose2d
            x = move(x, kernel, groups=x.shape[1], stride=2)
        if self.flavor == "enc":
            x = unit(self.conv_skip(x) if self.conv_skip is not None else x, [1])
        y = self.conv_res0(mp_silu(x))
        c = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = self.conv_res1(mp_silu(y * c[:, :, None, None].to(y.dtype)))
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, t=0.3)
        if self.attn_qkv is not None and self.attn_proj is not None:
            y = self.attn_qkv(x)
            y = y.reshape(y.shape[0], self.num_heads, -1, 3, y.shape[2] * y.shape[3])
            q, k, v = unit(y, [2]).unbind(3)
            weight = torch.einsum("nhcq,nhck->nhqk", q, k / np.sqrt(q.shape[2])).softmax(dim=3)
            x = mp_sum(x, self.attn_proj(torch.einsum("nhqk,nhck->nhcq", weight, v).reshape(*x.shape)), t=0.3)
        return x.clip_(-256, 256)


class MpUNet(nn.Module):
    """Three resolutions of two blocks, attention at the lower two."""

    def __init__(self, width: int = 16, multiples: tuple[int, ...] = (1, 2, 2), blocks: int = 2) -> None:
        super().__init__()
        emb = width * max(multiples)
        self.register_buffer("freqs", 2 * np.pi * torch.randn(width))
        self.register_buffer("phases", 2 * np.pi * torch.rand(width))
        self.emb_noise = MpConv(width, emb, ())
        self.enc, self.dec = nn.ModuleDict({"conv": MpConv(4, width, (3, 3))}), nn.ModuleDict()
        now, skips = width, [width]
        for level, multiple in enumerate(multiples):
            if level:
                self.enc[f"{level}_down"] = MpBlock(now, now, emb, "enc", "down")
                skips.append(now)
            for index in range(blocks):
                self.enc[f"{level}_block{index}"] = MpBlock(now, multiple * width, emb, "enc", attention=level > 0)
                now = multiple * width
                skips.append(now)
        for level, multiple in reversed(list(enumerate(multiples))):
            if level == len(multiples) - 1:
                self.dec[f"{level}_in0"] = MpBlock(now, now, emb, "dec", attention=True)
                self.dec[f"{level}_in1"] = MpBlock(now, now, emb, "dec")
            else:
                self.dec[f"{level}_up"] = MpBlock(now, now, emb, "dec", "up")
            for index in range(blocks + 1):
                wide = now + skips.pop()
                self.dec[f"{level}_block{index}"] = MpBlock(wide, multiple * width, emb, "dec", attention=level > 0)
                now = multiple * width
        self.out_gain, self.out_conv = nn.Parameter(torch.ones([])), MpConv(now, 3, (3, 3))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        angles = noise.to(torch.float32).outer(self.freqs.to(torch.float32)) + self.phases.to(torch.float32)
        emb = mp_silu(self.emb_noise((angles.cos() * np.sqrt(2)).to(x.dtype)))
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, block in self.enc.items():
            x = block(x) if name == "conv" else block(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop())
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)


class ViTBlock(nn.Module):
    """U-ViT's block: a long skip through a linear layer, attention reshaped by the residual's width, an MLP."""

    def __init__(self, width: int, heads: int, skip: bool, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.fused, self.scale = heads, fused, (width // heads) ** -0.5
        self.norm1, self.qkv, self.proj = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width),
        )
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        return self._rest(x + self._attention(self.norm1(x)))

    def _rest(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def _attention(self, x: Tensor) -> Tensor:
        b, length, c = x.shape
        qkv = self.qkv(x)
        if self.fused:
            q, k, v = qkv.reshape(b, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).float().unbind(0)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, length, -1)
        else:
            q, k, v = qkv.reshape(b, length, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
            y = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1) @ v
            y = y.transpose(1, 2).reshape(b, length, c)
        return self.proj(y)


class UViT(nn.Module):
    """Thirteen blocks, as the published one for CIFAR-10."""

    def __init__(self, width: int = 32, depth: int = 13, heads: int = 4, patch: int = 2, fused: bool = True) -> None:
        super().__init__()
        self.embed_dim, self.patch = width, patch
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (16 // patch) ** 2, width))
        self.in_blocks, self.mid_block, self.out_blocks = (
            nn.ModuleList([ViTBlock(width, heads, False, fused) for _ in range(depth // 2)]),
            ViTBlock(width, heads, False, fused),
            nn.ModuleList([ViTBlock(width, heads, True, fused) for _ in range(depth // 2)]),
        )
        self.norm, self.decoder_pred = nn.LayerNorm(width), nn.Linear(width, patch * patch * 3)
        self.final_layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        length = x.shape[1]
        x = torch.cat((sinusoid(timesteps, self.embed_dim).unsqueeze(1), x), dim=1) + self.pos_embed
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        x = self.decoder_pred(self.norm(x))[:, 1:, :]
        side, p = int(length**0.5), self.patch
        x = x.reshape(-1, side, side, p, p, 3).permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, side * p, side * p)
        return self.final_layer(x)


def _image(size: int, *time: Any) -> tuple[Tensor, Tensor]:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(4)), torch.tensor(*time)


RESEARCH: dict[str, Any] = {  # what makes the network, and its inputs
    "guided-diffusion": (lambda: GuidedLadder(scale_shift=False, resblock_updown=False), _image(32, [3])),
    "guided-diffusion, scale-shift": (GuidedLadder, _image(32, [3])),
    "EDM, DDPM++": (lambda: EdmLadder(adaptive=False), _image(32, [0.3])),
    "EDM, ADM": (EdmLadder, _image(32, [0.3])),
    "EDM2": (MpUNet, _image(16, [0.3])),
    "score_sde, NCSN++": (ScoreNetwork, _image(16, [0.3])),
    "DDIM, Diff-Pruning": (DdimUNet, _image(32, [3])),
    "U-ViT": (UViT, _image(16, [3])),
    "U-ViT, math attention": (lambda: UViT(fused=False), _image(16, [3])),
}
