"""Folders of encoded images: latents and conditions that a pipeline made of pictures and captions, mapped and not read.

::

    DATA/encoded.json
    DATA/train/latents.npy, encoder_hidden_states.npy, …, captions.json
    DATA/held-out/…                     the same
    DATA/empty/encoder_hidden_states.npy, …
    DATA/fixed/img_ids.npy, …

:mod:`prunekit.data.encoded_writer` writes them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunekit._containers import check_npy_header
from prunekit._files import json_hash
from prunekit._json import JsonDict, parse_json, read_json
from prunekit._messages import one_line
from prunekit._names import name_of
from prunekit.data.arrays import mapped
from prunekit.data.images import ImageData, ImageSplit
from prunekit.data.sizes import Size, as_resolution, size_text
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.limits import check_limit
from prunekit.results.encoded_files import ArrayForm, EncodedFile, EncodingFile, FixedValue
from prunekit.results.formats import ENCODED, ENCODING
from prunekit.schedule import TimeUnit
from prunekit.schedule.diffusers import GIVEN
from prunekit.training.columns import CLASSES

__all__ = [
    "CAPTIONS",
    "HEAD",
    "LATENTS",
    "PARTS",
    "UNFINISHED",
    "array_path",
    "check_name",
    "find_encoded",
    "load_encoded",
    "read_captions",
]

HEAD, UNFINISHED = "encoded.json", "encoding.json"
LATENTS = "latents"
CAPTIONS = "captions.json"
PARTS = ("train", "held-out")
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
_PLACES = 200  # characters of a condition's name


def find_encoded(folder: Path) -> Path | None:
    """The file that describes a folder of encoded images, finished or not; None for another folder."""
    return next((folder / name for name in (HEAD, UNFINISHED) if (folder / name).is_file()), None)


def array_path(folder: Path, part: str, name: str) -> Path:
    """The file of an array.

    Args:
        folder: of the encoded images.
        part: one of :data:`PARTS`, ``empty`` or ``fixed``.
        name: of the condition, or :data:`LATENTS`.
    """
    return folder / part / f"{name}.npy"


def check_name(name: str, what: str) -> str:
    """A condition's name, which is also the name of its files.

    Raises:
        FileFormatError: it is no path of an argument.
    """
    if not _NAME.fullmatch(name) or len(name) > _PLACES or name == LATENTS:
        raise FileFormatError(
            f"{what} names a condition {name[:80]!r}; expected an argument's path, such as added_cond_kwargs.text_embeds."
        )
    return name


def load_encoded(
    folder: Path, source: str, size: Size | None = None, labels: bool = False, head: EncodedFile | None = None
) -> ImageSplit:
    """Encoded images. Latents and conditions are mapped: rows come into memory when they are drawn.

    Args:
        folder: of the encoded images.
        source: as the user named it.
        size: height and width of the latents that the user asked for.
        labels: whether classes are wanted.
        head: what belongs to all rows; read from ``encoded.json`` if missing.

    Raises:
        MissingFileError: an array is missing, or classes are wanted and the folder has none.
        FileFormatError: a file is damaged, or of another shape or type than ``encoded.json`` says.
        InputError: the encoding is not finished, or ``size`` is not the latents'.
    """
    what = str(folder / HEAD)
    if head is None:
        if not (folder / HEAD).is_file():
            raise InputError(_unfinished(folder, source))
        head = EncodedFile.of(read_json(folder / HEAD, ENCODED), what)
    for name in (*head.columns, *head.fixed, *head.empty):
        check_name(name, what)
    if lone := [name for name in head.empty if name not in head.columns]:
        raise FileFormatError(f"{what} has an empty condition for {lone[0]}, which is no condition; encode it again.")
    if labels and CLASSES not in head.columns:
        raise MissingFileError(f"{source} has no classes; encode pictures by a pipeline of a class-conditional model.")
    empty = {name: _row(folder, "empty", name, head.columns[name]) for name in head.empty}
    fixed = {name: _fixed(folder, name, value) for name, value in head.fixed.items()}
    captions = _captions(folder, head)
    parts = [
        _part(folder, part, count, head, empty, fixed, captions[part])
        for part, count in zip(PARTS, (head.train, head.held_out), strict=True)
    ]
    own = _sides(head)
    if size is not None and size != own:
        raise InputError(
            f"The latents of {source} are {size_text(own)} and stay as they are; expected {size_text(size)}: leave the "
            "resolution out, or encode the pictures at another."
        )
    return ImageSplit(parts[0], parts[1], source, as_resolution(own), _report(source, head), head.sha256)


def read_captions(folder: Path, part: str) -> list[str | int]:
    """The captions, or classes, of a part's rows.

    Raises:
        MissingFileError: the file is missing.
        FileFormatError: it is no list of them.
        LimitError: it is larger than the limit ``metadata-bytes``.
    """
    path = folder / part / CAPTIONS
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; copy the folder again, or encode the pictures again.")
    check_limit("metadata-bytes", path.stat().st_size, str(path))
    found = parse_json(path.read_bytes(), str(path), limited=False)
    if not isinstance(found, list) or not all(isinstance(each, str | int) for each in found):
        raise FileFormatError(f"{path} is no list of captions; encode the pictures again.")
    return found


def _captions(folder: Path, head: EncodedFile) -> dict[str, list[str | int]]:
    """The captions of both parts.

    Raises:
        MissingFileError: a file of them is missing.
        FileFormatError: they are not those that were encoded.
    """
    found = {part: read_captions(folder, part) for part in PARTS}
    for part, count in zip(PARTS, (head.train, head.held_out), strict=True):
        if len(found[part]) != count:
            raise FileFormatError(
                f"{folder / part / CAPTIONS} has {len(found[part]):,} captions; expected {count:,}, as {HEAD} says: copy "
                "the folder again."
            )
    if json_hash([found[part] for part in PARTS]) != head.captions:
        raise FileFormatError(f"The captions of {folder} are not those that were encoded; copy the folder again.")
    return found


def _unfinished(folder: Path, source: str) -> str:
    known = EncodingFile.of(read_json(folder / UNFINISHED, ENCODING), str(folder / UNFINISHED))
    done, whole = sum(known.done.values()), known.train + known.held_out
    return f"{source} is not finished ({done:,} of {whole:,} images); run `prunekit encode` again, which resumes."


def _sides(head: EncodedFile) -> Size:
    """Height and width of latents; of tokens, which have none, those of the pictures.

    Raises:
        FileFormatError: latents have another number of axes.
    """
    shape = head.latents.shape
    if len(shape) not in (2, 3, 4):
        raise FileFormatError(
            f"The latents have rows of shape {tuple(shape)}; expected (channels, height, width), "
            "(channels, frames, height, width), or (tokens, channels)."
        )
    return (shape[-2], shape[-1]) if len(shape) > 2 else (head.image_size[0], head.image_size[1])


def _part(
    folder: Path,
    part: str,
    count: int,
    head: EncodedFile,
    empty: Mapping[str, Tensor],
    fixed: Mapping[str, object],
    captions: Sequence[str | int],
) -> ImageData:
    latents = _array(array_path(folder, part, LATENTS), (count, *head.latents.shape), head.latents.dtype)
    if not latents.is_floating_point():
        raise FileFormatError(f"The latents of {folder} are {latents.dtype}; expected floating point.")
    columns = {
        name: _array(array_path(folder, part, name), (count, *form.shape), form.dtype)
        for name, form in head.columns.items()
    }
    classes = columns.get(CLASSES)
    whole = classes is not None and classes.ndim == 1 and not classes.is_floating_point()
    numbers = classes.to(torch.int64) if whole and classes is not None else None
    unit = None if head.time_unit is None else TimeUnit.from_config(head.time_unit)
    name = f"{name_of(str(folder))}/{part}"
    steps = _steps(folder, head.steps or {})
    return ImageData(latents, name, numbers, columns, empty, fixed, unit, head.arguments or {}, steps, captions)


def _steps(folder: Path, steps: JsonDict) -> JsonDict:
    """What the pipeline gives its scheduler, checked.

    Raises:
        FileFormatError: it is something else.
    """
    tokens, even = steps.get("_image_seq_len", 1), steps.get("_even_sigmas", False)
    whole = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0
    if not set(steps) <= set(GIVEN) or not whole or not isinstance(even, bool):
        raise FileFormatError(
            f"{folder / HEAD} has the steps {dict(steps)!r:.80}; expected {' and '.join(GIVEN)}: encode the pictures again."
        )
    return steps


def _row(folder: Path, part: str, name: str, form: ArrayForm) -> Tensor:
    """One row, in memory.

    Raises:
        FileFormatError: it is damaged, or not finite.
    """
    path = array_path(folder, part, name)
    row = _array(path, tuple(form.shape), form.dtype).clone()
    if row.is_floating_point() and not bool(row.isfinite().all()):
        raise FileFormatError(f"{path} is not finite; encode the pictures again.")
    return row


def _fixed(folder: Path, name: str, value: FixedValue) -> object:
    return value.constant if value.array is None else _row(folder, "fixed", name, value.array)


def _array(path: Path, shape: tuple[int, ...], dtype: str) -> Tensor:
    """A mapped array.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it is damaged, or has another shape or type.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is missing; copy the folder again, or encode the pictures again.")
    with path.open("rb") as handle:
        check_npy_header(handle, path.stat().st_size, str(path))
    try:
        array = np.load(path, mmap_mode="r" if shape else None, allow_pickle=False)
    except Exception as error:  # numpy raises errors of any kind on damaged files
        raise FileFormatError(f"{path} is no readable array ({one_line(error)}); copy it again.") from error
    if array.shape != shape or array.dtype != np.dtype(dtype) or not array.flags.c_contiguous:
        raise FileFormatError(
            f"{path} has {array.dtype} of shape {array.shape}; expected {dtype} of {shape}, as {HEAD} says: copy the folder again."
        )
    return mapped(array)


def _report(source: str, head: EncodedFile) -> str:
    """A sentence about what was read."""
    conditions = ", ".join(head.columns) or "no conditions"
    return (
        f"{source} has {head.train + head.held_out:,} encoded images, latents of shape {tuple(head.latents.shape)}, with "
        f"{conditions}."
    )
