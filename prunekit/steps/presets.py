"""A network for users who have images but no architecture."""

from prunekit.data import ImageSplit

__all__ = ["small_unet"]


def small_unet(images: ImageSplit) -> dict[str, object]:
    """Architecture of a small U-Net for these images: two or three levels, with attention at the coarsest.

    Norm groups have at most 8 channels, so that channels can be pruned in small steps.
    """
    side, channels = images.resolution, images.train.images.shape[1]
    levels = 2 if min(images.size) <= 16 else 3
    widths = [32, 48, 64][:levels]
    return {
        "class": "UNet2DModel",
        "config": {
            "sample_size": side if isinstance(side, int) else list(side),
            "in_channels": channels,
            "out_channels": channels,
            "layers_per_block": 1,
            "block_out_channels": widths,
            "down_block_types": ["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
            "norm_num_groups": 8,
            "attention_head_dim": 8,
        },
    }
