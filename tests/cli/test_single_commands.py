"""Commands by themselves: training, sampling, options of the others, recipes and their reports."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import TINY, Typed, done, listing, typed
from PIL import Image

from prunekit._json import read_json
from prunekit.checkpoint import load_base
from prunekit.slim import load_slim

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

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    line = "prunekit train --max-train-steps 2 --train-batch-size 8"
    with monkeypatch.context() as patch:
        patch.setattr("prunekit.steps.bases.train", interrupted)
        result = typed(line)
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err
    assert listing(tmp_path) == {}
    done(line)


def test_equal_seeds_sample_equal_images_and_others_do_not(journey, tmp_path):
    images = []
    for seed in (0, 0, 1):
        line = f"prunekit sample base.pt --count 2 --num-inference-steps 2 --seed {seed} --output {tmp_path}/s.npz"
        done(f"{line} --overwrite")
        images.append(np.load(tmp_path / "s.npz")["images"])
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_samples_of_an_embedded_base_have_a_plain_name(journey, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("prunekit sample embedded:digits --count 1 --num-inference-steps 1")
    assert sorted(listing(tmp_path)) == ["samples", "samples/embedded-digits.npz", "samples/embedded-digits.png"]


@pytest.mark.slow
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
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


def test_a_base_keeps_what_stands_and_the_demo_copies_it_whole(tmp_path, monkeypatch):
    """The demo takes minutes; its run is replaced by one that is finished already."""
    monkeypatch.chdir(tmp_path)

    def finished(recipe: Path, output: Path, parallel: object) -> Path:
        assert yaml.safe_load(recipe.read_text())["name"] == "fashion-demo"
        output.mkdir(exist_ok=True)
        (output / "base.pt").write_bytes(b"weights")
        (output / "manifest.json").write_text(json.dumps({"recipe": "fashion-demo"}))
        return output / "manifest.json"

    monkeypatch.setattr("prunekit.cli.running._execute", finished)
    assert "base.pt" in done("prunekit demo").out
    assert Path("base.pt").read_bytes() == b"weights"
    Path("base.pt").write_bytes(b"mine")
    assert done("prunekit demo --json").json == {"recipe": "fashion-demo"}
    assert Path("base.pt").read_bytes() == b"mine"


# recipes


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Typed, Typed]:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "micro.yaml").write_text(yaml.safe_dump(RECIPE))
    with contextlib.chdir(folder):
        first = done("prunekit run micro.yaml --publish reports")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("prunekit.report.write_report", lambda run: run)  # it was made a moment ago
            second = done("prunekit run micro.yaml --json")
    return folder, first, second


def test_a_recipe_runs_into_a_folder_of_its_name(run_folder):
    folder, first, _ = run_folder
    manifest = read_json(folder / "runs" / "micro" / "manifest.json", "prunekit-manifest/1")
    lines = first.out.splitlines()
    assert lines[0] == "Run micro: cost and held-out loss"
    for expert in manifest["experts"]:
        assert any(f"{expert['macs']:,}" in line for line in lines)
    assert lines[-2:] == ["Report: runs/micro/report/index.html", "Next: prunekit sample runs/micro/experts"]
    assert (folder / "runs" / "micro" / "report" / "index.html").is_file()
    for stage in ("base", "prune group 1", "finetune group 0", "assemble", "evaluate", "report"):
        assert stage in first.err.splitlines()
    assert (folder / "reports" / "micro" / "report" / "index.html").is_file()
    assert not list((folder / "reports").rglob("*.safetensors"))


def test_a_second_run_says_that_everything_was_kept(run_folder):
    folder, _, second = run_folder
    assert second.json == read_json(folder / "runs" / "micro" / "manifest.json")
    other = ("report", "prunekit: trying")  # the second on a busy machine
    said = [line for line in second.err.splitlines() if line.strip() and not line.startswith(other)]
    assert len(said) == 10
    assert all(line.endswith("kept from before") for line in said)


@pytest.mark.slow
def test_a_report_is_made_again_from_a_published_manifest(run_folder, tmp_path, monkeypatch):
    folder, _, _ = run_folder
    published = Path(shutil.copytree(folder / "reports" / "micro", tmp_path / "published"))
    shutil.rmtree(published / "report")
    monkeypatch.chdir(tmp_path)
    assert done("prunekit report published").out.splitlines()[0] == "Report: published/report/index.html"
    assert (published / "report" / "index.html").is_file()
    monkeypatch.setattr("prunekit.report.write_report", lambda run: run / "report" / "index.html")
    assert done("prunekit report published --json").json == {"report": "published/report/index.html"}


@pytest.mark.slow
def test_a_report_whose_page_was_not_stored_is_made_again_in_a_run_only(run_folder, tmp_path, monkeypatch):
    folder, _, _ = run_folder
    published = Path(shutil.copytree(folder / "reports" / "micro", tmp_path / "published"))
    (published / "report" / "index.html").unlink()
    monkeypatch.chdir(tmp_path)
    done("prunekit report published")
    assert (published / "report" / "index.html").is_file()
    (published / "report" / "index.html").unlink()
    (published / "report" / "notes.txt").write_text("mine")
    assert "notes.txt" in typed("prunekit report published").sentence
    assert (published / "report" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_all_reports_of_a_folder_are_made_again_with_a_page_over_them(run_folder, tmp_path, monkeypatch):
    folder, _, _ = run_folder
    before = (folder / "reports" / "index.html").read_bytes()  # from publishing
    reports = Path(shutil.copytree(folder / "reports", tmp_path / "reports"))
    shutil.rmtree(reports / "micro" / "report")
    (reports / "index.html").unlink()
    monkeypatch.chdir(tmp_path)
    said = done("prunekit report reports").out.splitlines()
    assert said[:2] == ["Report: reports/micro/report/index.html", "All runs: reports/index.html"]
    assert (reports / "index.html").read_bytes() == before
    answer = done("prunekit report reports --json").json
    assert answer == {"reports": ["reports/micro/report/index.html"], "index": "reports/index.html"}
