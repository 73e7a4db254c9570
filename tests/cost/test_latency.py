import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.cost import CostModel, LatencyModel, LatencyOptions, LatencyTable
from prunekit.cost.latency_model import Rest
from prunekit.cost.layer_times import LayerOp, LayerTimes
from prunekit.errors import BudgetError, FileFormatError, InputError
from prunekit.graph import trace
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
    times = [
        dataclasses.replace(one, seconds=1e-5 + 1e-7 * np.outer(one.inner, one.outer), blocks=(1, 1))
        for one in table.times
    ]
    return tiny, dataclasses.replace(table, times=tuple(times), rest=Rest(1.1, 1e-4, 1e-9))


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
    assert 0 <= table.error <= table.worst


def test_a_sentence_names_the_batch_size_the_machine_and_the_error(measured):
    _, table = measured
    said = table.describe()
    assert "batches of 2 in float32 on " in said
    assert "not this machine" not in said
    assert f"off by {table.error:.1%} in the median of random plans, {table.worst:.1%} at worst" in said
    elsewhere = dataclasses.replace(
        table, machine={"torch": "2.9", "threads": 8, "device": "cuda", "processor": "A GPU"}, checks=()
    )
    said = elsewhere.describe()
    assert "on A GPU (cuda, threads: 8, torch 2.9), which is not this machine; its prediction is unchecked." in said
    assert elsewhere.about()["machine"]["processor"] == "A GPU"


def test_a_table_of_another_machine_plans_like_one_of_this(smooth):
    tiny, table = smooth
    other = dataclasses.replace(table, machine={"torch": "2.9", "threads": 8, "device": "cuda", "processor": "A GPU"})
    read = LatencyTable.from_json(json.loads(json.dumps(other.to_json())))
    widths = np.array([tiny.graph.full_widths, tiny.smallest])
    ours, theirs = (one.bind(tiny.graph, tiny.cost).nanoseconds(widths) for one in (table, read))
    np.testing.assert_array_equal(ours, theirs)


def test_a_network_is_timed_in_another_type_on_a_copy(bench):
    tiny = bench("conv")
    model = tiny.copy()
    options = dataclasses.replace(OPTIONS, dtype="bfloat16", device="cpu", fits=0, checks=0)
    table = LatencyTable.of(model, tiny.graph, tiny.cost, tiny.inputs, options)
    assert table.dtype == "bfloat16"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_compiled_networks_are_compiled_one_by_one(bench, monkeypatch):
    tiny, made = bench("conv"), []

    def compiled(run, *, dynamic):
        assert not dynamic
        made.append(run)
        return run

    monkeypatch.setattr(torch, "compile", compiled)
    options = dataclasses.replace(OPTIONS, compiled=True)
    table = LatencyTable.of(tiny.model, tiny.graph, tiny.cost, tiny.inputs, options)
    assert table.compiled
    assert len(made) == 3 + options.fits + options.checks
    assert LatencyTable.from_json(json.loads(json.dumps(table.to_json()))).compiled


def test_a_table_of_an_earlier_version_still_predicts(smooth):
    tiny, table = smooth
    data = json.loads(json.dumps(table.to_json()))
    del data["dtype"], data["compiled"], data["rest"]["seconds_per_call"]
    for one in data["times"]:
        del one["blocks"]
    read = LatencyTable.from_json(data)
    widths = np.array([tiny.graph.full_widths, tiny.smallest])
    ours, theirs = (one.bind(tiny.graph, tiny.cost).nanoseconds(widths) for one in (table, read))
    np.testing.assert_array_equal(ours, theirs)


def test_time_does_not_fall_within_a_block():
    grid = np.arange(8, 72, 8)
    times = LayerTimes(LayerOp("linear", (1,)), grid, grid, np.outer(grid, grid).astype(float), (1, 16))
    outer = np.arange(8, 65)
    found = times(np.full(len(outer), 8), outer)
    np.testing.assert_array_equal(found, 8.0 * 16 * np.ceil(outer / 16))
    assert LayerTimes.from_json(json.loads(json.dumps(times.to_json()))).blocks == (1, 16)


def test_the_rest_falls_with_the_layers_that_are_gone(smooth, monkeypatch):
    tiny, table = smooth
    model = dataclasses.replace(table, rest=Rest(1.0, 0.0, 1e-9, 1e-6)).bind(tiny.graph, tiny.cost)
    full = tiny.graph.full_widths
    gone = model.cost.first_row[next(iter(table.layers))]

    def present(self, widths):
        found = np.ones((*np.shape(widths)[:-1], len(self.cost.macs_rows.owners)))
        found[..., gone] = 0
        return found

    before = model.layer_seconds(full), model.values(full), model.calls(full)
    monkeypatch.setattr(LatencyModel, "_present", present)
    after = model.layer_seconds(full), model.values(full), model.calls(full)
    assert all(less < more for less, more in zip(after, before, strict=True))
    assert before[2] - after[2] == next(iter(table.layers.values())).calls


def test_widths_are_kept_to_the_multiples_at_which_time_falls():
    model = torch.nn.Sequential(torch.nn.Linear(6, 128), torch.nn.ReLU(), torch.nn.Linear(128, 3)).eval()
    inputs = (torch.zeros(1, 6),)
    graph = trace(model, inputs)
    cost = CostModel.of(model, graph, inputs)
    table = LatencyTable.of(model, graph, cost, inputs, OPTIONS)
    times = [
        dataclasses.replace(one, seconds=1e-7 * np.outer(one.inner, one.outer), blocks=(16, 16)) for one in table.times
    ]
    stairs = dataclasses.replace(table, times=tuple(times), rest=Rest())
    even = dataclasses.replace(stairs, times=tuple(dataclasses.replace(one, blocks=(1, 1)) for one in times))
    assert [group.multiple for group in stairs.bind(graph, cost).multiples(graph)] == [16]
    assert [group.multiple for group in even.bind(graph, cost).multiples(graph)] == [1]
    found = even.bind(graph, cost).multiples(graph.with_multiples({1: 8}))
    assert [group.multiple for group in found] == [8]


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
        ("base_seconds", 1e9),
        ("rest", {"layer_scale": 1.0, "seconds_per_call": 1e300, "seconds_per_value": 0.0}),
    ],
)
def test_broken_tables_are_refused(measured, key, value):
    data = {**measured[1].to_json(), key: value}
    with pytest.raises(FileFormatError, match=r"somewhere\.json"):
        LatencyTable.from_json(data, "somewhere.json")


def test_a_table_without_layers_or_time_is_refused(measured):
    tiny, table = measured
    data = json.loads(json.dumps(table.to_json()))
    name = next(iter(data["layers"]))
    data["layers"][name]["calls"] = 2**62
    with pytest.raises(FileFormatError, match=r"a layer has more than 2,147,483,648 calls or positions"):
        LatencyTable.from_json(data)
    nothing = dataclasses.replace(table, layers={}, rest=Rest(0.0, 0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="says that the network takes no time"):
        nothing.bind(tiny.graph, tiny.cost)
    unused = dataclasses.replace(table, layers={}, rest=Rest(1.0, 1.0, 0.0, 0.0))
    assert unused.bind(tiny.graph, tiny.cost).nanoseconds(tiny.graph.full_widths) == 10**9


def test_a_table_of_another_network_or_norm_mode_is_refused(bench, measured):
    table = measured[1]
    for other in (bench("conv"), bench("unet", "whole")):
        with pytest.raises(InputError, match="another network or norm mode"):
            table.bind(other.graph, other.cost)


def test_layers_that_become_narrower_than_was_timed_are_refused(bench, measured):
    tiny, table = measured
    floored = tiny.graph.with_floor(0.9)
    few = LatencyTable.of(tiny.model, floored, tiny.cost, tiny.inputs, OPTIONS)
    assert few.bind(floored, tiny.cost)
    assert table.bind(floored, tiny.cost)
    with pytest.raises(InputError, match=r"none for layer .* at its smallest width"):
        few.bind(tiny.graph, tiny.cost)


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


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"repeats": 0}, {"grid": 1}, {"checks": -1}, {"dtype": "int8"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError):
        LatencyOptions(**options)
