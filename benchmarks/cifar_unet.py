"""The CIFAR-10 DDPM U-Net (the configuration of google/ddpm-cifar10-32) with random weights, for the benchmarks."""

import torch
from torch import Tensor, nn

from prunekit.checkpoint import ModelSpec

CIFAR_UNET = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 32,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}


def cifar_unet(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network in eval mode, and the arguments of one forward pass at batch 1."""
    spec = ModelSpec("UNet2DModel", CIFAR_UNET)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build().eval(), spec.example_inputs()
