"""Schedulers of pipelines: read with all their settings, and sampled as their classes sample, or refused by name."""

import inspect
import json
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from prunekit.checkpoint import load_base, save_base
from prunekit.checkpoint.scheduler import read_scheduler
from prunekit.errors import FileFormatError, InputError
from prunekit.groups import make_groups
from prunekit.sampling import make_sampler, make_scheduler, real_timesteps
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.schedule.diffusers import settings_text
from prunekit.steps.budgets import evaluations, plan_budget, planned_otherwise

SHAPE = (1, 4, 4)
NAMES = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
VP = "variance-preserving"
NO_COUNT = "has no num_train_timesteps"
NO_NOISE = "has neither alphas_cumprod nor sigmas"
REFUSED = {
    "AmusedScheduler": "is no config that AmusedScheduler takes",
    "BlockRefinementScheduler": NO_NOISE,
    "CMStochasticIterativeScheduler": VP,
    "CogVideoXDPMScheduler": "its steps need the prediction of the step before",
    "CosineDPMSolverMultistepScheduler": "needs .*torchsde",
    "DDIMInverseScheduler": "it goes from images to noise",
    "DDPMWuerstchenScheduler": NO_NOISE,
    "DPMSolverMultistepInverseScheduler": "it goes from images to noise",
    "DPMSolverSDEScheduler": "needs .*torchsde",
    "DiscreteDDIMScheduler": NO_NOISE,
    "EntropyBoundScheduler": NO_NOISE,
    "FlowMapEulerDiscreteScheduler": "its networks are told two timesteps",
    "HeliosDMDScheduler": "its steps go through several sizes",
    "HeliosScheduler": "its steps go through several sizes",
    "IPNDMScheduler": NO_NOISE,
    "KarrasVeScheduler": "does not have any more|neither alphas_cumprod nor sigmas",
    "MiniMaxH3Scheduler": NO_COUNT,
    "PiflowScheduler": "its networks predict several velocities at once",
    "RFD4ProteinaScheduler": "is no config that RFD4ProteinaScheduler takes",
    "RePaintScheduler": "it fills in parts of given images",
    "SCMScheduler": "has prediction_type 'trigflow'",
    "ScoreSdeVeScheduler": VP,
    "UnCLIPScheduler": "its steps need to be told the next timestep",
    "VQDiffusionScheduler": "is no config that VQDiffusionScheduler takes",
}
"""Why a class is refused. Any other is sampled exactly."""


class Net(torch.nn.Module):
    """A denoiser whose answers depend on all that it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t):
        self.seen.append(float(t))
        return torch.tanh(0.3 * x + torch.as_tensor(t, dtype=torch.float32) / 1000)


def by_hand(scheduler, noise, steps):
    """Samples and timesteps as the class itself gives them, with the noise of prunekit's samplers."""
    net = Net()
    scheduler.set_timesteps(steps)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    generators = [torch.Generator().manual_seed(0x85EBCA6B + i) for i in range(len(x))]
    own = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        x = scheduler.step(net(scaled(x, t), t), t, x, return_dict=False, **own)[0]
    return x, net.seen


def saved(scheduler, folder):
    """The scheduler's schedule and prediction as read from what diffusers saves."""
    scheduler.save_pretrained(folder)
    found = read_scheduler(folder / "scheduler_config.json")
    return NoiseSchedule.from_config(json.loads(json.dumps(found.schedule.to_config()))), found.prediction_type


def config_of(name, folder):
    """A folder with the scheduler's config, even of a class that cannot be made here."""
    try:
        getattr(diffusers, name)().save_pretrained(folder)
    except (ImportError, TypeError, AttributeError):
        folder.mkdir(exist_ok=True)
        (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": name}))
    return folder / "scheduler_config.json"


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_samples_as_its_class_does_or_is_refused_by_name(name, tmp_path):
    path = config_of(name, tmp_path)
    if name in REFUSED:
        with pytest.raises((InputError, FileFormatError), match=REFUSED[name]) as caught:  # noqa: PT012 - reading or sampling
            found = read_scheduler(path)
            make_sampler("pipeline", 5, found.parameterization, SHAPE)
        assert "\n" not in str(caught.value)
        return
    found = read_scheduler(path)
    schedule = NoiseSchedule.from_config(json.loads(json.dumps(found.schedule.to_config())))
    sampler, net = make_sampler(name, 5, Parameterization(schedule, found.prediction_type), SHAPE), Net()
    samples = sampler(net, 2, 0)
    expected, seen = by_hand(getattr(diffusers, name).from_pretrained(tmp_path), sampler.noise(2, 0), 5)
    assert net.seen == seen
    places = found.parameterization.timeline.place_of(np.array(seen)).tolist()
    assert real_timesteps("pipeline", 5, schedule).tolist() == places
    assert [e.timestep for e in sampler.trajectory(net, sampler.noise(2, 0), 0)] == places
    torch.testing.assert_close(samples, expected, rtol=1e-5, atol=1e-5)


V = {"prediction_type": "v_prediction"}
F = {"prediction_type": "flow_prediction"}
CHANGED = {
    "zero terminal SNR": DDIMScheduler(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, **V
    ),
    "offset": DDIMScheduler(steps_offset=1, set_alpha_to_one=False, clip_sample=False, beta_schedule="scaled_linear"),
    "clip range": DDIMScheduler(clip_sample_range=0.3, timestep_spacing="linspace"),
    "thresholding": DDIMScheduler(thresholding=True, clip_sample=False, sample_max_value=2.0),
    "large variance": DDPMScheduler(variance_type="fixed_large", clip_sample=False, timestep_spacing="trailing"),
    "clip range of DDPM": DDPMScheduler(clip_sample_range=0.4, prediction_type="sample"),
    "trained betas": DDPMScheduler(num_train_timesteps=50, trained_betas=np.linspace(0.001, 0.3, 50).tolist()),
    "karras": diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, final_sigmas_type="sigma_min", sigma_max=10.0),
    "zero terminal SNR of Euler": diffusers.EulerDiscreteScheduler(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", **V
    ),
    "sde": diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
    "solver": diffusers.DPMSolverMultistepScheduler(
        solver_order=3, timestep_spacing="leading", lambda_min_clipped=-5.1
    ),
    "pndm": diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear"),
    "unipc": diffusers.UniPCMultistepScheduler(solver_order=3, use_karras_sigmas=True),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1),
    "flow of another spacing": diffusers.FlowMatchEulerDiscreteScheduler(
        use_karras_sigmas=True, stochastic_sampling=True
    ),
    "flow of Heun": diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0),
    "flow of UniPC": diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=5.0, **F),
    "flow of a DPM solver": diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.5, **F),
    "EDM": diffusers.EDMEulerScheduler(sigma_data=1.0, sigma_max=30.0, rho=5.0, **V),
    "EDM of even logarithms": diffusers.EDMEulerScheduler(sigma_schedule="exponential", sigma_min=0.01),
    "EDM of a DPM solver": diffusers.EDMDPMSolverMultistepScheduler(sigma_data=0.7, solver_order=3),
    "noise levels": diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", sigma_min=0.002, sigma_max=700.0, use_karras_sigmas=True, **V
    ),
    "noise levels of betas": diffusers.EulerDiscreteScheduler(timestep_type="continuous"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_every_setting_that_affects_samples_is_kept(kind, tmp_path):
    own = CHANGED[kind]
    schedule, prediction = saved(own, tmp_path)
    sampler, net = make_sampler(type(own).__name__, 7, Parameterization(schedule, prediction), SHAPE), Net()
    samples = sampler(net, 2, 0)
    expected, seen = by_hand(type(own).from_pretrained(tmp_path), sampler.noise(2, 0), 7)
    assert net.seen == seen
    torch.testing.assert_close(samples, expected, rtol=1e-5, atol=1e-5)
    if kind.startswith("noise levels"):  # without its scheduler nothing says that the network is told them
        return
    plain = make_sampler(type(own).__name__, 7, Parameterization(replace(schedule, scheduler={}), prediction), SHAPE)
    assert kind == "trained betas" or not torch.allclose(plain(Net(), 2, 0), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 50, 61])
def test_steps_that_are_planned_without_torch_are_those_of_the_pipeline(sampler, spacing, steps, tmp_path):
    schedule, _ = saved(DDIMScheduler(timestep_spacing=spacing, steps_offset=2), tmp_path)
    planned = evaluations(schedule, sampler, steps)
    net = Net()
    make_sampler(sampler, steps, Parameterization(schedule), SHAPE)(net, 1, 0)
    assert planned.tolist() == net.seen
    assert len(planned) == steps


def test_an_offset_beyond_the_last_timestep_is_refused_by_planning_and_sampling(tmp_path):
    schedule, _ = saved(DDIMScheduler(steps_offset=1), tmp_path)
    with pytest.raises(InputError, match="expected timesteps from 0 to 999: take fewer steps"):
        evaluations(schedule, "ddim", 1000)
    with pytest.raises(InputError, match="cannot take 1000 steps"):
        real_timesteps("ddim", 1000, schedule)


@pytest.mark.parametrize("settings", [{"timestep_spacing": 3}, {"steps_offset": "one"}, {"timestep_spacing": "karras"}])
def test_settings_of_the_wrong_kind_are_refused(settings):
    schedule = replace(NoiseSchedule.linear(), scheduler={"_class_name": "DDIMScheduler", **settings})
    with pytest.raises(InputError, match="timestep"):
        evaluations(schedule, "ddim", 10)


def test_a_zero_snr_pipeline_is_planned_and_sampled_from_the_last_timestep(tmp_path):
    own = CHANGED["zero terminal SNR"]
    DDPMPipeline(unet=small_unet(), scheduler=own).save_pretrained(tmp_path / "pipeline")
    base = load_base(tmp_path / "pipeline")
    assert not base.notes
    save_base(base, tmp_path / "base.pt")
    for each in (base, load_base(tmp_path / "base.pt")):
        assert evaluations(each.schedule, "ddim", 10).tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
        made = make_sampler("ddim", 10, each.parameterization, SHAPE).scheduler
        assert (made.config.clip_sample, made.config.timestep_spacing) == (False, "trailing")
        assert float(made.alphas_cumprod[-1]) == 0
    assert "timestep_spacing trailing, clip_sample False" in settings_text(base.schedule.scheduler)


def test_an_allocation_for_other_steps_is_noticed(tmp_path):
    schedule, _ = saved(DDIMScheduler(timestep_spacing="trailing"), tmp_path)
    groups = make_groups(schedule, 5)
    fits = plan_budget(groups, schedule, 0.8, steps=7)
    assert planned_otherwise(fits, schedule) == ""
    other = plan_budget(groups, replace(schedule, scheduler={}), 0.8, steps=7)
    assert "Make the groups for the base again" in planned_otherwise(other, schedule)


def test_settings_that_another_class_does_not_have_are_named(tmp_path, caplog):
    schedule, _ = saved(DDIMScheduler(thresholding=True, clip_sample=False, sample_max_value=1.75), tmp_path)
    with caplog.at_level("INFO", logger="prunekit"):
        make_scheduler("heun", Parameterization(schedule))
    assert any(
        "HeunDiscreteScheduler does not have these settings" in said and "thresholding" in said
        for said in caplog.messages
    )


def test_a_zero_snr_schedule_is_refused_by_a_sampler_that_cannot_follow_it(tmp_path):
    schedule, _ = saved(DDIMScheduler(rescale_betas_zero_snr=True), tmp_path)
    with pytest.raises(InputError, match=r"HeunDiscreteScheduler does not (follow|take)"):
        make_scheduler("heun", Parameterization(schedule))


def test_flow_sigmas_are_no_betas(tmp_path):
    schedule, _ = saved(diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0), tmp_path)
    np.testing.assert_allclose(schedule.signal + schedule.noise, 1, atol=1e-12)


def test_a_schedule_that_its_class_shifts_is_not_taken_by_its_betas_alone():
    scheduler = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0)
    found = NoiseSchedule.from_diffusers(scheduler)
    np.testing.assert_allclose(found.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6)


def test_keys_of_a_newer_diffusers_are_ignored_with_a_note(tmp_path):
    path = config_of("DDIMScheduler", tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "an_option_of_tomorrow": 3}))
    found = read_scheduler(path)
    assert "an_option_of_tomorrow" in found.notes[0]
    assert "an_option_of_tomorrow" not in found.schedule.scheduler


@pytest.mark.parametrize("value", ["NaN", "1e400"])
def test_numbers_that_diffusers_does_not_write_are_refused(tmp_path, value):
    path = config_of("DPMSolverMultistepScheduler", tmp_path)
    path.write_text(path.read_text().replace("-Infinity", value))
    with pytest.raises(FileFormatError, match="is not readable JSON"):
        read_scheduler(path)


def small_unet(**changes):
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**config | changes)
