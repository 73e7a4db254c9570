"""Public functions take paths as text, too."""

import importlib
import inspect
import pkgutil
from pathlib import Path

import numpy as np
import pytest
from networks import UNET_CONFIG, unet, unet_inputs
from true_figures import figures

import prunekit
from prunekit.checkpoint import Base, ModelSpec, load_base, save_base
from prunekit.graph import PruningPlan, trace
from prunekit.groups import make_groups
from prunekit.nets import load_experts, save_experts
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.slim import SlimModel, load_slim, save_slim

PACKAGES = [
    "prunekit",
    *(f"prunekit.{one.name}" for one in pkgutil.iter_modules(prunekit.__path__) if one.name not in ("cli", "interop")),
    *("prunekit.steps.bench", "prunekit.steps.opening", "prunekit.steps.finetuning"),
]
EXCEPT = {
    "fits_images",
    "note_place",  # tells places of this machine to itself
    "noted_places",
    "images_of",
    "search",  # the journal
    "Journal",
}


def functions():
    """Functions that packages export, by name."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            found = getattr(module, name)
            if package.count(".") > 0 and package.rpartition(".")[2].startswith("_"):
                continue
            if inspect.isfunction(found) and name not in EXCEPT:
                yield name, found


def test_annotations_say_that_paths_may_be_text():
    narrow = {
        f"{name}({key})"
        for name, function in functions()
        for key, kind in inspect.get_annotations(function, eval_str=False).items()
        if key != "return" and kind in (Path, Path | None, "Path", "Path | None")
    }
    assert narrow == set()


@pytest.fixture
def slims():
    schedule, spec = NoiseSchedule.linear(), ModelSpec("UNet2DModel", UNET_CONFIG)
    about = {"noise_schedule": schedule.to_config(), "prediction_type": "epsilon"}
    model = unet()
    plan = PruningPlan({}, trace(model, unet_inputs()).fingerprint)
    told = figures(model, spec.example_inputs())
    return [SlimModel(model, spec, plan, {}, group, 1000, *told, about) for group in make_groups(schedule, 2)]


def test_models_are_saved_and_read_by_text(slims, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_slim(slims[0], "slim")
    assert load_slim("slim").params == slims[0].params
    save_experts(slims, make_groups(NoiseSchedule.linear(), 2), "experts")
    assert len(load_experts("experts").groups) == 2
    save_base(Base(unet(), slims[0].spec, Parameterization(NoiseSchedule.linear())), "base.safetensors")
    assert np.isfinite(load_base("base.safetensors").model.conv_in.weight.detach().numpy()).all()
