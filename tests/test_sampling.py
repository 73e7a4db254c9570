import numpy as np
import pytest
import torch
from networks import unet

from prunekit.errors import InputError
from prunekit.sampling import (
    SAMPLERS,
    clean_prediction,
    ddim_step,
    drawing,
    make_sampler,
    make_scheduler,
    real_timesteps,
    to_images,
)
from prunekit.schedule import PREDICTION_TYPES, NoiseSchedule, Parameterization, sampler_timesteps
from prunekit.training import DenoisingObjective, predict

SCHEDULE = NoiseSchedule.linear(100)
SHAPE = (1, 8, 8)
FEW = {"pndm": 4}  # its Runge-Kutta start needs four


@pytest.fixture(scope="module")
def model():
    return unet(dropout=0.2)


def sample(model, name="ddim", count=5, steps=None, seed=1, **options):
    steps = steps or FEW.get(name, 3)
    return make_sampler(name, steps, Parameterization(SCHEDULE), SHAPE)(model, count, seed, **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_named_sampler_runs_a_few_steps_and_repeats_for_a_seed(model, name):
    first = sample(model, name)
    assert first.shape == (5, *SHAPE)
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert torch.equal(first, sample(model, name))
    assert not torch.allclose(first, sample(model, name, seed=2), atol=0.1)


@pytest.mark.parametrize("name", [*SAMPLERS, "EulerAncestralDiscreteScheduler"])
def test_the_batch_size_changes_no_image(model, name):
    whole = sample(model, name, batch_size=5)
    for batch_size in (1, 2, 100):
        torch.testing.assert_close(sample(model, name, batch_size=batch_size), whole, rtol=1e-3, atol=1e-4)


def test_one_sampler_object_can_be_used_again_and_for_other_models(model):
    for name in SAMPLERS:
        sampler = make_sampler(name, 4, Parameterization(SCHEDULE), SHAPE)
        first = sampler(model, 2, 1)
        sampler(unet(block_out_channels=(4, 8)), 3, 5)
        assert torch.equal(sampler(model, 2, 1), first)


def test_fewer_samples_are_the_first_of_more(model):
    torch.testing.assert_close(sample(model, count=2), sample(model, count=5)[:2], rtol=1e-3, atol=1e-4)


def test_different_models_start_from_the_same_noise():
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, t):
            seen.append(x.clone())
            return torch.zeros_like(x)

    class Other(Spy):
        pass

    for net in (Spy(), Other()):
        sample(net, steps=1)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], torch.randn((5, *SHAPE), generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_network_gets_inputs_on_the_scale_that_it_was_trained_on(name):
    """Samplers that work in σ start from σ times the noise and scale their states back for the network."""
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, t):
            seen.append((x.clone(), float(t)))
            return x  # all is noise

    sample(Spy(), name, steps=8)
    noise = torch.randn((5, *SHAPE), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(seen[0][0], noise, rtol=0, atol=0.01)
    for x, t in seen:
        assert t < 30 or 0.8 < x.std() < 1.3


def test_sampling_is_in_eval_mode_and_leaves_model_and_global_generator_alone(model):
    expected = sample(model)
    model.train()
    rng = torch.get_rng_state()
    try:
        assert torch.equal(sample(model), expected)
        assert model.training
        assert model.mid_block.training
    finally:
        model.eval()
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_is_reported_by_samples(model):
    said = []
    sample(model, count=5, batch_size=2, report=lambda done, count: said.append((done, count)))
    assert said == [(2, 5), (4, 5), (5, 5)]


def test_a_perfect_denoiser_of_one_image_samples_it():
    target = torch.linspace(-1, 1, 64).reshape(1, *SHAPE)

    class Oracle(torch.nn.Module):
        def forward(self, x, t):
            return target.expand_as(x)

    for name in ("ddim", "ddpm", "dpm-solver"):
        found = make_sampler(name, 5, Parameterization(SCHEDULE, "sample"), SHAPE)(Oracle(), 2, seed=0)
        assert (found - target).abs().max() < 0.05


@pytest.mark.parametrize(
    "name", ["nothing", "", "DDIM", "UNet2DModel", "os.system", "Scheduler", "FlaxNothingScheduler"]
)
def test_unknown_samplers_are_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match="ddim, ddpm, dpm-solver"):
        make_scheduler(name, Parameterization(SCHEDULE))


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "KarrasVeScheduler", "DPMSolverSDEScheduler", "CogVideoXDDIMScheduler"]
)
def test_schedulers_that_cannot_follow_the_schedule_are_refused(name):
    with pytest.raises(InputError, match=name):
        make_scheduler(name, Parameterization(SCHEDULE))


@pytest.mark.parametrize(("name", "steps"), [("pndm", 3), ("ddim", 0), ("ddim", 101), ("dpm-solver", 0)])
def test_numbers_of_steps_that_a_sampler_cannot_take_are_refused(model, name, steps):
    with pytest.raises(InputError, match=f"cannot take {steps} steps"):
        make_sampler(name, steps, Parameterization(SCHEDULE), SHAPE)(model, 1, 0)
    with pytest.raises(InputError, match=f"cannot take {steps} steps"):
        real_timesteps(name, steps, SCHEDULE)


@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.from_sigmas(np.linspace(0.01, 80, 100)), NoiseSchedule.rectified_flow(100)]
)
def test_schedules_on_another_scale_are_refused_rather_than_sampled_wrongly(schedule):
    with pytest.raises(InputError, match="variance-preserving"):
        make_sampler("ddim", 3, Parameterization(schedule), SHAPE)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "unipc"])
def test_a_trajectory_is_what_sampling_does_evaluation_by_evaluation(model, name):
    sampler = make_sampler(name, 4, Parameterization(SCHEDULE), SHAPE)
    with torch.no_grad():
        seen = list(sampler.trajectory(model, sampler.noise(3, 1), 1))
        other = list(sampler.trajectory(model, sampler.noise(3, 1)[1:], 1, first=1))
    assert [evaluation.timestep for evaluation in seen] == real_timesteps(name, 4, SCHEDULE).tolist()
    assert torch.equal(seen[-1].stepped, sampler(model, 3, 1))
    torch.testing.assert_close(other[-1].stepped, seen[-1].stepped[1:], rtol=1e-3, atol=1e-4)
    for evaluation in seen:
        torch.testing.assert_close(predict(model, evaluation.state, evaluation.timestep), evaluation.prediction)


def test_a_samplers_own_noise_is_not_the_initial_noise_of_another_seed(model, monkeypatch):
    """At seed 0 neither."""
    used = []

    def step(scheduler, prediction, t, x, generators):
        used.extend(generator.initial_seed() for generator in generators)
        return x

    monkeypatch.setattr(drawing, "_step", step)
    for seed in range(3):
        sample(model, "ddpm", seed=seed)
    assert len(set(used)) == 3 * 5
    assert not set(used) & set(range(100_000))


def test_trajectories_can_be_followed_side_by_side(model):
    sampler = make_sampler("dpm-solver", 4, Parameterization(SCHEDULE), SHAPE)  # keeps what it saw in the steps before
    with torch.no_grad():
        ways = [sampler.trajectory(model, sampler.noise(2, seed), seed) for seed in (0, 1)]
        *_, (first, second) = zip(*ways, strict=True)
    assert torch.equal(first.stepped, sampler(model, 2, 0))
    assert torch.equal(second.stepped, sampler(model, 2, 1))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_true_prediction_of_any_kind_is_the_clean_image(prediction_type):
    images = torch.randint(0, 256, (3, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kind = Parameterization(SCHEDULE, prediction_type)
    objective = DenoisingObjective(images, kind)
    for t in (0, 37, 99):
        timesteps = torch.full((4,), t)
        clean, noise = objective.draw(timesteps, torch.Generator().manual_seed(t))
        state, target = objective.pair(clean.double(), noise.double(), timesteps)
        found = clean_prediction(target, state, t + kind.timeline.middle, kind)
        torch.testing.assert_close(found, clean.double(), rtol=0, atol=1e-9)


def test_the_clean_prediction_is_the_one_that_diffusers_samplers_make():
    x, prediction = torch.randn(2, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for name in ("ddim", "euler"):  # euler's timesteps are fractional, and its states in σ
        scheduler = make_scheduler(name, Parameterization(SCHEDULE, "v_prediction"))
        scheduler.set_timesteps(7)
        t = scheduler.timesteps[2]
        scheduler._step_index = 2
        state = scheduler.scale_model_input(x, t)
        expected = scheduler.step(prediction, t, x).pred_original_sample
        found = clean_prediction(prediction, state, float(t), Parameterization(SCHEDULE, "v_prediction"))
        found = found.clamp(-1, 1) if name == "ddim" else found  # as diffusers' does
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_ddim_step_is_diffusers(model):
    scheduler = make_scheduler("ddim", Parameterization(SCHEDULE))
    scheduler.set_timesteps(5)
    x, prediction = torch.randn(2, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    t, target = scheduler.timesteps[1:3].tolist()
    clean = clean_prediction(prediction, x, t, Parameterization(SCHEDULE))
    expected = scheduler.step(prediction, t, x).prev_sample
    torch.testing.assert_close(
        ddim_step(x, clean, t, target, Parameterization(SCHEDULE)), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        ddim_step(x, clean / 1e3, t, t, Parameterization(SCHEDULE)), x, rtol=1e-4, atol=1e-5
    )  # unclamped


def test_unknown_prediction_types_have_no_clean_image():
    with pytest.raises(InputError, match="epsilon, sample, v_prediction"):
        clean_prediction(torch.zeros(1), torch.zeros(1), 3, Parameterization(SCHEDULE, "noise"))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedulers_have_exactly_the_noise_schedule(kind):
    schedule = getattr(NoiseSchedule, kind)(100)
    for name in SAMPLERS:
        scheduler = make_scheduler(name, Parameterization(schedule, "v_prediction"))
        np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), schedule.alphas_cumprod, rtol=1e-4, atol=1e-8)
        assert scheduler.config.prediction_type == "v_prediction"


def test_real_timesteps_list_every_evaluation_of_the_network():
    for name in SAMPLERS:
        seen = []

        class Spy(torch.nn.Module):
            def forward(self, x, t, seen=seen):
                seen.append(float(t))
                return torch.zeros_like(x)

        sample(Spy(), name, count=1, steps=4)
        assert real_timesteps(name, 4, SCHEDULE).tolist() == seen
    assert len(real_timesteps("heun", 4, SCHEDULE)) == 7


@pytest.mark.parametrize("steps", [1, 7, 50, 100])
def test_ddim_and_ddpm_visit_the_timesteps_that_planning_without_torch_assumes(steps):
    for name in ("ddim", "ddpm"):
        assert real_timesteps(name, steps, SCHEDULE).tolist() == sampler_timesteps(100, steps).tolist()


def test_images_are_clamped_and_rounded():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    assert to_images(values).tolist() == [0, 0, 128, 191, 255, 255]
    assert to_images(values).dtype == torch.uint8
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_images(every.float() / 127.5 - 1), every)


class Obeying(torch.nn.Module):
    """Predicts the number that it is told, and remembers the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def forward(self, sample, timestep, encoder_hidden_states, added):
        self.batches.append(len(sample))
        told = encoder_hidden_states[:, 0] + added["more"]
        return sample * self.weight + told.reshape(-1, *[1] * (sample.ndim - 1))


@pytest.mark.parametrize("shape", [SHAPE, (6, 4), (2, 3, 8, 8)], ids=["images", "tokens", "videos"])
@pytest.mark.parametrize("scale", [1.0, 4.0, 0.0])
def test_conditions_guide_away_from_the_empty_one(shape, scale):
    model = Obeying()
    conditions = {"encoder_hidden_states": torch.tensor([[1.0], [2.0]]), "added.more": torch.tensor([10.0, 20.0])}
    empty = {"encoder_hidden_states": torch.tensor([-1.0])}
    sampler = make_sampler("ddim", 3, Parameterization(SCHEDULE), shape).with_conditions(conditions, empty, scale)
    told = sampler.told(3, 0)
    assert told["added.more"].tolist() == [10.0, 20.0, 10.0]
    (first, *_) = sampler.trajectory(model, sampler.noise(3, 0), 0, conditions=told)
    expected = [(1 - scale) * (more - 1) + scale * (more + one) for one, more in ((1, 10), (2, 20), (1, 10))]
    assert first.prediction.reshape(3, -1)[:, 0].tolist() == pytest.approx(expected)
    assert set(model.batches) == {3 if scale == 1 else 6}
    whole, apart = (sampler(model, 3, 0, batch_size=size) for size in (3, 1))
    torch.testing.assert_close(whole, apart)


def test_guidance_needs_an_empty_condition():
    sampler = make_sampler("ddim", 3, Parameterization(SCHEDULE), SHAPE)
    with pytest.raises(InputError, match="guidance_scale 4 and no empty condition"):
        sampler.with_conditions({"encoder_hidden_states": torch.zeros(1, 1)}, None, 4.0)
