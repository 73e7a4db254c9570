"""The check of a name that is one of a few."""

from collections.abc import Collection

from prunekit._messages import did_you_mean
from prunekit.errors import InputError

__all__ = ["check_choice"]


def check_choice(what: str, given: object, known: Collection[str]) -> None:
    """Refuse a name that is none of those that are known.

    Args:
        what: what it is the name of, for the message.
        given: the name.
        known: all of them.

    Raises:
        InputError: it is none of them.
    """
    if given not in tuple(known):
        raise InputError(f"Got {what} {given!r:.60}{did_you_mean(given, known)}; expected one of {', '.join(known)}.")
