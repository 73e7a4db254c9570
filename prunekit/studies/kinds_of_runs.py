"""Finds the run that a recipe asks for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prunekit._files import check_file, check_folder
from prunekit._json import read_json
from prunekit._kinds import contents, has_format
from prunekit.errors import InputError, PrunekitError
from prunekit.experiments import Experiment
from prunekit.recipe import Recipe
from prunekit.report.folder import FOLDER as REPORT
from prunekit.results.formats import STAGE, STAGE_WITHOUT_HASHES, STATE
from prunekit.runs.executors import Executor
from prunekit.runs.experts_run import Run
from prunekit.runs.observing import Observer
from prunekit.runs.resumable import ResumableRun
from prunekit.runs.run_folder import check_links
from prunekit.studies.curriculum_study import CurriculumRun
from prunekit.studies.evidence_study import EvidenceRun
from prunekit.studies.multistage_study import MultistageRun

__all__ = ["RUNS", "check_run_folder", "run_of"]

RUNS: Mapping[Experiment, Callable[..., ResumableRun]] = {
    Experiment.EVIDENCE: EvidenceRun,
    Experiment.MULTISTAGE: MultistageRun,
    Experiment.CURRICULUM: CurriculumRun,
    Experiment.EXPERTS: Run,
    Experiment.BASE: Run,
}
"""The run for every kind of recipe."""


def check_run_folder(folder: Path, recipe: str | None = None) -> None:
    """Refuse a folder with files that are not from an earlier run, or with the result of another recipe: a run might replace them.

    Args:
        folder: the run's folder.
        recipe: name of the recipe that will run.

    Raises:
        InputError: there are such files, a link leads out of the folder, or it cannot be written to.
    """
    check_links(folder)
    _check_recipe(folder, recipe)
    check_file(folder / "manifest.json")
    check_folder(folder / "report", REPORT)
    found = {path.name for path in contents(folder)} if folder.is_dir() else set()
    other = sorted(found - {"jobs"})  # the executor's folder, which is made before the run
    begun = _holds_run(folder) or _holds_run(folder / "base")  # a comparison makes its base first, in a run of its own
    if other and not begun:
        raise InputError(
            f"{folder} has {other[0]} in it and holds no earlier run; expected a new or empty folder for the run."
        )


def _holds_run(folder: Path) -> bool:
    """Whether a run has begun a stage here: a record or a lock of prunekit's, since others call folders ``stages``, too."""
    stages, records = folder / "stages", (STAGE, STAGE_WITHOUT_HASHES)
    if has_format(STATE)(folder / "state.json") or any(stages.glob(".*.lock")):
        return True
    return any(has_format(record)(path) for path in stages.glob("*.json") for record in records)


def _check_recipe(folder: Path, recipe: str | None) -> None:
    """Refuse the folder of a finished run of a recipe with another name."""
    try:
        earlier = read_json(folder / "manifest.json").get("recipe")
    except (OSError, PrunekitError):  # no finished run
        return
    if recipe is not None and isinstance(earlier, str) and earlier != recipe:
        raise InputError(
            f"{folder} has the results of recipe {earlier}; expected a folder of recipe {recipe}, or another `output`."
        )


def run_of(
    recipe: Recipe,
    folder: Path | str,
    observer: Observer | None = None,
    executor: Executor | None = None,
    peers: Sequence[Path] = (),
) -> ResumableRun:
    """The run for a recipe of any kind, in a folder. :class:`ResumableRun` explains the arguments.

    Raises:
        InputError: see :func:`check_run_folder`.
    """
    folder = Path(folder)
    check_run_folder(folder, recipe.name)
    return RUNS[recipe.experiment](recipe, folder, observer, executor, peers)
