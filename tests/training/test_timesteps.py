"""One table of timestep samplers, one suite for all of them: a new sampler is one more row."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Generator, Tensor

from prunekit.errors import InputError
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.training import (
    AsymmetricTimesteps,
    GaussianCurriculum,
    LogNormalTimesteps,
    LossSecondMoment,
    NoiseRateCurriculum,
    RangeTimesteps,
    StageTimesteps,
    StatedSampler,
    TimestepSampler,
    Weighted,
    described,
    group_timesteps,
    min_snr,
)

T = 1000
TARGET = 1000
SCHEDULE = NoiseSchedule.cosine(T)
GROUP = group_timesteps(TimestepGroup(1, 200, 400), T, 20)
STAGES = TimestepGroups.from_cuts(T, [100, 400])
DRAWS = 20_000
SMALLEST_P = 1e-3  # a right sampler fails once in a thousand seeds, and this one is fixed

Density = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A sampler, and its distribution over 0 … T−1 at each train step, worked out here anew.

    ``batch`` is how many draws a call may give where those of one batch are not independent.
    """

    name: str
    sampler: TimestepSampler
    stated: Callable[[int], Density]
    batch: int = DRAWS


def even(start: int = 0, stop: int = T) -> Density:
    return np.where((np.arange(T) >= start) & (np.arange(T) < stop), 1 / (stop - start), 0.0)


def normal(density: Density, within: Density) -> Density:
    """A density, normalised where ``within`` is above 0."""
    inside = np.where(within > 0, density, 0.0)
    return inside / inside.sum()


def ramp(step: int) -> float:
    return min(1.0, step / TARGET)


def gaussian(step: int, mean: float = 300.0, width: float = 300.0, within: Density | None = None) -> Density:
    uniform = even() if within is None else within
    bell = stats.norm.pdf(np.arange(T), mean, width)
    return ramp(step) * normal(bell, uniform) + (1 - ramp(step)) * uniform


def noise_rate(step: int) -> Density:
    eased = 1 - 0.8 * SCHEDULE.noise
    share = 0.5 * (1 - np.cos(np.pi * ramp(step)))
    return share * normal(eased, even()) + (1 - share) * even()


def asymmetric(within: Density) -> Density:
    return normal(np.where(np.arange(T) < 700, 5.0, 1.0), within)


def size(timesteps: Tensor) -> Tensor:
    """Losses by timestep that the second-moment samplers were taught."""
    return 2 - 1.5 * torch.cos(timesteps / 150)


def taught(within: RangeTimesteps) -> LossSecondMoment:
    sampler = LossSecondMoment(within)
    timesteps = torch.arange(within.start, within.stop).repeat(10)
    sampler.learn(timesteps, size(timesteps))
    return sampler


def second_moment(within: Density) -> Density:
    return 0.999 * normal(size(torch.arange(T)).numpy().astype(float), within) + 0.001 * within


CASES = [
    Case("whole range", RangeTimesteps(0, T), lambda step: even()),
    Case("inner range", RangeTimesteps(200, 437, T), lambda step: even(200, 437)),
    Case("group with overlap", GROUP, lambda step: even(180, 420)),
    Case("gaussian", GaussianCurriculum(T, TARGET), gaussian),
    Case("narrow gaussian", GaussianCurriculum(T, TARGET, 0.5, 0.01), lambda step: gaussian(step, 500, 10)),
    Case(
        "gaussian of a group",
        GaussianCurriculum(T, TARGET, within=GROUP),
        lambda step: gaussian(step, within=even(180, 420)),
    ),
    Case("noise rate", NoiseRateCurriculum(SCHEDULE, TARGET, pace="cosine"), noise_rate),
    Case("asymmetric", AsymmetricTimesteps(T), lambda step: asymmetric(even())),
    Case(
        "asymmetric of a group",
        AsymmetricTimesteps(T, within=RangeTimesteps(600, 800)),
        lambda step: asymmetric(even(600, 800)),
    ),
    Case("second moment, untaught", LossSecondMoment(RangeTimesteps(0, T)), lambda step: even()),
    Case("second moment", taught(RangeTimesteps(0, T)), lambda step: second_moment(even())),
    Case("second moment of a group", taught(GROUP), lambda step: second_moment(even(180, 420))),
    Case("weighted", Weighted(GaussianCurriculum(T, TARGET), min_snr(Parameterization(SCHEDULE))), gaussian),
    Case(
        "stages, uniform",
        StageTimesteps(STAGES, "uniform"),
        lambda step: (even(0, 100) + even(100, 400) + even(400, T)) / 3,
        batch=1,
    ),
    Case("stages, proportional", StageTimesteps(STAGES, "proportional"), lambda step: even(), batch=1),
    Case(
        "stages, mixed",
        StageTimesteps(STAGES, "mixed"),
        lambda step: (even(0, 100) + even(100, 400) + even(400, T)) / 3,
        batch=DRAWS + 1,
    ),
]
every_sampler = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
every_step = pytest.mark.parametrize("train_step", [0, 350, TARGET, 10 * TARGET])


def draws(case: Case, train_step: int) -> NDArray[np.int64]:
    generator = Generator().manual_seed(0)
    calls = 1 if case.batch >= DRAWS else DRAWS // 5 // case.batch
    return torch.cat([case.sampler.sample(case.batch, train_step, generator)[0] for _ in range(calls)]).numpy()


def chance(timesteps: NDArray[np.int64], stated: Density) -> float:
    """p-value of the chi-square test that draws follow a distribution; neighbours are joined into cells of 5 expected draws."""
    if (stated[timesteps] == 0).any():
        return 0.0
    expected = len(timesteps) * np.cumsum(stated)
    cells, reached = np.zeros(T, dtype=np.int64), 0.0
    for t in range(1, T):
        full = expected[t - 1] - reached >= 5 and expected[-1] - expected[t - 1] >= 5
        cells[t] = cells[t - 1] + full
        reached = expected[t - 1] if full else reached
    count = int(cells[-1]) + 1
    observed = np.bincount(cells[timesteps], minlength=count)
    wanted = np.bincount(cells, weights=stated, minlength=count) * len(timesteps)
    assert wanted.min() >= 5 - 1e-9
    return float(stats.chisquare(observed, wanted).pvalue)


@every_sampler
@every_step
def test_timesteps_and_weights_have_their_types_and_ranges(case, train_step):
    timesteps, weights = case.sampler.sample(257, train_step, Generator().manual_seed(0))
    assert (timesteps.shape, weights.shape) == ((257,), (257,))
    assert (timesteps.dtype, weights.dtype) == (torch.int64, torch.float32)
    assert (case.stated(train_step)[timesteps.numpy()] > 0).all()
    assert weights.isfinite().all()
    assert (weights > 0).all()
    assert isinstance(case.sampler, TimestepSampler)


@every_sampler
@every_step
def test_the_distribution_is_proper_and_the_one_that_was_meant(case, train_step):
    assert isinstance(case.sampler, StatedSampler)
    found = case.sampler.probabilities(train_step)
    assert found.dtype == torch.float64
    assert found.shape == (T,)
    assert (found >= 0).all()
    assert abs(float(found.sum()) - 1) < 1e-12
    np.testing.assert_allclose(found.numpy(), case.stated(train_step), rtol=1e-6, atol=1e-12)


@every_sampler
@every_step
def test_draws_follow_the_stated_distribution(case, train_step):
    timesteps = draws(case, train_step)
    stated = case.stated(train_step)
    assert chance(timesteps, stated) > SMALLEST_P
    support = np.flatnonzero(stated)
    if len(support) < 300:  # many draws each: both ends must be there
        assert (timesteps.min(), timesteps.max()) == (support[0], support[-1])


@pytest.mark.parametrize("wrong", [{"width": 0.34}, {"mean": 0.33}, {"target_step": 1200}])
def test_the_check_notices_a_sampler_that_is_a_little_off(wrong):
    options = {"num_timesteps": T, "target_step": TARGET, "mean": 0.3, "width": 0.3, **wrong}
    case = Case("off", GaussianCurriculum(**options), gaussian)
    assert chance(draws(case, 900), gaussian(900)) < SMALLEST_P


@every_sampler
def test_draws_come_from_the_generator_alone(case):
    before = torch.get_rng_state()
    first, weights = case.sampler.sample(64, 400, Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, same = case.sampler.sample(64, 400, Generator().manual_seed(1))
    other, _ = case.sampler.sample(64, 400, Generator().manual_seed(2))
    torch.set_rng_state(before)
    assert torch.equal(first, again)
    assert torch.equal(weights, same)
    assert not torch.equal(first, other)


@every_sampler
def test_it_describes_itself_in_json(case):
    description = described(case.sampler)
    assert description
    assert json.loads(json.dumps(description)) == description


def test_descriptions_tell_samplers_apart():
    told = [json.dumps([type(case.sampler).__name__, described(case.sampler)]) for case in CASES]
    doubles = {"second moment"}  # what was learnt is state and no part of a description
    distinct = [text for case, text in zip(CASES, told, strict=True) if case.name not in doubles]
    assert len(set(distinct)) == len(distinct)


def test_a_ranges_description_is_what_checkpoints_have_of_it():
    assert described(RangeTimesteps(3, 9, 20)) == {"start": 3, "stop": 9}


@pytest.mark.parametrize(
    ("group", "overlap", "expected"),
    [
        (TimestepGroup(0, 0, 200), 20, RangeTimesteps(0, 220)),
        (TimestepGroup(2, 400, 600), 20, RangeTimesteps(380, 620)),
        (TimestepGroup(4, 800, 1000), 20, RangeTimesteps(780, 1000)),
        (TimestepGroup(4, 800, 1000), 0, RangeTimesteps(800, 1000)),
        (TimestepGroup(1, 200, 400), 5000, RangeTimesteps(0, 1000)),
    ],
)
def test_a_group_is_widened_by_the_overlap_and_kept_inside(group, overlap, expected):
    found = group_timesteps(group, T, overlap)
    assert found == expected
    assert found.num_timesteps == T


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (6, 5)])
def test_an_empty_or_negative_range_is_refused(start, stop):
    with pytest.raises(InputError, match=rf"\[{start}, {stop}\).*start < stop"):
        RangeTimesteps(start, stop)


def test_a_range_beyond_the_timesteps_is_refused():
    with pytest.raises(InputError, match=r"\[5, 30\) of 20.*num_timesteps"):
        RangeTimesteps(5, 30, 20)
    for make in (
        lambda within: GaussianCurriculum(20, 5, within=within),
        lambda within: AsymmetricTimesteps(20, within=within),
        lambda within: NoiseRateCurriculum(NoiseSchedule.cosine(20), 5, within=within),
    ):
        with pytest.raises(InputError, match=r"\[5, 30\) of 20"):
            make(RangeTimesteps(5, 30))


def test_the_ends_of_the_unit_interval_fall_on_the_ends_of_the_support(monkeypatch):
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: ends)
    generator = Generator()
    for case in CASES:
        if not isinstance(case.sampler, RangeTimesteps | StageTimesteps):  # which draw integers and stages
            support = np.flatnonzero(case.sampler.probabilities(350).numpy())
            assert case.sampler.sample(2, 350, generator)[0].tolist() == [support[0], support[-1]]


def test_a_range_of_one_timestep_gives_no_other():
    timesteps, _ = AsymmetricTimesteps(T, within=RangeTimesteps(500, 501)).sample(10_000, 0, Generator().manual_seed(0))
    assert (timesteps == 500).all()


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (GaussianCurriculum(T, TARGET), [33, 257, 702, 162]),
        (NoiseRateCurriculum(SCHEDULE, TARGET), [25, 227, 720, 134]),
        (AsymmetricTimesteps(T), [25, 217, 587, 132]),
        (LogNormalTimesteps.of_edm(NoiseSchedule.linear(T)), [6, 43, 204, 26]),
        (taught(RangeTimesteps(200, 400, T)), [210, 273, 363, 247]),
    ],
)
def test_draws_are_those_of_earlier_versions(sampler, expected):
    """Trainings that were interrupted go on with the same batches."""
    timesteps, weights = sampler.sample(4, 350, Generator().manual_seed(3))
    assert timesteps.tolist() == expected
    own = sampler.probabilities(350)[timesteps]
    assert torch.equal(weights, (1 / (200 * own)).float() if isinstance(sampler, LossSecondMoment) else torch.ones(4))
