"""One table of timestep samplers, one suite for all of them: a new sampler is one more row."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Generator

from prunekit.errors import InputError
from prunekit.groups import TimestepGroup
from prunekit.training import RangeTimesteps, TimestepSampler, group_timesteps

T = 1000
# 0.999 quantile of chi-square with 9 degrees of freedom: a right sampler fails once in a thousand seeds, and this one is fixed
CHI_SQUARE_999 = 27.88


@dataclass(frozen=True)
class Case:
    """A sampler and the distribution over 0 … T−1 that it states."""

    name: str
    sampler: TimestepSampler
    stated: NDArray[np.float64]


def uniform(start: int, stop: int) -> NDArray[np.float64]:
    density = np.zeros(T)
    density[start:stop] = 1 / (stop - start)
    return density


CASES = [
    Case("whole range", RangeTimesteps(0, T), uniform(0, T)),
    Case("inner range", RangeTimesteps(200, 437), uniform(200, 437)),
    Case("group with overlap", group_timesteps(TimestepGroup(1, 200, 400), T, 20), uniform(180, 420)),
]
every_sampler = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
every_step = pytest.mark.parametrize("train_step", [0, 10_000])


@every_sampler
@every_step
def test_timesteps_and_weights_have_their_types_and_ranges(case, train_step):
    timesteps, weights = case.sampler.sample(257, train_step, Generator().manual_seed(0))
    assert (timesteps.shape, weights.shape) == ((257,), (257,))
    assert (timesteps.dtype, weights.dtype) == (torch.int64, torch.float32)
    assert (case.stated[timesteps.numpy()] > 0).all()
    assert (weights > 0).all()
    assert isinstance(case.sampler, TimestepSampler)


@every_sampler
@every_step
def test_draws_follow_the_stated_distribution(case, train_step):
    draws = 20_000
    timesteps, _ = case.sampler.sample(draws, train_step, Generator().manual_seed(0))
    cells = np.minimum((np.cumsum(case.stated) - case.stated / 2) * 10, 9).astype(int)  # ten cells of about equal mass
    expected = draws * np.bincount(cells, weights=case.stated, minlength=10)
    observed = np.bincount(cells[timesteps.numpy()], minlength=10)
    assert ((observed - expected) ** 2 / expected).sum() < CHI_SQUARE_999
    support = np.flatnonzero(case.stated)
    if len(support) < 300:  # many draws each: both ends must be there
        assert (timesteps.min(), timesteps.max()) == (support[0], support[-1])


@every_sampler
def test_draws_come_from_the_generator_alone(case):
    before = torch.get_rng_state()
    first, _ = case.sampler.sample(64, 0, Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, _ = case.sampler.sample(64, 0, Generator().manual_seed(1))
    other, _ = case.sampler.sample(64, 0, Generator().manual_seed(2))
    torch.set_rng_state(before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


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
    assert group_timesteps(group, T, overlap) == expected


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (6, 5)])
def test_an_empty_or_negative_range_is_refused(start, stop):
    with pytest.raises(InputError, match=rf"\[{start}, {stop}\).*start < stop"):
        RangeTimesteps(start, stop)
