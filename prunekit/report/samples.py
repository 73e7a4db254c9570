"""Sample grids side by side, every pixel enlarged by a whole number."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from prunekit._files import atomic_path

__all__ = ["Images", "grid_png", "pixel_grid", "samples_png", "shown_count"]

Images = NDArray[np.uint8]

# Lengths in pixels of the file. The page shows it at half size, so that it is sharp on dense screens.
_CELL = 96
_GRID = 800
_GAP = 4
_SPACE = 48
_TITLE = 60
_MARGIN = 24
_INK = (51, 58, 66)


def _scale(side: int) -> int:
    """Scale factor for images of ``side`` pixels; at least 2, since the page halves it."""
    return max(_CELL // side, 2)


def _columns(side: int) -> int:
    return int(np.clip(_GRID // (_scale(side) * side), 2, 8))


def shown_count(samples: Mapping[str, Images]) -> int:
    """Number of images to show for each model: the same for all, at most a square grid."""
    side = max(max(images.shape[1:3]) for images in samples.values())
    return min(_columns(side) ** 2, *(len(images) for images in samples.values()))


def grid_png(images: Images, path: Path | str, columns: int | None = None) -> None:
    """Draw one model's images as a grid, every pixel enlarged. Atomic.

    Args:
        images: uint8, shape (count, height, width, 1 or 3).
        path: where the PNG goes.
        columns: images in a row; None for as many as fit on a page.
    """
    path = Path(path)
    with atomic_path(path) as part:
        _grid(images, columns).save(part, format="PNG")


def pixel_grid(images: Images, columns: int) -> bytes:
    """One model's images as a PNG of their own pixels, each followed by an empty row and column.

    Args:
        images: uint8, shape (count, height, width, 1 or 3).
        columns: images in a row.
    """
    count, height, width, channels = images.shape
    sheet = np.zeros((-(-count // columns) * (height + 1), columns * (width + 1), 4), dtype=np.uint8)
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        place = sheet[row * (height + 1) :, column * (width + 1) :][:height, :width]
        place[..., :3], place[..., 3] = image if channels == 3 else image.repeat(3, axis=2), 255
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, format="PNG", optimize=True)
    return file.getvalue()


def samples_png(samples: Mapping[str, Images], path: Path | str) -> None:
    """Draw one grid per model, two side by side.

    Args:
        samples: model name → uint8 images of shape (count, height, width, 1 or 3), from the same noise.
        path: where the PNG goes.
    """
    path = Path(path)
    count = shown_count(samples)
    grids = [(name, _grid(images[:count])) for name, images in samples.items()]
    across = min(2, len(grids))
    down = -(-len(grids) // across)
    width, height = max(grid.width for _, grid in grids), max(grid.height for _, grid in grids)
    size = (
        2 * _MARGIN + across * width + (across - 1) * _SPACE,
        2 * _MARGIN + down * (height + _TITLE) + (down - 1) * _SPACE,
    )
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=36)
    for position, (name, grid) in enumerate(grids):
        row, column = divmod(position, across)
        left, top = _MARGIN + column * (width + _SPACE), _MARGIN + row * (height + _TITLE + _SPACE)
        pen.text((left, top), name, fill=_INK, font=font)
        sheet.paste(grid, (left, top + _TITLE))
    sheet.save(path, format="PNG")


def _grid(images: Images, columns: int | None = None) -> Image.Image:
    """Arrange images row by row with white gaps between them."""
    count, height, width, channels = images.shape
    columns = min(columns or _columns(max(height, width)), count)
    rows = -(-count // columns)
    scale = _scale(max(height, width))
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    if channels == 1:
        large = large.repeat(3, axis=3)
    step_y, step_x = scale * height + _GAP, scale * width + _GAP
    sheet = np.full((rows * step_y - _GAP, columns * step_x - _GAP, 3), 255, dtype=np.uint8)
    for position, image in enumerate(large):
        row, column = divmod(position, columns)
        sheet[row * step_y :, column * step_x :][: scale * height, : scale * width] = image
    return Image.fromarray(sheet)
