from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.groups import TimestepGroup
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.training import (
    AsymmetricTimesteps,
    GaussianCurriculum,
    NoiseRateCurriculum,
    TrainOptions,
    group_timesteps,
    timestep_sampler,
)
from prunekit.training.curriculum import paced

PACES = st.sampled_from(["linear", "cosine"])


@st.composite
def groups_of(draw, least=2):
    """T and the timesteps of an expert."""
    total = draw(st.integers(least, 400))
    start = draw(st.integers(0, total - 1))
    group = TimestepGroup(0, start, draw(st.integers(start + 1, total)))
    return total, group_timesteps(group, total, draw(st.integers(0, 20)))


def assert_proper(probabilities, within):
    assert probabilities.dtype == torch.float64
    assert (probabilities >= 0).all()
    assert abs(float(probabilities.sum()) - 1) < 1e-9
    inside = float(probabilities[within.start : within.stop].sum())
    assert abs(inside - 1) < 1e-9


@given(
    groups_of(),
    st.integers(1, 10**6),
    st.floats(0, 1),
    st.floats(1e-6, 1e6),
    st.integers(0, 10**7),
    PACES,
)
def test_the_gaussian_is_proper_for_every_mean_width_and_step(case, target, mean, width, step, pace):
    total, within = case
    curriculum = GaussianCurriculum(total, target, mean, width, pace, within)
    assert_proper(curriculum.probabilities(step), within)


@given(
    groups_of(),
    st.sampled_from([NoiseSchedule.linear, NoiseSchedule.cosine, NoiseSchedule.edm, NoiseSchedule.rectified_flow]),
    st.floats(1e-3, 1),
    st.integers(0, 2000),
    PACES,
)
def test_noisier_timesteps_are_never_likelier_and_become_rarer(case, schedule_of, floor, step, pace):
    total, within = case
    curriculum = NoiseRateCurriculum(schedule_of(total), 1000, floor, pace, within)
    now, later = curriculum.probabilities(step), curriculum.probabilities(step + 500)
    assert_proper(now, within)
    inside = slice(within.start, within.stop)
    assert (now[inside].diff() <= 1e-15).all()
    assert now[within.stop - 1] >= later[within.stop - 1] - 1e-15  # the noisiest
    assert now[within.start] <= later[within.start] + 1e-15  # the cleanest
    assert now[within.stop - 1] >= (floor - 1e-9) * now[within.start]


@given(groups_of(), st.floats(0.01, 1), st.floats(1, 1e6))
def test_the_asymmetric_draw_is_proper_for_every_boundary_and_intensity(case, boundary, intensity):
    total, within = case
    assert_proper(AsymmetricTimesteps(total, boundary, intensity, within).probabilities(0), within)


def test_the_asymmetric_draw_is_speeds_formula():
    found = AsymmetricTimesteps(1000).probabilities(0)
    torch.testing.assert_close(found[:700], torch.full((700,), 5 / (1000 + 700 * 4), dtype=torch.float64))
    torch.testing.assert_close(found[700:], torch.full((300,), 1 / (1000 + 700 * 4), dtype=torch.float64))


def test_the_pace_is_worked_out_by_hand():
    assert [paced("linear", step, 200) for step in (0, 50, 200, 999)] == [0, 0.25, 1, 1]
    assert np.allclose([paced("cosine", step, 300) for step in (0, 100, 150, 300, 999)], [0, 0.25, 0.5, 1, 1])


def test_the_default_width_leaves_the_noisiest_timestep_a_tenth_of_its_uniform_share():
    end = 1000 * GaussianCurriculum(1000, 1).probabilities(1)
    assert 0.1 < end[999] < 0.11
    assert 0.9 < end[0] < 1
    assert int(end.argmax()) == 300


def test_the_noise_rate_is_the_coefficient_of_the_noise_and_reads_other_schedules_at_their_snr():
    cosine = NoiseSchedule.cosine(50)
    np.testing.assert_allclose(NoiseRateCurriculum(cosine, 1).noise_rate, cosine.noise, rtol=1e-9)
    edm = NoiseSchedule.from_sigmas(cosine.sigma)
    np.testing.assert_allclose(NoiseRateCurriculum(edm, 1).noise_rate, cosine.noise, rtol=1e-9)
    found = NoiseRateCurriculum(cosine, 1, floor=0.25).probabilities(1)
    assert float(found[49] / found[0]) == pytest.approx((1 - 0.75 * cosine.noise[49]) / (1 - 0.75 * cosine.noise[0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianCurriculum(10, 0), "after 0 train steps.*at least 1"),
        (lambda: GaussianCurriculum(10, 5, pace="square"), "'square'.*linear, cosine"),
        (lambda: GaussianCurriculum(10, 5, mean=1.2), "mean 1.2.*\\[0, 1\\]"),
        (lambda: GaussianCurriculum(10, 5, width=0), "width 0.*at least 1e-06"),
        (lambda: GaussianCurriculum(10, 5, width=float("nan")), "width nan"),
        (lambda: NoiseRateCurriculum(NoiseSchedule.cosine(10), 5, floor=0), "floor 0.*\\(0, 1\\]"),
        (lambda: AsymmetricTimesteps(10, boundary=0), "boundary 0 .*\\(0, 1\\]"),
        (lambda: AsymmetricTimesteps(10, intensity=0.5), "intensity 0.5.*at least 1"),
    ],
)
def test_what_makes_no_distribution_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_the_options_place_the_gaussian():
    options = TrainOptions(
        steps=10,
        timestep_sampler="gaussian-curriculum",
        curriculum_share=1.0,
        curriculum_center=0.5,
        curriculum_width=0.1,
    )
    sampler = timestep_sampler(options, Parameterization(NoiseSchedule.linear(100)))
    assert sampler.probabilities(10).argmax() == 50
    expected = GaussianCurriculum(100, 10, 0.5, 0.1).probabilities(10)
    assert torch.equal(sampler.probabilities(10), expected)
    for wrong in ({"curriculum_center": 1.5}, {"curriculum_width": 0.0}, {"curriculum_width": -1.0}):
        with pytest.raises(InputError, match=r"a centre in \[0, 1\] and a width in"):
            replace(options, **wrong)
