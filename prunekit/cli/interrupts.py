"""Ctrl-C and SIGTERM at the command line: prints what is kept and the command that resumes from it; exit code 130."""

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from prunekit._signals import Termination
from prunekit.cli.console import fail

__all__ = ["ends_at_signals", "farewell", "interruptible", "keeping", "writing", "written"]

_CODE = 130
_MOMENT = 0.05  # seconds
_written: list[str] = []  # by the running command
_said: list[str] = []  # at its interruption


class Interrupted(KeyboardInterrupt):
    """An interruption with a sentence about what is kept, without its full stop, or None."""

    def __init__(self, kept: str | None, without: Sequence[str]) -> None:
        super().__init__(kept)
        self.kept, self.without = kept, without


@contextmanager
def keeping(kept: Callable[[], str | None], without: Sequence[str] = ()) -> Iterator[None]:
    """Within the block, an interruption leaves something from which the same command can resume.

    Args:
        kept: says what is kept, such as "the training is saved at step 20"; None while there is nothing.
        without: options, with their values, that the resuming command must not have.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if isinstance(stop, Interrupted) or _written:
            raise
        raise Interrupted(kept(), without) from stop


@contextmanager
def writing(*paths: Path | str) -> Iterator[None]:
    """Within the block the command writes its results; signals wait until these are complete, and then have no effect."""
    with Termination.noticed(True) as held:
        yield
        held.forget()
    written(*paths)


def written(*paths: Path | str) -> None:
    """Note results that the command has written, for the message at a later interruption."""
    _written.extend(map(str, paths))


@contextmanager
def ends_at_signals() -> Iterator[None]:
    """Within the block SIGTERM ends a command as Ctrl-C does; not outside the main thread, where Python allows no handlers.

    Python drops an interruption that falls into a finalizer or a weak reference's callback; here it comes again a moment later.
    """
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:
        yield
        return
    hook, again = sys.unraisablehook, list[threading.Timer]()

    def unraisable(dropped: Any) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)
            return
        timer = threading.Timer(_MOMENT, os.kill, (os.getpid(), signal.SIGTERM))  # a background job ignores SIGINT
        timer.daemon = True
        timer.start()
        again.append(timer)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """A command that says at Ctrl-C what is kept, and how to resume from it."""

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> None:
        _written.clear()
        _said.clear()
        try:
            command(*args, **values)
        except KeyboardInterrupt as stop:
            raise typer.Exit(farewell(stop)) from stop

    return wrapped


def farewell(stop: KeyboardInterrupt) -> int:
    """Say what is kept, once, however often a signal comes; returns the exit code."""
    with Termination.noticed(True) as held:  # holds a second Ctrl-C back
        if int(os.environ.get("RANK", "0")) == 0 and not _said:
            _said.append(_sentence(stop))
            fail(_said[0], stop, _CODE)
        held.forget()
    return _CODE


def _sentence(stop: KeyboardInterrupt) -> str:
    kept, without = (stop.kept, stop.without) if isinstance(stop, Interrupted) else (None, ())
    if kept is not None:
        return f"Interrupted; {kept}. Continue with: {_typed(without)}"
    if _written:
        return f"Interrupted; {', '.join(_written)} {'are' if len(_written) > 1 else 'is'} written."
    return "Interrupted. Nothing was written."


def _typed(without: Sequence[str]) -> str:
    """The command line as it was typed, quoted for a shell."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "the accelerate launch command that started this"
    program, words = Path(sys.argv[0]), list(sys.argv[1:])
    for option in without:
        while option in words:
            del words[words.index(option) : words.index(option) + 2]
        words = [word for word in words if not word.startswith(f"{option}=")]
    found = shutil.which(program.name)
    known = found is not None and Path(found).resolve() == program.resolve()
    return shlex.join([program.name if known else str(program), *words])
