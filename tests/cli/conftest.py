"""The main job, typed once in a folder that was empty: its tests read what came of it."""

import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Typed, done

from prunekit.checkpoint import save_base
from prunekit.cli import main
from prunekit.steps.bases import open_base


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, empty at first."""
    return tmp_path_factory.mktemp("desk")


@pytest.fixture(scope="session")
def typed_once(desk: Path) -> dict[str, Typed]:
    """The main job, command after command."""
    with contextlib.chdir(desk):
        return main_job()


@pytest.fixture
def journey(typed_once: dict[str, Typed], desk: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Typed]:
    """What the main job said; the test stands where it was done, and leaves everything there as it is."""
    monkeypatch.chdir(desk)
    return typed_once


def main_job() -> dict[str, Typed]:
    results = {"allocate": done("prunekit allocate --budget 0.8")}
    results["prune 3"] = done("prunekit prune embedded:digits --group 3 --samples 32")
    results["finetune 3"] = done("prunekit finetune slim/group-3 --max-train-steps 2")
    save_base(open_base("embedded:digits"), Path("base.pt"))
    kept = Path(shutil.copytree("slim/group-3", "kept"))
    results["prune"] = done("prunekit prune base.pt --samples 16 --proposer oneshot --overwrite")
    shutil.rmtree("slim/group-3")
    kept.rename("slim/group-3")
    results["assemble"] = done("prunekit assemble slim/")
    results["sample"] = done("prunekit sample experts/ --count 4 --num-inference-steps 3")
    results["evaluate"] = done(
        "prunekit evaluate experts/ --base base.pt --count 16 --seeds 1 --num-inference-steps 3 --loss-samples 64"
    )
    results["importance"] = done("prunekit importance base.pt --samples 16")
    return results


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prunekit", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
