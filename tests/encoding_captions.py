"""Pictures with captions, encoded by a tiny pipeline."""

from pathlib import Path

import numpy as np
from PIL import Image

from prunekit.steps.encoding import EncodeOptions, encode

__all__ = ["encoded_pictures"]


def encoded_pictures(pipeline: Path, folder: Path, count: int = 24) -> Path:
    """A folder of encoded pictures of 32×32, of cats and dogs in turn."""
    pictures, data = folder / "pictures", folder / "data"
    for part, number in (("train", count), ("test", count // 2)):
        (pictures / part).mkdir(parents=True)
        for row in range(number):
            shades = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(shades).save(pictures / part / f"{row:02d}.png")
            (pictures / part / f"{row:02d}.txt").write_text("two dogs" if row % 2 else "a cat")
    encode(pipeline, str(pictures), data, EncodeOptions((32, 32)))
    return data
