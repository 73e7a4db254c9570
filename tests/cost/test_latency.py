import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.cost import LatencyOptions, LatencyTable
from prunekit.cost.layer_times import LayerOp, LayerTimes
from prunekit.errors import BudgetError, FileFormatError, InputError
from prunekit.search import Measure, WidthProblem, lost_importance, meet_target

OPTIONS = LatencyOptions(batch_size=2, grid=3, repeats=1, fits=1, checks=2)


@pytest.fixture(scope="module")
def measured(bench):
    """A network's table, measured once: its figures are this machine's, what holds of them is not."""
    tiny = bench("unet")
    return tiny, LatencyTable.of(tiny.model, tiny.graph, tiny.cost, tiny.inputs, OPTIONS)


@pytest.fixture(scope="module")
def smooth(measured):
    """The same with times that no noise touches: proportional to each layer's work, with a constant."""
    tiny, table = measured
    times = [dataclasses.replace(one, seconds=1e-5 + 1e-7 * np.outer(one.inner, one.outer)) for one in table.times]
    return tiny, dataclasses.replace(table, times=tuple(times), rest=(1.1, 1e-4, 1e-9))


def test_every_layer_has_a_table_and_layers_of_one_kind_share_it(measured):
    tiny, table = measured
    expected = {name for name, macs in tiny.cost.by_module(tiny.graph.full_widths).items() if macs}
    assert set(table.layers) == expected
    assert len(table.times) < len(table.layers)
    assert {used.table for used in table.layers.values()} == set(range(len(table.times)))


def test_a_table_says_where_it_was_measured_and_how_well_it_predicts(measured):
    _, table = measured
    assert set(table.machine) == {"torch", "threads", "device", "processor"}
    assert table.machine["threads"] == torch.get_num_threads()
    assert table.batch_size == 2
    assert len(table.checks) == 2
    for check in table.checks:
        assert 0 < check.mac_ratio < 1
        assert check.measured > 0
        assert check.error == pytest.approx(check.predicted / check.measured - 1)
    assert table.error >= 0


def test_measuring_leaves_the_network_as_it_was(bench):
    tiny = bench("conv")
    model = tiny.copy().train()
    state = copy.deepcopy(model.state_dict())
    LatencyTable.of(model, tiny.graph, tiny.cost, tiny.inputs, OPTIONS)
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_json_and_back_predicts_the_same(measured):
    tiny, table = measured
    again = LatencyTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again.to_json() == table.to_json()
    widths = np.array([tiny.graph.full_widths, tiny.smallest])
    ours, theirs = (one.bind(tiny.graph, tiny.cost).nanoseconds(widths) for one in (table, again))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "prunekit-latency/0"),
        ("times", []),
        ("layers", None),
        ("rest", {}),
        ("rest", {"layer_scale": -1.0, "seconds": 0.0, "seconds_per_value": 0.0}),
        ("batch_size", "two"),
        ("checks", [{}]),
    ],
)
def test_broken_tables_are_refused(measured, key, value):
    data = {**measured[1].to_json(), key: value}
    with pytest.raises(FileFormatError, match=r"somewhere\.json"):
        LatencyTable.from_json(data, "somewhere.json")


def test_a_table_of_another_network_or_norm_mode_is_refused(bench, measured):
    table = measured[1]
    for other in (bench("conv"), bench("unet", "whole")):
        with pytest.raises(InputError, match="another network or norm mode"):
            table.bind(other.graph, other.cost)


def test_wider_is_never_faster(measured):
    tiny, table = measured
    model = table.bind(tiny.graph, tiny.cost)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        widths = np.array([rng.choice(group.widths) for group in tiny.graph])
        narrower = np.array([rng.choice(g.widths[g.widths <= w]) for g, w in zip(tiny.graph, widths, strict=True)])
        assert model.nanoseconds(narrower) <= model.nanoseconds(widths)


def test_many_plans_at_once_are_the_plans_one_by_one(measured):
    tiny, table = measured
    model = table.bind(tiny.graph, tiny.cost)
    rng = np.random.default_rng(0)
    widths = np.array([[rng.choice(group.widths) for group in tiny.graph] for _ in range(6)])
    at_once = model.nanoseconds(widths.reshape(2, 3, -1))
    np.testing.assert_array_equal(at_once.ravel(), [model.nanoseconds(one) for one in widths])


@given(st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True), st.floats(0, 80))
def test_interpolation_is_exact_for_what_is_bilinear_and_stays_within_the_table(widths, at):
    grid = np.array(sorted(widths))
    table = LayerTimes(LayerOp("linear", (1,)), grid, grid, np.outer(grid, grid).astype(float))
    inside = float(np.clip(at, grid[0], grid[-1]))
    assert table(np.array([at]), np.array([inside]))[0] == pytest.approx(inside * inside)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.5, 0.99), st.integers(0, 100))
def test_targets_of_latency_are_met_and_never_exceeded(smooth, ratio, seed):
    tiny, table = smooth
    measure = Measure.by_name("latency", tiny.cost, table.bind(tiny.graph, tiny.cost))
    full, least = int(measure.of(tiny.graph.full_widths)), int(measure.of(tiny.smallest))
    rng = np.random.default_rng(seed)
    lost = lost_importance(tiny.graph, {group.name: rng.random(group.size) for group in tiny.graph})
    target = int(least + ratio * (full - least))
    task = WidthProblem(tiny.graph, tiny.cost, lost, target, int(0.001 * full), measure)
    steps = meet_target(task)
    assert 0 <= task.target - int(task.spent(steps)) <= 0.01 * full


def test_a_latency_out_of_reach_is_refused_with_the_range_in_nanoseconds(smooth):
    tiny, table = smooth
    measure = Measure.by_name("latency", tiny.cost, table.bind(tiny.graph, tiny.cost))
    lost = [np.zeros(len(group.widths)) for group in tiny.graph]
    with pytest.raises(BudgetError, match="target of 5 ns is below") as caught:
        meet_target(WidthProblem(tiny.graph, tiny.cost, lost, 5, 0, measure))
    assert caught.value.feasible == (int(measure.of(tiny.smallest)), int(measure.of(tiny.graph.full_widths)))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"repeats": 0}, {"grid": 1}, {"checks": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError):
        LatencyOptions(**options)
