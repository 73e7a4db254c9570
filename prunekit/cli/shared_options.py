"""Options that several commands share, so that one thing has one name and one help text."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit._leftovers import restore
from prunekit._missing import check_json
from prunekit.cli.flags import flag_of
from prunekit.errors import InputError
from prunekit.limits import MAX_COUNT, MAX_SEED, MAX_STEPS

__all__ = [
    "ConfigOption",
    "DataOption",
    "Exists",
    "InputsOption",
    "Json",
    "Overwrite",
    "Resolution",
    "Seed",
    "ShapesOption",
    "checked",
]


@dataclass(frozen=True)
class Exists:
    """Annotates an option or argument that names a file: it is checked before the command imports anything heavy."""

    check: Callable[[Path | str], None]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Images: digits, embedded:fashion, a folder or zip of pictures, a folder of arrays, encoded images, an .npz "
        "(FILE::KEY names the array), a .parquet or dataset folder, idx files (default: those of the checkpoint).",
    ),
]
Resolution = Annotated[
    str | None,
    typer.Option(
        help="Side of the square images, or height and width as in 32x48 (default: the images' own, or the model's).",
        metavar="SIDE",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(help="For a bare state dict: JSON of the architecture, with its _class_name (default: none)."),
    Exists(check_json),
]
InputsOption = Annotated[
    Path | None,
    typer.Option(
        help='JSON of a forward pass\'s arguments by name, each such as {"shape": [1, 4, 32, 32]} (default: from the config).'
    ),
    Exists(check_json),
]
ShapesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        help="Shape of one row of an argument, NAME=SIZExSIZE, e.g. encoder_hidden_states=77x768; latents are the noisy samples; "
        "may be repeated (default: from --data, else from the config).",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed.")]


def _most(name: str) -> int:
    """The largest whole number that an option may have: what no machine would finish is a slip of the finger."""
    if "seed" in name and name != "seeds":
        return MAX_SEED
    if name.endswith(("steps", "_every")):
        return MAX_STEPS
    return MAX_COUNT


def checked(command: Callable[..., None]) -> Callable[..., None]:
    """A command that first refuses numbers that are not finite or much too large, and missing files."""
    parameters = inspect.signature(command).parameters

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> None:
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"Got {flag_of(parameters[name])} {value}; expected a finite number.")
            most = _most(name)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int) and number > most:
                    raise InputError(f"Got {flag_of(parameters[name])} {number}; expected at most {most:,}.")
        for name, value in values.items():
            for about in getattr(parameters[name].annotation, "__metadata__", ()) if value is not None else ():
                for path in (value if isinstance(value, list) else [value]) if isinstance(about, Exists) else []:
                    restore(Path(path))  # what a killed process left aside
                    about.check(path)
        command(*args, **values)

    return wrapped
