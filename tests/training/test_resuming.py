"""A training that is interrupted, or killed, ends in the bytes of one that is not."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import (
    OPTIONS,
    SAMPLER,
    T,
    assert_same_run,
    checkpoint_steps,
    tiny_net,
    tiny_objective,
    tiny_run,
)

from prunekit.errors import FileFormatError
from prunekit.training import Progress, RangeTimesteps, train


class Interruption(Exception):
    pass


def interrupt_at(step: int):
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Interruption

    return report


@pytest.mark.parametrize("step", [5, 20, 40])
def test_an_interrupted_training_ends_in_the_same_bytes(tmp_path, uninterrupted, step):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(step))
    assert checkpoint_steps(tmp_path) == [done for done in (step - 10, step - 5) if done > 0]
    reported: list[Progress] = []
    resumed = tiny_run(tmp_path, reported.append)
    assert reported[0].step == step  # nothing is trained twice
    assert_same_run(resumed, uninterrupted)


def test_many_interruptions_end_in_the_same_bytes(tmp_path, uninterrupted):
    for step in (10, 15, 35):
        with pytest.raises(Interruption):
            tiny_run(tmp_path, interrupt_at(step))
    assert_same_run(tiny_run(tmp_path), uninterrupted)


def test_a_truncated_newest_checkpoint_costs_its_steps_and_nothing_else(tmp_path, uninterrupted):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(30))
    newest = max(tmp_path.glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    reported: list[Progress] = []
    with pytest.warns(UserWarning, match=newest.name):
        resumed = tiny_run(tmp_path, reported.append)
    assert reported[0].step == 25  # from 20, since 25 was damaged
    assert_same_run(resumed, uninterrupted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and the damaged file is gone
        tiny_run(tmp_path)


def test_a_finished_training_is_not_trained_again(tmp_path, uninterrupted):
    tiny_run(tmp_path)
    reported: list[Progress] = []
    assert_same_run(tiny_run(tmp_path, reported.append), uninterrupted)
    assert reported == []


def test_at_most_two_checkpoints_are_kept(tmp_path):
    seen: list[list[int]] = []
    tiny_run(tmp_path, lambda _: seen.append(checkpoint_steps(tmp_path)))
    assert max(map(len, seen)) == 2
    assert checkpoint_steps(tmp_path) == [35, 40]


def test_checkpoints_come_at_the_first_report_after_they_are_due(tmp_path):
    seen: set[int] = set()
    options = replace(OPTIONS, steps=20, checkpoint_every=6, log_every=4)
    tiny_run(tmp_path, lambda _: seen.update(checkpoint_steps(tmp_path)), options)
    assert seen | set(checkpoint_steps(tmp_path)) == {8, 12, 20}


CHANGES = {
    "options": lambda: (tiny_net(), tiny_objective(), SAMPLER, replace(OPTIONS, learning_rate=1e-3)),
    "seed": lambda: (tiny_net(), tiny_objective(), SAMPLER, replace(OPTIONS, seed=1)),
    "timesteps": lambda: (tiny_net(), tiny_objective(), RangeTimesteps(0, T - 1), OPTIONS),
    "images": lambda: (tiny_net(), tiny_objective(seed=1), SAMPLER, OPTIONS),
    "prediction type": lambda: (tiny_net(), tiny_objective("sample"), SAMPLER, OPTIONS),
    "first weights": lambda: (tiny_net(seed=1), tiny_objective(), SAMPLER, OPTIONS),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_checkpoints_of_another_training_are_refused(tmp_path, change):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(10))
    before = checkpoint_steps(tmp_path)
    with pytest.raises(FileFormatError, match=str(tmp_path)):
        train(*change(), checkpoints=tmp_path)
    assert checkpoint_steps(tmp_path) == before


def test_a_killed_process_ends_in_the_same_bytes(tmp_path):
    """A real process, killed at random moments, many of them while it writes a checkpoint."""
    script = Path(__file__).with_name("tiny_training.py")
    moments = random.Random(0)  # noqa: S311 - moments of kills
    killed = 0
    with subprocess.Popen(  # noqa: S603 - our own script
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def start(folder: Path) -> int:
            server.stdin.write(f"{folder}\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        whole, broken = tmp_path / "whole", tmp_path / "broken"
        whole.mkdir()
        broken.mkdir()
        start(whole)
        assert server.stdout.readline() == "0\n"
        for _ in range(6):
            known = checkpoint_steps(broken / "checkpoints")
            child = start(broken)
            deadline = time.monotonic() + 20
            while checkpoint_steps(broken / "checkpoints") == known and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.03))
            with suppress(ProcessLookupError):  # it was faster
                os.kill(child, signal.SIGKILL)
            killed += server.stdout.readline() == f"{-signal.SIGKILL}\n"
            if (broken / "weights").exists():
                break
        assert len(checkpoint_steps(broken / "checkpoints")) <= 2
        start(broken)
        assert server.stdout.readline() == "0\n"
        server.stdin.close()
    assert killed >= 2
    assert (broken / "weights").read_bytes() == (whole / "weights").read_bytes()
