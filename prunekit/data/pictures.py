"""The pixels of pictures: decoded within limits, turned upright, cropped and resized to one size."""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from prunekit._messages import one_line
from prunekit._progress import told
from prunekit.data.picture_folders import several
from prunekit.data.sizes import Resolution, Size, read_size
from prunekit.errors import FileFormatError, LimitError, PrunekitError
from prunekit.limits import check_limit

__all__ = ["PackedPicture", "PictureReader", "Source", "read_picture", "resized"]

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
_GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_WHITE = 255
_SHALLOW = 2**14  # pixels of 16 bits that stay below it may hold 12 bits or fewer
_NO_EXIF = (ValueError, TypeError, KeyError, SyntaxError, OverflowError, ZeroDivisionError, EOFError)


@dataclass(frozen=True)
class PackedPicture:
    """An encoded picture that is no file of its own.

    Args:
        name: its name in messages.
        content: the bytes of a file.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


Source = Path | PackedPicture


@dataclass(frozen=True)
class _Decoded:
    """A picture as it is used, and what was done to it.

    Args:
        pixels: uint8, shape (height, width, 1 or 3).
        transparent: whether it was laid over white.
        turned: whether it was turned as its EXIF says.
        several: whether its file has more frames, which are not used.
        deepest: highest value of its 16-bit pixels, before they became 8 bits; None if it has fewer bits.
    """

    pixels: NDArray[np.uint8]
    transparent: bool
    turned: bool
    several: bool
    deepest: int | None


@dataclass
class PictureReader:
    """Reads pictures of one size into arrays, and counts which ones had to be converted, of all that it has read.

    Args:
        size: height and width; if missing, a square of the first picture's shorter side.
        grey: number of grey pictures that became colour, because others are in colour.
        transparent: number of pictures that were laid over white.
        turned: number of pictures that were turned as their EXIF says.
        several: number of files with several frames, of which the first is used.
        deepest: highest value among the pixels of 16-bit pictures; None if there is no such picture.
    """

    size: Size | None = None
    grey: int = 0
    transparent: int = 0
    turned: int = 0
    several: int = 0
    deepest: int | None = None
    _greys: int = 0
    _coloured: bool = False
    _broken: list[tuple[Source, str]] = field(default_factory=list)

    def read(self, sources: Iterable[Source], count: int) -> NDArray[np.uint8]:
        """Pictures as one array (count, height, width, channels), with three channels if any of them is in colour.

        Args:
            sources: the pictures.
            count: how many there are.

        Raises:
            FileFormatError: pictures are broken; the message names them.
            LimitError: a picture is larger than a limit.
        """
        pictures: NDArray[np.uint8] | None = None
        for index, source in enumerate(told("reading pictures", sources, count)):
            pixels = self._read(source)
            if pixels is None or self._broken:  # the others are still tried, so that all broken ones are named together
                continue
            self._greys += pixels.shape[-1] == 1
            if pictures is None:
                pictures = np.empty((count, *pixels.shape), np.uint8)
            elif pixels.shape[-1] > pictures.shape[-1]:
                pictures = np.repeat(pictures, pixels.shape[-1], axis=-1)
            pictures[index] = pixels
        if self._broken:
            raise _broken_error(self._broken)
        if pictures is None:
            raise FileFormatError("Got no pictures; expected at least two.")
        self._coloured |= pictures.shape[-1] == 3
        self.grey = self._greys if self._coloured else 0
        return pictures

    def converted(self) -> list[str]:
        """What was converted, in words."""
        facts = (
            (self.grey, "grey {} made colour"),
            (self.transparent, "transparent {} laid over white"),
            (self.turned, "{} turned upright by EXIF"),
            (self.several, "{} with several frames, of which the first is used"),
        )
        said = [f"{count:,} {text.format('picture' + 's' * (count > 1))}" for count, text in facts if count]
        if self.deepest is not None and self.deepest < _SHALLOW:
            said.append(
                f"no 16-bit pixel is above {self.deepest:,} of 65,535, so these pictures are nearly black: if they hold fewer "
                "bits, scale them up"
            )
        return said

    def _read(self, source: Source) -> NDArray[np.uint8] | None:
        try:
            found = _decoded(source, self.size)
        except LimitError:
            raise
        except FileFormatError as error:
            self._broken.append((source, str(error)))
            return None
        self.size = self.size or found.pixels.shape[:2]
        self.transparent += found.transparent
        self.turned += found.turned
        self.several += found.several
        if found.deepest is not None:
            self.deepest = max(found.deepest, self.deepest or 0)
        return found.pixels


def read_picture(file: Path, resolution: Resolution | None = None) -> NDArray[np.uint8]:
    """A picture as uint8 (height, width, 1 or 3): upright, cropped in its middle and resized (default: to its shorter side).

    Transparent pixels are laid over white.

    Raises:
        FileFormatError: it is broken.
    """
    return _decoded(file, read_size(resolution)).pixels


def resized(images: NDArray[np.uint8], size: Size | None) -> NDArray[np.uint8]:
    """Images (count, height, width, channels) cropped and resized (default: to squares of the shorter side)."""
    height, width = images.shape[1:3]
    wanted = size or (min(height, width),) * 2
    if (height, width) == wanted:
        return images
    squeezed = images[..., 0] if images.shape[-1] == 1 else images
    made = np.stack([np.asarray(_fitted(Image.fromarray(image), wanted)) for image in squeezed])
    return made if made.ndim == 4 else made[..., None]


def _broken_error(broken: list[tuple[Source, str]]) -> FileFormatError:
    if len(broken) == 1:
        return FileFormatError(broken[0][1])
    names = several([source for source, _ in broken])
    return FileFormatError(
        f"{len(broken):,} pictures cannot be read: {names}; mend or remove them. The first: {broken[0][1]}"
    )


def _decoded(source: Source, size: Size | None) -> _Decoded:
    """A picture as it is used.

    Raises:
        FileFormatError: it is broken.
        LimitError: it is larger than a limit.
    """
    try:
        opened = source if isinstance(source, Path) else io.BytesIO(source.content)
        with _unlimited(), Image.open(opened, formats=_FORMATS) as picture:
            check_limit("picture-pixels", picture.width * picture.height, str(source))
            if picture.format in ("JPEG", "MPO"):
                check_limit("jpeg-scans", _scans(source), str(source))
            several = picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1  # MPO: cameras add previews
            picture.load()
            upright, turned = _upright(picture)
            deepest = int(np.asarray(upright).max()) if upright.mode.startswith("I") else None
            plain, transparent = _eight_bit(upright, source)
            pixels = np.asarray(_fitted(plain, size or (min(plain.size),) * 2))
    except PrunekitError:
        raise
    except Exception as error:  # a damaged picture makes Pillow raise errors of every kind
        raise FileFormatError(f"{source} is a broken picture ({one_line(error)}); mend or remove it.") from error
    return _Decoded(pixels if pixels.ndim == 3 else pixels[..., None], transparent, turned, several, deepest)


def _scans(source: Source) -> int:
    """Number of scans of a JPEG, counted by their markers, which cannot occur within the coded pixels."""
    count, last = 0, b""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source.content) as handle:
        while piece := handle.read(2**20):
            count += (last + piece).count(b"\xff\xda")
            last = piece[-1:]
    return count


@contextmanager
def _unlimited() -> Iterator[None]:
    """Within the block, turn off Pillow's own limit of pixels, which only warns at first and cannot be raised by name."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _upright(picture: Image.Image) -> tuple[Image.Image, bool]:
    """The picture turned as its EXIF says, and whether it had to be; damaged EXIF is ignored, as viewers do."""
    try:
        orientation = picture.getexif().get(0x112, 1)
        return (ImageOps.exif_transpose(picture), True) if orientation in range(2, 9) else (picture, False)
    except _NO_EXIF:
        return picture, False


def _eight_bit(picture: Image.Image, source: Source) -> tuple[Image.Image, bool]:
    """A picture as ``L`` or ``RGB``, over white where it is transparent, and whether it is transparent anywhere.

    A 16-bit grey one is scaled to 8 bits (Pillow itself would clip it at 255).

    Raises:
        FileFormatError: its pixels are floating point or of 32 bits, whose range is unknown.
    """
    if picture.mode == "F":
        raise FileFormatError(f"{source} has pixels in floating point; expected 8 or 16 bits: save it as a PNG.")
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # those two have 16 bits
        raise FileFormatError(
            f"{source} has pixels of 32 bits, whose range is unknown; expected 8 or 16 bits: save it as a PNG."
        )
    if picture.mode.startswith("I"):
        deep = np.asarray(picture)
        grey = np.empty(deep.shape, np.uint8)
        for row in range(len(deep)):  # row by row: all at once would take eight bytes for each pixel
            grey[row] = np.round(deep[row] / 257.0).clip(0, 255)
        return Image.fromarray(grey), False
    mode = "L" if picture.mode in _GREY else "RGB"
    if not picture.has_transparency_data:
        return picture if picture.mode == mode else picture.convert(mode), False
    layered = picture.convert("LA" if mode == "L" and picture.mode == "LA" else "RGBA")
    alpha = layered.getchannel("A")
    plain = layered.convert(mode)
    if alpha.getextrema()[0] == _WHITE:  # nothing shines through
        return plain, False
    over = Image.new(mode, plain.size, _WHITE if mode == "L" else (_WHITE,) * 3)
    over.paste(plain, mask=alpha)
    return over, True


def _fitted(picture: Image.Image, size: Size) -> Image.Image:
    """The largest middle part of this shape, then area average (BOX) down, or bicubic up, to height and width."""
    height, width = size
    scale = min(picture.width / width, picture.height / height)
    crop_width = min(picture.width, max(1, round(width * scale)))
    crop_height = min(picture.height, max(1, round(height * scale)))
    left, top = (picture.width - crop_width) // 2, (picture.height - crop_height) // 2
    smaller = width <= crop_width and height <= crop_height
    filter_ = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    return picture.resize((width, height), filter_, box=(left, top, left + crop_width, top + crop_height))
