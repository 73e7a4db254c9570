"""The commands as a user types them, one after the other in an empty folder; then every mistake that a user can make."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from prunekit._files import read_json
from prunekit.checkpoint import load_base, save_base
from prunekit.cli.app import main
from prunekit.nets import load_experts
from prunekit.pipeline.stages import open_base
from prunekit.slim import load_slim

TINY = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
TRAIN = {"steps": 2, "batch_size": 8, "warmup_steps": 1}
RECIPE = {
    "name": "micro",
    "base": {"model": TINY, "train": TRAIN},
    "groups": {"count": 2},
    "allocation": {"budget": 0.85, "steps": 3},
    "prune": {"samples": 16, "search": {"proposer": "oneshot"}},
    "finetune": {"train": TRAIN},
    "evaluation": {"samples": 8, "seeds": [0], "loss_samples": 16, "grid": 4},
}


@dataclass(frozen=True)
class Typed:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of standard output as JSON; anything else there is an error."""
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The one line of standard error, without the empty ones that a progress bar leaves."""
        (line,) = [line for line in self.err.splitlines() if line.strip()]
        return line


def typed(line: str) -> Typed:
    """Type a command line where the process stands."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", line.split())
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Typed(code, out.getvalue(), err.getvalue())


def done(line: str) -> Typed:
    """Type a command line that must succeed."""
    result = typed(line)
    assert result.code == 0, result.err
    return result


def listing(folder: Path) -> dict[str, str]:
    """Every path with the hash of its content, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder to work in; the tests of the main job go through it in order."""
    folder = tmp_path_factory.mktemp("desk")
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def journey(desk: Path) -> dict[str, Typed]:
    """The main job, typed once."""
    results = {"allocate": done("prunekit allocate --budget 0.8")}
    results["prune 3"] = done("prunekit prune embedded:digits --group 3")
    results["finetune 3"] = done("prunekit finetune slim/group-3 --max-train-steps 2")
    save_base(open_base("embedded:digits"), Path("base.pt"))
    kept = Path(shutil.copytree("slim/group-3", "kept"))
    results["prune"] = done("prunekit prune base.pt --samples 16 --proposer oneshot")
    shutil.rmtree("slim/group-3")
    kept.rename("slim/group-3")
    results["assemble"] = done("prunekit assemble slim/")
    results["sample"] = done("prunekit sample experts/ --count 4 --num-inference-steps 3")
    results["evaluate"] = done(
        "prunekit evaluate experts/ --base base.pt --count 16 --seeds 1 --num-inference-steps 3 --loss-samples 64"
    )
    results["importance"] = done("prunekit importance base.pt --samples 16")
    return results


# the main job


def test_the_allocation_is_written_where_it_stands(journey, desk):
    allocation = read_json(desk / "allocation.json", "prunekit-allocation/1")
    assert allocation["mean_mac_ratio"] == pytest.approx(0.8, abs=1e-12)
    assert "Written to allocation.json" in journey["allocate"].out
    assert journey["allocate"].err == ""


def test_one_group_is_pruned_to_the_allocations_target(journey, desk):
    slim = load_slim(desk / "slim" / "group-3")
    target = int(0.7 * 11_491_328)
    assert 0 <= target - slim.macs < 0.01 * 11_491_328
    assert (slim.group.start, slim.group.stop) == (600, 800)
    assert f"{slim.macs:,}" in journey["prune 3"].out
    assert "slim/group-3" in journey["prune 3"].out
    journal = [json.loads(line) for line in (desk / "slim" / "search-3.jsonl").read_text().splitlines()]
    assert all(entry["loss"] > 0 for entry in journal)


def test_finetuning_writes_the_same_folder_and_leaves_no_checkpoints(journey, desk):
    assert "Fine-tuned 2 steps, loss 0." in journey["finetune 3"].out
    assert load_slim(desk / "slim" / "group-3").about["provenance"]["finetuned_steps"] == 2
    assert not [name for name in listing(desk) if "checkpoints" in name or name.endswith(".part")]


def test_all_groups_are_pruned_without_a_number(journey, desk):
    rows = [line.split() for line in journey["prune"].out.splitlines() if "slim/group-" in line]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    ratios = [float(row[3]) for row in rows]
    assert ratios == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6], abs=0.01)
    for row, ratio in zip(rows, ratios, strict=True):
        macs = int(row[2].replace(",", ""))
        assert macs <= int(row[1].replace(",", ""))
        assert macs / 11_491_328 == pytest.approx(ratio, abs=5e-5)


def test_experts_are_assembled(journey, desk):
    experts = load_experts(desk / "experts")
    assert len(experts.groups) == 5
    assert f"{sum(experts.params):,} parameters" in journey["assemble"].out
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
    assert "FID (features: digits-cnn, n = 16)" in out


def test_importance_is_a_map_and_a_heatmap(journey, desk):
    scores = read_json(desk / "importance.json", "prunekit-importance/1")
    assert len(scores["scores"]) == 5
    with Image.open(desk / "importance.png") as picture:
        picture.verify()
    assert "importance.png" in journey["importance"].out


# costs


def test_costs_of_a_base_are_json_with_the_promised_keys(journey):
    data = done("prunekit cost base.pt --json").json
    assert {"macs", "params", "by_module", "uncounted"} <= set(data)
    base = load_base("base.pt")
    assert data["params"] == sum(parameter.numel() for parameter in base.model.parameters())
    assert data["flops"] == 2 * data["macs"]
    assert data["by_module"][""] == data["macs"]
    blocks = (
        "conv_in",
        "time_embedding",
        "down_blocks.0",
        "down_blocks.1",
        "mid_block",
        "up_blocks.0",
        "up_blocks.1",
        "conv_out",
    )
    assert sum(data["by_module"][name] for name in blocks) == data["macs"]


def test_costs_of_a_base_are_a_table(journey):
    lines = done("prunekit cost base.pt --depth 1 --no-compare").out.splitlines()
    assert lines[0].startswith("base.pt: 11,491,328 MACs (22,982,656 FLOPs = 2·MACs)")
    shares = {line.split()[0]: float(line.split()[-2]) for line in lines if line.endswith("%")}
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    assert lines[-1].startswith("Not counted")
    assert not [line for line in lines if "fvcore" in line]


def test_costs_of_slim_models_and_experts_agree(journey, desk):
    experts = done("prunekit cost experts/ --json").json
    slims = [done(f"prunekit cost slim/group-{i} --json --no-compare").json for i in (0, 3)]
    assert experts["experts"]["group-3"] == {"macs": slims[1]["macs"], "params": slims[1]["params"]}
    assert slims[1]["macs"] == load_slim(desk / "slim" / "group-3").macs
    assert slims[0]["macs"] > slims[1]["macs"]
    macs = [expert["macs"] for expert in experts["experts"].values()]
    assert experts["macs"] == pytest.approx(sum(macs) / 5)  # ddim's 50 steps fall evenly
    assert experts["params"] == sum(expert["params"] for expert in experts["experts"].values())


def test_shares_in_the_table_of_experts_are_of_each_experts_own(journey):
    lines = done("prunekit cost experts --depth 1").out.splitlines()
    by_expert: dict[str, float] = {}
    for name, _, share, _ in (line.split() for line in lines if line.endswith("%")):
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


def test_every_command_speaks_json(journey, tmp_path, monkeypatch):
    shutil.copy("base.pt", tmp_path / "base.pt")
    monkeypatch.chdir(tmp_path)
    assert done("prunekit groups --groups 2 --json").json["format"] == "prunekit-groups/1"
    assert done("prunekit allocate --budget 0.8 --json").json["budget"] == 0.8
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


# single commands


def test_training_writes_a_base_that_the_others_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = done("prunekit train --data digits --max-train-steps 2 --train-batch-size 8")
    assert result.out.startswith("Trained 2 steps, loss ")
    assert list(listing(tmp_path)) == ["base.pt"]
    base = load_base("base.pt")
    assert base.data == {"source": "digits", "resolution": 8}
    assert base.provenance["steps"] == 2
    assert done("prunekit cost base.pt --json --no-compare").json["macs"] > 0
    first = Path("base.pt").read_bytes()
    done("prunekit train --data digits --max-train-steps 2 --train-batch-size 8 --overwrite")
    assert Path("base.pt").read_bytes() == first  # the same seed
    done("prunekit train --data digits --max-train-steps 2 --train-batch-size 8 --overwrite --seed 1")
    assert Path("base.pt").read_bytes() != first


def test_training_takes_an_architecture_and_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pictures/{i}.png")
    Path("model.json").write_text(json.dumps(TINY | {"in_channels": 3, "out_channels": 3}))
    done(
        "prunekit train --data pictures --resolution 8 --config model.json --max-train-steps 1 --train-batch-size 2 "
        "--prediction-type v_prediction --mixed-precision bf16"
    )
    base = load_base("base.pt")
    assert (base.prediction_type, base.spec.config["in_channels"]) == ("v_prediction", 3)
    done("prunekit sample base.pt --count 2 --num-inference-steps 2")
    assert np.load("samples/base.npz")["images"].shape == (2, 8, 8, 3)


def test_an_interrupted_command_ends_with_130_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def interrupted(*_: Any) -> Any:
        def report(_: Any) -> None:
            raise KeyboardInterrupt

        return report

    line = "prunekit train --max-train-steps 2 --train-batch-size 8"
    with monkeypatch.context() as patch:
        patch.setattr("prunekit.pipeline.observing.training_reporter", interrupted)
        result = typed(line)
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err
    assert listing(tmp_path) == {}
    done(line)


def test_equal_seeds_sample_equal_images_and_others_do_not(journey, tmp_path):
    images = []
    for seed in (0, 0, 1):
        done(f"prunekit sample base.pt --count 2 --num-inference-steps 2 --seed {seed} --output {tmp_path}/s.npz")
        images.append(np.load(tmp_path / "s.npz")["images"])
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_samples_of_an_embedded_base_have_a_plain_name(journey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("prunekit sample embedded:digits --count 1 --num-inference-steps 1")
    assert sorted(listing(tmp_path)) == ["samples", "samples/embedded-digits.npz", "samples/embedded-digits.png"]


def test_a_target_needs_no_allocation(journey, tmp_path, monkeypatch):
    shutil.copy("base.pt", tmp_path / "base.pt")
    monkeypatch.chdir(tmp_path)
    line = "prunekit prune base.pt --group 4 --target 0.5 --samples 16 --proposer oneshot --json"
    pruned = done(line).json
    assert pruned["target_macs"] == 11_491_328 // 2
    assert load_slim("slim/group-4").group.start == 800  # five uniform groups
    done("prunekit groups --cuts 100")
    assert typed(line).sentence.endswith("expected 0 … 1.")  # and those of groups.json where there is one
    done("prunekit allocate --budget 0.9 --groups 3")
    assert done(line.replace("--group 4", "--group 2")).json["target_macs"] == 11_491_328 // 2
    assert load_slim("slim/group-2").group.start == 667


def test_finetuning_logs_to_tensorboard(journey, tmp_path):
    output = f"--output {tmp_path}/slim --logging-dir {tmp_path}/logs"
    done(f"prunekit finetune slim/group-4 --max-train-steps 1 --train-batch-size 4 {output}")
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))


def test_a_base_keeps_what_stands_and_the_demo_copies_it_whole(tmp_path, monkeypatch):
    """The demo takes minutes; its run is replaced by one that is finished already."""
    monkeypatch.chdir(tmp_path)

    def finished(recipe: Path, output: Path) -> Path:
        assert yaml.safe_load(recipe.read_text())["name"] == "digits-demo"
        output.mkdir(exist_ok=True)
        (output / "base.pt").write_bytes(b"weights")
        (output / "manifest.json").write_text(json.dumps({"recipe": "digits-demo"}))
        return output / "manifest.json"

    monkeypatch.setattr("prunekit.cli.running._execute", finished)
    assert "base.pt" in done("prunekit demo").out
    assert Path("base.pt").read_bytes() == b"weights"
    Path("base.pt").write_bytes(b"mine")
    assert done("prunekit demo --json").json == {"recipe": "digits-demo"}
    assert Path("base.pt").read_bytes() == b"mine"


# recipes


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Typed, Typed]:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "micro.yaml").write_text(yaml.safe_dump(RECIPE))
    with contextlib.chdir(folder):
        first = done("prunekit run micro.yaml --publish reports")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prunekit.pipeline.runner.write_report", lambda run: run)  # it was made a moment ago
            second = done("prunekit run micro.yaml --json")
    return folder, first, second


def test_a_recipe_runs_into_a_folder_of_its_name(run_folder):
    folder, first, _ = run_folder
    manifest = read_json(folder / "runs" / "micro" / "manifest.json", "prunekit-manifest/1")
    lines = first.out.splitlines()
    assert lines[0] == "Run micro: cost and held-out loss"
    for expert in manifest["experts"]:
        assert any(f"{expert['macs']:,}" in line for line in lines)
    assert lines[-1] == "Report: runs/micro/report/index.html"
    assert (folder / "runs" / "micro" / "report" / "index.html").is_file()
    for stage in ("base", "prune group 1", "finetune group 0", "assemble", "evaluate", "report"):
        assert stage in first.err.splitlines()
    assert (folder / "reports" / "micro" / "report" / "index.html").is_file()
    assert not list((folder / "reports").rglob("*.safetensors"))


def test_a_second_run_says_that_everything_was_kept(run_folder):
    folder, _, second = run_folder
    assert second.json == read_json(folder / "runs" / "micro" / "manifest.json")
    said = [line for line in second.err.splitlines() if line.strip() and line != "report"]
    assert len(said) == 10
    assert all(line.endswith("kept from before") for line in said)


def test_a_report_is_made_again_from_a_published_manifest(run_folder, tmp_path, monkeypatch):
    folder, _, _ = run_folder
    published = Path(shutil.copytree(folder / "reports" / "micro", tmp_path / "published"))
    shutil.rmtree(published / "report")
    monkeypatch.chdir(tmp_path)
    assert done("prunekit report published").out.strip() == "Report: published/report/index.html"
    assert (published / "report" / "index.html").is_file()
    monkeypatch.setattr("prunekit.report.write_report", lambda run: run / "report" / "index.html")
    assert done("prunekit report published --json").json == {"report": "published/report/index.html"}


# mistakes: exit code 2, one sentence, nothing written


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, journey: dict[str, Typed], desk: Path) -> Path:
    """A folder with good files and bad ones; no mistake may change it."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("base.pt", "allocation.json"):
        shutil.copy(desk / name, folder)
    for name in ("slim", "experts"):
        shutil.copytree(desk / name, folder / name)
    base = load_base(desk / "base.pt")
    save_base(replace(base, prediction_type="v_prediction"), folder / "v.pt")
    save_base(replace(base, data={}), folder / "unrecorded.pt")
    for name in ("garbage.pt", "garbage.safetensors", "garbage.npz", "text.txt"):
        (folder / name).write_bytes(b"not what its name says")
    np.savez(folder / "rgb.npz", images=np.zeros((9, 8, 8, 3), dtype=np.uint8))
    shutil.copytree(desk / "slim", folder / "gap")
    shutil.rmtree(folder / "gap" / "group-2")
    broken = Path(shutil.copytree(desk / "slim" / "group-1", folder / "broken"))
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(bytes(weights))
    (folder / "groups-2000.json").write_text(
        json.dumps(
            {"format": "prunekit-groups/1", "num_timesteps": 2000, "groups": [{"index": 0, "start": 0, "stop": 2000}]}
        )
    )
    (folder / "colour.json").write_text(json.dumps(TINY | {"in_channels": 3}))
    (folder / "strange.json").write_text(json.dumps(TINY | {"_class_name": "os.system"}))
    (folder / "typo.yaml").write_text("name: typo\nbase: {checkpoint: 'embedded:digits'}\nprune:\n  sampels: 3\n")
    (folder / "wrong-size.yaml").write_text(
        "name: wrong\nbase: {checkpoint: 'embedded:digits'}\ndata: {source: digits, resolution: 12}\n"
    )
    (folder / "run").mkdir()
    (folder / "run" / "manifest.json").write_text('{"format": "prunekit-manifest/1"}')
    return folder


MISTAKES = {
    # a model that is not there, or no model
    "prunekit cost nowhere.pt": r"nowhere\.pt does not exist.*prunekit train",
    "prunekit sample nowhere": "nowhere does not exist",
    "prunekit importance nowhere.pt": r"nowhere\.pt does not exist",
    "prunekit prune nowhere.pt --group 3": r"nowhere\.pt does not exist",
    "prunekit evaluate experts --base nowhere.pt": r"nowhere\.pt does not exist",
    "prunekit finetune slim/group-9": "slim/group-9 does not exist",
    "prunekit assemble nowhere": "prunekit prune",
    "prunekit cost embedded:cats": "embedded:digits",
    "prunekit cost garbage.pt": r"garbage\.pt is no readable checkpoint",
    "prunekit prune garbage.pt --group 3": r"garbage\.pt is no readable checkpoint",
    "prunekit importance garbage.safetensors": r"garbage\.safetensors is no readable safetensors",
    "prunekit cost text.txt": r"text\.txt",
    "prunekit finetune broken": "SHA-256",
    "prunekit sample broken": "SHA-256",
    "prunekit finetune slim": r"slim/config\.json does not exist",
    "prunekit assemble gap": r"do not cover the timesteps",
    # groups, allocations, targets
    "prunekit prune base.pt --group 5": r"no timestep group 5; expected 0 … 4",
    "prunekit prune base.pt --group -1": r"no timestep group -1",
    "prunekit prune base.pt --allocation nowhere.json": r"nowhere\.json does not exist",
    "prunekit prune base.pt --target 0 --group 1": "Got --target 0",
    "prunekit prune base.pt --target 1.5 --group 1": r"Got --target 1\.5",
    "prunekit prune base.pt --target 0.001 --group 1 --samples 8": "expected .* … 11,491,328",
    "prunekit prune base.pt --samples 0": "at least 1",
    "prunekit prune base.pt --rounds 0": "rounds",
    "prunekit importance base.pt --groups-file groups-2000.json": "2000 timesteps",
    "prunekit importance base.pt --groups-file nowhere.json": r"nowhere\.json",
    "prunekit importance base.pt --samples 8 --output slim": "slim is a folder",
    # images
    "prunekit importance base.pt --data nowhere": "nowhere does not exist",
    "prunekit prune base.pt --group 1 --data text.txt": r"text\.txt is not a kind that is read",
    "prunekit prune base.pt --group 1 --data garbage.npz": r"garbage\.npz is no readable",
    "prunekit finetune slim/group-1 --data rgb.npz": "3 channels",
    "prunekit evaluate experts --data rgb.npz": "3 channels",
    "prunekit evaluate experts --data digits --resolution 10": "10×10",
    "prunekit evaluate experts --resolution 8": "--resolution without --data",
    "prunekit importance base.pt --resolution 8": "--resolution without --data",
    "prunekit importance unrecorded.pt": "by --data",
    # training
    "prunekit train": r"base\.pt exists already.*--overwrite",
    "prunekit train --output x.pt --data nowhere": "nowhere does not exist",
    "prunekit train --output x.pt --data digits --resolution 1": "--resolution 1",
    "prunekit train --output x.pt --max-train-steps 0": "steps 0",
    "prunekit train --output x.pt --learning-rate -1": "learning_rate",
    "prunekit train --output x.pt --prediction-type noise": "--prediction-type noise.*epsilon",
    "prunekit train --output x.pt --mixed-precision fp7": "fp7.*no, fp16, bf16",
    "prunekit train --output x.pt --config nowhere.json": r"nowhere\.json",
    "prunekit train --output x.pt --config strange.json": "Unknown architecture 'os.system'",
    "prunekit train --output x.pt --config colour.json": "in_channels is 3",
    "prunekit train --output x.pt --max-train-steps 9 --train-batch-size 4 --learning-rate 1e30": "loss is .* at step",
    "prunekit finetune slim/group-1 --overlap -500": "start < stop",
    # sampling and measuring
    "prunekit sample experts --sampler nonsense": "Unknown sampler 'nonsense'.*ddim",
    "prunekit sample experts --count 0": "--count 0",
    "prunekit sample experts --num-inference-steps 0": "0 sampling steps",
    "prunekit sample experts --num-inference-steps 1001": "1001 sampling steps",
    "prunekit sample experts --num-inference-steps 2 --sampler pndm": "(?i)pndm",
    "prunekit evaluate experts --sampler nonsense": "Unknown sampler",
    "prunekit evaluate experts --count 1": "--count 1",
    "prunekit evaluate experts --seeds 0": "--seeds 0",
    "prunekit evaluate experts --features inception": "Unknown feature extractor 'inception'.*digits-cnn",
    "prunekit evaluate experts --base v.pt": r"v\.pt .* by v_prediction",
    # recipes and reports
    "prunekit run nowhere.yaml": r"nowhere\.yaml does not exist",
    "prunekit run typo.yaml": r"typo\.yaml, line 4: prune\.sampels",
    "prunekit run text.txt": r"text\.txt",
    "prunekit report nowhere": "does not exist",
    "prunekit report run": "manifest cannot be read",
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.items(), ids=[line[9:] for line in MISTAKES])
def test_a_mistake_is_one_sentence_with_exit_code_2(workshop, monkeypatch, line, message):
    monkeypatch.chdir(workshop)
    before = listing(workshop)
    result = typed(line)
    assert result.code == 2, result
    assert result.out == ""
    assert result.sentence.startswith("prunekit: ")
    assert result.sentence.endswith(".")
    assert "Traceback" not in result.err
    assert re.search(message, result.sentence), result.sentence
    assert listing(workshop) == before


def test_a_recipe_that_does_not_fit_its_base_starts_nothing(workshop, monkeypatch):
    monkeypatch.chdir(workshop)
    before = listing(workshop)
    result = typed("prunekit run wrong-size.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1].startswith(
        "prunekit: The images of digits are 12×12 and the model's sample_size is 8"
    )
    assert listing(workshop) == before


def test_without_an_allocation_the_command_for_it_is_named(journey, tmp_path, monkeypatch):
    shutil.copy("base.pt", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "prunekit allocate --budget 0.8" in typed("prunekit prune base.pt --group 3").sentence
    assert list(listing(tmp_path)) == ["base.pt"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("prunekit cost base.pt --frobnicate", "--frobnicate"),
        ("prunekit prune base.pt --criterion wishes", "wishes"),
        ("prunekit prune base.pt --group three", "--group"),
        ("prunekit frobnicate", "frobnicate"),
        ("prunekit prune", "base"),
    ],
)
def test_what_cannot_be_parsed_ends_with_2_too(workshop, monkeypatch, line, named):
    monkeypatch.chdir(workshop)
    before = listing(workshop)
    result = typed(line)
    assert (result.code, result.out) == (2, "")
    assert named in result.err
    assert "Traceback" not in result.err
    assert listing(workshop) == before


def test_what_the_system_refuses_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "groups.json")

    monkeypatch.setattr("prunekit.cli.planning.write_json", full)
    result = typed("prunekit groups")
    assert (result.code, result.out) == (2, "")
    assert result.sentence.startswith("prunekit: groups.json: No space left on device")


COMMANDS = "demo train groups allocate importance prune finetune assemble sample evaluate cost report run"


@pytest.mark.parametrize("name", COMMANDS.split())
def test_every_command_has_help_and_json(name):
    assert f" {name} " in done("prunekit --help").out
    assert "--json" in done(f"prunekit {name} --help").out
