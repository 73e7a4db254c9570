"""The micro recipe, run once: tests read its folder, or copy it and change what they ask about."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from micro_recipe import Spy, micro

from prunekit.checkpoint import Base
from prunekit.recipe import Recipe
from prunekit.runs.experts_run import Run
from prunekit.steps.bench import Bench


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spy]:
    """The recipe, run without interruption; tests only read it."""
    folder, spy = tmp_path_factory.mktemp("finished") / "run", Spy()
    Run(micro(), folder, spy).execute()
    return folder, spy


@pytest.fixture(scope="session")
def finished(finished_run: tuple[Path, Spy]) -> Path:
    return finished_run[0]


@pytest.fixture
def own_copy(finished: Path, tmp_path: Path) -> Path:
    """A finished run to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


_traced: dict[tuple[str, ...], Bench] = {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out and trace each base once: seconds that have nothing to do with what is asked."""
    of = Bench.of

    def once(base: Base, *options: Any) -> Bench:
        key = (base.sha256, *map(repr, options))
        if key not in _traced:
            _traced[key] = of(base, *options)
        return _traced[key]

    monkeypatch.setattr(
        "prunekit.report.report_writer", lambda manifest: lambda folder: folder / "report" / "index.html"
    )
    monkeypatch.setattr("prunekit.runs.based_run.Bench.of", once)


@pytest.fixture
def execute() -> Callable[[Recipe, Path], Spy]:
    def run(recipe: Recipe, folder: Path) -> Spy:
        spy = Spy()
        Run(recipe, folder, spy).execute()
        return spy

    return run
