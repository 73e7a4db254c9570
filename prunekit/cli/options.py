"""Options that several commands share, so that one thing has one name and one help text."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ConfigOption", "DataOption", "Json", "Overwrite", "Resolution", "Seed"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", help="digits, a folder of PNG/JPEG or arrays, an .npz, idx files; the checkpoint's own if absent."
    ),
]
Resolution = Annotated[int | None, typer.Option(help="Side of the square images.")]
ConfigOption = Annotated[
    Path | None, typer.Option(help="For a bare state dict: JSON of the architecture, with its _class_name.")
]
Seed = Annotated[int, typer.Option(help="Seed.")]
