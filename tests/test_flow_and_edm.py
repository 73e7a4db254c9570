"""Flow matching and EDM: formulas and training targets against diffusers' schedulers."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from networks import UNET_CONFIG
from torch import nn

from prunekit.checkpoint import ModelSpec
from prunekit.errors import InputError
from prunekit.graph import PruningPlan
from prunekit.groups import TimestepGroups
from prunekit.nets import TimestepExperts
from prunekit.sampling import clean_prediction, ddim_step, make_sampler, real_timesteps
from prunekit.schedule import NoiseSchedule, Parameterization, TimeUnit
from prunekit.schedule.diffusers import shift_of
from prunekit.slim import SlimModel
from prunekit.training import DenoisingObjective, LogNormalTimesteps, RangeTimesteps

EDM_TYPES = {"edm": "epsilon", "edm_v": "v_prediction"}
GENERATOR = torch.Generator().manual_seed(0)
CLEAN = torch.randn(6, 1, 4, 4, generator=GENERATOR, dtype=torch.float64)
NOISE = torch.randn(6, 1, 4, 4, generator=GENERATOR, dtype=torch.float64)


class Told(nn.Module):
    """Keeps what it is told and predicts zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        self.sample, self.timestep = sample, timestep
        return sample * 0


def test_flow_matching_mixes_as_diffusers_and_is_told_its_timesteps() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(1000)
    kind = Parameterization(NoiseSchedule.rectified_flow(1000), "flow_prediction")
    model, timesteps = Told(), torch.tensor([0, 1, 250, 500, 700, 998])
    objective = DenoisingObjective(torch.zeros(2, 1, 4, 4), kind)
    losses = objective.per_sample(model, CLEAN, NOISE, timesteps)
    told = (timesteps + 0.5).float()
    torch.testing.assert_close(model.timestep, told)
    u = (told / 1000).double().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(model.sample, u * NOISE + (1 - u) * CLEAN)
    torch.testing.assert_close(losses, (NOISE - CLEAN).square().flatten(1).mean(1))
    scheduler.set_timesteps(10)
    places = kind.timeline.place_of(scheduler.timesteps.double().numpy())
    np.testing.assert_allclose(places, scheduler.sigmas[:-1].double() * 1000, atol=1e-4)


@pytest.mark.parametrize("name", EDM_TYPES)
def test_edm_networks_get_and_give_what_diffusers_preconditions(name: str) -> None:
    scheduler = EDMEulerScheduler(num_train_timesteps=50, prediction_type=EDM_TYPES[name])
    kind = Parameterization(NoiseSchedule.edm(50, 0.002, 80.0), name)
    model, timesteps = Told(), torch.tensor([0, 9, 20, 33, 44, 49])
    objective = DenoisingObjective(torch.zeros(2, 1, 4, 4), kind)
    noisy, target = objective.pair(CLEAN, NOISE, timesteps)
    objective.predict(model, noisy, timesteps)
    for row, t in enumerate(timesteps.tolist()):
        sigma = torch.tensor(kind.schedule.sigma[t])
        x = CLEAN[row] + sigma * NOISE[row]
        torch.testing.assert_close(noisy[row], scheduler.precondition_inputs(x, sigma))
        torch.testing.assert_close(model.timestep[row], scheduler.precondition_noise(sigma).float())
        torch.testing.assert_close(scheduler.precondition_outputs(x, target[row], sigma), CLEAN[row])


@pytest.mark.parametrize("name", [*EDM_TYPES, "flow_prediction", "v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.edm(20), NoiseSchedule.rectified_flow(20), NoiseSchedule.cosine(20)]
)
def test_a_target_stands_for_its_clean_sample_and_errors_scale_as_stated(name: str, schedule: NoiseSchedule) -> None:
    kind, clean, noise = Parameterization(schedule, name), CLEAN.numpy(), NOISE.numpy()
    for t in (0, 7, 18):
        a, b = (float(table[t]) for table in kind.input_levels)
        target = kind.target(clean, noise, a, b)
        np.testing.assert_allclose(kind.clean(target, a * clean + b * noise, a, b), clean, rtol=1e-6, atol=1e-6)
        off = kind.clean(target + 0.25, a * clean + b * noise, a, b) - clean
        np.testing.assert_allclose(0.25**2 / (off**2).mean(), kind.error_scale[t], rtol=1e-5)


@pytest.mark.parametrize("name", ["flow_prediction", *EDM_TYPES])
def test_experts_are_routed_at_every_step_and_at_full_width_sample_as_the_base(name: str) -> None:
    schedule = NoiseSchedule.rectified_flow(100, 3.0) if name == "flow_prediction" else NoiseSchedule.edm(100)
    kind, groups = Parameterization(schedule, name), TimestepGroups.from_cuts(100, (30, 60))
    base = UNet2DModel(**UNET_CONFIG).eval()
    spec, plan = ModelSpec.of(base), PruningPlan({})
    about = {**kind.to_config(), "time_unit": TimeUnit().to_config()}
    slims = [SlimModel(copy.deepcopy(base), spec, plan, {}, group, 100, 1, 1, about) for group in groups]
    experts = TimestepExperts(groups, slims).eval()
    for sampler in ("ddim", "dpm-solver", *(["heun", "unipc"] if name == "flow_prediction" else [])):
        drawn = make_sampler(sampler, 5, kind, (1, 8, 8))
        used: list[int] = []
        handles = [
            net.register_forward_hook(lambda *_, index=index, used=used: used.append(index))
            for index, net in enumerate(experts.experts)
        ]
        torch.testing.assert_close(drawn(experts, 2, 0), drawn(base, 2, 0), rtol=1e-4, atol=1e-4)
        for handle in handles:
            handle.remove()
        expected = groups.index_of(real_timesteps(sampler, 5, schedule)).tolist()
        assert list(dict.fromkeys(used)) == list(dict.fromkeys(expected))
        assert len(expected) > 2


@pytest.mark.parametrize("name", ["flow_prediction", "edm"])
def test_a_true_network_makes_the_data_and_one_clean_image_all_the_way(name: str) -> None:
    """All images are one point, so that the right prediction is known everywhere."""
    schedule = NoiseSchedule.rectified_flow(50) if name == "flow_prediction" else NoiseSchedule.edm(50)
    kind, image = Parameterization(schedule, name), CLEAN[:1].float()

    class Ideal(nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            signal, noise = kind.levels_at(float(kind.timeline.place_of(np.array(float(timestep)))))
            guess = (sample - signal * image) / noise
            return kind.target(image.expand_as(sample), guess, signal, noise)

    drawn = make_sampler("euler", 10, kind, (1, 4, 4))
    torch.testing.assert_close(drawn(Ideal(), 3, 0), image.expand(3, -1, -1, -1), rtol=1e-3, atol=1e-3)
    steps = list(drawn.trajectory(Ideal(), drawn.noise(3, 0), 0))
    for one, following in itertools.pairwise(steps):
        clean = clean_prediction(one.prediction, one.state, one.timestep, kind)
        torch.testing.assert_close(clean, image.expand(3, -1, -1, -1), rtol=1e-3, atol=1e-3)
        stepped = ddim_step(one.state, clean, one.timestep, following.timestep, kind)
        torch.testing.assert_close(stepped, following.state, rtol=1e-3, atol=1e-3)


def test_flow_is_drawn_logit_normal_with_the_shift_and_edm_log_normal() -> None:
    flow = replace(NoiseSchedule.rectified_flow(1000), scheduler={"shift": 3.0})
    drawn = LogNormalTimesteps.of_flow(flow).sample(200_000, 0, torch.Generator().manual_seed(0))[0]
    u = torch.sigmoid(torch.randn(200_000, generator=torch.Generator().manual_seed(1)))
    shifted = 3 * u / (1 + 2 * u)
    at = torch.linspace(0.05, 0.95, 10).double()
    torch.testing.assert_close(
        ((drawn + 0.5) / 1000).double().quantile(at), shifted.double().quantile(at), rtol=0, atol=5e-3
    )
    edm = NoiseSchedule.edm(1000)
    levels = np.log(edm.sigma)[LogNormalTimesteps.of_edm(edm).sample(200_000, 0, GENERATOR)[0].numpy()]
    np.testing.assert_allclose([levels.mean(), levels.std()], [-1.2, 1.2], atol=0.02)
    inside = LogNormalTimesteps.of_edm(edm, RangeTimesteps(100, 200, 1000)).probabilities(0)
    assert inside[:100].sum() == inside[200:].sum() == 0
    assert inside.sum() == pytest.approx(1)


@pytest.mark.parametrize(("mean", "deviation"), [(float("nan"), 1.0), (0.0, 0.0), (0.0, -1.0)])
def test_draws_that_are_none_are_refused(mean: float, deviation: float) -> None:
    with pytest.raises(InputError, match="expected finite numbers, and a deviation above 0"):
        LogNormalTimesteps(NoiseSchedule.edm(10), mean, deviation)


@pytest.mark.parametrize("settings", [{}, {"shift": 2.0}, {"flow_shift": 2.0}])
def test_a_scheduler_shifts_its_steps_as_its_settings_say(settings: dict[str, float]) -> None:
    schedule = replace(NoiseSchedule.rectified_flow(1000), scheduler=settings)
    shift = shift_of(settings)
    assert shift == (2.0 if settings else 1.0)
    own = FlowMatchEulerDiscreteScheduler(shift=shift)
    own.set_timesteps(5)
    np.testing.assert_allclose(real_timesteps("euler", 5, schedule), own.timesteps, rtol=1e-6)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_shifts_by_the_number_of_tokens_are_those_of_pipelines(kind: str) -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    schedule = NoiseSchedule.from_diffusers(own)
    for tokens in (256, 1024, 4096):
        own.set_timesteps(sigmas=np.linspace(1.0, 1 / 6, 6).tolist(), mu=calculate_shift(tokens))
        np.testing.assert_allclose(real_timesteps("pipeline", 6, schedule, tokens), own.timesteps, rtol=1e-5)
