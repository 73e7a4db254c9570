"""The tensors of a file, read without running code: safetensors, and torch's own files under ``weights_only``."""

import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunekit._files import canonical_json
from prunekit._json import checked, parse_json
from prunekit.checkpoint.base import FORMAT, AboutForm
from prunekit.checkpoint.bounds import one_line
from prunekit.checkpoint.weights import preferred
from prunekit.errors import FileFormatError, MissingFileError, UnsafeFileError

__all__ = ["load_state", "read_content", "read_tensors", "safetensors_metadata", "safetensors_shapes"]

_CALLING = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE"}
_FILLING = re.compile(rb"(__builtin__|builtins)\s+bytearray\s|_codecs\s+encode\s")


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a ``.pt`` or ``.safetensors`` file, never running code from it.

    Of several state dicts the EMA's is taken, without the names of wrappers (``module.``, ``ema_model.``, …) before its own.

    Raises:
        MissingFileError: there is no such file.
        UnsafeFileError: a pickle that would run code.
        FileFormatError: damaged, or no checkpoint.
    """
    about, content = read_content(path)
    return about, preferred(content, path).state


def read_content(path: Path) -> tuple[dict[str, Any], Mapping[Any, Any]]:
    """Metadata of a prunekit checkpoint (else empty), and all that a file holds: tensors by name, maybe in dicts of dicts."""
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist; expected a checkpoint. Make one with `prunekit train` or `prunekit demo`."
        )
    content: Mapping[Any, Any]
    about: Any
    if path.suffix == ".safetensors":
        metadata, content = _read_safetensors(path)
        about = parse_json(metadata.get("prunekit", "{}").encode(), f"The metadata of {path}")
    else:
        content = _read_torch(path)
        about = {key: value for key, value in content.items() if not isinstance(value, Tensor) and key != "state_dict"}
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return {}, content
    return _checked_about(about, path), content


def _checked_about(about: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a prunekit checkpoint says of itself, if it is plain JSON of the right form; a pickle may hold other things."""
    what = f"What {path} says of itself"
    try:
        told = canonical_json(about).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{what} is no plain JSON ({one_line(error)}); save the base again.") from error
    known: dict[str, Any] = parse_json(told, what)
    checked(AboutForm, known, what, "save the base again")
    return known


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a safetensors file's tensors by name, from its header alone.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: truncated, or no safetensors file.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected the weights of the config beside it.")
    try:
        with safe_open(path, framework="pt") as handle:
            return {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118 - has keys() only
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{path} is no readable safetensors file ({one_line(error)}).") from error


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file whose header was found readable."""
    with safe_open(path, framework="pt") as handle:
        return dict(handle.metadata() or {})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, each in memory of its own.

    safetensors packs them without alignment, on which kernels round differently than on a tensor of its own.
    """
    return {key: tensor.clone() for key, tensor in _read_safetensors(path)[1].items()}


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - no mapping, has keys() only
            return handle.metadata() or {}, tensors
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{path} is no readable safetensors file ({one_line(error)}).") from error


def _read_torch(path: Path) -> Mapping[Any, Any]:
    """What ``torch.load(weights_only=True)`` reads, from a file whose checksums hold and that makes nothing but tensors."""
    try:
        instructions = _checked_instructions(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None and not _calls(instructions):
            raise FileFormatError(
                f"{path} is no readable checkpoint; expected one of torch.save or safetensors."
            ) from error
        raise UnsafeFileError(
            f"{path} needs to run code to be read ({named[1] if named else 'a pickle that calls functions'}), and is refused. "
            "Where you trust it, load it yourself once and save model.state_dict() with safetensors."
        ) from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        ValueError,
        AttributeError,
        TypeError,
        MemoryError,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{path} is no readable checkpoint ({one_line(error)}).") from error
    if not isinstance(content, Mapping):
        raise FileFormatError(f"{path} holds a {type(content).__name__}; expected a dict of tensors.")
    return content


def _checked_instructions(path: Path) -> bytes:
    """The pickle of a torch file, after the archive's checksums and sizes were found right.

    Raises:
        FileFormatError: a checksum differs, an entry is compressed or overlaps another.
        UnsafeFileError: the pickle fills memory by calling a builtin.
    """
    if not zipfile.is_zipfile(path):
        instructions = path.read_bytes()
    else:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise FileFormatError(f"{path} has compressed or overlapping entries, which torch.save does not write.")
            damaged = archive.testzip()  # reads piece by piece
            if damaged is not None:
                raise FileFormatError(f"{path} is damaged: the checksum of {damaged} differs; copy the file again.")
            names = [entry.filename for entry in entries if entry.filename.endswith("data.pkl")]
            if not names:
                raise FileFormatError(f"{path} is no readable checkpoint; expected one of torch.save or safetensors.")
            instructions = archive.read(names[0])
    if _FILLING.search(instructions):
        raise UnsafeFileError(
            f"{path} needs to run code to be read (builtins that fill memory), and is refused. "
            "Where you trust it, load it yourself once and save model.state_dict() with safetensors."
        )
    return instructions


def _calls(instructions: bytes) -> bool:
    """Whether a whole pickle imports or calls; it is read, never run."""
    try:
        return any(name in _CALLING for name in _operations(instructions))
    except (ValueError, LookupError):
        return False


def _operations(instructions: bytes) -> Iterator[str]:
    # all of them first: half a pickle is no pickle
    yield from [operation.name for operation, _, _ in pickletools.genops(instructions)]
