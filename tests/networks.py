"""Tiny networks that the tests of graphs, costs, searches and files share; each has something that pruning can get wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

UNET_CONFIG = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


@dataclass(frozen=True, eq=False)
class Network:
    """A network in eval mode and the arguments of one forward pass."""

    model: Any
    inputs: Any


def unet(**changes: Any) -> nn.Module:
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return UNet2DModel(**{**UNET_CONFIG, **changes}).eval()


def unet_inputs(seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"sample": torch.randn(1, 1, 8, 8, generator=generator), "timestep": torch.tensor([7])}


def without_norms(model: nn.Module) -> nn.Module:
    """The same network with identities for its norms: then no channel depends on which others exist."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm | nn.LayerNorm):
                setattr(module, name, nn.Identity())
    return model


def unfused_attention(model: nn.Module) -> nn.Module:
    """The same network with attention as plain matrix products."""
    from diffusers.models.attention_processor import AttnProcessor

    for module in model.modules():
        if type(module).__name__ == "Attention":
            module.set_processor(AttnProcessor())
    return model


class ConvNet(nn.Module):
    """Batch norms, a depthwise and a transposed convolution, and a linear layer behind a flattening."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=8) if middle is None else middle
        self.norm2 = nn.BatchNorm2d(self.middle.out_channels)
        self.down = nn.Conv2d(self.middle.out_channels, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.hidden = nn.Linear(6 * 8 * 8, 10)
        self.out = nn.Linear(10, 4)
        for norm in (self.norm1, self.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm1(self.first(x)))
        x = F.relu(self.norm2(self.middle(x)))
        x = F.relu(self.up(F.relu(self.down(x))))
        return self.out(F.relu(self.hidden(x.flatten(1))))


class Mlp(nn.Module):
    """A layer norm and a residual sum."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.norm = nn.LayerNorm(width)
        self.second = nn.Linear(width, width)
        self.wide = nn.Linear(width, 10)
        self.out = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(F.gelu(self.first(x)))
        return self.out(F.gelu(self.wide(h + F.gelu(self.second(h)))))


class Embedded(nn.Module):
    """An embedding that is added to a linear layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.first = nn.Linear(4, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.first(x) + self.table(label)))


class TwoNorms(nn.Module):
    """Two group norms of different numbers of groups over the same channels; no concatenation."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1 = nn.GroupNorm(4, 16) if norm is None else norm
        self.norm2 = nn.GroupNorm(8, 16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.norm3 = nn.GroupNorm(4, 16)
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm2(F.silu(self.norm1(self.first(x))))
        return self.out(F.silu(self.norm3(self.second(F.silu(x)))))


class SelfAttention(nn.Module):
    """Attention of one's own: with heads a reshape hides them; as plain products, no counter's formula is the layer's."""

    def __init__(self, heads: int = 2, normed: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, heads > 1
        self.first = nn.Linear(5, 8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.GroupNorm(4, 8) if normed else nn.Identity()
        self.merge = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        q, k, v = self.query(x), self.key(x), self.norm(self.value(x).transpose(1, 2)).transpose(1, 2)
        if not self.fused:
            return self.out(x + self.merge(torch.softmax(q @ k.transpose(1, 2) * 0.3, -1) @ v))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return self.out(x + self.merge(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().eval()


def image() -> torch.Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


NETWORKS: dict[str, Callable[[], Network]] = {
    "unet": lambda: Network(unet(), unet_inputs()),
    "unet-one-head": lambda: Network(unet(attention_head_dim=None), unet_inputs()),
    "unet-resnet-resampling": lambda: Network(
        unet(
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            downsample_type="resnet",
        ),
        unet_inputs(),
    ),
    "unet-scale-shift": lambda: Network(unet(resnet_time_scale_shift="scale_shift"), unet_inputs()),
    "unet-attention-norms": lambda: Network(unet(attn_norm_num_groups=2), unet_inputs()),
    "unet-unfused": lambda: Network(unfused_attention(unet(attention_head_dim=None)), unet_inputs()),
    "unet-normless": lambda: Network(without_norms(unet()), unet_inputs()),
    "unet-normless-one-head": lambda: Network(without_norms(unet(attention_head_dim=None)), unet_inputs()),
    "conv": lambda: Network(_seeded(ConvNet), (image(),)),
    "mlp": lambda: Network(_seeded(Mlp), (rows(1, 6),)),
    "embedding": lambda: Network(_seeded(Embedded), (rows(1, 4), torch.tensor([2]))),
    "two-norms": lambda: Network(_seeded(TwoNorms), (image(),)),
    "products": lambda: Network(_seeded(lambda: SelfAttention(heads=1)), (rows(1, 4, 5),)),
}
