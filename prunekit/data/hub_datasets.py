"""Parquet files and Hugging Face dataset folders, read by the ``datasets`` library: ``pip install 'prunekit[datasets]'``."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunekit._messages import did_you_mean, one_line
from prunekit.data.labelling import numbered
from prunekit.data.picture_folders import is_hidden
from prunekit.data.picture_sets import Pixels, sentence
from prunekit.data.pictures import PackedPicture, PictureReader
from prunekit.data.sizes import Size
from prunekit.errors import FileFormatError, InputError, PrunekitError

__all__ = ["dataset_rows", "is_saved_dataset", "parquet_files", "read_dataset"]

_LABEL = "label"
_HELD_OUT = ("validation", "test")


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk`` of the datasets library."""
    saved = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    return saved or (folder / "dataset_dict.json").is_file()


def parquet_files(folder: Path) -> list[Path]:
    """Parquet files at any depth of a folder, without hidden ones and metadata."""
    found = (file for file in folder.rglob("*.parquet") if file.name != "metadata.parquet")
    return sorted(file for file in found if not any(map(is_hidden, file.relative_to(folder).parts)))


def read_dataset(
    path: Path, size: Size | None = None, labels: bool = False, split: str | None = None
) -> tuple[Pixels, Pixels | None, str]:
    """Pictures of a parquet file, a folder of such, or a folder that ``save_to_disk`` wrote.

    The split ``train`` is trained on, and ``validation``, otherwise ``test``, is held out; a split that is named is read alone.
    Pictures are the one column of type ``Image``, and classes the one of type ``ClassLabel``, or a column called ``label``.

    Args:
        path: a file or folder.
        size: height and width; if missing, a square of the first picture's shorter side.
        labels: whether classes are wanted.
        split: the name of a split.

    Returns:
        Training pictures; held-out ones, None if there is no split for them; a sentence about what was read.

    Raises:
        InputError: the datasets library is not installed, there is no such split, or several columns have pictures.
        FileFormatError: it cannot be read, has no pictures, or has no classes though they are wanted.
    """
    library = _library(path)
    with tempfile.TemporaryDirectory(prefix="prunekit-") as cache:
        splits = _splits(library, path, cache)
        names = _chosen(list(splits), path, split)
        reader = PictureReader(size)
        parts = [splits[name] for name in names]
        image, label = _columns(library, parts[0], path, labels)
        pictures = (
            each for name, part in zip(names, parts, strict=True) for each in _packed(library, part, image, name, path)
        )
        pixels = reader.read(pictures, sum(map(len, parts)))
        numbers = [_numbers(part, label, path) for part in parts] if label is not None else None
    count = len(parts[0])
    first = Pixels(pixels[:count], numbers[0] if numbers else None)
    second = Pixels(pixels[count:], numbers[1] if numbers else None) if len(parts) > 1 else None
    what = f"{len(parts[0]):,} pictures of split {names[0]}"
    what += f", and {len(parts[1]):,} of {names[1]} held out" if second else ""
    what += f", in {len(np.unique(numbers[0])):,} classes" if numbers else ""
    return first, second, sentence(str(path), what, reader)


@contextmanager
def dataset_rows(
    path: Path, split: str | None, classes: bool, column: str | None, names: Sequence[str]
) -> Iterator[list[tuple[Sequence[PackedPicture | Path], list[int | str]]]]:
    """Within the block, the encoded pictures of a dataset, read one by one, with their captions or classes.

    Args:
        path: as for :func:`read_dataset`.
        split: as for :func:`read_dataset`.
        classes: whether classes are wanted, in place of captions.
        column: of the captions.
        names: columns that are taken for captions if none is named.

    Yields:
        Pictures and what they show, of the training pictures and of those that are held out, if there are some.

    Raises:
        InputError: the datasets library is not installed, there is no such split or column, or several columns have pictures.
        FileFormatError: it cannot be read, has no pictures, or has no classes though they are wanted.
    """
    library = _library(path)
    with tempfile.TemporaryDirectory(prefix="prunekit-") as cache:
        splits = _splits(library, path, cache)
        found: list[tuple[Sequence[PackedPicture | Path], list[int | str]]] = []
        for name in _chosen(list(splits), path, split):
            part = splits[name]
            image, label = _columns(library, part, path, classes)
            if label is not None:
                subjects: list[int | str] = [int(number) for number in _numbers(part, label, path)]
            else:
                subjects = _texts(part, column, names, path)
            found.append((_Rows(library, part, image, name, path), subjects))
        yield found


def _texts(part: Any, column: str | None, names: Sequence[str], path: Path) -> list[int | str]:
    """The captions of a split: those of the column that is named, of a usual one, or of the only one with text."""
    texts = [
        name for name, feature in part.features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    wanted = [column] if column else [name for name in names if name in texts] or (texts if len(texts) == 1 else [])
    if not wanted or wanted[0] not in texts:
        meant = did_you_mean(column, texts) if column else ""
        raise InputError(
            f"{path} has no column {column or ' or '.join(names)}{meant} but {', '.join(part.features)}; name the one with the "
            "captions."
        )
    found = part.with_format(None)[wanted[0]][:]
    bad = next((row for row, text in enumerate(found) if not isinstance(text, str) or not text.strip()), None)
    if bad is not None:
        raise FileFormatError(f"Row {bad} of {path} has {str(found[bad])[:40]!r} as {wanted[0]}; expected a caption.")
    return list(found)


class _Rows(Sequence[PackedPicture | Path]):
    """The pictures of a split, still encoded, each read when it is asked for."""

    def __init__(self, library: ModuleType, part: Any, column: str, split: str, path: Path) -> None:
        self._encoded = part.select_columns([column]).cast_column(column, library.Image(decode=False))
        self._column, self._split, self._path = column, split, path

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, row: int) -> PackedPicture | Path:  # type: ignore[override]
        return _packed_picture(self._encoded[row][self._column], row, self._split, self._path)


def _library(path: Path) -> ModuleType:
    try:
        import datasets  # noqa: PLC0415 - an extra, and it takes a second
    except ImportError as error:
        raise InputError(
            f"{path} needs the datasets library ({one_line(error)}); install it with `pip install 'prunekit[datasets]'`, or save "
            "the pictures as files in a folder."
        ) from error
    return datasets  # type: ignore[no-any-return,unused-ignore]


def _splits(library: ModuleType, path: Path, cache: str) -> Mapping[str, Any]:
    """The splits by name."""
    bars = library.utils.logging.is_progress_bar_enabled()
    library.disable_progress_bars()
    try:
        if path.is_dir() and is_saved_dataset(path):
            found = library.load_from_disk(str(path))
            return found if isinstance(found, Mapping) else {"train": found}
        if path.is_dir():
            return dict(library.load_dataset(str(path), cache_dir=cache))
        return dict(library.load_dataset("parquet", data_files={"train": str(path)}, cache_dir=cache))
    except Exception as error:  # the library raises errors of any kind on damaged files
        raise FileFormatError(
            f"{path} cannot be read by the datasets library ({one_line(error)}); copy or write it again."
        ) from error
    finally:
        if bars:
            library.enable_progress_bars()


def _chosen(splits: list[str], path: Path, split: str | None) -> list[str]:
    """The split to train on, and the one that is held out if there is one."""
    if split is not None:
        if split not in splits:
            raise InputError(
                f"{path} has no split {split!r}{did_you_mean(split, splits)}; expected one of {', '.join(splits)}."
            )
        return [split]
    if "train" not in splits:
        raise InputError(
            f"{path} has the splits {', '.join(splits)} and no train; name one, as {path.name}::{splits[0]}."
        )
    return ["train", *[name for name in _HELD_OUT if name in splits][:1]]


def _columns(library: ModuleType, part: Any, path: Path, labels: bool) -> tuple[str, str | None]:
    """The columns of the pictures and of the classes."""
    features = part.features
    found = [name for name, feature in features.items() if isinstance(feature, library.Image) or _has_bytes(feature)]
    columns = ", ".join(features)
    if len(found) != 1:
        which = f"several columns of pictures, {', '.join(found)}" if found else f"no column of pictures but {columns}"
        raise InputError(
            f"{path} has {which}; expected one of type Image: write it again with one (`select_columns`, `cast_column`)."
        )
    if not labels:
        return found[0], None
    classes = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    if len(classes) != 1:
        classes = [name for name in features if name == _LABEL]
    if not classes:
        raise FileFormatError(
            f"{path} has no classes but {columns}; expected a column {_LABEL}, or one of type ClassLabel."
        )
    return found[0], classes[0]


def _has_bytes(feature: Any) -> bool:
    """Whether a column has encoded pictures as the library stores them, in a file that does not say so."""
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _packed(library: ModuleType, part: Any, column: str, split: str, path: Path) -> Iterator[PackedPicture | Path]:
    """The pictures of a split, still encoded."""
    encoded = part.select_columns([column]).cast_column(column, library.Image(decode=False))
    for row, each in enumerate(encoded):
        yield _packed_picture(each[column], row, split, path)


def _packed_picture(picture: Mapping[str, Any] | None, row: int, split: str, path: Path) -> PackedPicture | Path:
    """A picture as the library keeps it: its bytes, or where its file is."""
    name = f"picture {row} of {split} in {path}"
    if picture is None or (picture["bytes"] is None and not Path(picture["path"] or "").is_file()):
        raise FileFormatError(f"{path} has no {name.partition(' in ')[0]}; remove the row, or write it with its bytes.")
    return Path(picture["path"]) if picture["bytes"] is None else PackedPicture(name, picture["bytes"])


def _numbers(part: Any, column: str, path: Path) -> NDArray[np.int64]:
    names = getattr(part.features[column], "names", None)
    values = part.with_format(None)[column][:]
    if names is None and not all(isinstance(value, int) for value in values):
        raise FileFormatError(
            f"The column {column} of {path} has no whole numbers; expected type ClassLabel or numbers from 0."
        )
    try:
        return numbered([int(value) for value in values], str(path))[1]
    except (TypeError, PrunekitError) as error:
        raise FileFormatError(f"The column {column} of {path} has rows without a class ({one_line(error)}).") from error
