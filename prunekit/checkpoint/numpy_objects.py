"""NumPy's objects in torch's files, such as the state of a random generator, without a call of NumPy.

Trainers save scalars, arrays and generators beside their tensors. Everything that such a pickle takes from NumPy is replaced by a
class that only keeps what it is given.
"""

import math
import pickletools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any, NamedTuple

import torch

__all__ = ["NumpyObject", "has_numpy_or_bytes", "numpy_names", "stand_ins"]

_ENCODE = "_codecs encode"
_BYTES = re.compile(rb"_codecs\s+encode\s|(__builtin__|builtins)\s+bytes\s|cnumpy")
_EMPTY = ("__builtin__ bytes", "builtins bytes")
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_AGAIN = 16  # characters of a text that may be encoded more than once; CPython has single ones again
_MOST_OPERATIONS = 3_000_000  # 80,000 tensors have as many
_LOCK = threading.Lock()


class NumpyObject:
    """Stands for a NumPy object in a pickle, or for empty bytes; it does nothing with what it is given."""

    state: object = None

    def __init__(self, *arguments: object):
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    @property
    def elements(self) -> int:
        """Numbers in an array; 0 for anything else."""
        shape = self.state[1] if isinstance(self.state, tuple) and len(self.state) == 5 else None
        if not isinstance(shape, tuple) or len(shape) > 32 or not all(isinstance(size, int) for size in shape):
            return 0
        return math.prod(shape)


class _Event(NamedTuple):
    """An instruction of a pickle: its name, and the text or the import (``module name``) that it puts on the stack."""

    name: str
    text: str | None = None
    imported: str | None = None


def has_numpy_or_bytes(instructions: bytes) -> bool:
    """Whether a pickle seems to make bytes or NumPy's objects."""
    return _BYTES.search(instructions) is not None


def numpy_names(stream: IO[bytes], pickles: int) -> set[str] | None:
    """All that pickles import from NumPy, and ``builtins.bytes`` where they do; they are read, never run.

    Args:
        stream: where the pickles are.
        pickles: how many there are, one after the other.

    Returns:
        the names with their modules; None if bytes are made in another way than Python's, which could fill memory: by encoding one
        long text again and again, or to a longer encoding.

    Raises:
        ValueError: it is no pickle, or too long a one.
    """
    names: set[str] = set()
    for _ in range(pickles):
        events = _events(stream)
        for event in events:
            if event.imported == _ENCODE and not _is_plain(list(islice(events, 4))):
                return None
            if event.imported in _EMPTY:
                names.add("builtins.bytes")
            elif event.imported is not None and event.imported.split(" ")[0].split(".")[0] == "numpy":
                names.add(event.imported.replace(" ", "."))
    return names


def _events(stream: IO[bytes]) -> Iterator[_Event]:
    """The instructions of one pickle, with what they get from its memo."""
    memo: dict[object, _Event] = {}
    last = _Event("")
    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        if count > _MOST_OPERATIONS:
            raise ValueError(f"more than {_MOST_OPERATIONS:,} instructions")
        name = operation.name
        if name in _PUTS:
            memo[argument] = last
            continue
        if name in _GETS:
            last = memo.get(argument, last)._replace(name=name)
        elif name == "BINUNICODE":
            last = _Event(name, text=str(argument))
        else:
            last = _Event(name, imported=str(argument) if name == "GLOBAL" else None)
        yield last


def _is_plain(events: list[_Event]) -> bool:
    """Whether the four instructions after ``encode`` make bytes as Python's pickle does: of a text of its own, by latin1."""
    names = [event.name for event in events]
    if len(events) != 4 or names[2:] != ["TUPLE2", "REDUCE"]:
        return False
    text, encoding = events[0], events[1].text
    return encoding == "latin1" and text.text is not None and (text.name not in _GETS or len(text.text) <= _AGAIN)


@contextmanager
def stand_ins(names: set[str]) -> Iterator[None]:
    """Have torch's ``weights_only`` loader make a :class:`NumpyObject` wherever a pickle asks for one of these names.

    What the program itself allowed under these names is set aside for that time.
    """
    if not names:
        yield
        return
    with _LOCK:
        allowed = torch.serialization.get_safe_globals()
        aside = [one for one in allowed if _name(one) in names]
        if aside:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals([one for one in allowed if one not in aside])
        try:
            with torch.serialization.safe_globals([(NumpyObject, name) for name in sorted(names)]):
                yield
        finally:
            if aside:
                torch.serialization.add_safe_globals(aside)


def _name(allowed: Callable[..., Any] | tuple[Callable[..., Any], str]) -> str:
    return allowed[1] if isinstance(allowed, tuple) else f"{allowed.__module__}.{allowed.__qualname__}"
