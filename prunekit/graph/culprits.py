"""Smallest sets of channel groups that fail together; several are looked for at a time, as one pass can answer for all of them."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TypeVar

__all__ = ["smallest_sets"]

T = TypeVar("T")
_Search = Generator[list[T], bool, list[T]]


def smallest_sets(
    suspects: Sequence[Sequence[T]], failing: Callable[[Mapping[int, list[T]]], set[int]]
) -> list[list[T]]:
    """For each set that fails, a smallest part of it that does (QuickXplain, Junker 2004).

    Args:
        suspects: sets that fail; no two share a member.
        failing: which of some parts fail, by the place of the set that they belong to.
    """
    searches: list[_Search[T]] = [_smallest([], list(some)) for some in suspects]
    found: list[list[T]] = [[] for _ in searches]
    asked: dict[int, list[T]] = {}

    def go_on(place: int, answer: bool | None) -> None:
        asked.pop(place, None)
        try:
            asked[place] = next(searches[place]) if answer is None else searches[place].send(answer)
        except StopIteration as end:
            found[place] = end.value

    for place in range(len(searches)):
        go_on(place, None)
    while asked:
        failed = failing(asked)
        for place in list(asked):
            go_on(place, place in failed)
    return found


def _smallest(others: list[T], members: list[T]) -> _Search[T]:
    """Part of the members that fails together with others; yields what it wants tried, and is sent whether that fails."""
    if len(members) == 1:
        return members
    a, b = members[: len(members) // 2], members[len(members) // 2 :]
    if (yield others + a):
        return (yield from _smallest(others, a))
    if (yield others + b):
        return (yield from _smallest(others, b))
    left = yield from _smallest(others + b, a)
    return left + (yield from _smallest(others + left, b))
