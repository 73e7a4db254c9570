import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro_recipe import STAGES, Spy, micro
from torch import Tensor, nn

from prunekit._files import read_json, sha256_file, write_json
from prunekit.checkpoint import Base, load_base, save_base
from prunekit.cost import count_macs
from prunekit.data import load_images
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.nets import load_experts
from prunekit.pipeline import runner
from prunekit.pipeline.measuring import Setting, measure_losses
from prunekit.pipeline.planning import cut_groups, evaluations
from prunekit.pipeline.publishing import publish
from prunekit.pipeline.runner import Run
from prunekit.pipeline.stages import open_base
from prunekit.recipe import Recipe

Execute = Callable[[Recipe, Path], Spy]
TINY = {
    "class": "UNet2DModel",
    "config": {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "dropout": 0.1,
    },
}
TRAIN = {"steps": 6, "batch_size": 8, "warmup_steps": 1, "log_every": 1, "checkpoint_every": 1}
BASE_ONLY = {"groups": None, "allocation": None, "prune": None, "finetune": None, "evaluation": None}


@pytest.fixture(scope="module")
def manifest(finished: Path) -> dict[str, Any]:
    return read_json(finished / "manifest.json")


def weight_files(folder: Path) -> dict[str, str]:
    """Hashes of all weights and of the files with the plans."""
    files = [*folder.rglob("*.safetensors"), *folder.rglob("config.json"), folder / "base.pt"]
    return {str(file.relative_to(folder)): sha256_file(file) for file in files}


class StopError(Exception):
    pass


# going on


def test_a_first_run_makes_every_stage_once_and_in_order(finished_run):
    _, spy = finished_run
    assert spy.stages == [(name, False) for name in [*STAGES, "report"]]
    assert ("group 1", 4, 4) in spy.progressed
    assert ("sampling", 32, 32) in spy.progressed


def test_a_second_run_keeps_every_stage(own_copy, execute, monkeypatch):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    for name in ("train_base", "finetune_slim", "score_groups", "prune_group", "measure_losses", "measure_samples"):
        monkeypatch.setattr(runner, name, never)
    before = {path: path.stat().st_mtime_ns for path in own_copy.rglob("*.safetensors")}
    first = read_json(own_copy / "manifest.json")
    shutil.rmtree(own_copy / "report")
    spy = execute(micro(), own_copy)
    assert spy.stages == [*((name, True) for name in STAGES), ("report", False)]
    assert spy.progressed == []
    assert {path: path.stat().st_mtime_ns for path in own_copy.rglob("*.safetensors")} == before
    second = read_json(own_copy / "manifest.json")
    assert {key for key in first if first[key] != second[key]} <= {"created", "commit", "threads"}
    assert (own_copy / "report" / "index.html").is_file()


AFTER_PRUNE = STAGES[STAGES.index("finetune group 0") :]
CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "words": ({"name": "other", "description": "other words"}, []),
    "evaluation": ({"evaluation__seeds": [1]}, ["evaluate"]),
    "finetune": ({"finetune__overlap": 5}, AFTER_PRUNE),
    "budget": ({"allocation__budget": 0.7}, ["allocate", "prune group 0", "prune group 1", *AFTER_PRUNE]),
    "prune": ({"prune__samples": 8}, ["importance", "prune group 0", "prune group 1", *AFTER_PRUNE]),
    "groups": ({"groups__cuts": [400]}, STAGES[1:]),
}


@pytest.mark.parametrize(("change", "again"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_runs_its_stage_and_what_follows_again(own_copy, monkeypatch, quick, change, again):
    """What is decided, not what is computed: the actions give back what they gave before."""
    known = read_json(own_copy / "state.json")["stages"]
    for stage in STAGES:
        word, *rest = stage.split()
        given = {"allocate": "_allocate", "assemble": "_assemble"}.get(word, f"_{word}")
        if rest:
            facts = [known[f"{word} group {i}"]["facts"] for i in range(2)]
            monkeypatch.setattr(Run, given, lambda self, index, facts=facts: facts[index])
        else:
            monkeypatch.setattr(Run, given, lambda self, facts=known[stage]["facts"]: facts)
    spy = Spy()
    Run(micro(**change), own_copy, spy).execute()
    assert spy.made == again
    spy = Spy()
    Run(micro(**change), own_copy, spy).execute()
    assert spy.made == []


def test_other_finetuning_leaves_the_pruned_models_and_changes_the_tuned(own_copy, execute, quick):
    before = weight_files(own_copy)
    spy = execute(micro(finetune__overlap=5, evaluation=None), own_copy)
    assert spy.made == ["finetune group 0", "finetune group 1", "assemble"]
    changed = {name.split("/")[0] for name, digest in weight_files(own_copy).items() if before[name] != digest}
    assert changed == {"slim", "experts"}


def test_another_budget_prunes_to_it(own_copy, execute, quick):
    spy = execute(micro(allocation__budget=0.6, finetune=None, evaluation=None), own_copy)
    assert spy.made == ["allocate", "prune group 0", "prune group 1"]
    manifest = read_json(own_copy / "manifest.json")
    assert [expert["macs"] / manifest["base"]["macs"] for expert in manifest["experts"]] == pytest.approx(
        [0.6] * 2, abs=0.01
    )
    assert "assembled" not in manifest  # an earlier run's results are not this run's


DELETED = {
    "base.pt": "base",
    "groups.json": "groups",
    "allocation.json": "allocate",
    "importance.json": "importance",
    "pruned/group-0/model.safetensors": "prune group 0",
    "slim/group-1": "finetune group 1",
    "experts/experts.json": "assemble",
    "experts/group-1/model.safetensors": "assemble",
    "samples/experts.npz": "evaluate",
}


@pytest.mark.parametrize(("path", "stage"), DELETED.items(), ids=DELETED.keys())
def test_a_deleted_output_is_made_again_byte_by_byte(own_copy, finished, execute, quick, path, stage):
    deleted = own_copy / path
    shutil.rmtree(deleted) if deleted.is_dir() else deleted.unlink()
    assert execute(micro(), own_copy).made == [stage]
    assert weight_files(own_copy) == weight_files(finished)
    if deleted.is_file():
        assert deleted.read_bytes() == (finished / path).read_bytes()


def test_an_interrupted_run_goes_on_where_it_stopped_to_the_same_bytes(finished, tmp_path, quick):
    """Stopped at the third train step of the second expert, in another folder."""

    class Stopping(Spy):
        def progress(self, label: str, done: int, total: int, note: str) -> None:
            super().progress(label, done, total, note)
            if (label, done) == ("group 1", 3):
                raise StopError

    folder, stopped, spy = tmp_path / "elsewhere", Stopping(), Spy()
    with pytest.raises(StopError):
        Run(micro(), folder, stopped).execute()
    assert stopped.made == STAGES[: STAGES.index("finetune group 1") + 1]
    assert not (folder / "manifest.json").exists()
    assert not (folder / "slim" / "group-1").exists()
    Run(micro(), folder, spy).execute()
    assert spy.made == STAGES[STAGES.index("finetune group 1") :]
    assert [entry for entry in spy.progressed if entry[0] == "group 1"] == [("group 1", 3, 4), ("group 1", 4, 4)]
    assert weight_files(folder) == weight_files(finished)
    assert list((folder / "checkpoints").iterdir()) == []
    ours, theirs = (read_json(place / "manifest.json") for place in (folder, finished))
    for key in ("experts", "assembled", "losses", "ledger", "base", "allocation", "config_hash"):
        assert ours[key] == theirs[key]
    for name in ("base", "experts"):
        assert (folder / f"samples/{name}.npz").read_bytes() == (finished / f"samples/{name}.npz").read_bytes()


def test_a_stage_that_stops_midway_is_kept_by_no_recipe(own_copy, finished, monkeypatch, execute, quick):
    """The other recipe's output is there when it stops, and must not pass for this one's."""

    def stops(*_: Any) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_journal", stops)  # after the slim model's folder has been replaced
        with pytest.raises(StopError):
            execute(micro(allocation__budget=0.7, finetune=None, evaluation=None), own_copy)
    assert weight_files(own_copy) != weight_files(finished)
    spy = execute(micro(finetune=None, evaluation=None), own_copy)
    assert spy.made == ["allocate", "prune group 0"]
    assert weight_files(own_copy) == weight_files(finished)


def test_a_recipe_with_fewer_groups_in_the_same_folder_takes_its_own_only(own_copy, execute, quick):
    spy = execute(micro(groups__count=1, evaluation=None), own_copy)
    assert spy.made == ["groups", "allocate", "importance", "prune group 0", "finetune group 0", "assemble"]
    assert len(load_experts(own_copy / "experts").groups) == 1
    assert [expert["group"] for expert in read_json(own_copy / "manifest.json")["experts"]] == [0]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": "prunekit-state/2", "stages": {}}', '{"format": "prunekit-state/1"}']
)
def test_a_broken_state_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"state\.json"):
        Run(micro(), tmp_path)


# the figures


def test_experts_meet_their_targets_when_measured_anew(finished, manifest):
    experts, base = load_experts(finished / "experts"), load_base(finished / "base.pt")
    inputs = base.spec.example_inputs()
    full = count_macs(base.model, inputs)
    assert (manifest["base"]["macs"], manifest["base"]["params"]) == (full.macs, full.params)
    assert manifest["base"]["sha256"] == sha256_file(finished / "base.pt")
    for entry, target in zip(manifest["experts"], manifest["allocation"]["groups"], strict=True):
        measured = count_macs(experts.expert(entry["group"]), inputs)
        assert (entry["macs"], entry["params"]) == (measured.macs, measured.params)
        assert entry["target_macs"] == target["target_macs"] == int(target["mac_ratio"] * full.macs + 1e-9)
        assert 0 <= entry["target_macs"] - measured.macs <= 0.01 * full.macs
        kept = {name: after for name, (_, after) in entry["widths"].items()}
        assert any(after < before for before, after in entry["widths"].values())
        assert min(kept.values()) >= 1


def test_the_assembled_means_are_those_of_the_samplers_steps(finished, manifest):
    allocation = manifest["allocation"]
    steps = evaluations(load_base(finished / "base.pt").schedule, allocation["sampler"], allocation["sampler_steps"])
    experts = load_experts(finished / "experts")
    macs = [manifest["experts"][int(t >= 500)]["macs"] for t in steps]
    assert len(macs) == 3
    assert manifest["assembled"]["mean_macs"] == pytest.approx(np.mean(macs), rel=1e-12)
    assert manifest["assembled"]["mean_mac_ratio"] == pytest.approx(np.mean(macs) / manifest["base"]["macs"], rel=1e-12)
    assert manifest["assembled"]["mean_mac_ratio"] <= manifest["config"]["allocation"]["budget"]
    assert manifest["assembled"]["params"] == sum(p.numel() for p in experts.parameters())


def test_the_ledger_adds_up(finished, manifest):
    rows = {row["stage"]: row for row in manifest["ledger"]}
    base = manifest["base"]["macs"]
    assert rows["importance"] == {"stage": "importance", "samples": 2 * 16, "macs": 3 * base * 32}
    for i, expert in enumerate(manifest["experts"]):
        lines = (finished / f"search/group-{i}.jsonl").read_text().splitlines()
        measured = [entry["macs"] for entry in map(json.loads, lines) if "steps" in entry]
        assert len(measured) > 2
        stage = f"search, group {i}"
        assert rows[stage] == {"stage": stage, "samples": 16 * len(measured), "macs": 16 * sum(measured)}
        stage = f"fine-tuning, group {i}"
        assert rows[stage] == {"stage": stage, "samples": 4 * 8, "macs": 3 * expert["macs"] * 32}
    assert len(rows) == len(manifest["ledger"]) == 5


def test_losses_are_paired(manifest):
    assert [row["group"] for row in manifest["losses"]] == [0, 1]
    for row in manifest["losses"]:
        assert row["difference"]["mean"] == pytest.approx(row["expert"]["mean"] - row["base"]["mean"], rel=1e-6)
        assert 0 < row["difference"]["se"] < (row["expert"]["se"] ** 2 + row["base"]["se"] ** 2) ** 0.5
        assert row["pruned"]["mean"] != row["expert"]["mean"]


@pytest.mark.parametrize("samples", [2, 32, 300])
def test_as_many_losses_are_drawn_as_the_recipe_says(finished, samples):
    counts: list[int] = []

    class Zero(nn.Module):
        def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
            counts.append(len(noisy))
            return torch.zeros_like(noisy)

    recipe, base = micro(evaluation__loss_samples=samples), load_base(finished / "base.pt")
    assert recipe.allocation is not None
    assert recipe.evaluation is not None
    images = load_images("digits")
    setting = Setting(
        images, cut_groups(base.schedule, 2), base.schedule, "epsilon", recipe.allocation, recipe.evaluation
    )
    rows = measure_losses(setting, {"base": Zero()})
    assert sum(counts) == 2 * samples
    assert [row["base"]["mean"] for row in rows] == pytest.approx([1.0, 1.0], abs=0.5)  # the noise's own variance


def test_metrics_say_what_was_compared(finished, manifest):
    metrics = manifest["metrics"]
    assert (metrics["count"], metrics["steps"], metrics["seeds"], metrics["sampler"]) == (16, 3, [0], "ddim")
    assert [row["model"] for row in metrics["rows"]] == ["base", "experts"]
    base, experts = metrics["rows"]
    assert (base["mac_ratio"], base["mean_macs"]) == (1.0, manifest["base"]["macs"])
    assert experts["mac_ratio"] == pytest.approx(manifest["assembled"]["mean_mac_ratio"])
    assert all(row["fid"]["mean"] > 0 and row["fid"]["se"] is None for row in metrics["rows"])
    images = [np.load(finished / f"samples/{name}.npz")["images"] for name in ("base", "experts")]
    assert [(image.shape, image.dtype) for image in images] == [((4, 8, 8, 1), np.uint8)] * 2
    assert not np.array_equal(*images)


def test_the_manifest_says_what_made_it(manifest):
    assert manifest["recipe"] == "micro"
    assert Recipe.model_validate(manifest["config"]) == micro()
    assert manifest["seeds"] == {"base": 0, "calibration": 0, "finetune": 0, "sampling": [0]}
    assert (
        manifest["versions"]["torch"] == torch.__version__.split("+")[0]
        or torch.__version__ in manifest["versions"]["torch"]
    )
    assert set(manifest["seconds"]) == set(STAGES)


def test_the_report_is_there(finished):
    page = (finished / "report" / "index.html").read_text()
    assert "micro" in page
    assert (finished / "report" / "table.csv").is_file()


# publishing


def test_results_are_published_without_weights(finished, tmp_path, monkeypatch):
    target = publish(finished, tmp_path / "reports")
    assert target == tmp_path / "reports" / "micro"
    assert {path.name for path in target.iterdir()} == {
        "manifest.json",
        "allocation.json",
        "importance.json",
        "samples",
        "report",
    }
    assert (target / "report" / "index.html").is_file()
    assert (target / "manifest.json").read_bytes() == (finished / "manifest.json").read_bytes()
    suffixes = {path.suffix for path in target.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".npz", ".html", ".png", ".csv", ".md"}
    (target / "stale.txt").write_text("from an earlier time")
    monkeypatch.setattr(runner, "write_report", lambda folder: folder)
    publish(finished, tmp_path / "reports")
    assert not (target / "stale.txt").exists()


@pytest.mark.parametrize("name", ["../elsewhere", ".hidden", "", "a/b"])
def test_a_manifest_cannot_choose_where_it_is_published(tmp_path, name):
    write_json(tmp_path / "run" / "manifest.json", {"recipe": name})
    with pytest.raises(FileFormatError, match="cannot be a folder"):
        publish(tmp_path / "run", tmp_path / "reports")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


# bases


def base_recipe(**changes: Any) -> Recipe:
    return micro(base={"model": TINY, "train": TRAIN}, **BASE_ONLY, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    Run(base_recipe(), folder).execute()
    return folder


def test_a_recipe_can_train_a_base_only(trained):
    manifest = read_json(trained / "manifest.json")
    base = load_base(trained / "base.pt")
    macs = count_macs(base.model, base.spec.example_inputs()).macs
    assert manifest["ledger"] == [{"stage": "base training", "samples": 48, "macs": 3 * macs * 48}]
    assert base.data == {"source": "digits", "resolution": 8}
    other = load_base(trained / "base.safetensors")
    assert other.about() == base.about()
    for key, value in base.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[key])
    assert not (trained / "report").exists()


def test_a_base_without_experts_is_published_without_a_report(trained, tmp_path):
    target = publish(trained, tmp_path)
    assert [path.name for path in target.iterdir()] == ["manifest.json"]


class StopsTraining(Spy):
    def progress(self, label: str, done: int, total: int, note: str) -> None:
        if (label, done) == ("base", 4):
            raise StopError


def test_an_interrupted_base_training_goes_on_to_the_same_bytes(trained, tmp_path, execute):
    with pytest.raises(StopError):
        Run(base_recipe(), tmp_path, StopsTraining()).execute()
    spy = execute(base_recipe(), tmp_path)
    assert [done for label, done, _ in spy.progressed if label == "base"] == [4, 5, 6]
    for name in ("base.pt", "base.safetensors"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_a_recipe_that_changed_after_an_interruption_starts_anew(tmp_path, execute):
    with pytest.raises(StopError):
        Run(base_recipe(), tmp_path, StopsTraining()).execute()
    spy = execute(base_recipe(base__train__seed=1), tmp_path)
    assert [done for label, done, _ in spy.progressed if label == "base"] == [1, 2, 3, 4, 5, 6]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def path_recipe(path: Path | str, **data: Any) -> Recipe:
    return micro(base={"checkpoint": str(path)}, data=data or {"source": "digits"}, **BASE_ONLY)


def test_a_base_can_be_a_path_and_is_read_again_when_it_changes(trained, tmp_path, execute):
    path, folder = tmp_path / "mine.pt", tmp_path / "run"
    shutil.copy(trained / "base.pt", path)
    assert execute(path_recipe(path), folder).made == ["base"]
    assert execute(path_recipe(path), folder).made == []
    assert (folder / "base.pt").read_bytes() == path.read_bytes()
    os.utime(path)
    assert execute(path_recipe(path), folder).made == []
    save_base(load_base(trained / "base.safetensors"), tmp_path / "other.pt")
    model = load_base(path)
    with torch.no_grad():
        next(model.model.parameters()).add_(1)
    save_base(model, path)
    assert execute(path_recipe(path), folder).made == ["base"]
    assert (folder / "base.pt").read_bytes() == path.read_bytes()


def test_a_base_without_a_record_of_its_images_gets_the_recipes(trained, tmp_path, execute):
    base = load_base(trained / "base.pt")
    save_base(Base(base.model, base.spec, base.schedule), tmp_path / "bare.pt")
    execute(path_recipe(tmp_path / "bare.pt"), tmp_path / "run")
    assert load_base(tmp_path / "run" / "base.pt").data == {"source": "digits", "resolution": 8}


def test_a_base_that_is_missing_or_garbage_is_named(tmp_path, execute):
    with pytest.raises(MissingFileError, match=r"nowhere\.pt"):
        execute(path_recipe(tmp_path / "nowhere.pt"), tmp_path / "a")
    (tmp_path / "garbage.pt").write_bytes(b"garbage")
    with pytest.raises(FileFormatError, match=r"garbage\.pt"):
        execute(path_recipe(tmp_path / "garbage.pt"), tmp_path / "b")
    with pytest.raises(InputError, match="embedded:digits"):
        execute(path_recipe("embedded:nothing"), tmp_path / "c")


def colour(path: Path, side: int = 8, channels: int = 3) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (12, side, side, channels), dtype=np.uint8)
    np.savez(path, images=images)
    return path


@pytest.mark.parametrize("source", ["embedded:digits", "path", "train"])
def test_images_of_other_channels_or_size_are_refused_before_anything_runs(trained, tmp_path, execute, source):
    base = {"checkpoint": str(trained / "base.pt") if source == "path" else source}
    base = {"model": TINY, "train": TRAIN} if source == "train" else base
    recipe = partial(micro, base=base, **BASE_ONLY)
    rgb, large = colour(tmp_path / "rgb.npz"), colour(tmp_path / "large.npz", side=10, channels=1)
    with pytest.raises(InputError, match=r"rgb\.npz have 3 channels.*in_channels is 1"):
        execute(recipe(data={"source": str(rgb)}), tmp_path / "run")
    with pytest.raises(InputError, match=r"large\.npz are 10×10.*sample_size is 8"):
        execute(recipe(data={"source": str(large)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert execute(recipe(data={"source": str(large), "resolution": 8}), tmp_path / "run").made == ["base"]


def test_the_embedded_base_is_what_a_run_copies(finished):
    copied, shipped = load_base(finished / "base.pt"), open_base("embedded:digits")
    assert copied.about() == shipped.about()
    for key, value in shipped.model.state_dict().items():
        assert torch.equal(value, copied.model.state_dict()[key])
