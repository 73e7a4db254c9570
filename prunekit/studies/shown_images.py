"""The images that a comparison's page shows: those of one seed, while every seed keeps its own."""

import shutil
from pathlib import Path

from prunekit._files import atomic_path

__all__ = ["show_images"]


def show_images(folder: Path, images: Path, name: str) -> None:
    """Copy images to where a report looks for them; does nothing if there are none.

    Every training keeps its images in a file of its own, so that another choice of seeds makes no finished training again.

    Args:
        folder: the run's folder.
        images: the file of a training.
        name: of the network, as the page matches it.
    """
    if images.is_file():
        with atomic_path(folder / "samples" / f"{name}.npz") as part:
            shutil.copyfile(images, part)
