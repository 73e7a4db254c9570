"""Words of others, as sentences of ours can hold them: one line, and nothing that a terminal would obey."""

__all__ = ["one_line", "printable"]


def printable(text: str) -> str:
    """The text with escapes in place of what a terminal would obey: a stranger's file or its names can be in a message."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def one_line(error: BaseException) -> str:
    """First sentence of a message from below, on one line."""
    said = " ".join(str(error).split()).split(". ")[0].rstrip(".")[:300]
    name = type(error).__name__
    return f"{name} {said}" if isinstance(error, KeyError) else said or name
