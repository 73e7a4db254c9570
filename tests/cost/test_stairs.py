"""Finding the blocks of a layer's kernel from its times, and the multiples of a channel group's width that pay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.cost.stairs import BLOCKS, block_of, multiple_of, on_stair, probed_widths


@pytest.mark.parametrize("block", BLOCKS)
def test_the_block_behind_noisy_times_is_found(block):
    rng = np.random.default_rng(block)
    widths = probed_widths(1, 128)
    times = 1e-4 + 1e-6 * on_stair(widths, block) * rng.normal(1, 0.01, len(widths))
    assert block_of(widths, times) == block


def test_a_single_time_that_is_far_off_does_not_hide_the_block():
    widths = probed_widths(1, 128)
    times = 1e-6 * on_stair(widths, 16)
    times[3] *= 2
    assert block_of(widths, times) == 16


@given(st.integers(0, 2**32 - 1))
def test_times_that_rise_evenly_have_no_blocks(seed):
    widths = probed_widths(1, 128)
    times = 1e-6 * widths * np.random.default_rng(seed).normal(1, 0.005, len(widths))
    assert block_of(widths, times) in (1, 4)


def test_short_axes_are_not_probed():
    assert len(probed_widths(4, 8)) == 0
    assert block_of(probed_widths(4, 8), np.zeros(0)) == 1


def test_probed_widths_are_within_the_axis():
    for least, most in ((1, 128), (32, 512), (200, 256), (120, 128)):
        widths = probed_widths(least, most)
        assert (widths >= least).all()
        assert (widths <= most).all()


@pytest.mark.parametrize(("block", "expected"), [(1, 8), (8, 8), (16, 16), (32, 32), (64, 64)])
def test_the_largest_multiple_that_pays_is_chosen(block, expected):
    widths = np.arange(256, 0, -8)
    times = np.rint(1e6 + 1e4 * on_stair(widths, block)).astype(np.int64)
    assert multiple_of(widths, times, [8, 16, 32, 64]) == expected


def test_a_small_part_of_the_time_that_falls_evenly_does_not_matter():
    widths = np.arange(256, 0, -8)
    times = np.rint(1e4 * on_stair(widths, 32) + 1e3 * widths).astype(np.int64)
    assert multiple_of(widths, times, [8, 16, 32]) == 32


def test_widths_without_a_time_of_their_own_keep_the_first_multiple():
    assert multiple_of(np.arange(64, 0, -8), np.full(8, 5), [8, 16, 32]) == 8
