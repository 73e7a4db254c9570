"""The command ``schema``, which describes recipes and files for editors, other programs and readers."""

from typing import Annotated

import typer

from prunekit.cli.console import emit
from prunekit.cli.shared_options import Json
from prunekit.errors import InputError

__all__ = ["COMMANDS"]


def schema(
    file: Annotated[
        str | None,
        typer.Option(
            help="Print the schema of this file instead, such as allocation or manifest-experts (default: that of recipes)."
        ),
    ] = None,
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print the reference page instead; with --file formats, that of all files."),
    ] = False,
    json: Json = False,
) -> None:
    """Print the JSON Schema of recipes, with which editors complete and check them, or that of a file."""
    if markdown and json:
        raise InputError("Got --markdown and --json; expected one of them.")
    if file is not None:
        _describe_file(file, markdown)
        return
    from prunekit.recipe.reference import recipe_schema, reference_page

    if markdown:
        print(reference_page(), end="")
    else:
        emit(True, recipe_schema())


def _describe_file(file: str, markdown: bool) -> None:
    from prunekit.results.schemas import file_schema, formats_page

    if markdown and file != "formats":
        raise InputError(f"Got --markdown with --file {file}; there is one page for all files: --file formats.")
    if markdown:
        print(formats_page(), end="")
    else:
        emit(True, dict(file_schema(file)))


COMMANDS = (schema,)
