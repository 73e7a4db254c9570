"""Where a run's base comes from: trained by the recipe, a path, or shipped."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro_recipe import Spy, StopError, micro

from prunekit._json import read_json
from prunekit.checkpoint import Base, load_base, save_base
from prunekit.cost import count_macs
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.recipe import Recipe
from prunekit.runs.experts_run import Run
from prunekit.runs.publishing import publish
from prunekit.schedule import Parameterization
from prunekit.steps.bases import open_base

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
    training, ema = manifest["ledger"]
    assert (training["stage"], training["kind"], training["samples"]) == ("base training", "training", 48)
    assert (training["forward_macs"], training["macs"]) == (macs * 48, 3 * macs * 48)
    steps = manifest["config"]["base"]["train"]["steps"]
    assert (ema["kind"], ema["macs"]) == ("ema", steps * manifest["base"]["params"])
    assert manifest["base"]["training"] == {"samples": 48, "macs": 3 * macs * 48, "known_from": "this run"}
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


@pytest.mark.slow
def test_a_base_can_be_a_path_and_is_read_again_when_it_changes(trained, tmp_path, execute):
    path, folder = tmp_path / "mine.pt", tmp_path / "run"
    shutil.copy(trained / "base.pt", path)
    assert execute(path_recipe(path), folder).made == ["base"]
    known = read_json(folder / "manifest.json")["base"]["training"]
    assert (known["samples"], known["known_from"]) == (48, "the checkpoint's provenance")
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
    save_base(Base(base.model, base.spec, Parameterization(base.schedule)), tmp_path / "bare.pt")
    execute(path_recipe(tmp_path / "bare.pt"), tmp_path / "run")
    assert load_base(tmp_path / "run" / "base.pt").data == {"source": "digits", "resolution": 8}
    assert read_json(tmp_path / "run" / "manifest.json")["base"]["training"] is None


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


@pytest.mark.slow_but("train")
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
