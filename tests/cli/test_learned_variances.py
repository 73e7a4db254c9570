"""The commands on networks that predict variances: DiT's pipeline from pictures to experts, and a U-Net that is trained here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import TINY, done, typed
from PIL import Image
from tiny_pipelines import saved_pipeline

from prunekit import load_experts
from prunekit._json import read_json
from prunekit.slim import load_slim

BETAS = {"kind": "linear", "num_timesteps": 1000}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bounds() -> list[dict[str, dict[str, float]]]:
    return [row["bounds"] for row in read_json(Path("evaluation.json"))["losses"]]


@pytest.fixture
def dit(here: Path) -> Path:
    """A folder with DiT's pipeline ``dit`` and its encoded ``data``."""
    draws = np.random.default_rng(0)
    for row in range(12):
        folder = here / "pictures" / ("cat" if row % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{row}.png")
    saved_pipeline("dit", here)
    done("prunekit encode dit pictures --output data --resolution 32")
    return here


@pytest.mark.slow
def test_dit_goes_all_the_way_from_pictures_to_samples(dit: Path) -> None:
    done("prunekit cost dit")
    done("prunekit groups --cuts 500")
    done("prunekit importance dit --data data --samples 8")
    done("prunekit allocate --budget 0.8 --base dit --rule uniform")
    done("prunekit prune dit --data data --samples 8 --rounds 1")
    assert load_slim(Path("slim/group-0")).spec.config["out_channels"] == 8
    tuned = "--data data --max-train-steps 2 --train-batch-size 4"
    for variance in ("--teacher dit --distillation-weight 0", "--variance vlb", "--variance none", ""):
        done(f"prunekit finetune slim/group-0 {tuned} {variance} --output one{variance[-4:].replace(' ', '')}")
    done(f"prunekit finetune slim {tuned} --teacher dit --variance-weight 0.2")
    done("prunekit assemble slim")
    experts = load_experts("experts")
    told = {"timestep": torch.tensor([100, 900]), "class_labels": torch.tensor([0, 1])}
    assert experts(torch.randn(2, 4, 8, 8), **told).sample.shape == (2, 8, 8, 8)
    said = done("prunekit evaluate experts --base dit --data data --loss-samples 8")
    assert "bits per dimension" in said.out
    assert [set(row) for row in bounds()] == [{"base", "expert", "difference"}] * 2
    done("prunekit sample experts --count 2 --num-inference-steps 2 --output latents.npz")
    assert np.load("latents.npz")["latents"].shape == (2, 4, 8, 8)
    drawn = "--class 3 --guidance-scale 2 --count 2 --num-inference-steps 2"
    done(f"prunekit sample experts --pipeline dit {drawn} --output through.npz")
    assert np.load("through.npz")["images"].shape == (2, 32, 32, 3)
    through = "--pipeline dit --count 4 --seeds 1 --num-inference-steps 2 --loss-samples 8"
    done(f"prunekit evaluate experts --base dit --data data {through} --output through.json")
    done("prunekit report .")


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["distill", "vlb", "none"])
def test_a_recipe_keeps_the_variances_as_it_says(dit: Path, variance: str) -> None:
    recipe = {
        "name": "variances",
        "data": {"source": "data"},
        "base": {"checkpoint": "dit"},
        "groups": {"count": 2},
        "allocation": {"budget": 0.8, "rule": "uniform", "steps": 3},
        "prune": {"samples": 8, "batch_size": 8, "search": {"rounds": 1, "shortlist": 2}},
        "finetune": {"train": {"steps": 2, "batch_size": 4, "warmup_steps": 1}, "variance": variance},
        "evaluation": {"samples": 4, "seeds": [0], "loss_samples": 8, "grid": 2},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    done("prunekit run recipe.yaml --output run")
    losses = read_json(Path("run/manifest.json"))["losses"]
    assert all({"base", "expert", "difference"} <= set(row["bounds"]) for row in losses)
    assert "variational bound" in Path("run/report/index.html").read_text()


def checkpoint(folder: Path, out_channels: int = 2, variance_type: str = "learned_range") -> None:
    """A diffusers folder of a tiny U-Net with random weights."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    config = {key: value for key, value in TINY.items() if not key.startswith("_")}
    net = UNet2DModel(**{**config, "out_channels": out_channels})
    DDPMPipeline(net, DDPMScheduler(100, variance_type=variance_type)).save_pretrained(folder)


@pytest.mark.slow
def test_a_base_is_trained_with_its_variances_and_sampled_by_them(here: Path) -> None:
    Path("net.json").write_text(json.dumps(TINY | {"out_channels": 2}))
    done("prunekit train --data digits --config net.json --max-train-steps 30 --train-batch-size 16 --output base.pt")
    before = torch.load("base.pt", weights_only=True)
    assert before is not None
    checkpoint(here / "unet")
    done("prunekit sample unet --count 4 --num-inference-steps 3 --sampler ddpm --output learned")
    done("prunekit sample unet --count 4 --num-inference-steps 3 --output plain")
    done("prunekit evaluate base.pt --loss-samples 16 --count 8 --seeds 1 --num-inference-steps 2")
    assert [set(row) for row in bounds()] == [{"model"}] * len(bounds())


def test_distilling_variances_needs_the_base(here: Path) -> None:
    (here / "slim" / "group-0").mkdir(parents=True)
    (here / "slim" / "group-0" / "config.json").write_text("{}")
    said = typed("prunekit finetune slim/group-0 --variance distill")
    assert said.code == 2
    assert "--variance distill without --teacher" in said.sentence


def test_a_network_with_another_number_of_channels_is_refused(here: Path) -> None:
    checkpoint(here / "unet", 3, "fixed_small")
    said = typed("prunekit importance unet --data digits --samples 8")
    assert said.code == 2
    assert "1 channels and the model's out_channels is 3" in said.sentence
