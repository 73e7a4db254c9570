"""Faults of a pruned network, and how messages put them."""

from dataclasses import dataclass

from prunekit._types import IntArray
from prunekit.graph.calls import Call

__all__ = ["CHANGED", "Fault", "changed_at", "place_of", "text_of"]

CHANGED = "removing its channels changes what the other channels compute"


@dataclass(frozen=True, eq=False)
class Fault:
    """Something that went wrong.

    Args:
        reason: what.
        ids: the removed ids that are involved, empty where nobody knows.
        call: place of the call.
        numbers: whole numbers among the arguments, of the full and of the pruned network.
        parted: whether the pruned network called other functions.
    """

    reason: str
    ids: IntArray
    call: int
    numbers: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    parted: bool = False


def place_of(call: Call) -> str:
    """A call, as a message names it."""
    return f"{call.name.strip('_')} of {call.module}" if call.module else call.name.strip("_")


def changed_at(call: Call) -> str:
    """A message."""
    return f"{CHANGED} at {place_of(call)}, in a way that is not known"


def text_of(error: BaseException) -> str:
    """An exception's kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).split(chr(10))[0]}"
