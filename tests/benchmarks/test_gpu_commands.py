"""Every part of benchmarks/gpu on the CPU, at its tiny size; and the jobs of the full size, which only a GPU does."""

import json
import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from prunekit.recipe import EvidenceRecipe, load_recipe
from prunekit.steps.bases import complete_spec

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """The command line of the parts, and the parts."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # the commands set it, too: taken back after the test
    from gpu import command, evidence, jobs, large, latency, speed

    return types.SimpleNamespace(
        command=command, evidence=evidence, jobs=jobs, large=large, latency=latency, speed=speed
    )


def called(gpu, part, folder, *options):
    return gpu.command.main([part, "--tiny", "--device", "cpu", "--output", str(folder), *options])


def rows_in(folder, part):
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()[1:]]


def done_once(gpu, part, folder, *options):
    """The rows of a part, after a first command without time, one that finishes, and one that has nothing left to do."""
    assert called(gpu, part, folder, "--minutes", "0", *options) == 3
    assert called(gpu, part, folder, *options) == 0
    rows, before = rows_in(folder, part), (folder / f"{part}.jsonl").read_bytes()
    assert called(gpu, part, folder, *options) == 0
    assert (folder / f"{part}.jsonl").read_bytes() == before
    assert [row for row in rows if "error" in row] == []
    assert json.loads((folder / f"{part}.json").read_text())["left"] == 0
    return rows


@pytest.mark.slow
def test_speed_of_slim_networks_beside_the_base_and_torch_pruning(gpu, tmp_path):
    rows = done_once(gpu, "speed", tmp_path)
    networks = {row["way"]: row for row in rows if row["stage"] == "network"}
    assert set(networks) == {"width, multiples of 8", "depth", "both", "torch-pruning"}
    assert all(0.5 < row["mac_ratio"] <= 0.6 for row in networks.values())
    assert all(width % 8 == 0 for width in networks["width, multiples of 8"]["widths"].values())
    assert set(networks["depth"]["widths"].values()) == {0}
    assert all(name.startswith("branch:") for name in networks["depth"]["widths"])
    assert 0 in networks["both"]["widths"].values()
    times = [row for row in rows if row["stage"] == "time"]
    assert {(row["dtype"], row["compiled"]) for row in times} == {("bfloat16", False), ("float32", True)}
    for row in times:
        assert row["mac_ratio"] == networks[row["way"]]["mac_ratio"]
        assert row["base"]["seconds"] > 0
        assert row["quartiles"][0] <= row["speedup"] <= row["quartiles"][1]
        assert row["slim"]["peak"] is None
    page = (tmp_path / "speed.md").read_text()
    assert page.count("| torch-pruning |") == 2
    assert "## float32, compiled" in page


@pytest.mark.slow
def test_tables_of_layer_times_and_plans_made_with_them(gpu, tmp_path):
    rows = done_once(gpu, "latency", tmp_path)
    assert [row["stage"] for row in rows] == ["table", "plans"]
    assert [plan["target"] for plan in rows[1]["plans"]] == ["MACs, width", "MACs, both", "time, width", "time, both"]
    by_time = [plan["predicted"] for plan in rows[1]["plans"] if plan["target"].startswith("time")]
    assert all(predicted <= rows[1]["plans"][0]["predicted"] for predicted in by_time)
    removed = {plan["target"]: plan["removed"] for plan in rows[1]["plans"]}
    assert removed["MACs, both"] > 0  # by time, what is removed depends on what was measured
    assert removed["MACs, width"] == removed["time, width"] == 0
    table = json.loads((tmp_path / "latency-float32-16.json").read_text())
    assert table["batch_size"] == 16
    assert "| float32 | 16 | 0.6 | time, both |" in (tmp_path / "latency.md").read_text()


@pytest.mark.slow
def test_train_steps_and_searches_of_sdxls_and_dits_classes(gpu, tmp_path):
    rows = done_once(gpu, "large", tmp_path)
    steps = [row for row in rows if row["stage"] == "train"]
    assert {(row["network"], row["loop"], row["checkpointing"]) for row in steps} == {
        (network, loop, checkpointing)
        for network in ("sdxl", "dit-xl-2")
        for loop in ("bare", "prunekit")
        for checkpointing in (False, True)
    }
    assert all(0 < row["fastest"] <= row["seconds"] <= row["slowest"] for row in steps)
    searches = {row["network"]: row for row in rows if row["stage"] == "search"}
    assert set(searches) == {"sdxl", "dit-xl-2"}
    assert all(row["groups"] > 5 and row["measured"] == 2 and row["round_seconds"] > 0 for row in searches.values())
    assert (tmp_path / "large.md").read_text().count("| sdxl |") == 5


@pytest.mark.slow
def test_the_evidence_run_in_pieces(gpu, tmp_path):
    (row,) = done_once(gpu, "evidence", tmp_path)
    assert "held-out loss of experts 0.8" in row["claim"]
    assert "experts 0.8, seed 0" in row["seconds"]
    assert (tmp_path / "fashion32-tdc" / "manifest.json").is_file()
    assert row["claim"] in (tmp_path / "evidence.md").read_text()


@pytest.mark.slow
def test_a_folder_that_is_run_is_the_command(tmp_path):
    command = [sys.executable, "benchmarks/gpu", "large", "--tiny", "--device", "cpu", "--output", str(tmp_path)]
    told = subprocess.run([*command, "--list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S603
    assert told.splitlines()[0] == "stage train, network sdxl, batch 1, checkpointing False, loop bare"


def test_the_full_size_has_every_cell_once(gpu, tmp_path):
    setting = gpu.command.Setting(CPU, False, tmp_path)
    rows = gpu.jobs.Rows(tmp_path / "none.jsonl", {})
    parts = {name: getattr(gpu, name).PART.jobs(setting, rows) for name in gpu.command.PARTS}
    assert {name: len({job.name for job in jobs}) for name, jobs in parts.items()} == {
        name: len(jobs) for name, jobs in parts.items()
    }
    times = [job.key for job in parts["speed"] if job.key["stage"] == "time"]
    assert {(key["dtype"], key["compiled"]) for key in times} == {
        (dtype, compiled) for dtype in ("float32", "bfloat16") for compiled in (False, True)
    }
    assert {key["batch"] for key in times} == {1, 16, 64}
    assert {key["fraction"] for key in times} == {0.8, 0.6, 0.4}
    assert {key["way"] for key in times} == {
        *(f"width, multiples of {multiple}" for multiple in (1, 8, 16, 64)),
        "depth",
        "both",
        "torch-pruning",
    }
    assert len(times) == 4 * 3 * 3 * 7
    assert {job.key["network"] for job in parts["large"]} == {"sdxl", "dit-xl-2"}
    page = (ROOT / "benchmarks" / "gpu" / "README.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", page, flags=re.MULTILINE))
    assert told == {name: str(len(jobs)) for name, jobs in parts.items()}


@pytest.mark.slow
def test_a_network_is_planned_when_its_time_is_asked_for_alone(gpu, tmp_path):
    asked = "compiled False, fraction 0.6, way width"
    assert called(gpu, "speed", tmp_path, "--only", asked) == 0
    assert [row["stage"] for row in rows_in(tmp_path, "speed")] == ["network", "time"]


def test_a_network_that_cannot_be_so_small_is_no_failure(gpu, tmp_path):
    setting = gpu.command.Setting(CPU, True, tmp_path)
    key = {"fraction": 0.6, "way": "both"}
    rows = gpu.jobs.Rows(tmp_path / "none.jsonl", {}, [{"key": {}, "stage": "network", **key, "least": 0.7}])
    assert gpu.speed.timed(setting, rows, key, gpu.speed.Way(1)) == {"least": 0.7}
    assert "Never so small: both at 0.6 (least 0.700)." in gpu.speed.table(rows)


def test_the_large_networks_are_sdxls_and_dits(gpu):
    from gpu.networks import networks

    found = networks(tiny=False)
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in each.spec.build().parameters()) for name, each in found.items()}
    # diffusers' DiT embeds the timestep in every block, which the published 675 million parameters do not have
    assert {name: round(count / 1e6) for name, count in counts.items()} == {"sdxl": 2567, "dit-xl-2": 750}
    assert tuple(found["sdxl"].inputs()["encoder_hidden_states"].shape) == (1, 77, 2048)


def test_the_recipe_of_the_evidence_run_has_nine_million_parameters(gpu, tmp_path):
    recipe = load_recipe(gpu.evidence.RECIPE)
    assert isinstance(recipe, EvidenceRecipe)
    with torch.device("meta"):
        model = complete_spec(recipe.base).build()
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(9e6, rel=0.03)
    own = gpu.command.Setting(CPU, False, tmp_path)
    assert gpu.evidence.recipe_for(own) == gpu.evidence.RECIPE
    elsewhere = gpu.evidence.recipe_for(gpu.command.Setting(CPU, False, tmp_path, tmp_path / "idx"))
    assert load_recipe(elsewhere) == recipe.model_copy(update={"data": load_recipe(elsewhere).data})
    assert load_recipe(elsewhere).data.source == str(tmp_path / "idx")
    tiny = load_recipe(gpu.evidence.recipe_for(gpu.command.Setting(CPU, True, tmp_path)))
    assert tiny.data.source == "embedded:fashion"
    assert isinstance(tiny, EvidenceRecipe)
    assert set(tiny.evidence.entries) < set(recipe.evidence.entries)


def test_a_command_is_asked_to_end_when_its_time_is_over(gpu):
    environment, waiting = dict(os.environ), "import time; time.sleep(60)"
    assert gpu.evidence.ended([sys.executable, "-c", "raise SystemExit(5)"], environment, 30.0) == 5
    started = time.monotonic()
    assert gpu.evidence.ended([sys.executable, "-c", waiting], environment, 0.3) is None
    assert time.monotonic() - started < 20


def test_a_command_that_will_not_end_is_killed(gpu, monkeypatch):
    monkeypatch.setattr(gpu.evidence, "GRACE", 0.3)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    started = time.monotonic()
    assert gpu.evidence.ended([sys.executable, "-c", stubborn], dict(os.environ), 1.0) is None
    assert time.monotonic() - started < 20
