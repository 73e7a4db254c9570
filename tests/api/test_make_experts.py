"""The whole job in one call, on a tiny pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import unet
from PIL import Image
from tiny_pipelines import saved_pipeline, tiny_pipeline
from torch import nn

import prunekit as pk
from prunekit.checkpoint import ModelSpec
from prunekit.pipelines import PipelineSampler, denoisers_of, open_pipeline
from prunekit.recipe import FinetuneOptions, PruneOptions
from prunekit.schedule import Parameterization
from prunekit.search import SearchOptions
from prunekit.steps.encoding import EncodeOptions, encode
from prunekit.training import TrainOptions

QUICK: dict[str, Any] = {
    "pruning": PruneOptions(samples=8, batch_size=8, search=SearchOptions(rounds=1, shortlist=2)),
    "finetuning": FinetuneOptions(train=TrainOptions(steps=2, batch_size=4, warmup_steps=0)),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(unet(), DDPMScheduler(beta_schedule="squaredcos_cap_v2"))


@pytest.mark.slow
def test_a_pipeline_takes_the_experts_that_are_made_of_it(pipeline: Any, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in pipeline.unet.state_dict().items()}
    said: list[str] = []
    experts = pk.make_experts(pipeline, IMAGES, budget=0.8, groups=2, progress=said.append, **QUICK)
    assert all(torch.equal(before[key], value) for key, value in pipeline.unet.state_dict().items())
    full = pk.count_macs(pipeline.unet, (torch.zeros(1, 1, 8, 8), torch.tensor([0]))).macs
    assert 0.78 * full < experts.mean_macs(range(0, 1000, 20)) <= 0.8 * full
    assert said[0] == "following the network"
    assert "timestep group 0 of 2 keeps the whole network" in said
    assert any(line.startswith("pruning timestep group 1 of 2 to 0.") for line in said)
    assert experts.about["noise_schedule"]["kind"] == "cosine"
    experts.save(str(tmp_path / "experts"))
    again = pk.load_experts(tmp_path / "experts")
    noisy, times = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 300, 600, 999])
    assert torch.equal(again(noisy, times).sample, experts(noisy, times).sample)
    own, pipeline.unet = pipeline.unet, again
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(batch_size=2, num_inference_steps=2).images) == 2
    pipeline.unet = own


def test_a_flow_matching_pipeline_predicts_a_velocity(tmp_path: Path) -> None:
    from prunekit.api.making_experts import _base_of

    (tmp_path / "words").mkdir()
    base = _base_of(tiny_pipeline("sd3", tmp_path / "words"), None, None)
    assert base.parameterization.prediction_type == "flow_prediction"


def test_a_network_alone_is_said_to_be_assumed_linear(caplog: pytest.LogCaptureFixture) -> None:
    from prunekit.api.making_experts import _base_of

    network = unet().train()
    base = _base_of(network, None, None)
    assert "comes without a scheduler" in caplog.text
    assert base.model is not network
    assert network.training
    assert base.schedule.to_config() == pk.NoiseSchedule.linear().to_config()
    caplog.clear()
    assert _base_of(network, pk.NoiseSchedule.cosine(), "sample").prediction_type == "sample"
    assert not caplog.text
    assert _base_of(network, None, "flow_prediction").schedule.to_config()["kind"] == "rectified_flow"


def test_a_base_is_copied_and_takes_another_noise_schedule_and_prediction_type() -> None:
    from prunekit.api.making_experts import _base_of

    given = pk.Base(unet(), ModelSpec.of(unet()), Parameterization(pk.NoiseSchedule.linear()), sha256="0" * 64)
    same, other = _base_of(given, None, None), _base_of(given, pk.NoiseSchedule.cosine(), "v_prediction")
    assert same.parameterization.to_config() == given.parameterization.to_config()
    assert other.parameterization.to_config() == Parameterization(pk.NoiseSchedule.cosine(), "v_prediction").to_config()
    assert (same.notes, len(other.notes)) == ((), 2)
    for found in (same, other):
        assert (found.spec, found.sha256) == (given.spec, given.sha256)
        assert not {id(own) for own in found.model.parameters()} & {id(own) for own in given.model.parameters()}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no network": ({"pipeline_or_model": 3}, "Got a int; expected a diffusers pipeline"),
    "a foreign network": ({"pipeline_or_model": nn.Conv2d(1, 1, 3)}, "Conv2d is not one of"),
    "images of another size": ({"images": IMAGES[:, :, :4, :4]}, "4"),
    "a list of images": ({"images": [1, 2]}, "Got a list as images"),
    "images of the wrong shape": ({"images": IMAGES[0]}, r"shape \(1, 8, 8\)"),
    "a list of groups": ({"groups": [pk.TimestepGroup(0, 0, 1000)]}, "Got a list as groups"),
    "a budget above 1": ({"budget": 80}, "80"),
    "a missing path": ({"pipeline_or_model": "nowhere.pt"}, "nowhere.pt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_get_one_sentence(name: str, pipeline: Any) -> None:
    own, message = WRONG[name]
    with pytest.raises(pk.PrunekitError, match=message) as caught:
        pk.make_experts(**{"pipeline_or_model": pipeline, "images": IMAGES, **own}, **QUICK)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_experts_are_made_of_a_pipeline_and_its_encoded_images(name: str, tmp_path: Path) -> None:
    """They are counted at the shapes of the data, know the pipeline's unit of time, and go into the pipeline."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for row in range(12):
        shades = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(shades).save(pictures / f"{row}.png")
        (pictures / f"{row}.txt").write_text("a cat" if row % 2 else "some dogs")
    folder = saved_pipeline(name, tmp_path / "pipelines")
    encode(folder, str(pictures), tmp_path / "data", EncodeOptions((32, 32)))
    pipe = open_pipeline(folder)
    network = denoisers_of(pipe)["unet" if name == "sd" else "transformer"]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)  # a fresh network's last layers are zero
    images = pk.load_images(tmp_path / "data")
    tokens = images.train.columns["encoder_hidden_states"].shape[1]
    pipe.scheduler.set_timesteps(50)
    steps = [int(step) for step in pipe.scheduler.timesteps]
    for given in (str(tmp_path / "data"), images):
        experts = pk.make_experts(pipe, given, budget=0.8, groups=2, **QUICK)
        assert experts.spec.example_inputs()["encoder_hidden_states"].shape[1] == tokens
        macs = pk.count_macs(network, experts.spec.example_inputs()).macs
        assert experts.mean_macs(steps) <= 0.8 * macs
        assert experts.about["prediction_type"] == ("epsilon" if name == "sd" else "flow_prediction")
    sampler = PipelineSampler(pipe, 2, ("a cat",), 4.0, (32, 32))
    assert bool(sampler(experts, 1, seed=0).isfinite().all())
