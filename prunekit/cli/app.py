"""The application: its commands, and the one place where an error becomes a sentence and an exit code."""

import errno
import io
import logging
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup
from typer.main import get_command

from prunekit._messages import did_you_mean, printable
from prunekit.cli.bundles import bundled
from prunekit.cli.console import fail
from prunekit.cli.cpu_settings import set_up
from prunekit.cli.flags import as_flags, with_flags
from prunekit.cli.interrupts import ends_at_signals, farewell, interruptible
from prunekit.cli.progress_bars import showing_progress
from prunekit.cli.shared_options import checked
from prunekit.errors import InputError, LimitError, PrunekitError

__all__ = ["MODULES", "app", "command", "main"]

_CLOSED = 128 + 13  # as a shell says of a program that SIGPIPE ended
_CHOICE = re.compile(r"for '(?P<flag>[^']*)': '(?P<value>.*)' is not one of (?P<choices>.*)")
_UsageError: Any = typer.BadParameter.__mro__[1]  # typer has no public name for it

MODULES = {
    "demo": "running",
    "run": "running",
    "groups": "grouping",
    "sensitivity": "sensitivity_command",
    "recover": "recover_command",
    "allocate": "planning",
    "importance": "scoring",
    "prune": "pruning",
    "encode": "encode_command",
    "train": "making",
    "finetune": "tuning",
    "assemble": "making",
    "sample": "sample_command",
    "evaluate": "measuring",
    "cost": "measuring",
    "latency": "latency_command",
    "report": "measuring",
    "estimate": "estimating",
    "consistency": "comparing",
    "export": "exporting",
    "schema": "describing",
}
"""The commands in the order of the help text, and the modules that have them."""


def command(name: str) -> Callable[..., None]:
    """The function behind a command, with an argument for each option."""
    functions = import_module(f"prunekit.cli.{MODULES[name]}").COMMANDS
    (function,) = (one for one in functions if one.__name__ == name)
    return interruptible(showing_progress(with_flags(checked(bundled(function)))))


class _ImportedAtNeed(TyperGroup):
    """Commands whose modules are imported when they are typed or listed."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: dict[str, Any] = dict.fromkeys(MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or None."""
        if cmd_name in MODULES and self.commands[cmd_name] is None:
            alone = typer.Typer(**_SETTINGS)
            function = command(cmd_name)
            summary, *_ = (function.__doc__ or "").split("\n\n")
            # typer shortens the help text in the list of commands, but not a summary
            alone.command(cmd_name, short_help=" ".join(summary.split()))(function)
            self.commands[cmd_name] = _with_listed_choices(get_command(alone))
        return self.commands.get(cmd_name)


def _with_listed_choices(made: Any) -> Any:
    """The command with long lists of choices in the help texts of its options, where they are broken between words."""
    for option in made.params:
        choices = get_args(option.type_descriptor.annotation) if option.param_type_name == "option" else ()
        if len("|".join(map(str, choices))) > _LONGEST_CHOICES:
            option.metavar = "<name>"
            option.help = f"{option.help} One of {', '.join(map(str, choices))}."
    return made


_LONGEST_CHOICES = 50  # characters that fit in a line of 80 behind the longest flags
_SETTINGS: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}
app = typer.Typer(
    name="prunekit",
    cls=_ImportedAtNeed,
    help="Structural pruning and importance for diffusion models, timestep group by timestep group.",
    **_SETTINGS,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE: raise a limit on the size of files, as error messages suggest. May be repeated."
        ),
    ] = None,
) -> None:
    if version:
        import prunekit

        print(prunekit.__version__)
        raise typer.Exit
    for raised in limit or []:
        from prunekit.limits import raise_limit

        name, _, value = raised.partition("=")
        raise_limit(name, value)
    if context.invoked_subcommand is None:
        from prunekit.cli.next_steps import show_flow

        show_flow()


class _Notes(logging.Handler):
    """Prints the library's messages, such as which weights it used, to standard error: each once, and by one process."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        said = f"prunekit: {printable(as_flags(record.getMessage()))}"
        if said not in self._said and int(os.environ.get("RANK", "0")) == 0:
            self._said.add(said)
            print(said, file=sys.stderr)


def _run() -> None:
    """Run the command that was typed; a mistake in typing it is an error like any other."""
    try:
        code = app(standalone_mode=False)
    except _UsageError as error:
        said = (_of_number(error) or _of_choice(error.format_message())).rstrip(".")
        asked = f"; `{error.ctx.command_path} --help` lists what it takes" if error.ctx is not None else ""
        raise InputError(f"{said}{asked}.") from error
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as stop:  # typer's answer to a closed output is 1, as if the command had failed
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        raise
    sys.exit(code if isinstance(code, int) else 0)


def _of_number(error: Any) -> str | None:
    """What typer says of a text where a number belongs, in this project's words; None if it says something else."""
    errors = getattr(error.__cause__, "errors", None)
    found = errors()[0] if callable(errors) else {}
    wanted = {"int": "a whole number", "float": "a number"}.get(str(found.get("type", "")).split("_")[0])
    if wanted is None:
        return None
    flag, taken = error.param.opts[0], {name for each in error.ctx.command.params for name in each.opts}
    file = f"{flag}-file"
    mend = f"; for a file use {file}" if file in taken else ""
    return f"Got {flag} {found['input']!r}; expected {wanted}{mend}"


def _of_choice(message: str) -> str:
    """What typer says of an unknown choice in this project's words, with the nearest choice; other messages as they are."""
    found = _CHOICE.search(message.replace("Value error, ", ""))
    if found is None:
        return message.replace("Value error, ", "")
    choices = re.findall(r"'([^']*)'", found["choices"])
    return f"Got {found['flag']} {found['value']!r}{did_you_mean(found['value'], choices)}; expected one of {', '.join(choices)}"


def _said(error: OSError) -> str:
    """The system's message about a file, and how to fix the problem."""
    mend = "expected a place to read and write"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        mend = "make room there, or write to another place; what was there before is unchanged"
    try:
        sys.stdout.flush()
    except OSError:  # standard output itself failed
        _drop_output()
    where = error.filename or "Standard output, or a file that grows"
    return f"{where}: {error.strerror or error}; {mend}."


def _drop_output() -> None:
    """Send what is left of standard output nowhere; the interpreter would try to write it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Entry point; exits with 0 if done, 2 for a user's mistake, 130 if interrupted, 141 if its output was closed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal gets question marks rather than a traceback
            stream.reconfigure(errors="replace")
    set_up()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # of text encoders: it is read when they are imported
    log, notes = logging.getLogger("prunekit"), _Notes(logging.INFO)
    log.addHandler(notes)
    log.setLevel(logging.INFO)
    try:
        with ends_at_signals():
            try:
                _run()
            finally:
                sys.stdout.flush()  # here, since an error can still be reported
    except LimitError as error:
        sys.exit(fail(f"{error}, or by prunekit --limit {error.limit}={error.found} in front of the command.", error))
    except PrunekitError as error:
        sys.exit(fail(str(error), error))
    except BrokenPipeError:  # nobody reads the output any more, as with `| head`
        _drop_output()
        sys.exit(_CLOSED)
    except OSError as error:  # a path that cannot be read or written
        sys.exit(fail(_said(error), error))
    except KeyboardInterrupt as stop:  # before the command began, or after its end
        sys.exit(farewell(stop))
    finally:
        log.removeHandler(notes)
