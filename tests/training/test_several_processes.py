"""Several processes train as one does: the same batches, the same loss curve, one of them writes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forking import forked, forked_ranks, succeeded
from tiny_training import OPTIONS, SAMPLER, tiny_net, tiny_objective, tiny_run

from prunekit.checkpoint import load_base
from prunekit.training import Distillation, LossSecondMoment, train


def curves(folder):
    """Train in four ways; the losses are written by rank and number of processes."""
    torch.set_num_threads(1)

    def net(seed=0):
        made = tiny_net(seed)
        made.drop.p = 0.0  # each process drops other units
        return made

    found = {}
    ways = (("plain", SAMPLER, 1), ("parts", SAMPLER, 4), ("learning", LossSecondMoment(SAMPLER, history=2), 2))
    for name, sampler, parts in ways:
        result = train(net(), tiny_objective(), sampler, replace(OPTIONS, gradient_accumulation_steps=parts))
        found[name] = [loss for _, loss in result.losses]
        if name == "learning":
            found["learnt"] = [int(sampler.seen.sum()), float(sampler.losses.sum())]
    taught = Distillation(tiny_objective(), net(2), 0.5, 0.5, {"first": None})
    found["taught"] = [loss for _, loss in train(net(), taught, SAMPLER, OPTIONS).losses]
    own = "-".join(os.environ.get(key, "") for key in ("RANK", "WORLD_SIZE"))
    (folder / own).write_text(json.dumps(found))


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    for process in [forked(curves, tmp_path), *forked_ranks(2, curves, tmp_path)]:
        process.join(120)
    alone, *pair = (json.loads((tmp_path / name).read_text()) for name in ("-", "0-2", "1-2"))
    assert pair[0] == pair[1]
    assert alone["learnt"][0] == pair[0]["learnt"][0] == 40 * 16
    for name, curve in alone.items():
        np.testing.assert_allclose(pair[0][name], curve, rtol=1e-4)
    np.testing.assert_allclose(alone["parts"], alone["plain"], rtol=1e-4)  # and in parts as in one piece
    assert alone["taught"] != alone["plain"]


def until_stopped(folder):
    """Train until a Ctrl-C; ``begun-0`` and ``last-0`` are of rank 0."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps, rank = [], os.environ["RANK"]

    def report(progress):
        steps.append(progress.step)
        if progress.step == 20:
            (folder / f"begun-{rank}").touch()

    try:
        tiny_run(folder, report, replace(OPTIONS, steps=100000, checkpoint_every=100000, log_every=1))
    except KeyboardInterrupt:
        (folder / f"last-{rank}").write_text(str(steps[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_that_gets_a_ctrl_c_stops_all_after_the_same_step(tmp_path, rank):
    """One that went on would wait for the others forever."""
    processes = forked_ranks(2, until_stopped, tmp_path)
    while not all((tmp_path / f"begun-{own}").is_file() for own in (0, 1)):
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)
    os.kill(processes[rank].pid, signal.SIGINT)
    for process in processes:
        process.join(60)
    last = [int((tmp_path / f"last-{own}").read_text()) for own in (0, 1)]
    assert last[0] == last[1]
    assert [int(path.name[5:13]) for path in tmp_path.glob("step-*.pt")] == [last[0]]


@pytest.mark.slow
def test_accelerate_launch_trains_and_fine_tunes_and_one_process_writes(tmp_path):
    """Real commands, started as a user starts them."""
    command = Path(sys.executable).with_name("prunekit")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    line = "train --data digits --max-train-steps 4 --train-batch-size 16 --config model.json --json"
    config = {
        "_class_name": "UNet2DModel",
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "add_attention": False,
    }
    (tmp_path / "model.json").write_text(json.dumps(config))

    def run(words):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(  # noqa: S603
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    together = json.loads(run([*launch, str(command), *line.split(), "--output", "two.pt"]))  # one answer, not two
    words = ["--config", str(tmp_path / "model.json"), "--output", str(tmp_path / "one.pt")]
    succeeded(tmp_path / "alone", ["prunekit", *line.split(), *words])
    alone = json.loads((tmp_path / "alone" / "out").read_text())
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    one, two = (load_base(str(tmp_path / name)).model.state_dict() for name in ("one.pt", "two.pt"))
    for key, value in one.items():
        np.testing.assert_allclose(two[key].numpy(), value.numpy(), rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "model.json", "one.pt", "two.pt"]
    recipe = Path(__file__).parents[2] / "recipes" / "digits-base.yaml"
    refused = subprocess.run(  # noqa: S603
        [str(command), "run", str(recipe)],
        cwd=tmp_path,
        env={**os.environ, "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 2
    assert "one process" in refused.stderr
