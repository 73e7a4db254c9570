"""The commands ``demo`` and ``run``, which run whole experiments."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._json import JsonDict
from prunekit._missing import check_recipe
from prunekit.choices import Cluster
from prunekit.cli.console import emit, print_table, tell
from prunekit.cli.interrupts import keeping, written
from prunekit.cli.next_steps import after_run, suggest
from prunekit.cli.progress_bars import Bars
from prunekit.cli.shared_options import Exists, Json
from prunekit.errors import InputError, PrunekitError
from prunekit.steps.standing import command

if TYPE_CHECKING:
    from prunekit.recipe import Confirmation, Recipe
    from prunekit.runs.executors import Executor

__all__ = ["COMMANDS"]

_PRUNED_BY_DEMO = 2  # timestep groups


@dataclass(frozen=True)
class _Parallel:
    """How timestep groups run at the same time."""

    jobs: int | None = None
    cluster: Cluster | None = None
    options: Sequence[str] = ()
    retries: int = 1

    def executor(self, folder: Path) -> "Executor | None":
        """The executor; None for one group after the other in this process."""
        if self.cluster is not None:
            from prunekit.runs.clusters import Submitit, parsed_options

            return Submitit(self.cluster, folder, parsed_options(self.options), self.jobs, self.retries)
        if self.options:
            raise InputError("Got --executor-option without --executor; expected --executor local or slurm with it.")
        if self.jobs is None:
            return None
        from prunekit.runs.executors import Processes

        return Processes(self.jobs, self.retries)


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("demo"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Timestep groups at the same time (default: 2, or 1 on one core).")
    ] = None,
    json: Json = False,
) -> None:
    """Run the main job on the embedded Fashion-MNIST: base → groups → allocation → pruned experts → report."""
    from prunekit._files import atomic_path

    parallel = _Parallel(jobs or min(_PRUNED_BY_DEMO, _cores()))
    with as_file(files("prunekit") / "assets" / "fashion-demo.yaml") as path:
        manifest = _execute(path, output, parallel)
    base = Path("base.pt")
    if not base.exists():
        with atomic_path(base) as part:
            part.write_bytes((output / "base.pt").read_bytes())
    _conclude(manifest, json)
    if not json:
        tell(f"A base to try the other commands on: {base}")
        suggest(command("groups", base=base))


def _cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a .yaml file."), Exists(check_recipe)],
    output: Annotated[Path | None, typer.Option(help="Folder for the run (default: runs/<recipe's name>).")] = None,
    publish: Annotated[
        Path | None,
        typer.Option(
            help="Copy the results and the report to this folder, under the recipe's name (default: not copied)."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Trained base to use instead of the recipe's own: path, folder or Hub id (default: the recipe's)."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Timestep groups, or trainings of a comparison, to run at the same time, each in its own process "
            "(default: one after the other).",
        ),
    ] = None,
    executor: Annotated[
        Cluster | None,
        typer.Option(
            help="Run timestep groups through submitit: local (this machine) or slurm (a job array) (default: not)."
        ),
    ] = None,
    executor_option: Annotated[
        list[str] | None,
        typer.Option(
            help="name=value for submitit, such as timeout_min=90, gpus_per_node=1 or partition=gpu. May be repeated."
        ),
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a timestep group that failed is started again.")] = 1,
    report_to: Annotated[
        str | None,
        typer.Option(
            help="Track trainings and samples with tensorboard, wandb, mlflow, aim, … (default: as the recipe says)."
        ),
    ] = None,
    llm_endpoint: Annotated[
        list[str] | None,
        typer.Option(help="Allow the recipe to use the language model at this URL. May be repeated."),
    ] = None,
    llm_key_variable: Annotated[
        list[str] | None,
        typer.Option(
            help="Allow the recipe to send the API key in this environment variable to the endpoint; - for no key "
            "(default: no key)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run a recipe stage by stage. A second run resumes where the first one stopped."""
    confirmed = _confirmations(llm_endpoint or [], llm_key_variable or [])
    parallel = _Parallel(jobs, executor, executor_option or [], retries)
    manifest = _execute(recipe, output, parallel, base, publish, confirmed, report_to)
    if publish is not None:
        from prunekit.runs.publishing import publish as copy_results

        copy_results(manifest.parent, publish)
    _conclude(manifest, json)
    if not json:
        from prunekit.recipe import load_recipe, slug

        checked = load_recipe(recipe)
        pipeline = None if checked.evaluation is None else checked.evaluation.pipeline
        entry = None if checked.evidence is None else slug(checked.evidence.headline)
        suggest(after_run(manifest.parent, pipeline, entry))


def _confirmations(endpoints: Sequence[str], variables: Sequence[str]) -> list["Confirmation"]:
    """Endpoints, each with the variable of its key; both are given in the same order.

    Raises:
        InputError: variables are given, but not one for each endpoint.
    """
    if variables and len(variables) != len(endpoints):
        raise InputError(
            f"Got {len(endpoints)} --llm-endpoint and {len(variables)} --llm-key-variable; expected one variable for each "
            "endpoint, in the same order, with - for an endpoint without a key."
        )
    keys = [None if name == "-" else name for name in variables] or [None] * len(endpoints)
    return list(zip(endpoints, keys, strict=True))


def _execute(
    recipe: Path,
    output: Path | None,
    parallel: _Parallel | None = None,
    base: str | None = None,
    reports: Path | None = None,
    confirmed: Sequence["Confirmation"] = (),
    report_to: str | None = None,
) -> Path:
    from prunekit.recipe import load_recipe
    from prunekit.runs.publishing import check_place
    from prunekit.studies.kinds_of_runs import check_run_folder, run_of

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "A run is one process; start it without accelerate launch, which train, finetune and prune take, and give it the base "
            "that `train --recipe` makes by --base."
        )
    checked = load_recipe(recipe)
    checked = checked if base is None else checked.with_base(base)
    checked = checked.confirming(*confirmed)
    checked = checked if report_to is None else checked.tracked_by(report_to)
    checked.check_confirmed()  # before the executor makes its folder
    folder = output or Path("runs") / checked.name
    check_run_folder(folder, checked.name)
    if reports is not None:
        check_place(checked.name, reports)
        if os.path.realpath(reports / checked.name) == os.path.realpath(folder):
            raise InputError(f"Got --publish {reports}, where the run itself is written to; give another folder.")
    executor = None if parallel is None else parallel.executor(folder)
    bars = Bars(_weights(checked), inside=executor is None)
    with bars.shown(), keeping(lambda: _kept(folder)):
        manifest = run_of(checked, folder, bars, executor).execute()
    written(folder)
    return manifest


def _weights(recipe: "Recipe") -> dict[str, float]:
    """The cost model's work for each stage, for the bar over all; empty where there is no estimate."""
    from prunekit.studies.recipe_costs import work_by_stage

    try:
        return work_by_stage(recipe)
    except PrunekitError:  # the run itself refuses it, with the stage that it concerns
        return {}


def _kept(folder: Path) -> str | None:
    """A sentence about what is kept after an interrupted run."""
    begun = folder.is_dir() and any(folder.iterdir())
    return f"finished stages, searches and trainings are kept in {folder}" if begun else None


def _conclude(manifest: Path, json: bool) -> None:
    """Print a run's table, its claim and the path of its report."""
    from prunekit._json import read_json
    from prunekit.experiments import Experiment
    from prunekit.report import claim, read_run, summary_rows

    data = read_json(manifest)
    if json:
        emit(True, data)
        return
    if Experiment.shown_by(data) is Experiment.EXPERTS:
        rows = summary_rows(data)
        header = ["model", "timesteps", "share", "target", "MACs", "ratio", "params", "loss"]
        print_table(f"Run {data['recipe']}: cost and held-out loss", header, [_summary_cells(row) for row in rows])
        tell(claim(read_run(manifest.parent)))
        tell(f"Report: {manifest.parent / 'report' / 'index.html'}")
    elif (text := next((manifest.parent / "report").glob("*.md"), None)) is not None:
        print(text.read_text(encoding="utf-8"))
    else:
        tell(f"Run {data['recipe']} is done: {manifest}")


def _summary_cells(row: JsonDict) -> list[str]:
    """One row of the final table as text; a dash for a missing number."""

    def text(key: str, form: str) -> str:
        return "–" if row[key] is None else format(row[key], form)

    change = "–" if row["loss_change_percent"] is None else f"{row['loss_change_percent']:+.2f} %"
    forms = {"share": ".2f", "target_ratio": ".3f", "macs": ",.0f", "mac_ratio": ".4f", "params": ",d"}
    return [row["model"], row["timesteps"], *(text(key, form) for key, form in forms.items()), change]


COMMANDS = (demo, run)
