"""The options that say what is read of a base, in every command that reads one, and pipelines from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import done, typed
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

from prunekit.schedule import PREDICTION_TYPES

FEW = "--count 4 --num-inference-steps 5"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def small_unet(size=8):
    return UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


@pytest.fixture
def pipeline(tmp_path):
    scheduler = DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    DDPMPipeline(unet=small_unet(), scheduler=scheduler).save_pretrained(tmp_path / "pipeline")
    return "pipeline"


ONE_SHOT = "--criterion magnitude --proposer oneshot --repair none"
COMMANDS = {
    "sample": f"sample m {FEW} --output s.npz",
    "cost": "cost m --json",
    "importance": "importance m --criterion magnitude --output i.json",
    "prune": f"prune m --group 0 --target 0.9 {ONE_SHOT}",
    "consistency": f"consistency m m {FEW}",
    "groups": "groups --base m",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_is_taken_for_granted_and_can_be_told(name):
    small_unet().save_pretrained("m")
    result = done(f"prunekit {COMMANDS[name]}")
    assert "does not say its noise schedule and prediction type" in result.err
    again = "--overwrite" if name in ("sample", "importance", "groups") else ""
    result = done(f"prunekit {COMMANDS[name]} --noise-schedule cosine --prediction-type sample {again}")
    assert "does not say" not in result.err
    assert "--weights ema" in typed(f"prunekit {COMMANDS[name]} --weights ema {again}").sentence


def test_every_prediction_type_that_a_checkpoint_may_state_can_be_typed():
    small_unet().save_pretrained("m")
    for kind in PREDICTION_TYPES:
        assert (
            done(f"prunekit cost m --prediction-type {kind} --noise-schedule linear --no-compare --json").json["macs"]
            > 0
        )


def test_unknown_choices_are_one_sentence():
    small_unet().save_pretrained("m")
    for option, said in (
        ("--weights best", "--weights 'best'; expected one of ema, raw"),
        ("--noise-schedule quadratic", "Unknown noise schedule 'quadratic'"),
        ("--prediction-type noise", "--prediction-type 'noise'; expected one of epsilon"),
    ):
        result = typed(f"prunekit cost m {option}")
        assert (result.code, result.out) == (2, "")
        assert said in result.sentence


def test_slim_models_say_themselves_what_they_are():
    small_unet().save_pretrained("m")
    done(f"prunekit prune m --group 0 --target 0.9 {ONE_SHOT} --prediction-type sample")
    assert json.loads(Path("slim/group-0/config.json").read_text())["prediction_type"] == "sample"
    result = typed("prunekit cost slim/group-0 --prediction-type epsilon")
    assert result.code == 2
    assert "is no base and says itself" in result.sentence


def test_a_pipelines_settings_go_from_groups_to_allocation_to_slim_models(pipeline):
    done(f"prunekit groups --base {pipeline}")
    done("prunekit allocate --budget 0.9 --num-inference-steps 7")
    shares = [group["share"] for group in json.loads(Path("allocation.json").read_text())["groups"]]
    visited = np.array([999, 856, 713, 570, 428, 285, 142])  # trailing; leading steps would go from 852 to 0
    assert shares == pytest.approx(
        [np.mean((visited >= start) & (visited < start + 200)) for start in range(0, 1000, 200)]
    )
    result = done(f"prunekit prune {pipeline} --group 0 {ONE_SHOT}")
    assert "other steps" not in result.err
    about = json.loads(Path("slim/group-0/config.json").read_text())
    assert about["noise_schedule"]["scheduler"]["timestep_spacing"] == "trailing"
    assert "timestep\\_spacing trailing" in Path("slim/group-0/README.md").read_text()
    done("prunekit allocate --budget 0.9 --num-inference-steps 7 --groups 5")
    assert "made for other steps than ddim takes" in done(f"prunekit prune {pipeline} --group 0 {ONE_SHOT}").err


def test_samples_of_the_models_own_scheduler(pipeline):
    done(f"prunekit sample {pipeline} {FEW} --output ddim.npz")
    done(f"prunekit sample {pipeline} {FEW} --sampler pipeline --output own.npz")
    one, other = np.load("ddim.npz")["images"], np.load("own.npz")["images"]
    np.testing.assert_array_equal(one, other)
    small_unet().save_pretrained("m")
    assert "came without a pipeline's scheduler" in typed(f"prunekit sample m {FEW} --sampler pipeline").err


def test_samples_costs_and_comparisons_need_not_be_square():
    small_unet((8, 16)).save_pretrained("m")
    done(f"prunekit sample m {FEW} --output s.npz")
    assert np.load("s.npz")["images"].shape == (4, 8, 16, 1)
    assert Path("s.png").is_file()
    wide = json.loads(done("prunekit cost m --json").out)["macs"]
    small_unet(8).save_pretrained("square")
    square = json.loads(done("prunekit cost square --json").out)["macs"]
    assert wide > 1.9 * square
    done(f"prunekit consistency m m {FEW}")
    done(f"prunekit prune m --group 0 --target 0.9 {ONE_SHOT}")
    done(f"prunekit sample slim/group-0 {FEW} --output slim.npz")
    assert np.load("slim.npz")["images"].shape == (4, 8, 16, 1)
