"""Progress of long work: the library tells how far it is, and whoever watches shows it. Without a watcher, nothing happens.

The command line watches all commands. Library callers watch with :func:`watched`; nothing is printed unless they do.
"""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

__all__ = ["Watcher", "as_part", "tell", "told", "watched"]

_Item = TypeVar("_Item")
_FINE = 1000  # of a part of longer work


class Watcher(Protocol):
    """Someone who shows progress."""

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        """Something has progressed.

        Args:
            label: what is being done, such as ``sampling``.
            done: how much of it is done, from 0.
            total: how much there is; it is over when ``done`` reaches it.
            note: more in a few words, such as the loss; may be empty.
        """
        ...


_watcher: ContextVar[Watcher | None] = ContextVar("prunekit_watcher", default=None)


@contextmanager
def watched(watcher: Watcher | None) -> Iterator[None]:
    """Within the block, and in its thread, a watcher is told of all progress; None for nobody.

    Example:
        >>> with watched(lambda label, done, total, note: print(label, done, total)):
        ...     for _ in told("halves", [1, 2]):
        ...         pass
        halves 0 2
        halves 1 2
        halves 2 2
    """
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)


@contextmanager
def as_part(whole: str, number: int, parts: int) -> Iterator[None]:
    """Tell the block's progress as that of one of several equal parts of longer work.

    Args:
        whole: what the longer work is called.
        number: of the part, from 0.
        parts: how many there are.

    Example:
        >>> with watched(lambda label, done, total, note: print(label, done, total)), as_part("work", 1, 2):
        ...     tell("sampling", 1, 4)
        work 1250 2000
    """
    outer = _watcher.get()

    def inner(label: str, done: int, total: int, note: str) -> None:
        if outer is not None:
            outer(whole, round(_FINE * (number + done / max(total, 1))), _FINE * parts, note)

    with watched(None if outer is None else inner):
        yield


def tell(label: str, done: int, total: int, note: str = "") -> None:
    """Tell the watcher, if there is one; arguments as for :class:`Watcher`."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(label, done, total, note)


def told(label: str, items: Iterable[_Item], total: int | None = None) -> Iterator[_Item]:
    """The items, each told when the next is asked for.

    Args:
        label: what is being done.
        items: the items.
        total: their number, if they do not know it themselves.
    """
    count = total if total is not None else len(items) if isinstance(items, Sized) else 0
    tell(label, 0, count)
    for number, item in enumerate(items, start=1):
        yield item
        tell(label, number, max(number, count))
