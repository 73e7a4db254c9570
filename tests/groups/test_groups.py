import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import FileFormatError, InputError
from prunekit.groups import METHODS, TimestepGroup, TimestepGroups, make_groups
from prunekit.schedule import NoiseSchedule

KINDS = ("linear", "scaled_linear", "cosine", "sigmoid", "rectified_flow")


@st.composite
def partitions(draw):
    num_timesteps = draw(st.integers(2, 300))
    cuts = draw(st.sets(st.integers(1, num_timesteps - 1), max_size=8))
    return TimestepGroups.from_cuts(num_timesteps, sorted(cuts))


@given(
    kind=st.sampled_from(KINDS),
    num_timesteps=st.integers(2, 400),
    count=st.integers(1, 400),
    method=st.sampled_from(sorted(METHODS)),
)
@settings(max_examples=150, deadline=None)
def test_every_method_partitions_the_timesteps(kind, num_timesteps, count, method):
    count = min(count, num_timesteps)
    schedule = NoiseSchedule.from_config({"kind": kind, "num_timesteps": num_timesteps})
    groups = make_groups(schedule, count, method)
    assert len(groups) == count
    assert groups.method == method
    assert [t for group in groups for t in range(group.start, group.stop)] == list(range(num_timesteps))
    assert [group.index for group in groups] == list(range(count))
    assert all(len(group) >= 1 for group in groups)


@given(num_timesteps=st.integers(2, 500), count=st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_uniform_groups_differ_by_at_most_one_timestep(num_timesteps, count):
    count = min(count, num_timesteps)
    sizes = [len(group) for group in make_groups(NoiseSchedule.linear(num_timesteps), count)]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes)


def test_uniform_groups_of_a_thousand():
    groups = make_groups(NoiseSchedule.linear(1000), 4)
    assert [(group.start, group.stop) for group in groups] == [(0, 250), (250, 500), (500, 750), (750, 1000)]


@pytest.mark.parametrize("kind", ["linear", "cosine", "rectified_flow"])
def test_snr_groups_span_equal_decibels(kind):
    schedule = NoiseSchedule.from_config({"kind": kind, "num_timesteps": 1000})
    groups = make_groups(schedule, 4, "snr")
    levels = np.linspace(schedule.snr_db[0], schedule.snr_db[-1], 5)[1:-1]
    for cut, level in zip(groups.cuts, levels, strict=True):
        assert schedule.snr_db[cut - 1] > level >= schedule.snr_db[cut]


@given(groups=partitions(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_index_of_names_the_group_that_contains_a_timestep(groups, data):
    timesteps = data.draw(st.lists(st.floats(0, groups.num_timesteps, exclude_max=True), min_size=1, max_size=20))
    for t, index in zip(timesteps, groups.index_of(timesteps), strict=True):
        assert groups[index].start <= t < groups[index].stop
    every = groups.index_of(np.arange(groups.num_timesteps).reshape(1, -1))
    assert every.shape == (1, groups.num_timesteps)
    assert every.dtype == np.int64
    assert np.bincount(every[0]).tolist() == [len(group) for group in groups]


@given(groups=partitions(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_shares_count_the_steps_and_sum_to_one(groups, data):
    timesteps = data.draw(st.lists(st.integers(0, groups.num_timesteps - 1), min_size=1, max_size=50))
    shares = groups.shares(timesteps)
    assert shares.shape == (len(groups),)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    for group, share in zip(groups, shares, strict=True):
        assert share * len(timesteps) == pytest.approx(sum(group.start <= t < group.stop for t in timesteps))


def test_shares_of_no_steps_are_refused():
    with pytest.raises(InputError, match="at least one step"):
        TimestepGroups.from_cuts(10, [5]).shares([])


@given(groups=partitions())
@settings(max_examples=40, deadline=None)
def test_json_and_cuts_make_equal_groups(groups):
    assert TimestepGroups.from_json(json.loads(json.dumps(groups.to_json()))) == groups
    assert TimestepGroups.from_cuts(groups.num_timesteps, groups.cuts) == groups


def test_the_json_form():
    assert TimestepGroups.from_cuts(10, [4]).to_json() == {
        "format": "prunekit-groups/1",
        "num_timesteps": 10,
        "method": "explicit",
        "groups": [{"index": 0, "start": 0, "stop": 4}, {"index": 1, "start": 4, "stop": 10}],
    }


def test_widening_stays_inside_the_timesteps():
    first, middle, last = TimestepGroups.from_cuts(100, [30, 60])
    assert first.widened(20, 100) == (0, 50)
    assert middle.widened(20, 100) == (10, 80)
    assert last.widened(20, 100) == (40, 100)
    assert middle.widened(0, 100) == (30, 60)


@pytest.mark.parametrize("cuts", [[0], [100], [101], [-1], [50, 50], [60, 40]])
def test_cuts_that_do_not_rise_inside_are_refused(cuts):
    with pytest.raises(InputError, match="expected rising integers strictly between 0 and 100"):
        TimestepGroups.from_cuts(100, cuts)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, 0, 40), (1, 50, 100)], "expected a non-empty range that starts at 40"),
        ([(0, 0, 60), (1, 50, 100)], "starts at 60"),
        ([(1, 0, 50), (0, 50, 100)], "with index 1"),
        ([(0, 0, 50), (1, 50, 50), (2, 50, 100)], "non-empty"),
        ([(0, 0, 50)], "end at 50; expected them to cover all 100"),
        ([(0, 0, 150)], "end at 150"),
        ([], "at least one timestep group"),
    ],
)
def test_ranges_that_are_no_partition_are_refused(ranges, message):
    with pytest.raises(InputError, match=message):
        TimestepGroups(100, tuple(TimestepGroup(*range_) for range_ in ranges))


def test_no_timesteps_are_no_partition():
    with pytest.raises(InputError):
        TimestepGroups(0, ())


@pytest.mark.parametrize("index", [-1, 2])
def test_a_group_that_is_not_there_is_refused_with_the_range(index):
    with pytest.raises(InputError, match=rf"no timestep group {index}; expected 0 … 1"):
        TimestepGroups.from_cuts(10, [5])[index]


@pytest.mark.parametrize("count", [0, -1, 101])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_an_impossible_count_is_refused_with_the_range(count, method):
    with pytest.raises(InputError, match=rf"Got {count} timestep groups for 100 timesteps; expected 1 … 100"):
        make_groups(NoiseSchedule.linear(100), count, method)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'kmeans'; expected one of snr, uniform"):
        make_groups(NoiseSchedule.linear(100), 4, "kmeans")


@pytest.mark.parametrize(
    "change",
    [
        {"groups": None},
        {"groups": []},
        {"groups": [1, 2]},
        {"groups": [{"index": 0, "start": 0}]},
        {"groups": [{"index": 0, "start": 0, "stop": "10"}]},
        {"groups": [{"index": 0, "start": 0, "stop": 9.9}]},
        {"groups": [{"index": 0, "start": 1, "stop": 10}]},
        {"num_timesteps": None},
        {"num_timesteps": 11},
        {"num_timesteps": 10.0},
    ],
    ids=str,
)
def test_a_file_that_is_no_partition_is_refused(change):
    data = TimestepGroups.from_cuts(10, [5]).to_json()
    with pytest.raises(FileFormatError, match="make the file again with `prunekit groups`"):
        TimestepGroups.from_json({**data, **change})


@pytest.mark.parametrize("key", ["groups", "num_timesteps"])
def test_a_file_without_a_key_is_refused(key):
    data = TimestepGroups.from_cuts(10, [5]).to_json()
    del data[key]
    with pytest.raises(FileFormatError, match=key):
        TimestepGroups.from_json(data)
