"""Which run a recipe asks for."""

from pathlib import Path

from prunekit.pipeline.curriculum import CurriculumRun
from prunekit.pipeline.evidence import EvidenceRun
from prunekit.pipeline.executors import Executor
from prunekit.pipeline.multistage_run import MultistageRun
from prunekit.pipeline.observing import Observer
from prunekit.pipeline.resumable import ResumableRun
from prunekit.pipeline.runner import Run
from prunekit.recipe import Recipe

__all__ = ["run_of"]


def run_of(
    recipe: Recipe, folder: Path, observer: Observer | None = None, executor: Executor | None = None
) -> ResumableRun:
    """A recipe's run in a folder: a comparison where it has a section for one, else experts from a base."""
    if recipe.evidence is not None:
        return EvidenceRun(recipe, folder, observer, executor)
    if recipe.multistage is not None:
        return MultistageRun(recipe, folder, observer, executor)
    if recipe.curriculum is not None:
        return CurriculumRun(recipe, folder, observer, executor)
    return Run(recipe, folder, observer, executor)
