"""Walks through what a checkpoint holds: every dict and list with tensors in it, the outermost first."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from prunekit.checkpoint.numpy_objects import NumpyObject
from prunekit.errors import FileFormatError

__all__ = ["Place", "places"]

_MAX_DEPTH = 16
_MAX_VALUES = 400_000
"""Only a pickle that holds the same dicts in many places has more: one of the allowed size has at most 160,000 tensors."""
_LONGEST = 80  # characters of a key in a place
_SINGLE = {int, float, str, bool, bytes, complex, type(None)}

Container = dict[Any, Any] | list[Any] | tuple[Any, ...]


class Place(NamedTuple):
    """A dict, list or tuple of a checkpoint.

    Args:
        where: the keys that lead there, with dots between.
        tensors: its tensors by their keys, or by their numbers in a list.
        sizes: elements of its tensors and of its NumPy arrays, which are not read.
        listed: whether it is a list or tuple.
        whole: whether it holds nothing but tensors.
    """

    where: str
    tensors: dict[str, Tensor]
    sizes: dict[str, int]
    listed: bool
    whole: bool


class _Held(NamedTuple):
    """What a container holds itself, and the containers in it."""

    place: Place
    inner: list[tuple[str, Container]]


def places(content: Mapping[Any, Any], path: object = "the checkpoint") -> Iterator[Place]:
    """Every container with tensors in it or further inside, the outermost first; each once on every way that leads there.

    Containers without tensors, such as configs, cost a look at each of their values once, and nothing that holds itself is entered
    again.

    Args:
        content: what a file holds.
        path: the file, for messages.

    Raises:
        FileFormatError: containers are nested too deeply, or lie in more places than in any file of a trainer.
    """
    found = _holding(content)
    level: list[tuple[str, int, tuple[int, ...]]] = [("", id(content), ())] if id(content) in found else []
    count, depth = 0, 0
    while level:
        deeper = []
        depth += 1
        for where, number, above in level:
            held = found[number]
            count += len(held.place.sizes) + len(held.inner)
            if count > _MAX_VALUES or depth > _MAX_DEPTH:
                raise FileFormatError(
                    f"The dicts of {path} hold tensors at depth {depth} and in {count:,} places; expected at most {_MAX_DEPTH} "
                    f"and {_MAX_VALUES:,}: save the network's state dict by itself."
                )
            yield held.place._replace(where=where)
            own = (*above, number)
            inner = ((key, id(value)) for key, value in held.inner)
            deeper += [
                (f"{where}.{key}".lstrip("."), one, own) for key, one in inner if one in found and one not in own
            ]
        level = deeper


def _holding(content: Mapping[Any, Any]) -> dict[int, _Held]:
    """The containers that hold tensors or arrays, themselves or further inside, by their ids."""
    found: dict[int, _Held] = {}
    around: dict[int, list[int]] = {}
    queue: list[Any] = [content]
    while queue:
        one = queue.pop()
        if id(one) in found:
            continue
        found[id(one)] = _sorted_out(one)
        for _, inner in found[id(one)].inner:
            around.setdefault(id(inner), []).append(id(one))
            queue.append(inner)
    holding: set[int] = set()
    numbers = [number for number, held in found.items() if held.place.sizes]
    while numbers:
        number = numbers.pop()
        if number not in holding:
            holding.add(number)
            numbers += around.get(number, ())
    return {number: found[number] for number in holding}


def _sorted_out(container: Any) -> _Held:
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    inner: list[tuple[str, Container]] = []
    listed = isinstance(container, list | tuple)
    count = 0
    for key, value in enumerate(container) if listed else container.items():
        if type(value) in _SINGLE:
            continue
        name = str(key) if isinstance(key, str | int | float) else type(key).__name__
        if isinstance(value, Tensor):
            count += 1
            tensors[name] = value
            sizes[name] = sizes.get(name, 0) + value.numel()
        elif isinstance(value, NumpyObject):
            if value.elements:
                sizes[name] = sizes.get(name, 0) + value.elements
        elif isinstance(value, dict | list | tuple):
            inner.append((name[:_LONGEST], value))
    return _Held(Place("", tensors, sizes, listed, 0 < count == len(container)), inner)
