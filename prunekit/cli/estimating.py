"""The command ``estimate``: what a recipe will take, before it runs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from prunekit._missing import check_recipe
from prunekit.cli.console import emit
from prunekit.cli.next_steps import suggest
from prunekit.cli.shared_options import Exists, Json
from prunekit.steps.standing import command

__all__ = ["COMMANDS"]


def estimate(
    recipe: Annotated[Path, typer.Argument(help="YAML file of the experiment."), Exists(check_recipe)],
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Kind of GPU: A100, H100 or RTX4090 (default: this machine if it has no GPU, otherwise A100)."
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs that share a training's batch.")] = 1,
    utilisation: Annotated[float, typer.Option(help="Share of the GPU's stated FLOP/s that is reached.")] = 0.3,
    json: Json = False,
) -> None:
    """Estimate the time, memory and MACs that a recipe will take."""
    import torch

    from prunekit.recipe import load_recipe
    from prunekit.studies.machines import Gpus, this_machine
    from prunekit.studies.recipe_costs import estimate

    loaded = load_recipe(recipe)
    found = on_gpus = estimate(loaded, Gpus(gpu or "A100", gpus, utilisation))
    if gpu is None and not torch.cuda.is_available():
        found = replace(found, machine=this_machine(found.spec, found.step.count) or found.machine)
    lines = found.sentences()
    if found is not on_gpus and sum(on_gpus.hours().values()) >= 1:
        lines.append(on_gpus.sentences()[-1])
    emit(json, found.to_json() if json else {}, [f"{recipe}: {lines[0]}", *lines[1:]])
    if not json:
        suggest(command("run", recipe))


COMMANDS = (estimate,)
