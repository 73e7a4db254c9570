"""Exact partitions: as cheap as the cheapest of all, whatever the cost."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.groups.segmentation import FINEST, best_intervals, dissimilarity_costs, finely, partition_cost
from prunekit.schedule import NoiseSchedule


def every(nodes, count):
    return itertools.combinations(range(1, nodes), count - 1)


@given(nodes=st.integers(1, 9), count=st.integers(1, 9), seed=st.integers(0, 999), whole=st.booleans())
@settings(max_examples=120, deadline=None)
def test_no_partition_is_cheaper(nodes, count, seed, whole):
    count, random = min(count, nodes), np.random.default_rng(seed)
    costs = random.standard_normal((nodes + 1, nodes + 1))
    if whole:  # whole numbers add up exactly, and make ties
        costs = np.round(2 * costs)
    found = best_intervals(costs, count)
    assert len(found) == count - 1
    assert partition_cost(costs, found) == pytest.approx(
        min(partition_cost(costs, cuts) for cuts in every(nodes, count))
    )
    if whole:
        least = partition_cost(costs, found)
        equal = [cuts for cuts in every(nodes, count) if partition_cost(costs, cuts) == least]
        assert found == min(equal, key=lambda cuts: cuts[::-1])  # the last border first


@pytest.mark.parametrize("count", [0, -1, 6])
def test_an_impossible_count_is_refused(count):
    with pytest.raises(InputError, match=rf"Got {count} intervals for 5 nodes; expected 1 … 5"):
        best_intervals(np.zeros((6, 6)), count)


@given(nodes=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_cost_of_an_interval_is_its_length_times_its_mean_dissimilarity(nodes, seed):
    half = np.random.default_rng(seed).uniform(-1, 1, (nodes, nodes))
    similarity = (half + half.T) / 2
    costs = dissimilarity_costs(similarity)
    for i, j in itertools.combinations(range(nodes + 1), 2):
        assert costs[i, j] == pytest.approx((j - i) * (1 - similarity[i:j, i:j]).mean(), abs=1e-12)


def test_blocks_that_are_alike_are_found():
    similarity = np.full((12, 12), 0.2)
    for start, stop in [(0, 3), (3, 9), (9, 12)]:
        similarity[start:stop, start:stop] = 1.0
    costs = dissimilarity_costs(similarity)
    assert best_intervals(costs, 3) == (3, 9)
    assert partition_cost(costs, (3, 9)) == pytest.approx(0)


def test_any_cost_will_do_such_as_the_spread_of_decibels():
    snr_db = NoiseSchedule.cosine(60).snr_db
    costs = np.zeros((61, 61))
    for i, j in itertools.combinations(range(61), 2):
        costs[i, j] = snr_db[i:j].var() * (j - i)
    cuts = best_intervals(costs, 3)
    assert partition_cost(costs, cuts) == pytest.approx(min(partition_cost(costs, one) for one in every(60, 3)))


def test_between_nodes_curves_and_maps_are_linear_and_nodes_keep_their_values():
    at = np.array([0, 4, 9])
    fine = finely(np.array([0.0, 4.0, -1.0]), at, 10)
    np.testing.assert_allclose(fine, [0, 1, 2, 3, 4, 3, 2, 1, 0, -1], atol=1e-12)
    half = np.random.default_rng(0).uniform(0, 1, (3, 3))
    whole = finely(half + half.T, at, 10)
    np.testing.assert_allclose(whole[np.ix_(at, at)], half + half.T)
    np.testing.assert_allclose(whole, whole.T)
    assert finely(np.array([0.5]), np.array([3]), 10).tolist() == [0.5] * 10


def test_more_timesteps_than_the_finest_are_looked_at_in_their_middles():
    timesteps = 4 * FINEST
    fine = finely(np.array([0.0, timesteps - 1.0]), np.array([0, timesteps - 1]), timesteps)
    assert len(fine) == FINEST
    np.testing.assert_allclose(fine[:2], [1.5, 5.5])
