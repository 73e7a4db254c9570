"""The published CIFAR-10 setting of the multi-stage framework (arXiv:2312.09181): parameters and MACs of every stage.

The paper gives an encoder of 128 and decoders of 192, 128 and 16 from low to high noise, and 169M, 108M and 47M parameters for the
encoder plus each decoder, in its DPM-Solver network. That is score_sde's DDPM++ with eight residual blocks at each of four
resolutions. diffusers' blocks have a slightly different layout, and the variants show the cost of each difference.

    python benchmarks/multi_decoder.py
"""

from typing import Any

import torch
from _manifest import REPORTS, markdown_table, publish
from cifar_unet import CIFAR_UNET

from prunekit._files import atomic_path
from prunekit.choices import Middle
from prunekit.groups import TimestepGroups
from prunekit.nets import MultiDecoderUNet

PUBLISHED = (169, 108, 47)  # million parameters, low to high noise
CUTS = (442, 631)  # of 1,000; the paper's 0.442 and 0.631 of T
FOLDER = REPORTS.parent / "multistage"
_BETWEEN = {"downsample_type": "resnet", "upsample_type": "resnet"}
VARIANTS: dict[str, tuple[Middle, dict[str, Any]]] = {
    "shared middle block, 8 blocks a resolution, residual blocks between (DDPM++'s way)": (
        "shared",
        {"layers_per_block": 8, **_BETWEEN},
    ),
    "the same, strided convolutions between": ("shared", {"layers_per_block": 8}),
    "the same, 2 blocks a resolution (DDPM's)": ("shared", {"layers_per_block": 2}),
    "own middle blocks, 8 blocks a resolution, residual blocks between": ("own", {"layers_per_block": 8, **_BETWEEN}),
    "own middle blocks, strided convolutions between": ("own", {"layers_per_block": 8}),
}


def decoder_widths(width: int) -> list[int]:
    """The decoder of a base width, with the multipliers of the CIFAR-10 U-Net."""
    return [width * full // CIFAR_UNET["block_out_channels"][0] for full in CIFAR_UNET["block_out_channels"]]


def measured(middle: Middle, changes: dict[str, Any]) -> dict[str, Any]:
    """Parameters and MACs of every stage, low to high noise, and of the whole network."""
    groups = TimestepGroups.from_cuts(1000, CUTS)
    with torch.device("meta"):
        net = MultiDecoderUNet(
            {**CIFAR_UNET, **changes}, groups, [decoder_widths(width) for width in (192, 128, 16)], middle
        )
    net = net.to_empty(device="cpu").eval()
    stages = [net.stage(group.index) for group in groups]
    return {
        "params": [sum(parameter.numel() for parameter in stage.parameters()) for stage in stages],
        "macs": list(net.stage_macs()),
        "all_params": sum(parameter.numel() for parameter in net.parameters()),
        "encoder_params": sum(parameter.numel() for parameter in net.encoder.parameters()),
    }


def main() -> None:
    torch.set_num_threads(1)
    figures = {name: measured(*variant) for name, variant in VARIANTS.items()}
    rows = [["the paper's", *(f"{millions}" for millions in PUBLISHED), "–", "–", "–", "–", "–"]]
    for name, found in figures.items():
        params = [f"{count / 1e6:.1f}" for count in found["params"]]
        macs = [f"{count / 1e9:.2f}" for count in found["macs"]]
        rows.append([name, *params, *macs, f"{found['all_params'] / 1e6:.1f}", f"{found['encoder_params'] / 1e6:.1f}"])
    header = [
        "layout",
        *(f"{level} noise: parameters (M)" for level in ("low", "middle", "high")),
        *(f"{level} noise: GMACs" for level in ("low", "middle", "high")),
        "all parameters (M)",
        "encoder alone (M)",
    ]
    text = (
        "# The published CIFAR-10 setting: one encoder of 128, decoders of 192, 128 and 16\n\n"
        "Encoder plus decoder of every stage, 32×32 images, channel multipliers 1, 2, 2, 2, attention at 16×16. Parameters are "
        "counted on the built networks, MACs by one forward pass. Made by `python benchmarks/multi_decoder.py`.\n\n"
    )
    publish("multi_decoder", {"published": PUBLISHED, "variants": figures}, FOLDER)
    with atomic_path(FOLDER / "multi_decoder.md") as part:
        part.write_text(text + markdown_table(header, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
