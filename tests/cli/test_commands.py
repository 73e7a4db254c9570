"""The main job as a user types it, one command after the other in an empty folder; costs; JSON."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import done, listing, typed
from PIL import Image

import prunekit.cli
from prunekit._json import read_json
from prunekit.checkpoint import load_base
from prunekit.cli.app import MODULES
from prunekit.nets import load_experts
from prunekit.slim import load_slim

# the main job


def test_the_allocation_is_written_where_it_stands(journey, desk):
    allocation = read_json(desk / "allocation.json", "prunekit-allocation/1")
    assert allocation["mean_mac_ratio"] == pytest.approx(0.8, abs=1e-12)
    assert "Written to allocation.json" in journey["allocate"].out
    assert journey["allocate"].err == ""


def test_one_group_is_pruned_to_the_allocations_target(journey, desk):
    slim = load_slim(desk / "slim" / "group-3")
    target = int(0.6 * 11_491_328)
    assert 0 <= target - slim.macs < 0.01 * 11_491_328
    assert (slim.group.start, slim.group.stop) == (600, 800)
    assert f"{slim.macs:,}" in journey["prune 3"].out
    assert "group-3" in journey["prune 3"].out
    assert "written to slim" in journey["prune 3"].out
    # a later search of group 3 moved this one's journal aside
    header, *journal = map(json.loads, (desk / "slim" / "search-3.jsonl.old").read_text().splitlines())
    assert header["format"] == "prunekit-search/1"
    assert journal
    assert all(entry["loss"] > 0 for entry in journal)


def test_finetuning_writes_the_same_folder_and_leaves_no_checkpoints(journey, desk):
    assert "Fine-tuned 2 steps, loss 0." in journey["finetune 3"].out
    assert load_slim(desk / "slim" / "group-3").about["provenance"]["finetuned_steps"] == 2
    assert not [name for name in listing(desk) if "checkpoints" in name or name.endswith(".part")]


def test_all_groups_are_pruned_without_a_number(journey, desk):
    rows = [
        line.split()
        for line in journey["prune"].out.splitlines()
        if line.endswith(tuple("01234")) and " group-" in line
    ]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    ratios = [float(row[3]) for row in rows]
    assert ratios == pytest.approx([1.0, 1.0, 1.0, 0.6, 0.4], abs=0.01)
    for row, ratio in zip(rows, ratios, strict=True):
        macs = int(row[2].replace(",", ""))
        assert macs <= int(row[1].replace(",", ""))
        assert macs / 11_491_328 == pytest.approx(ratio, abs=5e-5)


def test_experts_are_assembled(journey, desk):
    experts = load_experts(desk / "experts")
    assert len(experts.groups) == 5
    assert experts.networks == (0, 0, 0, 3, 4)  # the cleaner groups keep the whole base
    assert f"{experts.stored_params:,} parameters stored" in journey["assemble"].out
    with torch.no_grad():
        assert experts(torch.zeros(2, 1, 8, 8), torch.tensor([0, 999])).sample.shape == (2, 1, 8, 8)


def test_samples_are_an_archive_and_a_picture(journey, desk):
    images = np.load(desk / "samples" / "experts.npz")["images"]
    assert (images.shape, images.dtype) == ((4, 8, 8, 1), np.uint8)
    assert images.std() > 10
    with Image.open(desk / "samples" / "experts.png") as picture:
        assert min(picture.size) >= 8
    assert "4 samples: samples/experts.npz, samples/experts.png" in journey["sample"].out


def test_an_evaluation_compares_losses_and_samples(journey, desk):
    results = read_json(desk / "evaluation.json", "prunekit-evaluation/1")
    assert [row["group"] for row in results["losses"]] == [0, 1, 2, 3, 4]
    assert {row["model"] for row in results["metrics"]["rows"]} == {"base", "experts"}
    by_name = {row["model"]: row for row in results["metrics"]["rows"]}
    # three steps of ddim: 0, 333 and 666, so the experts of groups 0, 1 and 3
    macs = load_experts(desk / "experts").macs
    assert by_name["experts"]["mean_macs"] == pytest.approx((macs[0] + macs[1] + macs[3]) / 3)
    out = journey["evaluate"].out
    assert f"{results['losses'][2]['expert']['mean']:.5f}" in out
    assert "Sample quality (features: digits-cnn, n = 16)" in out


def test_importance_is_a_map_and_a_heatmap(journey, desk):
    scores = read_json(desk / "importance.json", "prunekit-importance/1")
    assert len(scores["scores"]) == 5
    with Image.open(desk / "importance.png") as picture:
        picture.verify()
    assert "importance.png" in journey["importance"].out


# costs: of a base in test_cost.py


@pytest.mark.slow
def test_costs_of_slim_models_and_experts_agree(journey, desk):
    experts = done("prunekit cost experts/ --json").json
    slims = [done(f"prunekit cost slim/group-{i} --json --no-compare").json for i in (0, 3)]
    assert experts["experts"]["group-3"] == {"macs": slims[1]["macs"], "params": slims[1]["params"]}
    assert slims[1]["macs"] == load_slim(desk / "slim" / "group-3").macs
    assert slims[0]["macs"] > slims[1]["macs"]
    macs = [expert["macs"] for expert in experts["experts"].values()]
    assert experts["macs"] == pytest.approx(sum(macs) / 5)  # ddim's 50 steps fall evenly
    assert experts["params"] == load_experts(desk / "experts").stored_params
    assert experts["params_by_module"]["group-3"] == slims[1]["params"]
    assert experts["by_operator"]["group-3.convolution"] == slims[1]["by_operator"]["convolution"]
    assert experts["unknown"] == []


def test_shares_in_the_table_of_experts_are_of_each_experts_own(journey):
    lines = done("prunekit cost experts --depth 1").out.splitlines()
    by_operator = "By operator, in shares of each expert's own MACs"
    by_expert: dict[str, float] = {}
    for name, *_, share, _ in (line.split() for line in lines[: lines.index(by_operator)] if line.endswith("%")):
        expert, *module = name.split(".")
        by_expert[expert] = by_expert.get(expert, 0) + (float(share) if module else 0)
        assert module or float(share) == 100
    assert len(by_expert) == 5
    assert list(by_expert.values()) == pytest.approx([100] * 5, abs=0.5)


def test_a_bare_state_dict_is_read_with_its_architecture(journey, tmp_path):
    base = load_base("base.pt")
    torch.save(base.model.state_dict(), tmp_path / "bare.pt")
    (tmp_path / "model.json").write_text(json.dumps({"_class_name": base.spec.class_name, **base.spec.config}))
    line = f"prunekit cost {tmp_path}/bare.pt --json --no-compare"
    assert "--config" in typed(line).sentence
    assert done(f"{line} --config {tmp_path}/model.json").json["macs"] == 11_491_328


# JSON, and nothing else, on standard output


@pytest.mark.slow
def test_every_command_speaks_json(journey, tmp_path, monkeypatch):
    shutil.copy("base.pt", tmp_path / "base.pt")
    monkeypatch.chdir(tmp_path)
    assert done("prunekit groups --groups 2 --json").json["format"] == "prunekit-groups/1"
    assert done("prunekit allocate --budget 0.8 --rule linear --json").json["budget"] == 0.8
    pruned = done("prunekit prune base.pt --group 1 --samples 16 --proposer oneshot --json").json
    assert pruned["macs"] <= pruned["target_macs"] == int(0.6 * pruned["base_macs"])
    both = done("prunekit prune base.pt --samples 16 --proposer oneshot --json").json["groups"]
    assert [entry["group"] for entry in both] == [0, 1]
    assert both[1] == pruned
    tuned = done("prunekit finetune slim/group-1 --max-train-steps 2 --train-batch-size 8 --output tuned --json").json
    assert (tuned["output"], tuned["steps"]) == ("tuned", 2)
    assert done("prunekit assemble slim --json").json["groups"] == 2
    assert done("prunekit sample slim/group-1 --count 2 --num-inference-steps 2 --json").json["count"] == 2
    assert done("prunekit importance base.pt --samples 8 --criterion magnitude --json").json["criterion"] == "magnitude"
    metrics = done(
        "prunekit evaluate experts --count 8 --seeds 2 --num-inference-steps 2 --loss-samples 16 --json"
    ).json["metrics"]
    assert metrics["seeds"] == [0, 1]
    assert metrics["rows"][0]["fid"]["se"] > 0
    trained = done("prunekit train --data digits --max-train-steps 2 --train-batch-size 8 --output new.pt --json").json
    assert trained["loss"] > 0


@pytest.mark.parametrize("name", MODULES)
def test_every_command_has_help_and_json(name):
    assert f" {name} " in done("prunekit --help").out
    assert "--json" in done(f"prunekit {name} --help").out


def test_every_command_of_a_module_is_listed():
    has = {
        module: {one.__name__ for one in import_module(f"prunekit.cli.{module}").COMMANDS}
        for module in MODULES.values()
    }
    assert {(name, module) for module, names in has.items() for name in names} == set(MODULES.items())
    own = {path.stem for path in Path(prunekit.cli.__file__).parent.glob("*.py") if "\nCOMMANDS = " in path.read_text()}
    assert own == set(has)
