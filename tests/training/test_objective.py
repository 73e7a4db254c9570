from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.importance import DrawnLoss
from prunekit.schedule import PREDICTION_TYPES, NoiseSchedule, Parameterization
from prunekit.training import DenoisingObjective, predict, to_unit_range

SCHEDULE = NoiseSchedule.cosine(100)
IMAGES = torch.arange(6 * 3 * 4 * 4).reshape(6, 3, 4, 4).to(torch.uint8)


def make_objective(prediction_type: str = "epsilon", images: Tensor = IMAGES) -> DenoisingObjective:
    return DenoisingObjective(images, Parameterization(SCHEDULE, prediction_type))


def batch(count: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images, noise and timesteps from 0 to T − 1."""
    generator = Generator().manual_seed(5)
    timesteps = torch.linspace(0, SCHEDULE.num_timesteps - 1, count).long()
    return *make_objective().draw(timesteps, generator), timesteps


class Constant(nn.Module):
    """Predicts what it was given, whatever the input."""

    def __init__(self, prediction: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.prediction = prediction

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        return self.scale * self.prediction


def test_the_unit_range_covers_every_grey_value():
    unit = to_unit_range(torch.arange(256, dtype=torch.uint8))
    assert unit.dtype == torch.float32
    assert (unit[0], unit[255]) == (-1.0, 1.0)
    torch.testing.assert_close(unit.diff(), torch.full((255,), 2 / 255), rtol=1e-5, atol=0)


@pytest.mark.parametrize("t", [0, 50, 99])
def test_noisy_inputs_have_the_schedules_mean_and_deviation(t):
    grey = 191
    objective = make_objective(images=torch.full((1, 1, 8, 8), grey, dtype=torch.uint8))
    timesteps = torch.full((2000,), t)
    clean, noise = objective.draw(timesteps, Generator().manual_seed(1))
    noisy, _ = objective.pair(clean, noise, timesteps)
    spread, count = float(SCHEDULE.noise[t]), noisy.numel()
    x0 = grey / 127.5 - 1
    assert float(noisy.mean()) == pytest.approx(SCHEDULE.signal[t] * x0, abs=5 * spread / count**0.5)
    assert float(noisy.std()) == pytest.approx(spread, rel=5 / (2 * count) ** 0.5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_clean_image_comes_back_from_input_and_target(prediction_type):
    clean, noise, timesteps = batch()
    objective = make_objective(prediction_type)
    noisy, target = objective.pair(clean, noise, timesteps)
    a, b = (
        torch.from_numpy(table.copy())[timesteps].reshape(-1, 1, 1, 1)
        for table in objective.parameterization.input_levels
    )
    noisy, target = noisy.double(), target.double()
    sigma, spread = b / a, 0.5  # of the noise and of the data
    skip, out = spread**2 / (sigma**2 + spread**2), spread * sigma / (sigma**2 + spread**2) ** 0.5
    recovered = {
        "epsilon": (noisy - b * target) / a,
        "sample": target,
        "v_prediction": (a * noisy - b * target) / (a**2 + b**2),
        "flow_prediction": (noisy - b * target) / (a + b),
        "edm": skip * noisy / a + out * target,
        "edm_v": skip * noisy / a - out * target,
    }[prediction_type]
    usable = slice(None, -1) if prediction_type == "epsilon" else slice(None)  # a is nearly 0 at the last timestep
    torch.testing.assert_close(recovered[usable], clean.double()[usable], rtol=0, atol=1e-4)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_prediction_costs_nothing_and_an_offset_its_square(prediction_type):
    objective = make_objective(prediction_type)
    clean, noise, timesteps = batch()
    _, target = objective.pair(clean, noise, timesteps)
    assert objective.per_sample(Constant(target), clean, noise, timesteps).tolist() == [0.0] * len(timesteps)
    offset = torch.arange(len(timesteps)).reshape(-1, 1, 1, 1).float()
    losses = objective.per_sample(Constant(target + offset), clean, noise, timesteps)
    assert losses.shape == (len(timesteps),)
    torch.testing.assert_close(losses, offset.flatten() ** 2, rtol=1e-5, atol=1e-6)


def test_calling_the_objective_is_the_mean_over_a_draw_of_its_own():
    objective = make_objective()
    timesteps = torch.tensor([3, 70, 42])
    model = Constant(torch.zeros(1, 3, 4, 4))
    clean, noise = objective.draw(timesteps, Generator().manual_seed(9))
    loss = objective(model, timesteps, Generator().manual_seed(9))
    assert loss.shape == ()
    assert loss.requires_grad
    torch.testing.assert_close(loss, objective.per_sample(model, clean, noise, timesteps).mean())


def test_the_objective_draws_and_evaluates_apart_for_the_importance_api():
    objective, timesteps = make_objective(), torch.tensor([3, 70, 42])
    assert isinstance(objective, DrawnLoss)
    model = Constant(torch.zeros(1, 3, 4, 4))
    losses = objective.drawn_losses(model, objective.draw(timesteps, Generator().manual_seed(9)), timesteps)
    assert losses.shape == (3,)
    assert losses.mean() == objective(model, timesteps, Generator().manual_seed(9))


def test_draws_come_from_the_generator_alone():
    objective, timesteps = make_objective(), torch.arange(16)
    before = torch.get_rng_state()
    first = objective.draw(timesteps, Generator().manual_seed(3))
    torch.manual_seed(12345)
    again = objective.draw(timesteps, Generator().manual_seed(3))
    other = objective.draw(timesteps, Generator().manual_seed(4))
    torch.set_rng_state(before)
    objective.draw(timesteps, Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_every_image_is_drawn_and_unchanged():
    objective = make_objective()
    clean, noise = objective.draw(torch.zeros(400, dtype=torch.long), Generator().manual_seed(0))
    drawn = {image.numpy().tobytes() for image in clean}
    assert drawn == {image.numpy().tobytes() for image in to_unit_range(IMAGES)}
    assert noise.shape == clean.shape == (400, 3, 4, 4)
    assert IMAGES.dtype == torch.uint8


def test_predictions_are_read_from_plain_networks_and_from_diffusers_outputs():
    noisy, t = torch.randn(2, 1, 4, 4, generator=Generator().manual_seed(0)), torch.tensor([1, 2])
    for model in (
        lambda x, t: x * 2,
        lambda x, t: (x * 2,),
        lambda x, t: SimpleNamespace(sample=x * 2),
    ):
        assert torch.equal(predict(model, noisy, t), noisy * 2)


def test_an_unknown_prediction_type_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'noise'.*epsilon, sample, v_prediction"):
        make_objective("noise")


def test_the_fingerprint_knows_images_schedule_and_prediction_type():
    changed = IMAGES.clone()
    changed[0, 0, 0, 0] += 1
    objectives = [
        make_objective(),
        make_objective("sample"),
        make_objective(images=changed),
        DenoisingObjective(IMAGES, Parameterization(NoiseSchedule.linear(100))),
        make_objective(images=IMAGES.reshape(6, 3, 2, 8)),
    ]
    assert len({objective.fingerprint() for objective in objectives}) == len(objectives)
    assert make_objective().fingerprint() == make_objective(images=IMAGES.clone()).fingerprint()
    assert np.array_equal(SCHEDULE.signal, NoiseSchedule.cosine(100).signal)
