"""``prunekit cost`` for a recipe: estimates its cost before it runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.cli.console import emit

if TYPE_CHECKING:
    from prunekit.studies.recipe_costs import Machine

__all__ = ["is_recipe", "show_estimate"]


def is_recipe(model: str) -> bool:
    """Whether the argument for the model is a recipe."""
    return Path(model).suffix in (".yaml", ".yml")


def show_estimate(path: str, machine: "Machine", json: bool) -> None:
    """Print the estimated cost of a recipe."""
    from prunekit.recipe import load_recipe
    from prunekit.studies.recipe_costs import estimate

    found = estimate(load_recipe(Path(path)), machine)
    emit(json, found.to_json() if json else {}, [f"{path}: {found.sentences()[0]}", *found.sentences()[1:]])
