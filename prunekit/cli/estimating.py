"""The command ``estimate``: what a recipe will take, before it runs."""

from pathlib import Path
from typing import Annotated

import typer

from prunekit._missing import check_recipe
from prunekit.cli.console import emit
from prunekit.cli.shared_options import Exists, Json

__all__ = ["COMMANDS"]


def estimate(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the experiment."), Exists(check_recipe)],
    gpu: Annotated[str, typer.Option(help="Kind of GPU: A100, H100 or RTX4090.")] = "A100",
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs that share a training's batch.")] = 1,
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's stated FLOP/s that is reached.")] = 0.3,
    json: Json = False,
) -> None:
    """Estimate the time, memory and MACs that a recipe will take."""
    from prunekit.recipe import load_recipe
    from prunekit.studies.recipe_costs import Machine, estimate

    found = estimate(load_recipe(recipe), Machine(gpu, gpus, utilisation))
    emit(json, found.to_json() if json else {}, [f"{recipe}: {found.sentences()[0]}", *found.sentences()[1:]])


COMMANDS = (estimate,)
