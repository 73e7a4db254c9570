"""Make the pictures and the base of Fashion-MNIST at 16×16 that prunekit ships.

    python recipes/make_fashion.py --fashion FOLDER --base runs/fashion-base/base.safetensors

FOLDER has the four idx files (``train-`` and ``t10k-images-idx3-ubyte``, ``train-`` and ``t10k-labels-idx1-ubyte``, each ``.gz`` or
not). The first 8,192 training pictures and the first 1,024 test pictures, averaged down to 16×16, go to
``fashion-pictures.npz``. The base is one that ``prunekit run recipes/fashion-base.yaml`` has trained on all 60,000 training
pictures; ``fashion-base.safetensors`` is a copy that names the shipped pictures as its images, so that every command finds them.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from prunekit._files import atomic_path
from prunekit.checkpoint import load_base, save_base
from prunekit.data import load_images
from prunekit.data.shipped import FASHION, pictures_file

TRAIN, TEST, SIDE = 8192, 1024, 16


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
    base = load_base(source)
    trained_on = {**base.data, "count": 60_000}
    provenance = {**base.provenance, "trained_on": trained_on}
    save_base(
        replace(base, data={"source": FASHION, "resolution": SIDE}, provenance=provenance),
        output / "fashion-base.safetensors",
    )
    shutil.copyfile(source.parent / "manifest.json", output / "fashion-base.json")


def main() -> None:
    """Parse the arguments and make the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, metavar="FOLDER", help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--base", type=Path, metavar="FILE", help="trained base, in the folder of its manifest.json")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "prunekit" / "assets")
    arguments = parser.parse_args()
    if arguments.fashion is not None:
        make_pictures(arguments.fashion, arguments.output / pictures_file("fashion"))
    if arguments.base is not None:
        make_base(arguments.base, arguments.output)


if __name__ == "__main__":
    main()
