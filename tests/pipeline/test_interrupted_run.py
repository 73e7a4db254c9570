"""Ctrl-C in a terminal reaches a run and its workers: trainings are saved, the run waits for them, and the next start goes on."""

import contextlib
import copy
import json
import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from forking import forked_command
from micro_recipe import MICRO, micro
from tiny_comparison import TINY_MODEL
from typer.testing import CliRunner

from prunekit._files import sha256_file
from prunekit.cli.app import app

STEPS = 150  # so many that a signal at the first one arrives before the last
RECIPE = copy.deepcopy({key: section for key, section in MICRO.items() if key != "evaluation"})  # which takes long
RECIPE["base"] = {"model": TINY_MODEL, "train": {"steps": 2, "batch_size": 8, "warmup_steps": 1}}
RECIPE["finetune"]["train"] |= {"steps": STEPS, "checkpoint_every": 1000}
PATIENCE = 400.0  # seconds


def done(folder: Path, words: list[str]) -> None:
    """A run that nobody disturbs, in this process, which has imported everything."""
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def interrupted(folder: Path, words: list[str], when: Callable[[], bool], send: Callable[[int], None]) -> str:
    """What a run says last that gets a signal once something is the case."""
    process = forked_command(folder, ["prunekit", *words], leads_a_group=True)
    until = time.monotonic() + PATIENCE
    while not when() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    assert process.pid
    workers = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
    send(process.pid)
    process.join(PATIENCE)
    said = (folder / "err").read_text()
    assert "Traceback" not in said
    assert process.exitcode == 130, said
    assert not psutil.wait_procs(workers, timeout=PATIENCE)[1]
    return said.strip().splitlines()[-1]


def weights(folder: Path) -> list[str]:
    return [sha256_file(folder / "experts" / f"group-{index}" / "model.safetensors") for index in (0, 1)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "micro.yaml").write_text(yaml.safe_dump(RECIPE))
    done(folder, ["run", "micro.yaml"])
    return folder / "runs" / "micro"


SENDERS = {
    "ctrl-c": lambda number: os.killpg(number, signal.SIGINT),
    "ctrl-c twice": lambda number: [(os.killpg(number, signal.SIGINT), time.sleep(0.05)) for _ in range(2)],
    "sigterm": lambda number: os.kill(number, signal.SIGTERM),
}


@pytest.mark.slow
@pytest.mark.parametrize("sender", SENDERS.values(), ids=SENDERS.keys())
def test_an_interrupted_run_with_workers_ends_in_the_same_bytes(undisturbed, tmp_path, sender):
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(RECIPE))
    run = tmp_path / "runs" / "micro"
    words = ["run", "micro.yaml", "--jobs", "2"]

    def diaries() -> str:
        return "".join(path.read_text() for path in (run / "jobs").glob("*.jsonl"))

    said = interrupted(tmp_path, words, lambda: '"label": "group 0"' in diaries(), sender)
    assert "finished stages, searches and trainings are kept in runs/micro. Continue with: " in said
    assert shlex.split(said.split("Continue with: ")[1])[1:] == words
    saved = [int(path.name[5:13]) for path in run.glob("checkpoints/*/step-*.pt")]
    if sender is not SENDERS["ctrl-c twice"]:  # which does not wait for the workers, that save all the same
        assert saved
        assert all(0 < step < STEPS for step in saved)
    for log in (run / "jobs").glob("*.log"):
        assert "Traceback" not in log.read_text()
    done(tmp_path, words if sender is SENDERS["ctrl-c"] else words[:2])  # in one process, too
    assert weights(run) == weights(undisturbed)
    assert not list(run.rglob(".*.part"))


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bytes(undisturbed, tmp_path):
    """In one process: in a search, whose journal is kept, and in a training, whose checkpoints show how far it is."""
    often = copy.deepcopy(RECIPE)
    often["finetune"]["train"]["checkpoint_every"] = 10
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(often))
    run = tmp_path / "runs" / "micro"
    moments = [
        lambda: (
            (run / "search" / "group-1.jsonl").is_file()
            and len((run / "search" / "group-1.jsonl").read_bytes().splitlines()) > 2
        ),
        lambda: any(run.glob("checkpoints/*/step-*.pt")),
    ]
    for when in moments:
        said = interrupted(tmp_path, ["run", "micro.yaml"], when, SENDERS["ctrl-c"])
        assert "are kept in runs/micro" in said
        for file in (run / "stages").glob("*.json"):
            assert json.loads(file.read_text())["format"] == "prunekit-stage/2"
    done(tmp_path, ["run", "micro.yaml"])
    assert weights(run) == weights(undisturbed)


def test_how_often_a_training_is_saved_changes_no_stage(tmp_path):
    from prunekit.runs.experts_run import Run

    keys = []
    for changes in ({}, {"finetune__train__checkpoint_minutes": 9.0}, {"finetune__train__ema_decay": 0.9}):
        run = Run(micro(prune__width_multiples=1, **changes), tmp_path)
        for name in ("importance", "allocate"):
            run._planned(name, {}, [], dict)
        keys.append([stage.key for stage in run._specialist(0, run.recipe.prune, run.recipe.finetune)])
    assert keys[0] == keys[1] != keys[2]
    assert micro(finetune__train__checkpoint_minutes=9.0).finetune.train.checkpoint_minutes == 9.0
