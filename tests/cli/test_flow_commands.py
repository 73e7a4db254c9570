"""The whole job from the command line on networks that are told no whole timesteps."""

import json
import re
from pathlib import Path

import pytest
from command_line import done, typed
from networks import UNET_CONFIG, unet

from prunekit import load_base


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow", "edm"])
def test_the_whole_job_on_networks_for_flow_matching_and_edm(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = {"flow": ("rectified_flow", "flow_prediction", "logit-normal"), "edm": ("edm", "edm", "log-normal")}
    kind, prediction, draw = kinds[name]
    recipe = {
        "name": name,
        "data": {"source": "embedded:digits"},
        "base": {
            "model": {"class": "UNet2DModel", "config": UNET_CONFIG},
            "noise_schedule": {"kind": kind, "num_timesteps": 100},
            "prediction_type": prediction,
            "train": {"steps": 40, "batch_size": 16, "timestep_sampler": draw},
        },
        "groups": {"count": 3},
        "allocation": {"budget": 0.7, "steps": 10, "sampler": "euler"},
        "prune": {"samples": 16, "search": {"proposer": "oneshot"}},
        "finetune": {"train": {"steps": 10, "batch_size": 16, "timestep_sampler": draw}},
        "evaluation": {"samples": 16, "seeds": [0], "loss_samples": 64},
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    told = done(f"prunekit run recipe.yaml --output {name}").out
    (ratio,) = re.findall(r"mean over 10 euler steps +0–99 +1.00 +0.700 +[\d,]+ +([\d.]+)", told)
    assert 0.68 < float(ratio) <= 0.7
    done(f"prunekit sample {name}/experts --count 4 --sampler dpm-solver --output {name}.png")
    done(
        f"prunekit consistency {name}/base.pt {name}/experts --count 4 --num-inference-steps 5 --output {name}-likeness"
    )
    done(
        f"prunekit evaluate {name}/experts --base {name}/base.pt --count 16 --seeds 1 --num-inference-steps 5 --output {name}.json"
    )
    assert (
        "ddpm is not for this network"
        in typed(f"prunekit sample {name}/base.pt --sampler ddpm --output no-{name}.png").err
    )


@pytest.mark.parametrize(
    ("options", "kind", "steps"),
    [
        ("--prediction-type flow_prediction", "rectified_flow", 1000),
        ("--prediction-type edm", "edm", 1000),
        ("--prediction-type edm_v", "edm", 1000),
        ("--prediction-type v_prediction", "linear", 1000),
        ("--noise-schedule cosine:500", "cosine", 500),
        ("--noise-schedule linear --prediction-type flow_prediction", "linear", 1000),
    ],
)
def test_a_network_is_trained_on_the_schedule_of_what_it_predicts_or_on_the_one_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, kind: str, steps: int
) -> None:
    monkeypatch.chdir(tmp_path)
    done(f"prunekit train --data digits --max-train-steps 1 --train-batch-size 2 {options}")
    schedule = load_base(tmp_path / "base.pt").schedule
    assert (schedule.config["kind"], schedule.num_timesteps) == (kind, steps)


def test_weights_alone_have_the_schedule_of_what_they_are_said_to_predict(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path / "net")
    base = load_base(tmp_path / "net", prediction_type="flow_prediction")
    assert base.schedule.config["kind"] == "rectified_flow"
    assert "the noise schedule rectified_flow over 1,000 timesteps" in base.notes[0]
