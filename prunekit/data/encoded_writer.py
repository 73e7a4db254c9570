"""Writes folders of encoded images, some rows at a time; after an interruption it resumes behind the last rows on the disk."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from prunekit._files import atomic_path, json_hash, write_json
from prunekit._json import JsonDict, read_json
from prunekit.data.encoded import HEAD, LATENTS, PARTS, UNFINISHED, array_path, check_name, load_encoded
from prunekit.errors import InputError
from prunekit.results.encoded_files import ArrayForm, EncodedFile, EncodingFile, FixedValue
from prunekit.results.formats import ENCODED, ENCODING
from prunekit.results.model import plain

__all__ = ["EncodedWriter", "Encoding", "rows_on_disk"]


@dataclass(frozen=True, eq=False)
class Encoding:
    """What belongs to all rows of a folder of encoded images.

    Args:
        pipeline: what identifies the pipeline and the pictures, JSON-able; an encoding resumes only if it is the same.
        image_size: height and width of the pictures.
        captions: caption or class of each image, for ``train`` and ``held-out``, at least one for each.
        fixed: arguments of the network that are the same for every image, by their paths.
        empty: the empty condition of each column that guidance replaces, a row without the first axis.
        time_unit: how the network is told a timestep of the scheduler, JSON-able.
    """

    pipeline: JsonDict
    image_size: tuple[int, int]
    captions: Mapping[str, Sequence[str | int]]
    fixed: Mapping[str, object] = field(default_factory=dict)
    empty: Mapping[str, Tensor] = field(default_factory=dict)
    time_unit: JsonDict | None = None

    def __post_init__(self) -> None:
        if set(self.captions) != set(PARTS) or not all(self.captions.values()):
            found = ", ".join(f"{len(own)} for {part}" for part, own in self.captions.items())
            raise InputError(f"Got captions {found}; expected at least 1 for each of {' and '.join(PARTS)}.")

    def to_json(self) -> dict[str, object]:
        """The part of the file that does not depend on the rows."""
        head = {
            "pipeline": plain(dict(self.pipeline)),
            "image_size": list(self.image_size),
            "fixed": {check_name(name, "The encoding"): _described(value) for name, value in self.fixed.items()},
            "empty": [check_name(name, "The encoding") for name in self.empty],
            "captions": json_hash([list(self.captions[part]) for part in PARTS]),
            "train": len(self.captions["train"]),
            "held_out": len(self.captions["held-out"]),
        }
        return head if self.time_unit is None else {**head, "time_unit": plain(dict(self.time_unit))}


@dataclass(eq=False)
class EncodedWriter:
    """Writes a folder of encoded images.

    Floating-point numbers are stored in half precision, others unchanged. The folder can be read when :meth:`finish` is done.

    Args:
        folder: a new or empty one, or one with an unfinished encoding of the same pipeline and captions, which is resumed.
        encoding: what belongs to all rows.

    Raises:
        InputError: the folder has something else.

    Example:
        >>> import tempfile, torch
        >>> from prunekit.data import load_images
        >>> captions = {"train": ["a shirt", "a shoe"], "held-out": ["a bag"]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = EncodedWriter(Path(folder) / "data", Encoding({"class": "mine"}, (16, 16), captions))
        ...     for part, rows in (("train", 2), ("held-out", 1)):
        ...         columns = {"encoder_hidden_states": torch.zeros(rows, 3, 8)}
        ...         writer.append(part, torch.zeros(rows, 4, 2, 2), columns)
        ...     sha256 = writer.finish()
        ...     load_images(Path(folder) / "data").train.columns["encoder_hidden_states"].shape
        torch.Size([2, 3, 8])
    """

    folder: Path
    encoding: Encoding

    def __post_init__(self) -> None:
        self._about = self.encoding.to_json()
        self._head: EncodingFile | None = None
        self._sha256 = ""
        if (self.folder / HEAD).is_file():
            known = EncodedFile.of(read_json(self.folder / HEAD, ENCODED), str(self.folder / HEAD))
            self._check_same(known)
            self._sha256 = known.sha256
        elif (self.folder / UNFINISHED).is_file():
            self._head = EncodingFile.of(read_json(self.folder / UNFINISHED, ENCODING), str(self.folder / UNFINISHED))
            self._check_same(self._head)
        elif self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; expected a new folder.")
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} holds other files; expected a new folder, or an unfinished encoding.")

    @property
    def is_finished(self) -> bool:
        """Whether the folder is complete and can be read."""
        return bool(self._sha256)

    def done(self, part: str) -> int:
        """Number of rows of a part, ``train`` or ``held-out``, that are on the disk."""
        if self.is_finished:
            return len(self.encoding.captions[part])
        return 0 if self._head is None else self._head.done.get(part, 0)

    def append(self, part: str, latents: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Write the next rows of a part; when it returns they are on the disk.

        Args:
            part: ``train`` or ``held-out``.
            latents: shape (rows, channels, height, width), (rows, channels, frames, height, width) or (rows, tokens, channels).
            columns: conditions by their arguments' paths, each of shape (rows, …).

        Raises:
            InputError: numbers are not finite or too large for half precision, shapes differ from those of earlier rows, or there
                are more rows than captions.
        """
        arrays = {LATENTS: latents, **{check_name(name, "The encoding"): own for name, own in columns.items()}}
        rows, first = len(latents), self.done(part)
        if self.is_finished or first + rows > len(self.encoding.captions[part]):
            raise InputError(
                f"Got {rows} rows after {first} for {len(self.encoding.captions[part])} captions of {part}; expected one for each."
            )
        ready = {name: _half(own, name) for name, own in arrays.items()}
        head = self._begun(ready) if self._head is None else self._head
        self._check_rows(head, ready, rows)
        for name, own in ready.items():
            self._write(array_path(self.folder, part, name), own, first, len(self.encoding.captions[part]))
        self._head = head.model_copy(update={"done": {**head.done, part: first + rows}})
        write_json(self.folder / UNFINISHED, self._head.to_json())

    def finish(self) -> str:
        """Complete the folder; all rows must be written.

        Returns:
            Hash of all latents and conditions.

        Raises:
            InputError: rows are missing.
        """
        if self.is_finished:
            return self._sha256
        missing = {part: len(self.encoding.captions[part]) - self.done(part) for part in PARTS}
        if self._head is None or any(missing.values()):
            raise InputError(
                f"{missing['train']} rows of train and {missing['held-out']} of held-out are missing; expected all."
            )
        for part in PARTS:
            with atomic_path(self.folder / part / "captions.json") as place:
                place.write_text(json.dumps(list(self.encoding.captions[part]), ensure_ascii=False), encoding="utf-8")
        told = {key: value for key, value in self._head.to_json().items() if key not in ("format", "done")}
        draft = EncodedFile.of({"format": ENCODED, **told, "sha256": ""}, str(self.folder))
        self._sha256 = load_encoded(self.folder, str(self.folder), head=draft).sha256
        write_json(self.folder / HEAD, {**draft.to_json(), "sha256": self._sha256})
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        return self._sha256

    def _check_same(self, known: EncodedFile | EncodingFile) -> None:
        """Refuse to resume with another pipeline or other captions."""
        there = known.to_json()
        differing = next((key for key, own in self._about.items() if there.get(key) != own), None)
        if differing is not None:
            raise InputError(
                f"{self.folder} was encoded with another {differing}; expected a new folder, or the pipeline, pictures and size of "
                "before."
            )

    def _begun(self, arrays: Mapping[str, Tensor]) -> EncodingFile:
        """Begin the folder: what belongs to all rows is written."""
        forms = {name: _form(own[0]) for name, own in arrays.items()}
        lone = [name for name in self.encoding.empty if name not in forms]
        if lone:
            raise InputError(
                f"Got an empty condition for {lone[0]}, which is no column; expected it among the columns."
            )
        for name, empty in self.encoding.empty.items():
            row = _half(empty, name).to(arrays[name].dtype)
            if row.shape != arrays[name].shape[1:]:
                raise InputError(
                    f"The empty {name} has shape {tuple(row.shape)}; expected {tuple(arrays[name].shape[1:])}, as rows have."
                )
            self._write(array_path(self.folder, "empty", name), row)
        for name, value in self.encoding.fixed.items():
            if isinstance(value, Tensor):
                self._write(array_path(self.folder, "fixed", name), _plain(value))
        columns = {name: form for name, form in forms.items() if name != LATENTS}
        head = {"format": ENCODING, **self._about, "latents": forms[LATENTS], "columns": columns, "done": {}}
        return EncodingFile.of({**head, **{key: _json(head[key]) for key in (LATENTS, "columns")}}, str(self.folder))

    def _check_rows(self, head: EncodingFile, arrays: Mapping[str, Tensor], rows: int) -> None:
        expected = {LATENTS: head.latents, **head.columns}
        if set(arrays) != set(expected):
            raise InputError(f"Got {', '.join(arrays)}; expected {', '.join(expected)}, as in the rows before.")
        for name, own in arrays.items():
            wanted = (rows, *expected[name].shape)
            if tuple(own.shape) != wanted or _kind(own) != expected[name].dtype:
                raise InputError(
                    f"Got {name} of shape {tuple(own.shape)} and type {_kind(own)}; expected {wanted} and {expected[name].dtype}, "
                    "as in the rows before."
                )

    def _write(self, path: Path, rows: Tensor, first: int = 0, count: int | None = None) -> None:
        """Write an array, or some rows of it behind the ones that are there; what an interrupted write left is overwritten.

        Args:
            path: the file.
            rows: to write.
            first: number of rows before them.
            count: number of rows in the end; None for an array without such an axis.
        """
        array = np.ascontiguousarray(rows.numpy()).reshape(rows.shape)
        shape = array.shape if count is None else (count, *array.shape[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if first else "wb") as file:
            if first:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                file.seek(first * array[:1].nbytes, os.SEEK_CUR)
                file.truncate()
            else:
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(array.tobytes())
            file.flush()
            os.fsync(file.fileno())


def rows_on_disk(folder: Path) -> int:
    """Number of rows of an encoding that is not finished; 0 for any other folder."""
    if not (folder / UNFINISHED).is_file():
        return 0
    known = EncodingFile.of(read_json(folder / UNFINISHED, ENCODING), str(folder / UNFINISHED))
    return sum(known.done.values())


def _described(value: object) -> dict[str, object]:
    """A fixed argument in JSON."""
    if isinstance(value, Tensor):
        return {"array": _json(_form(_plain(value)))}
    constant = json.loads(json.dumps(value))
    return FixedValue(constant=constant).to_json()


def _json(value: object) -> object:
    if isinstance(value, ArrayForm):
        return value.to_json()
    return {name: _json(own) for name, own in cast("Mapping[str, object]", value).items()}


def _form(array: Tensor) -> ArrayForm:
    return ArrayForm.of({"shape": list(array.shape), "dtype": _kind(array)}, "An array")


def _kind(array: Tensor) -> str:
    return str(array.dtype).removeprefix("torch.")


def _plain(array: Tensor) -> Tensor:
    """A tensor on the CPU in a type that numpy has."""
    array = array.detach().cpu()
    return array.to(torch.float32) if array.dtype == torch.bfloat16 else array


def _half(rows: Tensor, name: str) -> Tensor:
    """Floating-point numbers in half precision.

    Raises:
        InputError: they are not finite, or too large for it.
    """
    rows = _plain(rows)
    if not rows.is_floating_point():
        return rows
    half = rows.to(torch.float16)
    if not bool(half.isfinite().all()):
        most = float(rows.abs().nan_to_num(torch.inf).max())
        what = (
            f"values up to {most:.3g}, which half precision cannot hold"
            if np.isfinite(most)
            else "values that are not finite"
        )
        raise InputError(f"Got {name} with {what}; expected finite numbers of at most 65,504.")
    return half
