"""Generated images on pages: a slider between two models, a strip of all, and small pictures for the list of runs."""

import base64
import re
from collections.abc import Mapping

from prunekit.report.document import Block
from prunekit.report.illustrations import Compare, Picture, Strip
from prunekit.report.samples import Images, pixel_grid

__all__ = ["letters", "picture_of", "sample_blocks", "thumbs"]

_SIDE = 60  # width of an image for the slider
_MIDDLE = 40  # in a strip of few models
_SMALL = 30  # in a strip of many models
_FEW = 3  # models up to which each has a wide grid
_THUMBS = 8  # images of each model in the list of runs
_SHARP = 40  # images of more pixels than this are not enlarged
_MOST = 600_000  # pixels of a grid, so that a page with large images does not become too large to send


def picture_of(images: Images, columns: int, side: int, name: str, alt: str = "") -> Picture:
    """A grid of images.

    Args:
        images: uint8, shape (count, height, width, 1 or 3).
        columns: images in a row.
        side: width in CSS pixels of an image.
        name: name of the model.
        alt: the picture in words; made from the name if empty.
    """
    _, height, width, _ = images.shape
    rows = -(-len(images) // columns)
    side = max(side, min(width, 128))
    scale = max(side / (width + 1), 0.01)
    size = round(columns * (width + 1) * scale), round(rows * (height + 1) * scale)
    data = base64.b64encode(pixel_grid(images, columns)).decode("ascii")
    return Picture(alt or f"{len(images)} generated images of {name}.", name, data, *size, width > _SHARP)


def _count(images: Images, wanted: int) -> int:
    """Number of images to show; at least one."""
    area = int(images.shape[1] * images.shape[2])
    return max(1, min(wanted, len(images), _MOST // area))


def sample_blocks(samples: Mapping[str, Images], pair: tuple[str, str] | None) -> list[Block]:
    """A slider between two models, and a strip of all; empty if there are no samples.

    Args:
        samples: model name → images from the same noise.
        pair: names of the two models for the slider; None for no slider.
    """
    if not samples:
        return []
    blocks: list[Block] = []
    if pair and all(name in samples for name in pair) and len({samples[name].shape[1:] for name in pair}) == 1:
        blocks.append(_compare(samples, pair))
    few = len(samples) <= _FEW
    columns, side = (8, _MIDDLE) if few else (4, _SMALL)
    pictures, count = [], 0
    for name, images in samples.items():
        count = _count(images, (2 if few else 4) * columns)
        pictures.append(picture_of(images[:count], min(columns, count), side, name))
    caption = f"The first {count} images of each, not selected. Images at the same place started from the same noise."
    return [*blocks, Strip("Samples", caption, tuple(pictures))]


def _compare(samples: Mapping[str, Images], pair: tuple[str, str]) -> Compare:
    count = min(_count(samples[name], 32) for name in pair)
    columns = min(8, count)
    before, after = (picture_of(samples[name][:count], columns, _SIDE, name) for name in pair)
    caption = (
        f"The first {count} images of {pair[0]} and {pair[1]}, not selected, from the same noise. The part of each image left of "
        f"the slider's position is of {pair[0]}, the part on the right is of {pair[1]}."
    )
    return Compare(f"Share of each image that shows {pair[0]}", caption, before, after, columns)


def thumbs(run: str, samples: Mapping[str, Images], names: tuple[str, ...]) -> tuple[Picture, ...]:
    """A row of images for each of some models, for the list of runs; models without images are left out."""
    return tuple(
        picture_of(samples[name][:_THUMBS], _THUMBS, _SMALL, name, f"{_THUMBS} images of {name}, of the run {run}.")
        for name in names
        if name in samples and len(samples[name]) >= _THUMBS
    )


def letters(name: str) -> str:
    """A name reduced to the characters that are unchanged in file names."""
    return re.sub("[^a-z0-9]", "", name.lower())
