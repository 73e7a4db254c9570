"""Only one training writes to an output: the second one is refused at once, and nothing that appeared meanwhile is replaced."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prunekit._locks import alone_at
from prunekit.errors import InputError

__all__ = ["alone_with"]


@contextmanager
def alone_with(output: Path, overwrite: bool = False) -> Iterator[Callable[[str], None]]:
    """Within the block no other training has this output; under ``accelerate launch`` the first process holds the lock.

    Args:
        output: the file or folder that the training will write.
        overwrite: whether the output may be replaced whatever it is.

    Yields:
        A function to call right before writing, with a sentence part about what is kept; it refuses an output that has changed.

    Raises:
        InputError: another training has the lock, or the folder cannot be written to.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        yield lambda kept: None
        return
    with alone_at(
        output, f"Another training is writing to {output}; wait for its end, or give another --output."
    ) as place:
        before = _standing(place)

        def check(kept: str) -> None:
            if not overwrite and _standing(place) != before:
                raise InputError(
                    f"{output} was written by something else during the training; {kept}: move {output} away and repeat the "
                    "command."
                )

        yield check


def _standing(place: Path) -> tuple[int, int] | None:
    """Identifies the file or folder at a path until it is replaced; None if there is nothing."""
    try:
        status = place.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
