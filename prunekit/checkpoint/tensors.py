"""The tensors of a file, read without running code: safetensors, and torch's own files under ``weights_only``."""

import io
import json
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunekit._containers import check_safetensors, open_archive
from prunekit._json import JsonObject, parse_json
from prunekit._messages import one_line
from prunekit._missing import check_checkpoint
from prunekit.checkpoint.nested_places import places
from prunekit.checkpoint.numpy_objects import has_numpy_or_bytes, numpy_names, stand_ins
from prunekit.checkpoint.weights import preferred
from prunekit.errors import FileFormatError, MissingFileError, PrunekitError, UnsafeFileError
from prunekit.limits import check_limit, limit
from prunekit.results.formats import BASE

__all__ = ["load_state", "read_content", "read_tensors", "safetensors_metadata", "safetensors_shapes"]

_SAFE_TORCH = (2, 10)
_EDM_WORDS = (b"torch_utils.persistence", b"_reconstruct_persistent_obj")
_MOST_OPERATIONS = 3_000_000  # of pickles in the old format; 80,000 tensors have as many
_OLD_PARTS = 5  # magic number, protocol, system, content, keys of the storages
_CALLING = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE"}
_MAKING = (
    b"}",
    b"]",
    b"(",
    b")",
    b"R",
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x8f",
)  # instructions that make a container or call
_FILLING = re.compile(rb"(__builtin__|builtins)\s+bytearray\s")


def load_state(path: Path | str) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Metadata and tensors of a ``.pt`` or ``.safetensors`` file, never running code from it.

    Of several state dicts the EMA's is taken, without the names of wrappers (``module.``, ``ema_model.``, …) before its own.

    Raises:
        MissingFileError: there is no such file.
        UnsafeFileError: a pickle that would run code.
        FileFormatError: damaged, or no checkpoint.
    """
    path = Path(path)
    about, content = read_content(path)
    return about, preferred(content, path).state


def read_content(path: Path) -> tuple[JsonObject, Mapping[Any, Any]]:
    """Metadata of a prunekit checkpoint (else empty), and all that a file holds: tensors by name, maybe in dicts of dicts."""
    check_checkpoint(path)
    content: Mapping[Any, Any]
    about: Any
    if path.suffix.lower() == ".safetensors":
        metadata, content = _read_safetensors(path)
        about = parse_json(metadata.get("prunekit", "{}").encode(), f"The metadata of {path}")
    else:
        content = _read_torch(path)
        for _ in places(content, path):  # refuses what would take too long in every later walk
            pass
        about = {key: value for key, value in content.items() if not isinstance(value, Tensor) and key != "state_dict"}
    if not isinstance(about, dict) or about.get("format") != BASE:
        return {}, content
    return _checked_about(about, path), content


def _checked_about(about: dict[str, object], path: Path) -> dict[str, object]:
    """What a prunekit checkpoint says of itself, if it is plain JSON of the right form; a pickle may hold other things."""
    from prunekit.results.working_files import BaseFile  # noqa: PLC0415 - loads pydantic

    what = f"What {path} says of itself"
    try:
        told = json.dumps(
            about, allow_nan=False
        ).encode()  # in the order of the file, so that a copy has the same bytes
    except (TypeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{what} is no plain JSON ({one_line(error)}); save the base again.") from error
    known: JsonObject = parse_json(told, what)
    BaseFile.of(known, what, "save the base again")
    return known


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a safetensors file's tensors by name, from its header alone.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: truncated, or no safetensors file.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected the weights of the config beside it.")
    check_safetensors(path)
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
    check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - no mapping, has keys() only
            return handle.metadata() or {}, tensors
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{path} is no readable safetensors file ({one_line(error)}).") from error


def _read_torch(path: Path) -> Mapping[object, object]:
    """What ``torch.load(weights_only=True)`` reads, from a file whose checksums hold and that makes nothing but tensors."""
    _check_torch_is_safe()
    instructions, archived = _checked_instructions(path)
    try:
        with stand_ins(_numpy_names(path, instructions, 1 if archived else _OLD_PARTS)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PrunekitError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None and not _calls(instructions):
            raise FileFormatError(
                f"{path} is no readable checkpoint; expected one of torch.save or safetensors."
            ) from error
        raise _unsafe(path, named[1][:80] if named else "a pickle that calls functions") from error
    except Exception as error:  # damaged files make torch raise errors of every kind
        raise FileFormatError(f"{path} is no readable checkpoint ({one_line(error)}).") from error
    if not isinstance(content, Mapping):
        raise FileFormatError(f"{path} holds a {type(content).__name__}; expected a dict of tensors.")
    return content


def _numpy_names(path: Path, instructions: bytes, pickles: int) -> set[str]:
    """What a file asks of NumPy, which is replaced, after all bytes that it makes were found to be no more than it stores."""
    if not has_numpy_or_bytes(instructions):
        return set()
    try:
        names = numpy_names(io.BytesIO(instructions), pickles)
    except (ValueError, LookupError, struct.error) as error:
        raise FileFormatError(f"{path} is no readable checkpoint ({one_line(error)}).") from error
    if names is None:
        raise _filling(path)
    return names


def _check_no_edm(path: Path, instructions: bytes) -> None:
    """Refuse the pickles of EDM, which carry the network's source code, with the way to convert them.

    Raises:
        UnsafeFileError: it is one.
    """
    if any(word in instructions for word in _EDM_WORDS):
        raise UnsafeFileError(
            f"{path} is a pickle of EDM or StyleGAN, which runs the code that it carries, and is refused. If you trust it, load it "
            "once in EDM's own repository, save pickle.load(file)['ema'].state_dict() with safetensors, and give that file with "
            "a factory that builds the network (load_base in Python)."
        )


def _unsafe(path: Path, what: str) -> UnsafeFileError:
    return UnsafeFileError(
        f"{path} needs to run code to be read ({what}), and is refused. "
        "Where you trust it, load it yourself once and save model.state_dict() with safetensors."
    )


def _filling(path: Path) -> UnsafeFileError:
    return UnsafeFileError(
        f"{path} makes a bytearray, or bytes in a way that can fill the memory, and is refused; expected tensors, numbers, text "
        "and NumPy arrays. Where you trust it, load it yourself once and save model.state_dict() with safetensors."
    )


def _check_torch_is_safe() -> None:
    """Refuse to read a pickle with a torch whose ``weights_only`` has known holes (CVE-2025-32434, CVE-2026-24747)."""
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is not None and (int(version[1]), int(version[2])) < _SAFE_TORCH:
        raise UnsafeFileError(
            f"torch {torch.__version__} can be made to run code by a .pt file; install torch "
            f"{'.'.join(map(str, _SAFE_TORCH))} or newer, or give a .safetensors file."
        )


def _checked_instructions(path: Path) -> tuple[bytes, bool]:
    """The pickle of a torch file that torch itself will read, and whether it is in an archive, with the right checksums and sizes.

    Raises:
        FileFormatError: a checksum differs, an entry is compressed or overlaps another, or there is a second pickle.
        LimitError: the pickle is larger than the limits ``pickle-bytes`` and ``pickle-containers`` allow.
        UnsafeFileError: the pickle fills memory by calling a builtin.
    """
    with path.open("rb") as handle:
        archived = handle.read(4) == b"PK\x03\x04"  # as torch itself decides
        handle.seek(0)  # a file of torch before 1.6 has its pickles first, then the tensors
        instructions = b"" if archived else handle.read(limit("pickle-bytes"))
    if archived:
        instructions = _archived_instructions(path)
    _check_no_edm(path, instructions)
    check_limit("pickle-containers", sum(map(instructions.count, _MAKING)), f"The pickle of {path}")
    if not archived and not _whole_pickles(instructions):
        if _calls(instructions):
            raise _unsafe(path, "a pickle that calls functions")
        raise FileFormatError(f"{path} is no readable checkpoint; expected one of torch.save or safetensors.")
    if _FILLING.search(instructions):
        raise _filling(path)
    return instructions, archived


def _archived_instructions(path: Path) -> bytes:
    """The one pickle of an archive of ``torch.save``'s."""
    with open_archive(path) as archive:
        entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise FileFormatError(f"{path} has compressed or overlapping entries, which torch.save does not write.")
        pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
        folders = {entry.filename.partition("/")[0] for entry in entries}
        if len(pickles) != 1 or len(folders) != 1 or pickles[0].filename != f"{folders.pop()}/data.pkl":
            raise FileFormatError(
                f"{path} has {len(pickles)} pickles; expected one of torch.save, with a single data.pkl in its single folder."
            )
        check_limit("pickle-bytes", pickles[0].file_size, f"The pickle of {path}")
        try:
            damaged = archive.testzip()  # reads piece by piece
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, struct.error) as error:
            raise FileFormatError(f"{path} is damaged ({one_line(error)}); copy the file again.") from error
        if damaged is not None:
            raise FileFormatError(f"{path} is damaged: the checksum of {damaged[:80]} differs; copy the file again.")
        return archive.read(pickles[0])


def _whole_pickles(instructions: bytes) -> bool:
    """Whether a file of the old format begins with a whole pickle for each of its five parts; they are read, never run."""
    stream, left = io.BytesIO(instructions), _MOST_OPERATIONS
    try:
        for _ in range(_OLD_PARTS):
            for _ in pickletools.genops(stream):
                left -= 1
                if left < 0:
                    return False
    except (ValueError, LookupError, struct.error):
        return False
    return True


def _calls(instructions: bytes) -> bool:
    """Whether a whole pickle imports or calls; it is read, never run."""
    try:
        return any(name in _CALLING for name in _operations(instructions))
    except (ValueError, LookupError):
        return False


def _operations(instructions: bytes) -> Iterator[str]:
    # all of them first: half a pickle is no pickle
    yield from [operation.name for operation, _, _ in pickletools.genops(instructions)]
