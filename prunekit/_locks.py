"""One process at a time for an output."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prunekit.errors import InputError

__all__ = ["alone_at"]


@contextmanager
def alone_at(output: Path, busy: str) -> Iterator[Path]:
    """Within the block no other process has this output.

    The lock is ``.NAME.lock`` next to the output, and is removed at the end with the folders that were made for it, if they are
    empty. A killed process leaves the file but not the lock.

    Args:
        output: the file or folder that will be written.
        busy: the sentence for a lock that another process has.

    Yields:
        The output with links resolved.

    Raises:
        InputError: another process has the lock, or the folder cannot be written to.
    """
    place = Path(os.path.realpath(output))
    new = [folder for folder in place.parents if not folder.exists()]
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(busy) from None
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror} ({place.parent}).") from error
    try:
        yield place
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # still locked, so nobody else holds this file
        lock.release()
        for folder in new:
            with suppress(OSError):  # the output is in it
                folder.rmdir()
