"""Which of a checkpoint's tensors are the network's own: trainers wrap them in dicts, and their names in prefixes.

Where the architecture is known, the names say it: a part of the file fits when, behind one prefix, it has exactly the
network's names. Of several parts that fit, an exponential moving average (EMA) is preferred, and a note says so.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunekit.errors import FileFormatError

__all__ = ["Weights", "fitting", "preferred"]

_WRAPPERS = ("module.", "_orig_mod.", "ema_model.", "online_model.", "model.diffusion_model.", "model.")
_ORDER = ("state_dict", "model_state_dict", "model")
_EMA = re.compile(r"(^|[._])(ema|averaged?)([._]|$)")
_MAX_DEPTH, _MAX_PARTS = 3, 64


@dataclass(frozen=True, eq=False)
class Weights:
    """A network's tensors and where in the file they were.

    Args:
        state: tensors by the network's own names.
        place: keys and prefix in the file, such as ``ema.ema_model.model``.
        ema: True where the place is that of a moving average.
        choice: True where the file has other weights that could have been read.
    """

    state: dict[str, Tensor]
    place: str
    ema: bool
    choice: bool

    def note(self, path: Path) -> str:
        """The word about EMA weights, empty for others."""
        if not self.ema:
            return ""
        others = ", not its other weights" if self.choice else ""
        return f"Reading the EMA weights of {path} ({self.place}){others}."


class _Part(NamedTuple):
    place: str
    prefix: str
    tensors: Mapping[str, Tensor]

    @property
    def ema(self) -> bool:
        name = f"{self.place}.{self.prefix}".lower()
        return bool(_EMA.search(name)) and "online_model" not in name

    @property
    def rank(self) -> tuple[bool, int]:
        known = self.place.split(".")[0]
        return not self.ema, _ORDER.index(known) if known in _ORDER else len(_ORDER)

    def weights(self, choice: bool) -> Weights:
        place = ".".join(part for part in (self.place, self.prefix.rstrip(".")) if part)
        return Weights(dict(_inner(self.tensors, self.prefix)), place, self.ema, choice)


def preferred(content: Mapping[Any, Any], path: Path) -> Weights:
    """The likeliest state dict of a checkpoint whose architecture is not known, without its wrappers' names.

    Raises:
        FileFormatError: there are no tensors, or not the plain ones of a state dict.
    """
    parts = sorted((_unwrapped(part) for part in _parts(content)), key=lambda part: part.rank)
    if not parts:
        raise FileFormatError(f"{path} holds no tensors; expected a state dict.")
    return _plain(parts[0].weights(len(parts) > 1), path)


def fitting(content: Mapping[Any, Any], shapes: Mapping[str, tuple[int, ...]], network: str, path: Path) -> Weights:
    """The part of a checkpoint that has exactly a network's tensors, the EMA's where there are several.

    Args:
        content: what a file holds.
        shapes: of the network's state dict.
        network: its name, for messages.
        path: the file, for messages.

    Raises:
        FileFormatError: no part fits, or the tensors are not plain ones; the message names the first that differ.
    """
    found = [part for outer in _parts(content) for part in _behind_prefixes(outer, shapes)]
    parts = sorted((part for part in found if not _difference(part, shapes)), key=lambda part: part.rank)
    if not parts:
        nearest = min(found, key=lambda part: part.rank) if found else None
        if nearest is None:
            likely = preferred(content, path)
            nearest = _Part(likely.place, "", likely.state)
        place = nearest.weights(choice=False).place
        where = f" under {place}" if place else ""
        raise FileFormatError(f"The tensors of {path}{where} do not fit {network}: {_difference(nearest, shapes)}.")
    return _plain(parts[0].weights(len(parts) > 1), path)


def _parts(content: Mapping[Any, Any]) -> Iterator[_Part]:
    """Every dict in a checkpoint that holds tensors itself, the outermost first."""
    level: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    count = 0
    for _ in range(_MAX_DEPTH):
        inner = []
        for place, mapping in level:
            tensors = {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}
            if tensors:
                yield _Part(place, "", tensors)
            count += 1
            if count > _MAX_PARTS:
                return
            dicts = ((key, value) for key, value in mapping.items() if isinstance(value, Mapping))
            inner += [(f"{place}.{key}".lstrip("."), value) for key, value in dicts if isinstance(key, str)]
        level = inner


def _behind_prefixes(part: _Part, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[_Part]:
    """The part behind every prefix that a network's most telling name has in it."""
    telling = max(shapes, key=len, default="")
    for key in part.tensors:
        if key == telling or key.endswith(f".{telling}"):
            yield part._replace(prefix=key.removesuffix(telling))


def _unwrapped(part: _Part) -> _Part:
    """Without the wrappers' names: an averaged model's alone where a file has it beside another, else what all names have."""
    while True:
        rest = dict(_inner(part.tensors, part.prefix))
        own = next((word for word in _WRAPPERS if all(key.startswith(word) for key in rest)), None)
        if own is None and any(key.startswith("ema_model.") for key in rest):
            own = "ema_model."
        if own is None:
            return part
        part = part._replace(prefix=part.prefix + own)


def _inner(tensors: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((key.removeprefix(prefix), value) for key, value in tensors.items() if key.startswith(prefix))


def _difference(part: _Part, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The first way in which a part is not the network's state dict, empty if it is."""
    found = dict(_inner(part.tensors, part.prefix))
    for said, names in (("Missing key(s)", set(shapes) - set(found)), ("Unexpected key(s)", set(found) - set(shapes))):
        if names:
            first = ", ".join(sorted(names)[:3])
            return f"{said} {first}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    other = next((key for key in shapes if tuple(found[key].shape) != shapes[key]), None)
    if other is None:
        return ""
    return f"{other} has shape {tuple(found[other].shape)}, expected {shapes[other]}"


def _plain(weights: Weights, path: Path) -> Weights:
    """Refuse tensors that stand for more memory than the file has.

    Raises:
        FileFormatError: sparse, quantized or meta tensors, or ones that are larger than what is stored of them.
    """
    total = 0
    for key, tensor in weights.state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise FileFormatError(f"{key} in {path} is no plain tensor; expected a dense one with its values.")
        total += tensor.numel() * tensor.element_size()
    size = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
    if total > 2 * size:
        raise FileFormatError(f"The tensors of {path} claim {total:,} bytes, and it stores {size:,}; copy it again.")
    return weights
