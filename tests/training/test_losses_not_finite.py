"""Losses, gradients, weights and images that are not finite stop a training at once, before a checkpoint has them."""

import math
from dataclasses import fields, replace

import pytest
import torch
from tiny_training import OPTIONS, SAMPLER, T, TinyNet, checkpoint_steps, tiny_net, tiny_objective, tiny_run
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.training import DenoisingObjective, LossSecondMoment, RangeTimesteps, TrainOptions, train
from prunekit.training.checkpoints import latest_checkpoint, saved_step


class Breaks(nn.Module):
    """A network whose output or gradient is of another value in one call; its loss stays the same for ``gradient``."""

    def __init__(self, call: int, value: float, gradient: bool = False) -> None:
        super().__init__()
        self.net, self.call, self.value, self.gradient, self.calls = tiny_net(), call, value, gradient, 0

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        self.calls += 1
        made: Tensor = self.net(noisy, timesteps)
        if self.calls != self.call:
            return made
        if self.gradient:
            made.register_hook(lambda gradient: gradient * self.value)
            return made
        return made * self.value


@pytest.fixture
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> TrainOptions:
    """Options that make a checkpoint due at every step, by time, however long it takes to write."""
    monkeypatch.setattr("prunekit.training.loop._SAVING_SHARE", 0)
    return replace(OPTIONS, checkpoint_every=1000, checkpoint_minutes=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("gradient", "said"), [(False, "The training loss is"), (True, "The norm of the training's gradients is")]
)
def test_a_training_stops_at_the_step_that_is_not_finite(tmp_path, at_every_step, value, gradient, said):
    """Its loss is reported at every fifth step only."""
    model = Breaks(8, value, gradient)
    with pytest.raises(InputError, match=rf"{said} (nan|inf) at step 8; lower the learning rate"):
        train(model, tiny_objective(), SAMPLER, at_every_step, tmp_path)
    assert model.calls == 8
    assert saved_step(tmp_path) == 7
    state = latest_checkpoint(tmp_path)
    assert all(value.isfinite().all() for part in ("model", "averaged") for value in state[part].values())


def test_weights_that_are_damaged_from_outside_get_into_no_checkpoint(tmp_path):
    model = tiny_net()

    def report(progress) -> None:
        if progress.step == 20:
            with torch.no_grad():
                model.last.bias[0] = math.nan

    with pytest.raises(InputError, match=r"After training step 20 last\.bias holds nan"):
        train(model, tiny_objective(), SAMPLER, OPTIONS, tmp_path, report)
    assert checkpoint_steps(tmp_path) == [10, 15]


def test_a_sampler_that_learns_is_not_asked_first():
    with pytest.raises(InputError, match="The training loss is nan at step 3"):
        train(Breaks(3, math.nan), tiny_objective(), LossSecondMoment(RangeTimesteps(0, T), history=2), OPTIONS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [each.name for each in fields(TrainOptions) if isinstance(each.default, float)])
def test_options_that_are_not_finite_are_refused(name, value):
    with pytest.raises(InputError, match=f"{name} {value}"):
        TrainOptions(**{name: value})


@pytest.mark.parametrize("minutes", [0.0, -1.0])
def test_minutes_that_are_not_positive_are_refused(minutes):
    with pytest.raises(InputError, match="positive minutes"):
        TrainOptions(checkpoint_minutes=minutes)


def latents(bad: int) -> Tensor:
    made = torch.randn(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    made[bad, 0, 3, 2] = math.inf
    made[bad + 2] = math.nan
    return made


@pytest.mark.parametrize("bad", [0, 17])
def test_images_that_are_not_finite_are_refused_before_the_first_step(bad):
    objective = DenoisingObjective(latents(bad), Parameterization(NoiseSchedule.cosine(T)), name="faces/train")
    model = tiny_net()
    before = model.last.weight.clone()
    message = rf"2 of 24 rows of faces/train are not finite, row {bad} the first"
    with pytest.raises(InputError, match=message):
        train(model, objective, SAMPLER, OPTIONS)
    assert torch.equal(model.last.weight, before)


def test_rows_are_looked_at_as_they_are_drawn():
    """A search draws a few rows of a mapped file, and reads no others."""
    objective = DenoisingObjective(latents(17), Parameterization(NoiseSchedule.cosine(T)), name="faces/train")
    timesteps = torch.zeros(100, dtype=torch.int64)
    with pytest.raises(InputError, match="rows of faces/train are not finite, row 17 the first"):
        objective.draw(timesteps, torch.Generator().manual_seed(0))


def test_a_checkpoint_that_is_due_by_time_resumes_to_the_same_bytes(tmp_path, at_every_step):
    """At a step at which neither a report nor a checkpoint by steps is due."""
    whole = tiny_run(options=OPTIONS)

    class Stops(TinyNet):
        calls = 0

        def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 24:
                raise RuntimeError("the machine is gone")
            return super().forward(noisy, timesteps)

    stopping = tiny_net()
    stopping.__class__ = Stops
    with pytest.raises(RuntimeError, match="gone"):
        train(stopping, tiny_objective(), SAMPLER, at_every_step, tmp_path)
    assert checkpoint_steps(tmp_path) == [22, 23]
    later = replace(at_every_step, checkpoint_minutes=5.0)  # it may be another number
    resumed = train(tiny_net(), tiny_objective(), SAMPLER, later, tmp_path)
    assert resumed.losses == whole.losses
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key])


def test_checkpoints_by_time_take_a_small_part_of_it(tmp_path):
    """Writing one of these takes longer than a step."""
    seen: set[int] = set()
    options = replace(OPTIONS, checkpoint_every=1000, checkpoint_minutes=1e-9, log_every=1)
    tiny_run(tmp_path, lambda _: seen.update(checkpoint_steps(tmp_path)), options)
    assert 1 in seen
    assert len(seen) < 20
