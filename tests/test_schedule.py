import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule, sampler_timesteps

KINDS = ("linear", "scaled_linear", "cosine", "sigmoid", "edm", "rectified_flow")
IN_DIFFUSERS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}


@pytest.fixture(scope="module")
def schedulers():
    import diffusers

    return diffusers


@given(kind=st.sampled_from(KINDS), num_timesteps=st.integers(2, 1500))
@settings(max_examples=60, deadline=None)
def test_snr_falls_strictly_for_every_kind_and_length(kind, num_timesteps):
    schedule = NoiseSchedule.from_config({"kind": kind, "num_timesteps": num_timesteps})
    assert schedule.num_timesteps == num_timesteps
    assert (np.diff(schedule.log_snr) < 0).all()
    assert (np.diff(schedule.snr_db) < 0).all()
    assert ((schedule.alphas_cumprod > 0) & (schedule.alphas_cumprod < 1)).all()
    assert schedule.signal.dtype == schedule.noise.dtype == np.float64


@given(kind=st.sampled_from(KINDS), num_timesteps=st.integers(2, 1500))
@settings(max_examples=30, deadline=None)
def test_the_five_words_for_noise_agree(kind, num_timesteps):
    schedule = NoiseSchedule.from_config({"kind": kind, "num_timesteps": num_timesteps})
    snr = schedule.signal**2 / schedule.noise**2
    np.testing.assert_allclose(schedule.snr, snr, rtol=1e-9)
    np.testing.assert_allclose(schedule.log_snr, np.log(snr), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(schedule.snr_db, 10 * np.log10(snr), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(schedule.sigma, 1 / np.sqrt(snr), rtol=1e-9)
    np.testing.assert_allclose(schedule.alphas_cumprod, snr / (1 + snr), rtol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_variance_is_preserved_where_it_should_be(kind):
    schedule = NoiseSchedule.from_config({"kind": kind, "num_timesteps": 400})
    np.testing.assert_allclose(schedule.signal**2 + schedule.noise**2, 1, rtol=1e-14)


@pytest.mark.parametrize("beta_schedule", IN_DIFFUSERS)
@pytest.mark.parametrize("num_timesteps", [50, 1000])
def test_alphas_cumprod_equal_those_of_diffusers(schedulers, beta_schedule, num_timesteps):
    scheduler = schedulers.DDPMScheduler(num_timesteps, beta_schedule=beta_schedule)
    schedule = NoiseSchedule.from_diffusers(scheduler)
    assert schedule.to_config()["kind"] == IN_DIFFUSERS[beta_schedule]
    np.testing.assert_allclose(schedule.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-6)


@pytest.mark.parametrize("beta_schedule", IN_DIFFUSERS)
def test_defaults_at_a_thousand_timesteps_are_those_of_diffusers(schedulers, beta_schedule):
    ends = {"beta_start": 0.00085, "beta_end": 0.012} if beta_schedule == "scaled_linear" else {}
    scheduler = schedulers.DDPMScheduler(1000, beta_schedule=beta_schedule, **ends)
    schedule = NoiseSchedule.from_config({"kind": IN_DIFFUSERS[beta_schedule]})
    np.testing.assert_allclose(schedule.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"]
)
def test_every_scheduler_with_betas_gives_their_schedule(schedulers, name):
    scheduler = getattr(schedulers, name)(200, beta_start=0.001, beta_end=0.05, beta_schedule="scaled_linear")
    schedule = NoiseSchedule.from_diffusers(scheduler)
    np.testing.assert_allclose(schedule.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-6)


def test_trained_betas_and_zero_terminal_snr_are_taken_from_the_scheduler_itself(schedulers):
    betas = np.linspace(0.3, 0.01, 20)
    trained = schedulers.DDPMScheduler(20, trained_betas=betas.tolist())
    np.testing.assert_allclose(
        NoiseSchedule.from_diffusers(trained).alphas_cumprod, np.cumprod(1 - betas), rtol=1e-5, atol=1e-6
    )
    rescaled = schedulers.DDIMScheduler(1000, rescale_betas_zero_snr=True)
    schedule = NoiseSchedule.from_diffusers(rescaled)
    np.testing.assert_allclose(schedule.alphas_cumprod, rescaled.alphas_cumprod, atol=1e-6)
    assert schedule.snr_db[-1] < -60  # none of the image is left, and still no infinity


def test_edm_schedulers_give_their_sigmas_from_clean_to_noisy(schedulers):
    schedule = NoiseSchedule.from_diffusers(schedulers.EDMDPMSolverMultistepScheduler())
    assert schedule.num_timesteps == 1000
    assert (schedule.signal == 1).all()
    assert schedule.sigma[[0, -1]] == pytest.approx([0.002, 80], rel=1e-6)
    np.testing.assert_allclose(schedule.snr, 1 / schedule.sigma**2)
    euler = NoiseSchedule.from_diffusers(schedulers.EDMEulerScheduler())
    assert euler.sigma[[0, -1]] == pytest.approx([0.002, 80], rel=1e-6)


def test_edm_spreads_a_root_of_sigma_evenly_from_clean_to_noisy():
    """Karras et al.'s table: 18 steps from 80 to 0.002 at rho 7."""
    sigma = NoiseSchedule.edm(18).sigma
    assert sigma[[0, -1]] == pytest.approx([0.002, 80])
    assert np.diff(sigma ** (1 / 7)) == pytest.approx(np.full(17, (80 ** (1 / 7) - 0.002 ** (1 / 7)) / 17))
    assert sigma[-2] == pytest.approx(57.5860, abs=1e-3)


def test_flow_matching_has_a_grid_of_told_times_whatever_the_shift(schedulers):
    for scheduler in (
        schedulers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        schedulers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction"),
    ):
        schedule = NoiseSchedule.from_diffusers(scheduler)
        assert schedule.num_timesteps == 1000
        np.testing.assert_allclose(schedule.signal + schedule.noise, 1, atol=1e-12)
        np.testing.assert_allclose(schedule.noise, (np.arange(1000) + 0.5) / 1000)
        assert {3.0, 5.0} & {schedule.scheduler.get("shift"), schedule.scheduler.get("flow_shift")}


@pytest.mark.parametrize(
    "name",
    [
        "DDPMScheduler",
        "EulerDiscreteScheduler",
        "EDMEulerScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
    ],
)
def test_a_scheduler_that_has_sampled_gives_the_schedule_that_it_was_trained_with(schedulers, name):
    scheduler = getattr(schedulers, name)()
    fresh = NoiseSchedule.from_diffusers(scheduler)
    scheduler.set_timesteps(20)
    used = NoiseSchedule.from_diffusers(scheduler)
    np.testing.assert_array_equal(used.log_snr, fresh.log_snr)


def test_a_scheduler_without_noise_levels_is_refused(schedulers):
    with pytest.raises(InputError, match="IPNDMScheduler has neither alphas_cumprod nor sigmas"):
        NoiseSchedule.from_diffusers(schedulers.IPNDMScheduler())


def schedules():
    rng = np.random.default_rng(0)
    yield from (NoiseSchedule.from_config({"kind": kind, "num_timesteps": 77}) for kind in KINDS)
    yield NoiseSchedule.linear(100, 0.001, 0.3)
    yield NoiseSchedule.cosine(100, offset=0.1, max_beta=0.5)
    yield NoiseSchedule.rectified_flow(100, shift=3.0)
    yield NoiseSchedule.from_betas(rng.uniform(0.001, 0.2, 50))
    yield NoiseSchedule.from_sigmas(np.sort(rng.uniform(0.01, 80, 50)))
    yield NoiseSchedule(np.array([0.9, 0.5, 0.1]), np.array([0.1, 0.5, 0.9]))


@pytest.mark.parametrize("schedule", list(schedules()))
def test_a_config_makes_a_bit_equal_schedule_even_through_json(schedule):
    again = NoiseSchedule.from_config(json.loads(json.dumps(schedule.to_config())))
    np.testing.assert_array_equal(again.signal, schedule.signal)
    np.testing.assert_array_equal(again.noise, schedule.noise)
    assert again.to_config() == schedule.to_config()


def test_schedules_out_of_diffusers_make_the_round_trip_too(schedulers):
    for scheduler in (
        schedulers.DDPMScheduler(30, trained_betas=np.linspace(0.01, 0.3, 30).tolist()),
        schedulers.EDMDPMSolverMultistepScheduler(num_train_timesteps=30),
        schedulers.FlowMatchEulerDiscreteScheduler(30),
    ):
        schedule = NoiseSchedule.from_diffusers(scheduler)
        again = NoiseSchedule.from_config(json.loads(json.dumps(schedule.to_config())))
        np.testing.assert_array_equal(again.signal, schedule.signal)
        np.testing.assert_array_equal(again.noise, schedule.noise)


def test_a_schedule_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="read-only"):
        NoiseSchedule.linear(10).signal[0] = 1


@pytest.mark.parametrize(
    "config",
    [
        None,
        "linear",
        {},
        {"kind": "quadratic"},
        {"kind": ["linear"]},
        {"kind": "linear", "num_timesteps": 1},
        {"kind": "linear", "num_timesteps": 10.5},
        {"kind": "linear", "num_timesteps": "ten"},
        {"kind": "linear", "num_timesteps": 10**12},
        {"kind": "linear", "timesteps": 10},
        {"kind": "linear", "beta_end": 1.5},
        {"kind": "linear", "beta_start": 0},
        {"kind": "scaled_linear", "beta_start": -0.1},
        {"kind": "scaled_linear", "beta_end": math.nan},
        {"kind": "cosine", "max_beta": 1.0},
        {"kind": "rectified_flow", "shift": 0},
        {"kind": "edm", "sigma_min": 2.0, "sigma_max": 1.0},
        {"kind": "edm", "rho": 0},
        {"kind": "edm", "sigmas": [2.0, 1.0]},
        {"kind": "edm", "sigmas": [0.0, 1.0]},
        {"kind": "edm", "sigmas": [1.0, 3.0, 2.0]},
        {"kind": "edm", "sigmas": [1.0, 1.0, 2.0]},
        {"kind": "edm", "sigmas": ["a", "b"]},
        {"kind": "edm", "sigmas": [[1.0], [2.0]]},
        {"kind": "explicit"},
        {"kind": "explicit", "betas": ["a"]},
        {"kind": "explicit", "betas": [0.1, 1.1]},
        {"kind": "explicit", "betas": [0.1]},
        {"kind": "explicit", "signal": [0.9, 0.5], "noise": [0.1]},
        {"kind": "explicit", "signal": [0.5, 0.9], "noise": [0.5, 0.1]},
        {"kind": "explicit", "signal": [0.9, math.nan], "noise": [0.1, 0.5]},
        {"kind": "explicit", "signal": [0.9, 0.0], "noise": [0.1, 1.0]},
    ],
    ids=str,
)
def test_a_bad_config_is_refused_in_one_sentence(config):
    with pytest.raises(InputError) as caught:
        NoiseSchedule.from_config(config)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("ends", [(-0.1, 0.02), (0.0, 0.02), (0.01, 1.0), (0.01, math.nan)])
@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.scaled_linear, NoiseSchedule.sigmoid])
def test_betas_outside_zero_to_one_are_refused_where_they_are_given(make, ends):
    with pytest.raises(InputError, match=r"Got betas from .*; expected both between 0 and 1"):
        make(100, *ends)


def diffusers_timesteps(scheduler, steps):
    """Those of diffusers; its trailing spacing adds a timestep −1 where a float step just misses 0: no network takes it."""
    scheduler.set_timesteps(steps)
    timesteps = np.asarray(scheduler.timesteps)
    return timesteps[timesteps >= 0]


@given(
    name=st.sampled_from(["DDIMScheduler", "DDPMScheduler"]),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    data=st.data(),
)
@settings(max_examples=120, deadline=None)
def test_sampler_timesteps_are_those_of_diffusers(schedulers, name, spacing, data):
    num_timesteps = data.draw(st.sampled_from([2, 3, 10, 77, 250, 1000, 4000]))
    steps = data.draw(st.integers(1, num_timesteps))
    scheduler = getattr(schedulers, name)(num_timesteps, timestep_spacing=spacing)
    ours = sampler_timesteps(num_timesteps, steps, spacing)
    np.testing.assert_array_equal(ours, diffusers_timesteps(scheduler, steps))
    assert ours.dtype == np.int64


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 30, 61, 103, 333, 501, 600, 999, 1000])
def test_steps_that_do_not_divide_a_thousand_agree_with_diffusers(schedulers, spacing, steps):
    scheduler = schedulers.DDIMScheduler(1000, timestep_spacing=spacing)
    np.testing.assert_array_equal(sampler_timesteps(1000, steps, spacing), diffusers_timesteps(scheduler, steps))


def test_an_offset_is_the_steps_offset_of_diffusers(schedulers):
    scheduler = schedulers.DDIMScheduler(1000, steps_offset=1)
    np.testing.assert_array_equal(sampler_timesteps(1000, 50, offset=1), diffusers_timesteps(scheduler, 50))


@given(
    num_timesteps=st.integers(2, 2000),
    part=st.floats(0, 1),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
)
@example(num_timesteps=1000, part=0.061, spacing="trailing")  # where diffusers has 62 timesteps, the last of them −1
@settings(max_examples=100, deadline=None)
def test_a_sampler_takes_as_many_distinct_steps_as_were_asked_for(num_timesteps, part, spacing):
    steps = max(1, round(part * num_timesteps))
    timesteps = sampler_timesteps(num_timesteps, steps, spacing)
    assert timesteps.shape == (steps,)
    assert (np.diff(timesteps) < 0).all()
    assert timesteps.min() >= 0
    assert timesteps.max() < num_timesteps


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_impossible_step_counts_are_refused_with_the_range(steps):
    with pytest.raises(InputError, match=rf"Got {steps} sampling steps for 100 .* expected 1 … 100"):
        sampler_timesteps(100, steps)


def test_an_unknown_spacing_is_refused():
    with pytest.raises(InputError, match="Unknown timestep spacing 'karras'; expected leading, trailing or linspace"):
        sampler_timesteps(100, 10, "karras")


def test_a_schedule_leaves_the_arrays_that_it_is_made_of_alone():
    signal, noise = np.array([0.9, 0.5]), np.array([0.1, 0.5])
    schedule = NoiseSchedule(signal, noise)
    signal[0] = 0.8
    assert schedule.signal[0] == 0.9
    with pytest.raises(ValueError, match="read-only"):
        schedule.signal[0] = 0.7
