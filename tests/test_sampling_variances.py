"""Samplers on networks that predict variances: DDPM uses them, other samplers take the prediction alone."""

import diffusers
import networks
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Generator, Tensor, nn

from prunekit.consistency.denoiser import Denoiser
from prunekit.errors import InputError
from prunekit.sampling import Sampler, clean_prediction, make_sampler
from prunekit.schedule import NoiseSchedule, Parameterization

SHAPE = (4, 8, 8)  # four channels, as latents have: some of diffusers' schedulers cut off three


PLAIN = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}


def unet(out_channels: int = 8) -> nn.Module:
    return networks.unet(in_channels=4, out_channels=out_channels, **PLAIN)


class MeanOf(nn.Module):
    """A network's prediction without its variances."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        found: Tensor = self.network(noisy, timesteps).sample
        return found[:, :4]


def parameterization(scheduler: object) -> Parameterization:
    return Parameterization(NoiseSchedule.from_diffusers(scheduler))


def learned(kind: str = "learned_range") -> Parameterization:
    return parameterization(DDPMScheduler(variance_type=kind, clip_sample=False))


@pytest.mark.parametrize("name", ["pipeline", "ddpm", "DDPMParallelScheduler"])
def test_ddpm_draws_its_noise_with_the_predicted_variances(name: str) -> None:
    net, sampler = unet(), make_sampler(name, 4, learned(), SHAPE)
    found = sampler(net, 2, seed=3)
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(4)
    generators = [Generator().manual_seed(3 * 1_000_003 + 0x85EBCA6B + i) for i in range(2)]
    x = sampler.noise(2, 3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x, generator=generators).prev_sample
    torch.testing.assert_close(found, x)
    small = make_sampler("ddpm", 4, parameterization(DDPMScheduler(clip_sample=False)), SHAPE)(net, 2, seed=3)
    assert not torch.allclose(found, small)


@pytest.mark.parametrize("name", ["ddim", "dpm-solver", "euler", "heun", "pndm", "unipc", "SASolverScheduler"])
def test_other_samplers_take_the_prediction_alone(name: str) -> None:
    net = unet()
    found = make_sampler(name, 4, learned(), SHAPE)(net, 2, seed=0)
    plain = make_sampler(name, 4, parameterization(DDPMScheduler(clip_sample=False)), SHAPE)
    assert found.shape == (2, *SHAPE)
    torch.testing.assert_close(found, plain(MeanOf(net), 2, seed=0))


def test_variances_are_not_used_where_the_pipeline_does_not_ask_for_them() -> None:
    net, fixed = unet(), parameterization(DDPMScheduler(clip_sample=False))
    sampler = make_sampler("ddpm", 4, fixed, SHAPE)
    torch.testing.assert_close(sampler(net, 2, seed=0), sampler(MeanOf(net), 2, seed=0))


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_a_network_without_variances_is_refused_where_they_are_needed(kind: str) -> None:
    sampler = make_sampler("ddpm", 4, learned(kind), SHAPE)
    with pytest.raises(InputError, match=f"variance_type is {kind} and the network predicts no variances"):
        sampler(unet(4), 2, seed=0)


def test_a_network_with_another_number_of_channels_is_refused() -> None:
    with pytest.raises(InputError, match=r"The network gives \(5, 8, 8\) for a sample of \(4, 8, 8\)"):
        make_sampler("ddim", 4, learned(), SHAPE)(unet(5), 2, seed=0)


class Classes(nn.Module):
    """Prediction and variances that depend on the class alone; class 9 stands for none."""

    def forward(self, noisy: Tensor, timesteps: Tensor, class_labels: Tensor) -> Tensor:
        level = class_labels.float().reshape(-1, 1, 1, 1).expand_as(noisy) / 100
        return torch.cat([level, -level], 1)


def test_guidance_moves_the_prediction_and_leaves_the_variances_of_the_class() -> None:
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    rows = {"class_labels": torch.tensor([1, 3])}
    sampler = Sampler(scheduler, 4, SHAPE).with_conditions(rows, {"class_labels": torch.tensor(9)}, 4.0)
    evaluation = next(iter(sampler.trajectory(Classes(), sampler.noise(2, 0), 0, 0, rows)))
    wanted = torch.tensor([0.09 + 4 * (0.01 - 0.09), 0.09 + 4 * (0.03 - 0.09)]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(evaluation.prediction, wanted.expand(2, *SHAPE))
    scheduler.set_timesteps(4)
    both = torch.cat([wanted, torch.tensor([-0.01, -0.03]).reshape(2, 1, 1, 1)], 1).repeat_interleave(4, 1)
    both = both.expand(2, 8, 8, 8)
    generators = [Generator().manual_seed(0x85EBCA6B + i) for i in range(2)]
    stepped = scheduler.step(both, scheduler.timesteps[0], evaluation.state, generator=generators).prev_sample
    torch.testing.assert_close(evaluation.stepped, stepped)


def test_clean_predictions_and_consistency_use_the_prediction_alone() -> None:
    net, kind = unet(), learned()
    state = torch.randn(2, *SHAPE, generator=Generator().manual_seed(0))
    with torch.no_grad():
        wanted = clean_prediction(net(state, 500).sample[:, :4], state, 500, kind)
        torch.testing.assert_close(clean_prediction(net(state, 500).sample, state, 500, kind), wanted)
        torch.testing.assert_close(Denoiser(net, kind).clean(state, 500), wanted)


def test_dits_pipeline_samples_the_same_as_the_sampler() -> None:
    from tiny_pipelines import _dit

    pipeline = _dit(None)
    pipeline.register_modules(scheduler=DDIMScheduler(clip_sample=False))
    kind = parameterization(pipeline.scheduler)
    rows = {"class_labels": torch.tensor([3, 7])}
    sampler = make_sampler("ddim", 3, kind, SHAPE).with_conditions(rows, {"class_labels": torch.tensor(1000)}, 4.0)
    heard: list[Tensor] = []
    pipeline.vae.decode = lambda latents: (
        heard.append(latents) or diffusers.utils.BaseOutput(sample=torch.zeros(2, 3, 32, 32))
    )
    noise = sampler.noise(2, 0)
    module = __import__("diffusers.pipelines.dit.pipeline_dit", fromlist=["randn_tensor"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *_, **__: noise)
        pipeline.set_progress_bar_config(disable=True)
        pipeline([3, 7], guidance_scale=4.0, num_inference_steps=3, output_type="np")
    found = sampler(pipeline.transformer, 2, 0)
    torch.testing.assert_close(found, heard[0] * pipeline.vae.config.scaling_factor, rtol=1e-4, atol=1e-4)
