import itertools

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from networks import rows, unet
from torch import nn

from prunekit.cost import CostModel, count_macs
from prunekit.errors import BudgetError, InputError
from prunekit.graph import PruningPlan, apply, trace
from prunekit.search import Measure, WidthProblem, lost_importance, meet_target


def random_scores(graph, seed):
    rng = np.random.default_rng(seed)
    return {group.name: rng.random(group.size) for group in graph}


def problem(graph, cost, ratio, seed=0, tolerance=0.002, of="macs"):
    measure = Measure.by_name(of, cost)
    full = int(measure.of(graph.full_widths))
    lost = lost_importance(graph, random_scores(graph, seed))
    return WidthProblem(graph, cost, lost, int(ratio * full), int(tolerance * full), measure)


def chain(*widths):
    """Linear layers of these widths in a row, traced."""
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise((6, *widths, 3))]
    model = nn.Sequential(*[module for layer in layers for module in (layer, nn.ReLU())][:-1])
    graph = trace(model, (rows(1, 6),))
    return model, graph, CostModel.of(model, graph, (rows(1, 6),))


@pytest.mark.parametrize("mode", ["even", "whole"])
def test_targets_of_a_unet_are_never_exceeded_and_met_to_a_fifth_of_a_percent(bench, mode):
    tiny = bench("unet", mode)
    full = int(tiny.cost.macs(tiny.graph.full_widths))
    for ratio in np.linspace(0.35, 1.0, 14):
        task = problem(tiny.graph, tiny.cost, ratio)
        steps = meet_target(task)
        assert 0 <= task.target - int(task.macs(steps)) <= 0.002 * full
        assert (steps >= 0).all()
        assert (steps <= task.max_steps).all()


def test_what_meets_the_target_on_paper_meets_it_when_counted(bench):
    tiny = bench("unet")
    task = problem(tiny.graph, tiny.cost, 0.6)
    plan = PruningPlan.from_widths(tiny.graph, task.widths(meet_target(task)), random_scores(tiny.graph, 0))
    counted = count_macs(apply(tiny.model, tiny.graph, plan), tiny.inputs).macs
    assert 0 <= task.target - counted <= task.tolerance


def test_a_target_of_everything_removes_nothing(bench):
    tiny = bench("unet")
    assert not meet_target(problem(tiny.graph, tiny.cost, 1.0)).any()
    assert not meet_target(problem(tiny.graph, tiny.cost, 3.0)).any()


@pytest.mark.parametrize("ratio", [0.0, 0.01, -1.0])
def test_an_impossible_target_is_refused_with_the_range(bench, ratio):
    tiny = bench("unet")
    with pytest.raises(BudgetError, match=r"expected .* of the base") as caught:
        meet_target(problem(tiny.graph, tiny.cost, ratio))
    assert isinstance(caught.value, InputError)
    least, most = caught.value.feasible
    assert least == int(tiny.cost.macs(tiny.smallest))
    assert most == int(tiny.cost.macs(tiny.graph.full_widths))


def test_both_ends_of_the_feasible_range_are_reached(bench):
    tiny = bench("unet")
    least = int(tiny.cost.macs(tiny.smallest))
    lost = lost_importance(tiny.graph, random_scores(tiny.graph, 0))
    at_least = WidthProblem(tiny.graph, tiny.cost, lost, least, 0)
    np.testing.assert_array_equal(meet_target(at_least), at_least.max_steps)
    with pytest.raises(BudgetError):
        meet_target(WidthProblem(tiny.graph, tiny.cost, lost, least - 1, 0))


def exhaustive(task):
    """Miss beyond the tolerance and importance lost of the best of all states."""
    states = np.array(list(itertools.product(*[range(most + 1) for most in task.max_steps])))
    missed = task.target - task.macs(states)
    states, missed = states[missed >= 0], missed[missed >= 0]
    return min(zip(np.maximum(missed - task.tolerance, 0).tolist(), task.loss(states).tolist(), strict=True))


def test_on_small_problems_the_target_is_met_as_nearly_as_any_widths_can_and_almost_as_cheaply():
    _, graph, cost = chain(7, 9, 6)
    ratios = []
    for seed, ratio in itertools.product(range(25), (0.35, 0.5, 0.7, 0.9)):
        task = problem(graph, cost, ratio, seed, tolerance=0.02)
        steps = meet_target(task)
        beyond, lost = exhaustive(task)
        assert max(task.target - int(task.macs(steps)) - task.tolerance, 0) == beyond
        assert task.loss(steps) >= lost - 1e-12
        ratios.append(float(task.loss(steps)) / lost)
    assert np.mean(np.array(ratios) < 1 + 1e-9) > 0.9  # a local search: exact nine times in ten …
    assert np.mean(ratios) < 1.02  # … and near it on the whole


@pytest.mark.parametrize("widths", [(3,), (3, 3)])
def test_where_exchanges_reach_every_state_the_optimum_is_found(widths):
    _, graph, cost = chain(*widths)
    for seed, ratio in itertools.product(range(10), (0.4, 0.6, 0.8)):
        task = problem(graph, cost, ratio, seed, tolerance=0.05)
        steps = meet_target(task)
        beyond = max(task.target - int(task.macs(steps)) - task.tolerance, 0)
        assert (beyond, pytest.approx(float(task.loss(steps)))) == exhaustive(task)


def test_a_network_without_channel_groups_has_nothing_to_decide():
    graph = trace(nn.Linear(6, 3), (rows(1, 6),))
    cost = CostModel.of(nn.Linear(6, 3), graph, (rows(1, 6),))
    assert meet_target(WidthProblem(graph, cost, [], 18, 0)).shape == (0,)
    with pytest.raises(BudgetError):
        meet_target(WidthProblem(graph, cost, [], 17, 0))


def test_lost_importance_rises_from_zero_to_less_than_all(bench):
    for mode in ("even", "whole"):
        graph = bench("unet", mode).graph
        scores = random_scores(graph, 1)
        for group, table in zip(graph, lost_importance(graph, scores), strict=True):
            assert table.shape == group.widths.shape
            assert table[0] == 0
            assert (np.diff(table) > 0).all()
            assert table[-1] < scores[group.name].sum()


def test_removal_starts_where_least_importance_is_lost_per_mac():
    _, graph, cost = chain(6, 6)
    first, second = graph.groups
    scores = {first.name: np.full(6, 100.0), second.name: np.full(6, 0.01)}
    full = int(cost.macs(graph.full_widths))
    task = WidthProblem(graph, cost, lost_importance(graph, scores), int(0.7 * full), int(0.15 * full))
    steps = meet_target(task)
    assert steps[0] == 0
    assert steps[1] > 0


@examples(25)
@given(st.integers(0, 10_000), st.floats(0.35, 1.0))
def test_neighbours_are_legal_within_reach_and_never_above_the_target(bench, seed, ratio):
    tiny = bench("unet")
    task = problem(tiny.graph, tiny.cost, ratio, seed)
    steps = np.random.default_rng(seed).integers(0, task.max_steps + 1)
    found = task.neighbours(steps)
    assert found.shape[1] == len(tiny.graph)
    assert (found >= 0).all()
    assert (found <= task.max_steps).all()
    assert (np.abs(found - steps).max(1, initial=0) <= 2).all()
    assert ((found != steps).sum(1) <= 3).all()
    missed = task.target - task.macs(found)
    assert (missed >= 0).all()
    if len(found):
        assert missed.max() <= max(task.tolerance, missed.min())


def test_a_start_from_anywhere_ends_at_the_target(bench):
    tiny = bench("unet")
    task = problem(tiny.graph, tiny.cost, 0.6)
    for start in (np.zeros_like(task.max_steps), task.max_steps, task.max_steps // 2):
        copy = start.copy()
        steps = meet_target(task, start)
        assert 0 <= task.target - int(task.macs(steps)) <= task.tolerance
        np.testing.assert_array_equal(start, copy)


def test_pruned_tiny_networks_run(bench):
    model, graph, cost = chain(5)
    task = problem(graph, cost, 0.5)
    plan = PruningPlan.from_widths(graph, task.widths(meet_target(task)), random_scores(graph, 0))
    assert apply(model, graph, plan)(torch.zeros(2, 6)).shape == (2, 3)


@examples(30)
@given(
    st.sampled_from(["unet", "conv"]),
    st.sampled_from(["even", "whole"]),
    st.sampled_from(["macs", "params"]),
    st.floats(0.35, 1.0),
    st.dictionaries(st.sampled_from([1, 4, 8]), st.sampled_from([1, 2, 4]), max_size=2),
    st.integers(0, 1000),
)
def test_no_target_is_exceeded_and_the_miss_is_said_whatever_is_asked(bench, name, mode, of, ratio, multiples, seed):
    tiny = bench(name, mode)
    graph = tiny.graph.with_multiples(multiples)
    task = problem(graph, tiny.cost, ratio, seed, of=of)
    try:
        steps = meet_target(task)
    except BudgetError as error:
        least, full = error.feasible
        assert task.target < least == int(task.spent(task.max_steps))
        assert full == int(task.spent(np.zeros_like(task.max_steps)))
        return
    widths = task.widths(steps)
    assert int(task.spent(steps)) <= task.target
    assert task.missed(steps) == task.target - int(task.spent(steps))
    for group, width in zip(graph, widths, strict=True):
        assert group.is_legal(int(width))
        assert width == group.size or width % group.multiple == 0
    pruned = apply(tiny.model, graph, PruningPlan.from_widths(graph, widths, random_scores(graph, seed)))
    counted = count_macs(pruned, tiny.inputs)
    assert (counted.macs if of == "macs" else counted.params) == int(task.spent(steps))


@pytest.mark.parametrize("mode", ["even", "whole"])
def test_targets_of_parameters_are_met_to_a_tenth_of_a_percent(bench, mode):
    tiny = bench("unet", mode)
    full = int(tiny.cost.params(tiny.graph.full_widths))
    for ratio in np.linspace(0.4, 0.95, 8):
        task = problem(tiny.graph, tiny.cost, ratio, tolerance=0.001, of="params")
        assert 0 <= task.target - int(task.spent(meet_target(task))) <= 0.001 * full


def test_parameters_out_of_reach_are_refused_in_parameters(bench):
    tiny = bench("unet")
    with pytest.raises(BudgetError, match=r"target of .* parameters is below") as caught:
        meet_target(problem(tiny.graph, tiny.cost, 0.01, of="params"))
    assert caught.value.feasible == (
        int(tiny.cost.params(tiny.smallest)),
        int(tiny.cost.params(tiny.graph.full_widths)),
    )


def test_where_widths_are_too_coarse_the_nearest_of_all_below_the_target_is_found():
    _, graph, cost = chain(8, 8)
    graph = graph.with_multiples({1: 4})
    for ratio in (0.45, 0.6, 0.75, 0.9):
        task = problem(graph, cost, ratio, tolerance=0.001)
        steps = meet_target(task)
        beyond, _ = exhaustive(task)
        assert task.missed(steps) == beyond + task.tolerance
        assert beyond > 0


def test_a_measure_that_is_not_known_is_refused(bench):
    with pytest.raises(InputError, match=r"'flops'.*macs, params or latency"):
        Measure.by_name("flops", bench("unet").cost)
    with pytest.raises(InputError, match="table of layer times"):
        Measure.by_name("latency", bench("unet").cost)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["even", "whole"])
def test_targets_of_the_cifar_unet_are_met_to_a_tenth_of_a_percent_with_widths_that_suit_hardware_too(mode):
    model = unet(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=32,
        attention_head_dim=None,
        downsample_padding=0,
    )
    inputs = {"sample": torch.zeros(1, 3, 32, 32), "timestep": torch.tensor([7])}
    whole = trace(model, inputs, mode)
    cost = CostModel.of(model, whole, inputs)
    full = int(cost.macs(whole.full_widths))
    for multiples in ({}, {1: 8}, {1: 16}, {1: 32}, {1: 16, 32: 32}):
        graph = whole.with_multiples(multiples)
        for ratio in (0.3, 0.43, 0.56, 0.69, 0.82, 0.95):
            task = problem(graph, cost, ratio, tolerance=0.001)
            assert 0 <= task.target - int(task.macs(meet_target(task))) <= 0.001 * full
