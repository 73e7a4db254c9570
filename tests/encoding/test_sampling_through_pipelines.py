"""Samples are the pipeline's own where the denoiser is its own, and every sample has its own noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import NAMES, SIDE
from torch import Generator

from prunekit.errors import InputError
from prunekit.pipelines import PipelineSampler, conditioning_of, denoisers_of, open_pipeline

SIZE = (SIDE, SIDE)


def subjects(name: str) -> tuple[Any, ...]:
    return (1, 3) if name == "dit" else ("cat", "a dog on a mat")


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_of_the_pipeline(name: str, pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder(name))
    (network,) = denoisers_of(pipeline).values()
    sampler = PipelineSampler(pipeline, 2, subjects(name), size=SIZE)
    found = sampler(network, 3, seed=5, batch_size=2)
    assert found.shape == (3, 3, *SIZE)
    assert float(found.abs().max()) <= 1
    torch.testing.assert_close(found[2:], sampler(network, 3, seed=5, batch_size=3)[2:], rtol=1e-3, atol=1e-3)
    own = [Generator().manual_seed(5 * 1_000_003 + row + 1) for row in range(2)]
    asked = (
        {"class_labels": [1, 3]} if name == "dit" else {"prompt": list(subjects(name)), "height": SIDE, "width": SIDE}
    )
    asked |= {"num_frames": 1} if name == "wan" else {}
    asked |= {"use_resolution_binning": False} if name in ("pixart", "sana") else {}
    result = pipeline(**asked, num_inference_steps=2, generator=own, output_type="np")
    wanted = torch.as_tensor(result.frames[:, 0] if name == "wan" else result.images).permute(0, 3, 1, 2)
    torch.testing.assert_close(found[:2], wanted.float() * 2 - 1, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_latents_are_what_the_denoiser_is_trained_on(name: str, pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder(name))
    (network,) = denoisers_of(pipeline).values()
    sampler = PipelineSampler(pipeline, 2, subjects(name), size=SIZE)
    latents, pictures = (each(network, 2, seed=1) for each in (sampler.for_latents(), sampler))
    assert tuple(latents.shape[1:]) == conditioning_of(pipeline, SIZE).sample
    assert len(latents) == len(pictures) == 2
    if name in ("sd", "sdxl", "pixart", "sana", "sd3", "dit"):  # the others lay them out in another way
        config = pipeline.vae.config
        decoded = pipeline.vae.decode(latents / config.scaling_factor + (config.get("shift_factor") or 0)).sample
        torch.testing.assert_close(decoded.clamp(-1, 1), pictures, rtol=1e-3, atol=1e-3)


def test_another_denoiser_makes_other_pictures_and_is_taken_out_again(pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder("sd"))
    own = pipeline.unet
    other = type(own).from_config(own.config).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    sampler = PipelineSampler(pipeline, 2, ("cat",), size=SIZE)
    assert not torch.equal(sampler(other, 1, seed=0), sampler(own, 1, seed=0))
    assert pipeline.unet is own


def test_a_network_has_the_mode_again_that_it_had(pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder("sd"))
    sampler = PipelineSampler(pipeline, 2, ("cat",), size=SIZE)
    found = sampler(pipeline.unet.eval(), 1, seed=0)
    assert not pipeline.unet.training
    network = pipeline.unet.train()
    network.mid_block.eval()
    assert torch.equal(sampler(network, 1, seed=0), found)
    assert network.training
    assert not network.mid_block.training


def test_guidance_is_the_pipelines(pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder("sd"))
    one, four = (PipelineSampler(pipeline, 2, ("cat",), scale, SIZE)(pipeline.unet, 1, 0) for scale in (1.0, 4.0))
    assert not torch.equal(one, four)


def test_what_a_pipeline_does_not_take_is_refused(pipeline_folder: Callable[[str], Path]) -> None:
    pipeline = open_pipeline(pipeline_folder("sd"))
    with pytest.raises(InputError, match="no captions"):
        PipelineSampler(pipeline, 2, ())
    with pytest.raises(InputError, match="expected captions"):
        PipelineSampler(pipeline, 2, (3,), size=SIZE)(pipeline.unet, 1, 0)
    with pytest.raises(InputError, match="does not run"):
        PipelineSampler(pipeline, 2, ("cat",), size=(31, 33))(pipeline.unet, 1, 0)


@pytest.mark.parametrize(
    ("name", "scale", "passes"),
    [
        ("sd", 1.0, 1),
        ("sd", 4.0, 2),
        ("sdxl", 5.0, 2),
        ("sd3", 7.0, 2),
        ("flux", 3.5, 1),
        ("wan", 5.0, 2),
        ("dit", None, 2),
    ],
)
def test_guidance_counts_as_the_evaluations_that_it_takes(
    name: str, scale: float | None, passes: int, pipeline_folder: Callable[[str], Path]
) -> None:
    """Wan evaluates its network twice, others on a batch of twice the size; Flux is told how strongly to guide."""
    pipeline = open_pipeline(pipeline_folder(name), stand_in=True)
    assert PipelineSampler(pipeline, 3, subjects(name), scale, SIZE).passes == passes
