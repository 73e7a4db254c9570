"""The whole job from the command line on networks that are told no whole timesteps."""

import json
import re
from pathlib import Path

import pytest
from command_line import done, typed
from networks import UNET_CONFIG


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
