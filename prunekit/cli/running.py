"""Commands that run whole experiments: ``demo`` and ``run``."""

import os
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit.cli.console import Bars, emit, print_table
from prunekit.cli.options import Json
from prunekit.errors import InputError

__all__ = ["COMMANDS"]


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("demo"),
    json: Json = False,
) -> None:
    """Run the main job on the embedded digits: base → groups → allocation → pruned experts → report."""
    from prunekit._files import atomic_path

    with as_file(files("prunekit") / "assets" / "digits-demo.yaml") as path:
        manifest = _execute(path, output)
    base = Path("base.pt")
    if not base.exists():
        with atomic_path(base) as part:
            part.write_bytes((output / "base.pt").read_bytes())
    _conclude(manifest, json)
    if not json:
        print(f"A base to try the other commands on: {base}")


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a .yaml file.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the run; runs/<recipe's name> if absent.")] = None,
    publish: Annotated[
        Path | None, typer.Option(help="Copy results and report to this folder, under the recipe's name.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a recipe stage by stage; a second run goes on where the first stopped."""
    manifest = _execute(recipe, output)
    if publish is not None:
        from prunekit.pipeline.publishing import publish as copy_results

        copy_results(manifest.parent, publish)
    _conclude(manifest, json)


def _execute(recipe: Path, output: Path | None) -> Path:
    from prunekit.pipeline.kinds import run_of
    from prunekit.recipe import load_recipe

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "A run is one process; start it without accelerate launch, which train, finetune and prune take."
        )
    checked = load_recipe(recipe)
    with Bars().shown() as bars:
        return run_of(checked, output or Path("runs") / checked.name, bars).execute()


def _conclude(manifest: Path, json: bool) -> None:
    """Print a run's table, its claim and where its report is."""
    from prunekit._files import read_json
    from prunekit.report import claim, read_run, summary_rows

    data = read_json(manifest)
    if json:
        emit(True, data)
        return
    if "allocation" in data:
        rows = summary_rows(data)
        header = ["model", "timesteps", "share", "target", "MACs", "ratio", "parameters", "loss change"]
        print_table(f"Run {data['recipe']}: cost and held-out loss", header, [_summary_cells(row) for row in rows])
        print(claim(read_run(manifest.parent)))
        print(f"Report: {manifest.parent / 'report' / 'index.html'}")
    elif (text := next((manifest.parent / "report").glob("*.md"), None)) is not None:
        print(text.read_text(encoding="utf-8"))
    else:
        print(f"Run {data['recipe']} is done: {manifest}")


def _summary_cells(row: dict[str, Any]) -> list[str]:
    """One row of the final table as text; a dash where there is no number."""

    def text(key: str, form: str) -> str:
        return "–" if row[key] is None else format(row[key], form)

    change = "–" if row["loss_change_percent"] is None else f"{row['loss_change_percent']:+.2f} %"
    forms = {"share": ".2f", "target_ratio": ".3f", "macs": ",.0f", "mac_ratio": ".4f", "params": ",d"}
    return [row["model"], row["timesteps"], *(text(key, form) for key, form in forms.items()), change]


COMMANDS = (demo, run)
