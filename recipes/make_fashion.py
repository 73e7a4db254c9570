"""Make the pictures and the base of Fashion-MNIST at 16×16 that prunekit ships.

    python recipes/make_fashion.py --fashion FOLDER --base runs/fashion-base/base.safetensors
    python recipes/make_fashion.py --transformer runs/fashion-dit-base/base.safetensors

FOLDER has the four idx files (``train-`` and ``t10k-images-idx3-ubyte``, ``train-`` and ``t10k-labels-idx1-ubyte``, each ``.gz`` or
not). The first 8,192 training pictures and the first 1,024 test pictures, averaged down to 16×16, go to
``fashion-pictures.npz``. The base is one that ``prunekit run recipes/fashion-base.yaml`` has trained on all 60,000 training
pictures; ``fashion-base.safetensors`` is a copy that names the shipped pictures as its images, so that every command finds them.
The transformer is one that ``prunekit run recipes/fashion-dit-base.yaml`` has trained; ``recipes/fashion-bases/dit.safetensors`` is
such a copy of it in half precision, with its loss on the shipped pictures.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from prunekit._files import atomic_path
from prunekit.checkpoint import Base, load_base, save_base
from prunekit.data import load_images
from prunekit.data.shipped import FASHION, pictures_file
from prunekit.groups import make_groups
from prunekit.importance import Probe
from prunekit.steps.image_choice import images_of
from prunekit.steps.objectives import objective_for

TRAIN, TEST, SIDE, DRAWS = 8192, 1024, 16, 256
BASES = Path(__file__).with_name("fashion-bases")


def make_pictures(folder: Path, path: Path) -> None:
    """Write the pictures and their classes, with the names of Keras's file of MNIST."""
    split = load_images(str(folder), SIDE, labels=True)
    parts = {"train": (split.train, TRAIN), "test": (split.held_out, TEST)}
    arrays: dict[str, np.ndarray] = {}
    for name, (images, count) in parts.items():
        if images.labels is None:
            raise ValueError("idx files with classes always have labels")
        arrays[f"x_{name}"] = images.images[:count, 0].numpy()
        arrays[f"y_{name}"] = images.labels[:count].numpy().astype(np.uint8)
    with atomic_path(path) as part, part.open("wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)


def make_base(source: Path, output: Path) -> None:
    """Copy a trained base and its manifest; the base then names the shipped pictures."""
    save_base(_of_shipped_pictures(load_base(source)), output / "fashion-base.safetensors")
    shutil.copyfile(source.parent / "manifest.json", output / "fashion-base.json")


def make_transformer(source: Path, output: Path) -> None:
    """Copy a trained transformer in half precision, with its loss, and its manifest."""
    base = _of_shipped_pictures(load_base(source))
    base.model.half().float()
    provenance = {**base.provenance, "held_out_loss": held_out_loss(base)}
    save_base(replace(base, model=base.model.half(), provenance=provenance), output / "dit.safetensors")
    shutil.copyfile(source.parent / "manifest.json", output / "dit.json")


def held_out_loss(base: Base) -> list[float]:
    """Denoising loss of the cleaner and of the noisier half of the timesteps, on the held-out shipped pictures with fixed noise."""
    objective = objective_for(images_of(base).held_out, base.spec, base.parameterization)
    return [Probe(objective, group, DRAWS, DRAWS, 0).mean(base.model) for group in make_groups(base.schedule, count=2)]


def _of_shipped_pictures(base: Base) -> Base:
    trained_on = {**base.data, "count": 60_000}
    named = {"source": FASHION, "resolution": SIDE, **({"labels": True} if base.data.get("labels") else {})}
    return replace(base, data=named, provenance={**base.provenance, "trained_on": trained_on})


def main() -> None:
    """Parse the arguments and make the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, metavar="FOLDER", help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--base", type=Path, metavar="FILE", help="trained base, in the folder of its manifest.json")
    parser.add_argument(
        "--transformer", type=Path, metavar="FILE", help="trained DiT, in the folder of its manifest.json"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "prunekit" / "assets")
    arguments = parser.parse_args()
    if arguments.fashion is not None:
        make_pictures(arguments.fashion, arguments.output / pictures_file("fashion"))
    if arguments.base is not None:
        make_base(arguments.base, arguments.output)
    if arguments.transformer is not None:
        make_transformer(arguments.transformer, BASES)


if __name__ == "__main__":
    main()
