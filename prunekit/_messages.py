"""Foreign texts made safe for our messages: one line, without control sequences of terminals."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "nearest", "one_line", "plain", "printable"]

_LONGEST_NAME = 100  # characters that are compared


def printable(text: str) -> str:
    """The text with control characters escaped, since a message may quote a stranger's file or names."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def plain(value: object) -> str:
    """A value as YAML and JSON have it, cut to 80 characters; a text in quotes."""
    return str(value).lower() if isinstance(value, bool) else f"{value!r:.80}"


def one_line(error: BaseException) -> str:
    """First sentence of an underlying error's message, on one line."""
    said = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:300]
    name = type(error).__name__
    return f"{name} {said}" if isinstance(error, KeyError) else said or name


def nearest(given: object, known: Iterable[str]) -> str | None:
    """The known name that is most similar to a mistyped one; None if none is similar.

    Example:
        >>> nearest("metod", ["count", "method"])
        'method'
    """
    names = {name.casefold(): name for name in known}
    found = get_close_matches(str(given)[:_LONGEST_NAME].casefold(), names, n=1)
    return names[found[0]] if found else None


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """A hint to put after an unknown name: the name that is probably meant, or an empty text.

    Example:
        >>> f"Unknown criterion 'tailor'{did_you_mean('tailor', ['magnitude', 'taylor'])}; ..."
        "Unknown criterion 'tailor' (did you mean taylor?); ..."
    """
    near = nearest(given, known)
    return "" if near is None else f" (did you mean {near}?)"
