import json

import numpy as np
import pytest
import torch
from networks import unet
from pairs import GROUPS, SCHEDULE, SHAPE, OptimalDenoiser, compared, experts, other_unet

from prunekit.consistency import ConsistencyOptions, Denoiser, measure_consistency
from prunekit.errors import InputError
from prunekit.nets import MultiDecoderUNet
from prunekit.sampling import make_sampler, real_timesteps
from prunekit.schedule import NoiseSchedule, Parameterization


@pytest.fixture(scope="module")
def model():
    return unet(dropout=0.2)


@pytest.fixture(scope="module")
def found(model):
    return compared(model, other_unet())


def assert_identical(likeness):
    assert (likeness.values["mse"] == 0).all()
    np.testing.assert_allclose(likeness.values["correlation"], 1, rtol=0, atol=1e-12)
    if "ssim" in likeness.values:
        np.testing.assert_allclose(likeness.values["ssim"], 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun"])
def test_a_model_is_like_itself_at_every_evaluation(model, sampler):
    found = compared(model, model, sampler=sampler, steps=4)
    assert [step.timestep for step in found.steps] == real_timesteps(sampler, 4, SCHEDULE).tolist()
    assert_identical(found.same)
    for step in found.steps:
        for likeness in (step.same, step.state, step.forced):
            assert_identical(likeness)
        assert step.shuffled.mean("ssim") < 0.9
        assert step.shuffled.mean("mse") > 0.01
    assert found.shuffled.mean("correlation") < 0.9
    assert torch.equal(found.images[0], found.images[1])
    assert found.seams == ()


@pytest.mark.slow_but("*decoder*")
@pytest.mark.parametrize("whole", [experts, lambda base: MultiDecoderUNet.from_unet(base, GROUPS)])
def test_experts_that_are_copies_of_the_base_are_like_it(model, whole):
    found = compared(model, whole(model))
    for step in found.steps:
        assert_identical(step.same)
        assert_identical(step.forced)
        assert step.groups == (None, int(GROUPS.index_of(np.array([step.timestep]))[0]))
    assert [seam.timestep for seam in found.seams] == [80, 50, 20]
    for seam in found.seams:
        assert (seam.jump == 0).all()
        assert seam.to_json()["ratio"] == {"mean": None, "se": None, "undefined": 6}


def test_denoisers_of_the_same_images_are_more_alike_for_the_same_noise_than_shuffled():
    pair = OptimalDenoiser(), OptimalDenoiser(spoiled=0.2)
    found = compared(*pair, ("sample", "sample"), count=16)
    for likeness, baseline in [(found.same, found.shuffled), *((step.same, step.shuffled) for step in found.steps)]:
        for measure in ("ssim", "correlation"):
            assert baseline.mean(measure) < likeness.mean(measure) < 1
        assert 0 < likeness.mean("mse") < baseline.mean("mse")
    assert found.same.mean("correlation") > 0.95
    assert found.shuffled.mean("correlation") < 0.6


def test_networks_that_have_learned_nothing_are_no_more_alike_than_shuffled(model):
    found = compared(model, other_unet(), count=32, steps=5)
    for measure in ("ssim", "correlation"):
        same, shuffled = (told.to_json()[measure] for told in (found.same, found.shuffled))
        assert abs(same["mean"] - shuffled["mean"]) < 4 * np.hypot(same["se"], shuffled["se"])


def test_two_models_start_from_the_same_noise_and_part(found):
    first, last = found.steps[0], found.steps[-1]
    assert_identical(first.state)  # the noise itself
    assert last.state.mean("mse") > 0
    for name, values in first.same.values.items():
        np.testing.assert_array_equal(first.forced.values[name], values)  # the states are still the same
    assert not np.allclose(last.same.values["mse"], last.forced.values["mse"])


def test_the_images_are_those_of_the_samplers_own_run(model, found):
    sampler = make_sampler("ddim", 10, Parameterization(SCHEDULE), SHAPE)
    assert torch.equal(found.images[0], sampler(model, 6, 0))
    assert torch.equal(found.images[1], sampler(other_unet(), 6, 0))


@pytest.mark.parametrize(("count", "batch_size"), [(2, 2), (7, 3), (6, 64)])
def test_no_shuffled_pair_keeps_its_partner(model, count, batch_size):
    _, b, shuffled = compared(model, model, count=count, batch_size=batch_size, steps=2).images
    for i in range(count):
        assert not torch.equal(shuffled[i], b[i])
    assert sorted(x.sum().item() for x in shuffled) == sorted(x.sum().item() for x in b)


def test_pairs_do_not_depend_on_batches(model, found):
    parts = compared(model, other_unet(), batch_size=2)
    for one, other in zip((found.same, found.steps[4].forced), (parts.same, parts.steps[4].forced), strict=True):
        for name, values in one.values.items():
            np.testing.assert_allclose(other.values[name], values, rtol=1e-3, atol=1e-5)


def test_equal_seeds_measure_equal_figures_and_others_do_not(model, found):
    told = found.to_json()
    assert compared(model, other_unet()).to_json() == told
    assert compared(model, other_unet(), seed=1).to_json()["images"] != told["images"]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_what_is_measured_is_said(found):
    told = found.to_json()
    assert told["settings"] == {
        "sampler": "ddim",
        "steps": 10,
        "count": 6,
        "seed": 0,
        "teacher_forced": True,
        "batch_size": 64,
        "shape": [1, 8, 8],
    }
    assert told["ssim"]["window"] == 7
    assert told["ssim"]["data_range"] == 1.0
    assert [step["timestep"] for step in told["steps"]] == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]


def test_teacher_forcing_can_be_left_out(model, found):
    less = compared(model, other_unet(), teacher_forced=False)
    assert all(step.forced is None for step in less.steps)
    assert less.to_json()["steps"][3]["forced"] is None
    assert less.to_json()["images"] == found.to_json()["images"]


def test_predictions_of_different_kinds_are_compared_as_clean_images(model):
    class Velocity(torch.nn.Module):
        """v = (ε − b·x_t)/a of the same network, from x_t = a·x0 + b·ε and v = a·ε − b·x0."""

        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x, t):
            a, b = (torch.from_numpy(c.copy())[int(t)].float() for c in (SCHEDULE.signal, SCHEDULE.noise))
            noise = self.net(x, t).sample
            return a * noise - b * (x - b * noise) / a

    found = compared(model, Velocity(), ("epsilon", "v_prediction"))
    for step in found.steps:
        assert step.same.mean("mse") < 1e-6
    assert compared(model, Velocity()).same.mean("mse") > 1e-3


def test_models_modes_and_the_global_generator_are_left_alone(model):
    rng = torch.get_rng_state()
    model.train()
    try:
        found = compared(model, model, steps=2)
        assert model.training
    finally:
        model.eval()
    assert_identical(found.same)
    assert torch.equal(torch.get_rng_state(), rng)


def test_progress_is_reported_by_evaluations(model):
    said = []
    pair = [Denoiser(model, Parameterization(SCHEDULE))] * 2
    options = ConsistencyOptions(steps=3, count=4, batch_size=2)
    measure_consistency(*pair, SHAPE, options, lambda done, all_: said.append((done, all_)))
    assert said == [(i + 1, 6) for i in range(6)]


@pytest.mark.parametrize(
    "other", [NoiseSchedule.linear(101), NoiseSchedule.cosine(100), NoiseSchedule.linear(100, 2e-3)]
)
def test_other_noise_schedules_are_refused(model, other):
    with pytest.raises(InputError, match="expected the same"):
        measure_consistency(
            Denoiser(model, Parameterization(SCHEDULE)), Denoiser(model, Parameterization(other)), SHAPE
        )


def test_a_schedule_in_single_precision_is_the_same_schedule(model):
    betas = np.linspace(1e-3, 0.2, 100).astype(np.float32)
    bar = np.cumprod(1 - betas, dtype=np.float32).astype(np.float64)
    single = NoiseSchedule(np.sqrt(bar), np.sqrt(1 - bar))
    pair = Denoiser(model, Parameterization(SCHEDULE)), Denoiser(model, Parameterization(single))
    found = measure_consistency(*pair, SHAPE, ConsistencyOptions(steps=2, count=2))
    assert found.same.mean("mse") < 1e-6


@pytest.mark.parametrize("wrong", [{"count": 1}, {"batch_size": 1}, {"seed": -1}, {"steps": 0}, {"sampler": "x"}])
def test_options_that_cannot_be_used_are_refused(model, wrong):
    with pytest.raises(InputError, match=r"expected|cannot take"):
        compared(model, model, **wrong)


def test_images_without_room_for_a_window_are_refused_before_anything_is_sampled():
    model = Denoiser(torch.nn.Identity(), Parameterization(SCHEDULE))  # which cannot be sampled
    with pytest.raises(InputError, match="at least 3×3"):
        measure_consistency(model, model, (1, 2, 8))
