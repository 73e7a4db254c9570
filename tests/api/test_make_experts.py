"""The whole job in one call, on a tiny pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import unet
from torch import nn

import prunekit as pk
from prunekit.recipe import FinetuneOptions, PruneOptions
from prunekit.search import SearchOptions
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
    assert experts.about["noise_schedule"]["kind"] == "cosine"
    experts.save(str(tmp_path / "experts"))
    again = pk.load_experts(tmp_path / "experts")
    noisy, times = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 300, 600, 999])
    assert torch.equal(again(noisy, times).sample, experts(noisy, times).sample)
    own, pipeline.unet = pipeline.unet, again
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(batch_size=2, num_inference_steps=2).images) == 2
    pipeline.unet = own


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
