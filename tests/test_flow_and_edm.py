"""Flow matching and EDM: formulas and training targets against diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.training import DenoisingObjective

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
