"""Writes folders of encoded images, some rows at a time; after an interruption it resumes behind the last rows on the disk."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor

from prunekit._files import atomic_path, write_json
from prunekit._json import parse_json, read_json
from prunekit.data.encoded import CAPTIONS, HEAD, LATENTS, PARTS, UNFINISHED, array_path, check_name, load_encoded
from prunekit.data.encoding_head import CONTENTS, Encoding
from prunekit.data.picture_folders import several
from prunekit.data.row_files import (
    check_rows_on_disk,
    form_of,
    hash_with,
    kind_of,
    plain_array,
    stored,
    write_rows,
)
from prunekit.errors import FileFormatError, InputError
from prunekit.results.encoded_files import ArrayForm, EncodedFile, EncodingFile
from prunekit.results.formats import ENCODED, ENCODING

__all__ = ["EncodedWriter", "rows_on_disk"]

_PICTURES = "pictures.json"  # the hash of each picture's content, to name those that changed


@dataclass(eq=False)
class EncodedWriter:
    """Writes a folder of encoded images.

    Floating-point numbers are stored in half precision or in float32, others unchanged. The folder can be read when :meth:`finish`
    is done.

    Args:
        folder: a new or empty one, or one with an unfinished encoding of the same pipeline and captions, which is resumed.
        encoding: what belongs to all rows.

    Raises:
        InputError: the folder has something else.
        MissingFileError: an array of an unfinished encoding is missing.
        FileFormatError: one is damaged, or lacks rows that were written.

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
            self._check_written(self._head)
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
            InputError: numbers are not finite or too large for half precision, shapes differ from those of earlier rows, latents
                are of a kind that is not read, or there are more rows than captions.
        """
        if part not in PARTS:
            raise InputError(f"Got rows of {part!r}; expected {' or '.join(PARTS)}.")
        arrays = {LATENTS: latents, **{check_name(name, "The encoding"): own for name, own in columns.items()}}
        rows, first = len(latents), self.done(part)
        if self.is_finished or first + rows > len(self.encoding.captions[part]):
            raise InputError(
                f"Got {rows} rows after {first} for {len(self.encoding.captions[part])} captions of {part}; expected one for each."
            )
        if not rows:
            return
        ready = {name: stored(own, name, self.encoding.precision) for name, own in arrays.items()}
        head = self._begun(ready) if self._head is None else self._head
        self._check_alike(head, ready, rows)
        for name, own in ready.items():
            write_rows(array_path(self.folder, part, name), own, first, len(self.encoding.captions[part]))
        before = (head.hashes or {}).get(part, {})
        now = {name: hash_with(own, before.get(name, "")) for name, own in ready.items()}
        done, hashes = {**head.done, part: first + rows}, {**(head.hashes or {}), part: now}
        self._head = head.model_copy(update={"done": done, "hashes": hashes})
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
            with atomic_path(self.folder / part / CAPTIONS) as place:
                place.write_text(self.encoding.captions_of(part), encoding="utf-8")
        told = {key: value for key, value in self._head.to_json().items() if key not in ("format", "done", "hashes")}
        draft = EncodedFile.of({"format": ENCODED, **told, "sha256": ""}, str(self.folder))
        self._sha256 = load_encoded(self.folder, str(self.folder), head=draft).sha256
        write_json(self.folder / HEAD, {**draft.to_json(), "sha256": self._sha256})
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        return self._sha256

    def _check_same(self, known: EncodedFile | EncodingFile) -> None:
        """Refuse to resume with another pipeline, other captions or other pictures."""
        there, own = _without_contents(known.to_json()), _without_contents(self._about)
        keys = [*own, "arguments"]  # which are left out where there are none
        differing = next((key for key in keys if there.get(key) != own.get(key)), None)
        if differing is not None:
            raise InputError(
                f"{self.folder} was encoded with another {differing}; expected a new folder, or the pipeline, pictures and size of "
                "before."
            )
        if known.latents.dtype != self.encoding.precision:
            raise InputError(
                f"{self.folder} was encoded in {known.latents.dtype}; expected a new folder, or that precision again."
            )
        pipeline = cast("Mapping[str, object]", self._about["pipeline"])
        if CONTENTS in known.pipeline and known.pipeline[CONTENTS] != pipeline.get(CONTENTS):
            changed = self._changed()
            which = f" ({several(changed)} changed)" if changed else ""
            raise InputError(
                f"{self.folder} was encoded from other pictures of the same names{which}; give a new folder, or delete it."
            )

    def _changed(self) -> list[str]:
        """Names of the pictures whose content is not what was encoded; empty if the list of what was encoded is lost."""
        path = self.folder / _PICTURES
        try:
            before = parse_json(path.read_bytes(), str(path), limited=False)
        except (OSError, FileFormatError):
            return []
        known = before if isinstance(before, list) else []
        return [name for (name, now), then in zip(self.encoding.pictures, known, strict=False) if now != then]

    def _check_written(self, known: EncodingFile) -> None:
        """Refuse to resume behind rows that are not those that were written: numbers nobody computed would take their place."""
        what = str(self.folder / UNFINISHED)
        forms = {LATENTS: known.latents, **{check_name(name, what): form for name, form in known.columns.items()}}
        counts = {part: len(own) for part, own in self.encoding.captions.items()}
        if any(done > counts.get(part, -1) for part, done in known.done.items()):
            raise InputError(f"{what} has more rows than captions; delete the folder and encode the pictures again.")
        hashes = known.hashes or {}
        for part, done in known.done.items():
            for name, form in forms.items() if done else ():
                own = hashes.get(part, {}).get(name)
                check_rows_on_disk(array_path(self.folder, part, name), form, done, counts[part], own)
        arrays = {name: value.array for name, value in known.fixed.items() if value.array is not None}
        empty = {name: forms[name] for name in known.empty if name in forms}
        for part, some in (("empty", empty), ("fixed", arrays)):
            for name, form in some.items():
                own = hashes.get(part, {}).get(name)
                check_rows_on_disk(array_path(self.folder, part, check_name(name, what)), form, 1, None, own)

    def _begun(self, arrays: Mapping[str, Tensor]) -> EncodingFile:
        """Begin the folder: what belongs to all rows is written."""
        alone = next((name for name, own in arrays.items() if own.ndim == 0 or not len(own)), None)
        if alone is not None:
            raise InputError(f"Got {alone} without rows; expected one for each image.")
        if not arrays[LATENTS].is_floating_point() or arrays[LATENTS].ndim not in (3, 4, 5):
            raise InputError(
                f"Got latents of {kind_of(arrays[LATENTS])} and shape {tuple(arrays[LATENTS].shape)}; expected floating point of "
                "shape (rows, channels, height, width), (rows, channels, frames, height, width), or (rows, tokens, channels)."
            )
        forms = {name: form_of(own[0]) for name, own in arrays.items()}
        lone = [name for name in self.encoding.empty if name not in forms]
        if lone:
            raise InputError(
                f"Got an empty condition for {lone[0]}, which is no column; expected it among the columns."
            )
        if self.encoding.pictures:
            digests = [digest for _, digest in self.encoding.pictures]
            with atomic_path(self.folder / _PICTURES) as place:
                place.write_text(json.dumps(digests), encoding="utf-8")
        hashes: dict[str, dict[str, str]] = {}
        for part, name, array in self._alike(arrays):
            write_rows(array_path(self.folder, part, name), array)
            hashes.setdefault(part, {})[name] = hash_with(array[None])
        columns = {name: form for name, form in forms.items() if name != LATENTS}
        head = {"format": ENCODING, **self._about, "latents": forms[LATENTS], "columns": columns, "done": {}}
        head["hashes"] = hashes
        return EncodingFile.of({**head, **{key: _json(head[key]) for key in (LATENTS, "columns")}}, str(self.folder))

    def _alike(self, arrays: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
        """What is the same for all rows, as it is stored: part, name and array."""
        for name, empty in self.encoding.empty.items():
            row = stored(empty, name, self.encoding.precision).to(arrays[name].dtype)
            if row.shape != arrays[name].shape[1:]:
                raise InputError(
                    f"The empty {name} has shape {tuple(row.shape)}; expected {tuple(arrays[name].shape[1:])}, as rows have."
                )
            yield "empty", name, row
        for name, value in self.encoding.fixed.items():
            if isinstance(value, Tensor):
                yield "fixed", name, plain_array(value)

    def _check_alike(self, head: EncodingFile, arrays: Mapping[str, Tensor], rows: int) -> None:
        expected = {LATENTS: head.latents, **head.columns}
        if set(arrays) != set(expected):
            raise InputError(f"Got {', '.join(arrays)}; expected {', '.join(expected)}, as in the rows before.")
        for name, own in arrays.items():
            wanted = (rows, *expected[name].shape)
            if tuple(own.shape) != wanted or kind_of(own) != expected[name].dtype:
                raise InputError(
                    f"Got {name} of shape {tuple(own.shape)} and type {kind_of(own)}; expected {wanted} and "
                    f"{expected[name].dtype}, as in the rows before."
                )


def rows_on_disk(folder: Path) -> int:
    """Number of rows of an encoding that is not finished; 0 for any other folder."""
    if not (folder / UNFINISHED).is_file():
        return 0
    known = EncodingFile.of(read_json(folder / UNFINISHED, ENCODING), str(folder / UNFINISHED))
    return sum(known.done.values())


def _without_contents(about: Mapping[str, object]) -> dict[str, object]:
    """What belongs to all rows, without the hash of the pictures' contents."""
    pipeline = cast("Mapping[str, object]", about["pipeline"])
    return {**about, "pipeline": {key: value for key, value in pipeline.items() if key != CONTENTS}}


def _json(value: object) -> object:
    if isinstance(value, ArrayForm):
        return value.to_json()
    return {name: _json(own) for name, own in cast("Mapping[str, object]", value).items()}
