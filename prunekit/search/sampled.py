"""Proposers that sample with Optuna's ask and tell; every candidate is scaled to the target before it is measured."""

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from prunekit._files import check_file
from prunekit._progress import tell
from prunekit._types import IntArray
from prunekit.errors import InputError
from prunekit.search import ranks
from prunekit.search.baselines import at_target, oneshot, uniform
from prunekit.search.task import Task

__all__ = ["evolution", "installed", "tpe"]

_POPULATION = 16
_LONGEST_LINE = 1_000_000  # characters of the study file that are read to identify it
_WINDOW = 16  # trials that must have gained something for the search to go on
_TOGETHER = 4  # candidates that TPE proposes before it learns the first one's loss, so that several ranks have work
_SETTLED = 0.5  # seconds until results of another worker of the study have reached the file


def evolution(task: Task) -> IntArray:
    """Genetic search over the fractions to remove (NSGA-II with one objective: Deb et al. 2002, as implemented in Optuna).

    The first generation holds uniform widths and those of least importance lost, so the result is at least as good as these.
    """
    population = max(2, min(_POPULATION, task.trials // 2))
    with _quiet() as optuna:
        return _sample(
            task, optuna, optuna.samplers.NSGAIISampler(population_size=population, seed=task.seed), population
        )


def tpe(task: Task) -> IntArray:
    """Tree-structured Parzen estimators over the fractions to remove (Bergstra et al. 2011, as implemented in Optuna).

    The first trials are uniform widths and those of least importance lost, so the result is at least as good as these.
    """
    with _quiet() as optuna:
        return _sample(task, optuna, optuna.samplers.TPESampler(multivariate=True, seed=task.seed), _TOGETHER)


def _sample(task: Task, optuna: ModuleType, sampler: Any, batch: int) -> IntArray:
    """Ask, scale to the target, measure and tell; returns the best candidate.

    It ends after ``task.trials`` candidates, or earlier if the last :data:`_WINDOW` of them gained no more than is negligible.
    """
    problem = task.widths
    if problem.target >= int(problem.spent(np.zeros_like(problem.max_steps))) or not len(problem.graph):
        return np.zeros_like(problem.max_steps)
    names = [group.name for group in problem.graph]
    space = {
        name: optuna.distributions.IntDistribution(0, int(most))
        for name, most in zip(names, problem.max_steps, strict=True)
    }
    known = [uniform(task), oneshot(task)]
    study = _study(task, optuna, sampler)
    if not study.get_trials(deepcopy=False):
        for steps in known:
            study.enqueue_trial({name: int(count) for name, count in zip(names, steps, strict=True)})
    search_round = 0
    while (left := _last(task, told := _told(study, optuna)) - len(told)) > 0:
        search_round += 1
        trials = [study.ask(space) for _ in range(1 if task.study else min(batch, left))]
        candidates = []
        for trial in trials:
            wished = np.array([trial.params[name] for name in names], dtype=np.int64)
            start = next((steps for steps in known if np.array_equal(steps, wished)), None)
            candidates.append(at_target(problem, task.removed(wished)) if start is None else start)
        tell("search", len(told), task.trials, f"trials of {task.where}")
        for trial, steps, loss in zip(trials, candidates, task.measure_all(candidates, search_round), strict=True):
            trial.set_user_attr("steps", steps.tolist())
            study.tell(trial, loss)
    if task.study is not None:
        time.sleep(_SETTLED)
    tell("search", task.trials, task.trials)
    told = _told(study, optuna)
    best = min(told[: _last(task, told)], key=lambda trial: (trial.value, trial.number))
    steps = np.array(best.user_attrs["steps"], dtype=np.int64)
    task.choose(f"trial {best.number}", steps, search_round, float(best.value))
    return steps


def _last(task: Task, told: list[Any]) -> int:
    """Number of trials with which the search ends, as far as the finished ones tell; workers that share a study find the same."""
    if task.negligible:
        losses = [float(trial.value) for trial in told]
        for count in range(2 * _WINDOW, min(len(losses), task.trials) + 1, _WINDOW):
            if min(losses[: count - _WINDOW]) - min(losses[:count]) <= task.slack:
                return count
    return task.trials


def _told(study: Any, optuna: ModuleType) -> list[Any]:
    """The finished trials in the order of completion, so that workers that share a study (and a clock) see the same order."""
    complete = (optuna.trial.TrialState.COMPLETE,)
    return sorted(
        study.get_trials(deepcopy=False, states=complete), key=lambda trial: (trial.datetime_complete, trial.number)
    )


def _study(task: Task, optuna: ModuleType, sampler: Any) -> Any:
    """A study in memory, which a restart replays; or this search's study in the file that several workers share."""
    if task.study is None:
        return optuna.create_study(sampler=sampler)
    if ranks.place()[1] > 1:
        raise InputError(
            f"Got the shared study {task.study} under several ranks, which share the work already; leave the study out, "
            "or start single processes."
        )
    _check_study(task.study)
    task.study.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(task.study)))
    return optuna.create_study(study_name=task.journal.key, storage=storage, sampler=sampler, load_if_exists=True)


def _check_study(path: Path) -> None:
    """Refuse to append to a file that is not an Optuna journal.

    Raises:
        InputError: it is another file, or no file can be written there.
    """
    if not check_file(path).is_file():
        return
    with path.open("rb") as file:
        first = file.readline(_LONGEST_LINE)
    try:
        ours = not first or "op_code" in json.loads(first)
    except (ValueError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise InputError(
            f"The study {path} is a file that Optuna did not write; expected a new name, or an earlier study."
        )


def installed() -> ModuleType:
    """Optuna.

    Raises:
        InputError: it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "Optuna is not installed; install it with `pip install 'prunekit[search]'`, or take the proposer greedy."
        ) from error
    return optuna


@contextmanager
def _quiet() -> Iterator[ModuleType]:
    """Optuna, without a line on standard error for every trial.

    Raises:
        InputError: it is not installed.
    """
    optuna = installed()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna
    finally:
        optuna.logging.set_verbosity(level)
