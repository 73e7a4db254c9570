"""Encode a folder of pictures once with one of diffusers' VAEs, into arrays of latents that trainings map into memory.

    python recipes/make_latents.py ILSVRC/train data/latents --vae stabilityai/sd-vae-ft-mse --resolution 256

The output is like that of ``make_arrays.py``, except for the images: float16 of shape (count, channels, side, side), the mean of
the posterior, shifted and scaled by the VAE's ``shift_factor`` and ``scaling_factor`` to about unit variance. ``vae.json`` has the
two numbers. Augmentations and draws from the posterior would need encoding at every step, so there are none.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from make_arrays import Part, parser_of, parts_of
from numpy.lib.format import open_memmap
from torch import Tensor

from prunekit._files import atomic_folder, write_json
from prunekit.data.pictures import read_picture
from prunekit.training import to_unit_range


@torch.no_grad()
def encode(vae: torch.nn.Module, pictures: Tensor) -> Tensor:
    """Scaled latents, float32 (batch, channels, height, width), of uint8 pictures (batch, height, width, 3)."""
    config = vae.config
    device = next(vae.parameters()).device
    mean = vae.encode(to_unit_range(pictures.permute(0, 3, 1, 2)).to(device)).latent_dist.mode()
    return (mean - (config.get("shift_factor") or 0.0)).mul(config.scaling_factor).float().cpu()


def write_part(stem: Path, part: Part, vae: torch.nn.Module, side: int, batch: int) -> None:
    """Latents of some pictures and their classes as two files, one batch in memory at a time."""
    files, labels = part
    latents = None
    for start in range(0, len(files), batch):
        pictures = np.stack([colour(read_picture(file, side)) for file in files[start : start + batch]])
        encoded = encode(vae, torch.from_numpy(pictures)).numpy().astype(np.float16)
        if latents is None:
            latents = open_memmap(stem.with_suffix(".npy"), "w+", np.float16, (len(files), *encoded.shape[1:]))
        latents[start : start + batch] = encoded
    if latents is not None:
        latents.flush()
    if labels is not None:
        np.save(stem.with_name(f"{stem.name}-labels.npy"), labels)


def colour(picture: np.ndarray) -> np.ndarray:
    """A grey picture as one of three channels."""
    return picture if picture.shape[-1] == 3 else np.repeat(picture, 3, axis=-1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and encode."""
    parser = parser_of("Encode a folder of pictures by a VAE of diffusers' into arrays of latents.")
    parser.add_argument("--vae", required=True, help="folder or Hub id of an AutoencoderKL")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args(arguments)
    from diffusers import AutoencoderKL  # noqa: PLC0415 - takes seconds, which --help need not wait for

    vae = AutoencoderKL.from_pretrained(args.vae).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    names, *parts = parts_of(args.source, args.held_out, args.share, not args.no_labels)
    with atomic_folder(args.output) as folder:
        for stem, part in zip(("train", "held-out"), parts, strict=True):
            write_part(folder / stem, part, vae, args.resolution, args.batch_size)
        write_json(folder / "classes.json", {"classes": names})
        scale = {name: vae.config.get(name) for name in ("scaling_factor", "shift_factor")}
        write_json(folder / "vae.json", {"vae": args.vae, **scale})


if __name__ == "__main__":
    main()
