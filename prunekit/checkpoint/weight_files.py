"""Finds the weight files of a folder: a single file, or the shards that an index lists, and variants of them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from prunekit._files import json_hash, sha256_file
from prunekit._json import read_json
from prunekit.checkpoint.layouts import says_raw
from prunekit.checkpoint.tensors import read_content
from prunekit.errors import FileFormatError, InputError, MissingFileError

__all__ = ["ACCELERATE", "DIFFUSERS", "WeightFiles", "weight_files"]

DIFFUSERS = ("diffusion_pytorch_model",)
"""Names of weights as diffusers writes them, without suffixes."""
ACCELERATE = ("model", "pytorch_model")
"""Names of weights as accelerate writes them."""

_SUFFIXES = ("safetensors", "bin")
_EMA_VARIANT = re.compile(r"(^|[._-])ema([._-]|$)")


@dataclass(frozen=True)
class WeightFiles:
    """One complete set of weights.

    Args:
        files: in order.
        variant: such as ``fp16``; empty for the plain ones.
        index: the index that lists the files, and which of them has which tensor; None for a single file.
        ema: whether they are a moving average (True) or not (False), by their variant's name; None where it does not say.
        note: what a user should know about the choice, or empty.
    """

    files: tuple[Path, ...]
    variant: str = ""
    index: Path | None = None
    ema: bool | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """The file that was read: the index, or the only one."""
        return (self.index or self.files[0]).name

    def sha256(self) -> str:
        """Hash of the files that were read."""
        if len(self.files) == 1:
            return sha256_file(self.files[0])
        return json_hash([sha256_file(file) for file in self.files])

    def read(self) -> Mapping[Any, Any]:
        """What they hold: of shards, the tensors that the index says each has.

        Raises:
            FileFormatError: a file is damaged, or does not have a tensor that the index says it has.
            UnsafeFileError: a pickle that would run code.
        """
        if self.index is None:
            contents = [read_content(file)[1] for file in self.files]
            return contents[0] if len(contents) == 1 else {key: value for one in contents for key, value in one.items()}
        held = {file.name: read_content(file)[1] for file in self.files}
        state: dict[str, Tensor] = {}
        for tensor, name in _weight_map(self.index).items():
            if tensor not in held[name]:
                raise FileFormatError(
                    f"{self.index} says that {name} has {tensor[:80]}, and it has not; copy all files of one revision."
                )
            state[tensor] = held[name][tensor]
        return state


def weight_files(folder: Path, names: tuple[str, ...], weights: str | None = None) -> WeightFiles:
    """The weights to read from a folder.

    An index comes before a whole file, as diffusers has it, and safetensors before torch's files; a variant is read where it is the
    moving average, or where there is nothing else.

    Args:
        folder: where they are.
        names: without suffixes, the likeliest first.
        weights: ``ema`` or ``raw`` where the caller asks for them.

    Raises:
        MissingFileError: there are none, or a shard is missing.
        FileFormatError: shards without an index are of several sets.
        InputError: the folder's names say that it does not have the weights that were asked for.
    """
    for name in names:
        found = _sets(folder, name)
        if found:
            return _chosen(folder, found, weights)
    raise MissingFileError(f"{folder} has no {names[0]}.safetensors or .bin.")


def _chosen(folder: Path, found: Mapping[str, WeightFiles], weights: str | None) -> WeightFiles:
    averaged = next((one for one in found.values() if one.ema), None)
    last = next((one for one in found.values() if one.ema is False), None)
    plain = found.get("") or next((one for one in found.values() if one.ema is None), None)
    if last is not None and plain is not None and averaged is None:  # plain ones beside "non_ema" are averaged
        averaged, plain = replace(plain, ema=True), None
    order = {"raw": (last, plain), "ema": (averaged, plain)}.get(weights or "", (averaged, plain, last))
    one = next((each for each in order if each is not None), None)
    if one is None:
        there = ", ".join(each.name for each in found.values())
        raise InputError(f"{folder} has {there} and no {weights} weights; leave `weights` {weights} out.")
    others = ", ".join(each.name for each in found.values() if each.files != one.files)
    said = ""
    if one.ema is not None:
        kind = "EMA" if one.ema else "raw"
        said = f"Reading the {kind} weights of {folder} ({one.name}){f', not {others}' if others else ''}."
    elif one.variant:
        said = f"Reading the {one.variant} weights of {folder}; {f'not {others}' if others else 'it has no others'}."
    return replace(one, note=f"{said} {one.note}".strip())


def _sets(folder: Path, name: str) -> dict[str, WeightFiles]:
    """Complete sets of weights by variant; of several for one variant, the one that diffusers would read."""
    there = sorted(path for path in folder.iterdir() if path.name.lower().startswith(name.lower()))
    found: dict[str, WeightFiles] = {}
    for suffix in _SUFFIXES:
        for one in (*_indexed(there, name, suffix), *_whole(there, name, suffix), *_numbered(there, name, suffix)):
            found.setdefault(one.variant, one)
    return found


def _indexed(there: list[Path], name: str, suffix: str) -> Iterator[WeightFiles]:
    form = re.compile(
        rf"{re.escape(name)}\.{suffix}\.index(?:\.(.+))?\.json|{re.escape(name)}\.{suffix}\.(.+)\.index\.json"
    )
    for path in there:
        match = form.fullmatch(path.name)
        if match is None:
            continue
        names = sorted(set(_weight_map(path).values()))
        files = tuple(path.with_name(one) for one in names)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise MissingFileError(
                f"{path} lists {missing[0][:80]}, which is not there; copy all files of one revision."
            )
        suffixes = tuple(f".{one}" for one in _SUFFIXES)
        variant = match[1] or match[2] or ""
        whole = f"{name}.{variant}.{suffix}" if variant else f"{name}.{suffix}"
        others = [one.name for one in there if one not in files and one.name.endswith(suffixes)]
        stray = [one for one in others if one == whole or _shard(name, suffix).fullmatch(one)]
        note = f"Reading the {len(files)} files that {path} lists, not {_some(stray)}." if stray else ""
        yield WeightFiles(files, variant, path, _of_variant(variant), note)


def _whole(there: list[Path], name: str, suffix: str) -> Iterator[WeightFiles]:
    form = re.compile(rf"{re.escape(name)}(?:\.(.+))?\.{suffix}", re.IGNORECASE)
    for path in there:
        match = form.fullmatch(path.name)
        if match is not None and path.is_file() and not _shard(name, suffix).fullmatch(path.name):
            yield WeightFiles((path,), match[1] or "", None, _of_variant(match[1] or ""))


def _numbered(there: list[Path], name: str, suffix: str) -> Iterator[WeightFiles]:
    """Shards without an index, where they can only be one set.

    Raises:
        FileFormatError: they can be several, or some are missing.
    """
    listed = {file for index in _indexed(there, name, suffix) for file in index.files}
    sets: dict[tuple[str, int], dict[int, Path]] = {}
    for path in there:
        match = _shard(name, suffix).fullmatch(path.name)
        if match is not None and path not in listed:
            sets.setdefault((match[1] or match[4] or "", int(match[3])), {})[int(match[2])] = path
    if listed or not sets:
        return
    (variant, count), shards = next(iter(sets.items()))
    if len(sets) > 1 or sorted(shards) != list(range(1, count + 1)):
        names = _some([path.name for each in sets.values() for path in each.values()])
        raise FileFormatError(
            f"{there[0].parent} has {names} and no index that says "
            f"which belong together; expected one whole set, or its {name}.{suffix}.index.json."
        )
    yield WeightFiles(tuple(shards[number] for number in sorted(shards)), variant, None, _of_variant(variant))


def _shard(name: str, suffix: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(name)}(?:\.(.+))?-(\d{{1,6}})-of-(\d{{1,6}})(?:\.(.+))?\.{suffix}")


def _weight_map(index: Path) -> dict[str, str]:
    """The file of every tensor, from an index; all are in the index's own folder.

    Raises:
        FileFormatError: it is no index, or names a file elsewhere.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise FileFormatError(f"{index} has no weight_map; expected the file of every tensor there.")
    for name in found.values():
        plain = isinstance(name, str) and PurePath(name).name == name and "\\" not in name
        if not plain or not name.lower().endswith(tuple(f".{one}" for one in _SUFFIXES)):
            raise FileFormatError(f"{index} lists {name!r:.80}; expected names of weight files beside it.")
    return found


def _of_variant(variant: str) -> bool | None:
    if says_raw(variant):
        return False
    return True if _EMA_VARIANT.search(variant) else None


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
