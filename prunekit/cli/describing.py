"""The command ``schema``, which describes recipes for editors and readers."""

from typing import Annotated

import typer

from prunekit.cli.console import emit
from prunekit.cli.options import Json
from prunekit.errors import InputError

__all__ = ["COMMANDS"]


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference page of all keys instead.")] = False,
    json: Json = False,
) -> None:
    """Print the JSON Schema of recipes, with which editors complete and check them."""
    from prunekit.recipe.reference import recipe_schema, reference_page

    if markdown and json:
        raise InputError("Got --markdown and --json; expected one of them.")
    if markdown:
        print(reference_page(), end="")
    else:
        emit(True, recipe_schema())


COMMANDS = (schema,)
