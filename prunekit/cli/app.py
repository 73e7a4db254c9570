"""The application: its commands, and the one place where an error becomes a sentence and an exit code."""

import logging
import sys

import typer

from prunekit.cli import comparing, exporting, grouping, making, measuring, planning, pruning, running, scoring
from prunekit.cli.console import fail, printable
from prunekit.errors import PrunekitError

__all__ = ["app", "main"]

app = typer.Typer(
    name="prunekit",
    help="Structural pruning and importance for diffusion models, timestep group by timestep group.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (running, grouping, planning, scoring, pruning, making, measuring, comparing, exporting):
    for function in module.COMMANDS:
        app.command()(function)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True)) -> None:
    if version:
        import prunekit

        print(prunekit.__version__)
        raise typer.Exit


class _Notes(logging.Handler):
    """What the library has to say on the way, such as which weights it took, goes to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"prunekit: {printable(record.getMessage())}", file=sys.stderr)


def main() -> None:
    """Entry point: 0 done, 2 the user's mistake, 130 interrupted."""
    log, notes = logging.getLogger("prunekit"), _Notes(logging.INFO)
    log.addHandler(notes)
    log.setLevel(logging.INFO)
    try:
        app()
    except PrunekitError as error:
        sys.exit(fail(str(error)))
    except OSError as error:  # what the system says of a place that cannot be read or written
        sys.exit(fail(f"{error.filename or 'A file'}: {error.strerror or error}; expected a place to read and write."))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        log.removeHandler(notes)
