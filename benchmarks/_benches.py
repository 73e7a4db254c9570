"""The traced networks, with images, that the search benchmarks use."""

import torch
from cifar_unet import CIFAR_UNET, cifar_unet
from torch import Tensor

from prunekit.checkpoint import Base, ModelSpec
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench
from prunekit.steps.image_choice import images_of


def bench_of(network: str) -> tuple[Bench, Tensor]:
    """``digits``: the embedded base and its images; ``cifar``: random weights and random images, uint8."""
    if network == "digits":
        base = open_base("embedded:digits")
        return Bench.of(base), images_of(base).train.images
    base = Base(cifar_unet()[0], ModelSpec("UNet2DModel", CIFAR_UNET), Parameterization(NoiseSchedule.linear()))
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Bench.of(base), images
