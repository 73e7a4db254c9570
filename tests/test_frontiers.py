"""Rule measured: journals, frontiers, and the choice among their points."""

import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunekit.allocation import Allocation, Frontier, allocate, read_frontier, read_frontiers
from prunekit.allocation.knapsack import choose_points
from prunekit.errors import BudgetError, FileFormatError, InputError, MissingFileError
from prunekit.groups import TimestepGroups, make_groups
from prunekit.schedule import NoiseSchedule, sampler_timesteps
from prunekit.steps.budgets import plan_budget, side_by_side

POINTS = st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 9)), max_size=9)


@st.composite
def knapsacks(draw):
    """Weights and losses of a few groups, small enough for every choice to be tried, and a capacity."""
    weights, losses = [], []
    for _ in range(draw(st.integers(1, 4))):
        weights.append(np.array(sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=6)))))
        count = len(weights[-1])
        falling = sorted(draw(st.sets(st.integers(-50, 50), min_size=count, max_size=count)), reverse=True)
        losses.append(np.array(falling) * draw(st.sampled_from([1.0, 0.25, 1e-6])))
    least, most = sum(int(w[0]) for w in weights), sum(int(w[-1]) for w in weights)
    return weights, losses, draw(st.integers(least, most + 5))


@given(problem=knapsacks())
@settings(max_examples=120, deadline=None)
def test_the_choice_is_the_best_of_all(problem):
    weights, losses, capacity = problem
    chosen = choose_points(weights, losses, capacity)
    assert sum(int(w[i]) for w, i in zip(weights, chosen, strict=True)) <= capacity
    every = itertools.product(*(range(len(w)) for w in weights))
    best = min(
        sum(float(loss[i]) for loss, i in zip(losses, choice, strict=True))
        for choice in every
        if sum(int(w[i]) for w, i in zip(weights, choice, strict=True)) <= capacity
    )
    assert sum(float(loss[i]) for loss, i in zip(losses, chosen, strict=True)) == pytest.approx(best, abs=1e-9)


def test_a_corner_that_the_convex_hull_hides_is_found():
    weights = [np.array([1, 5, 10]), np.array([1, 10])]
    losses = [np.array([10.0, 9.0, 0.0]), np.array([2.0, 1.5])]
    assert choose_points(weights, losses, 6) == (1, 0)
    assert choose_points(weights, losses, 11) == (2, 0)


def test_twenty_groups_of_two_hundred_points_are_a_matter_of_seconds():
    rng = np.random.default_rng(0)
    weights = [np.sort(rng.choice(10**7, 200, replace=False) + 1) for _ in range(20)]
    losses = [1 / (weight / 1e7 + 0.1) * rng.random() for weight in weights]
    started = time.process_time()
    choose_points(weights, losses, 10**8)
    assert time.process_time() - started < 20


@st.composite
def measured_problems(draw):
    """Groups, schedule, steps, and a frontier for each group of a base of one size."""
    num_timesteps = draw(st.integers(8, 200))
    schedule = NoiseSchedule.linear(num_timesteps)
    cuts = draw(st.sets(st.integers(1, num_timesteps - 1), max_size=3))
    groups = TimestepGroups.from_cuts(num_timesteps, sorted(cuts))
    steps = np.array(draw(st.lists(st.integers(0, num_timesteps - 1), min_size=1, max_size=20)))
    base = draw(st.sampled_from([1000, 12_345_677, 10**13]))
    frontiers = []
    for _ in groups:
        points = [(macs * (base // 1000), loss) for macs, loss in draw(POINTS)]
        frontiers.append(Frontier.of([*points, (base, draw(st.floats(0, 9)))], base))
    return groups, schedule, steps, frontiers


@given(problem=measured_problems(), part=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_the_budget_is_met_unless_more_would_buy_nothing(problem, part):
    groups, schedule, steps, frontiers = problem
    low = float(groups.shares(steps) @ [f.macs[0] / f.base_macs for f in frontiers])
    budget = low + part * (1 - low)
    allocation = allocate(groups, schedule, budget, steps, "measured", frontiers=frontiers)
    mean, base = allocation.mean_mac_ratio, frontiers[0].base_macs
    assert mean <= budget + 1e-12
    used = [(g, f) for g, f in zip(allocation.groups, frontiers, strict=True) if g.share > 0]
    at_best = all(g.target_macs == f.macs[-1] for g, f in used)
    assert at_best or mean == pytest.approx(budget, abs=1e-9)
    assert allocation.base_macs == base
    between = 0
    for group, frontier in zip(allocation.groups, frontiers, strict=True):
        assert frontier.macs[0] <= group.target_macs <= frontier.macs[-1]
        assert group.target_macs <= group.mac_ratio * base * (1 + 1e-12)
        between += group.target_macs not in frontier.macs
    assert between <= 1
    assert allocation.feasible == (pytest.approx(low), 1.0)
    assert Allocation.from_json(json.loads(json.dumps(allocation.to_json()))) == allocation


@given(problem=measured_problems(), part=st.floats(0.01, 1), rule=st.sampled_from(["linear", "snr", "uniform"]))
@settings(max_examples=100, deadline=None)
def test_no_other_rule_is_better_on_the_recorded_points(problem, part, rule):
    groups, schedule, steps, frontiers = problem
    low = float(groups.shares(steps) @ [f.macs[0] / f.base_macs for f in frontiers])
    budget = low + part * (1 - low)
    measured = allocate(groups, schedule, budget, steps, "measured", frontiers=frontiers)
    try:
        other = allocate(groups, schedule, budget, steps, rule, floor=0.01, frontiers=frontiers)
    except BudgetError:
        assume(False)
    theirs = other.expected_loss(recorded_only=True)
    assume(theirs is not None)
    ours = measured.expected_loss(recorded_only=True)
    assert ours <= theirs + 1e-9
    assert measured.expected_loss() <= ours + 1e-9  # what is left of the budget does no harm


def frontier(*points, base=100):
    return Frontier.of([*points], base)


def two_groups():
    schedule = NoiseSchedule.linear(100)
    return TimestepGroups.from_cuts(100, [50]), schedule, np.array([10, 20, 60, 70])


def test_the_rest_goes_where_the_loss_falls_steepest():
    groups, schedule, steps = two_groups()
    frontiers = [frontier((40, 2.0), (100, 1.0)), frontier((40, 5.0), (100, 1.0))]
    allocation = allocate(groups, schedule, 0.5, steps, "measured", frontiers=frontiers)
    assert [g.target_macs for g in allocation.groups] == [40, 60]
    assert allocation.expected_loss(recorded_only=True) == pytest.approx(3.5)
    assert allocation.expected_loss() == pytest.approx(0.5 * 2 + 0.5 * (5 - 4 / 3))


def test_a_budget_at_the_lower_limit_gives_the_deepest_points():
    groups, schedule, steps = two_groups()
    frontiers = [frontier((33, 2.0), (97, 1.0), base=97), frontier((41, 5.0), (97, 1.0), base=97)]
    low = (33 + 41) / 2 / 97
    allocation = allocate(groups, schedule, low, steps, "measured", frontiers=frontiers)
    assert [g.target_macs for g in allocation.groups] == [33, 41]


def test_a_group_without_steps_gets_its_best_point_and_costs_nothing():
    groups, schedule, _ = two_groups()
    frontiers = [frontier((40, 2.0), (100, 1.0)), frontier((40, 5.0), (80, 1.0), (100, 1.5))]
    allocation = allocate(groups, schedule, 0.4, [3, 4], "measured", frontiers=frontiers)
    assert [g.target_macs for g in allocation.groups] == [40, 80]
    assert allocation.mean_mac_ratio == pytest.approx(0.4)


def test_a_budget_below_the_record_is_refused_with_the_range_and_the_mend():
    groups, schedule, steps = two_groups()
    frontiers = [frontier((60, 2.0), (100, 1.0)), frontier((80, 5.0), (100, 1.0))]
    with pytest.raises(BudgetError, match=r"expected 0\.7 … 1\..*prunekit prune base\.pt --target 0\.3") as caught:
        allocate(groups, schedule, 0.69, steps, "measured", frontiers=frontiers)
    assert caught.value.feasible == pytest.approx((0.7, 1.0))
    with pytest.raises(BudgetError):
        allocate(groups, schedule, 1.01, steps, "measured", frontiers=frontiers)
    with pytest.raises(BudgetError):
        allocate(groups, schedule, math.nan, steps, "measured", frontiers=frontiers)


def test_frontiers_must_be_one_for_each_group_and_of_one_network():
    groups, schedule, steps = two_groups()
    one, other = frontier((100, 1.0)), frontier((50, 1.0), base=50)
    for wrong in ([], [one], [one] * 3):
        with pytest.raises(InputError, match=f"Got {len(wrong)} recorded frontiers for 2 timestep groups"):
            allocate(groups, schedule, 0.8, steps, "measured", frontiers=wrong)
    with pytest.raises(InputError, match="networks of 50 and of 100 MACs"):
        allocate(groups, schedule, 0.8, steps, "measured", frontiers=[one, other])


def test_other_rules_take_the_evidence_along_and_keep_their_targets():
    groups, schedule, steps = two_groups()
    frontiers = (frontier((40, 2.0), (100, 1.0)), frontier((40, 5.0), (100, 1.0)))
    plain = allocate(groups, schedule, 0.8, steps, "snr")
    judged = allocate(groups, schedule, 0.8, steps, "snr", frontiers=frontiers)
    assert [g.mac_ratio for g in judged.groups] == [g.mac_ratio for g in plain.groups]
    assert (judged.base_macs, judged.frontiers) == (100, frontiers)
    assert plain.expected_loss() is None
    assert "frontiers" not in plain.to_json()
    assert judged.to_json()["frontiers"][1] == {"base_macs": 100, "macs": [40, 100], "loss": [5.0, 1.0]}


def test_side_by_side_says_which_rule_cannot():
    schedule = NoiseSchedule.linear(1000)
    groups = make_groups(schedule, 2)
    frontiers = [frontier((20, 3.0), (60, 2.0), (100, 1.0))] * 2
    allocation = plan_budget(groups, schedule, 0.6, rule="uniform", steps=50, frontiers=frontiers)
    compared = side_by_side(allocation, schedule, 50)
    assert list(compared) == ["auto", "linear", "snr", "measured"]
    assert compared["linear"] is None  # it cannot go below 3/4 with two groups
    assert compared["measured"].mean_mac_ratio == pytest.approx(0.6)
    assert compared["measured"].expected_loss() == pytest.approx(2.0)


@given(points=POINTS)
@settings(max_examples=40, deadline=None)
def test_a_frontier_holds_every_point_that_none_beats_and_no_other(points):
    made = Frontier.of([*points, (1000, 5.0)], 1000)
    kept = set(zip(made.macs, made.loss, strict=True))
    every = {*points, (1000, 5.0)}
    for macs, loss in every:
        beaten = any((m <= macs and other <= loss) and (m, other) != (macs, loss) for m, other in every)
        assert ((macs, loss) in kept) is not beaten


def test_losses_between_below_and_above_the_points():
    one = frontier((40, 3.0), (60, 1.0), (100, 1.5))
    assert one.macs == (40, 60)  # the whole network has more loss than a part of it
    assert [one.loss_at(ratio) for ratio in (0.39, 0.4, 0.5, 0.6, 1.0)] == [None, 3.0, pytest.approx(2.0), 1.0, 1.0]
    assert [one.recorded_at(ratio) for ratio in (0.39, 0.4, 0.5, 0.6, 1.0)] == [None, 3.0, 3.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "change",
    [
        {"macs": [100, 40]},
        {"macs": [40]},
        {"macs": [40, 200]},
        {"macs": [40.5, 100]},
        {"macs": ["40", 100]},
        {"loss": [1.0, 2.0]},
        {"loss": [math.inf, 1.0]},
        {"loss": ["2", 1.0]},
        {"loss": None},
        {"base_macs": 10**16},
        {"base_macs": None},
    ],
)
def test_a_broken_frontier_in_an_allocation_is_refused(change):
    groups, schedule, steps = two_groups()
    frontiers = [frontier((40, 2.0), (100, 1.0))] * 2
    data = allocate(groups, schedule, 0.8, steps, "measured", frontiers=frontiers).to_json()
    assert Allocation.from_json(data).rule == "measured"
    data["frontiers"][1] |= change
    with pytest.raises(FileFormatError, match="The allocation cannot be read"):
        Allocation.from_json(data)
    del data["frontiers"][1]
    with pytest.raises(FileFormatError, match="1 frontiers for 2 groups"):
        Allocation.from_json(data)


WHOLE = {"round": 0, "steps": [0, 0], "macs": 100, "loss": 1.0}


def journal(path: Path, *entries: object, tail: str = "") -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + tail, encoding="utf-8")
    return path


def test_a_journals_frontier_is_what_the_search_chose(tmp_path):
    path = journal(
        tmp_path / "search-0.jsonl",
        {"format": "prunekit-search/1", "key": "abc"},
        WHOLE,
        {"round": 1, "steps": [1, 0], "macs": 70, "loss": 1.1},
        {"round": 1, "steps": [0, 1], "macs": 60, "loss": 1.2},
        {"round": 1, "chosen": "a", "steps": [0, 1], "macs": 60, "loss": 1.2},
        {"round": 2, "ratios": {"a": 0.5}},
        {"round": 2, "failed": "no answer"},
        {"round": 2, "chosen": "a", "steps": [2, 1], "macs": 50, "loss": 1.15},  # better and smaller: 60 is beaten
        {"round": 3, "chosen": "b", "steps": [2, 2], "macs": 30, "loss": 1e30},  # no number
        {"round": -1, "steps": [2, 3], "macs": 40, "loss": 1.6},
        {"round": -1, "steps": [3, 2], "macs": 40, "loss": 1.5},
        tail='{"round": 3, "steps": [3, 3], "ma',
    )
    assert read_frontier(path) == Frontier((40, 50, 100), (1.5, 1.15, 1.0), 100)


def test_a_choice_without_macs_has_those_of_its_measurement(tmp_path):
    measured = {"round": 1, "steps": [1, 0], "macs": 70, "loss": 1.1}
    path = journal(tmp_path / "j", WHOLE, measured, {"round": 1, "chosen": "a", "loss": 1.1})
    assert read_frontier(path) == Frontier((70, 100), (1.1, 1.0), 100)


@pytest.mark.parametrize("missing", ["loss", "steps", "macs"])
def test_lines_without_a_value_are_skipped(tmp_path, missing):
    path = journal(tmp_path / "j", WHOLE, {"round": -1, "steps": [2], "macs": 40, "loss": 1.5, missing: None})
    known = Frontier((40, 100), (1.5, 1.0), 100) if missing == "steps" else Frontier((100,), (1.0,), 100)
    assert read_frontier(path) == known


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "no measurement of the whole network"),
        ([{"key": "only a header"}], "no measurement of the whole network"),
        ([WHOLE | {"steps": [1, 0]}], "no measurement of the whole network"),
        ([WHOLE | {"loss": math.nan}, WHOLE], "NaN is no JSON number"),
        ([WHOLE | {"macs": 100.0}], "macs is 100.0; expected a whole number"),
        ([WHOLE | {"macs": 0}], "macs is 0; expected at least 1"),
        ([WHOLE | {"loss": "low"}], 'loss is "low"; expected a number'),
        ([WHOLE, {"round": 1, "chosen": "a", "macs": 101, "loss": 0.1}], "at most the base's"),
        ([WHOLE, [], WHOLE], "line 2, cannot be read .it is a list of 0; expected an object"),
    ],
)
def test_a_journal_without_a_frontier_is_refused(tmp_path, entries, said):
    with pytest.raises(FileFormatError, match=said):
        read_frontier(journal(tmp_path / "search-0.jsonl", *entries))


def test_a_torn_line_in_the_middle_is_refused_by_its_number(tmp_path):
    path = tmp_path / "search-0.jsonl"
    path.write_text(json.dumps(WHOLE) + '\n{"round"\n' + json.dumps(WHOLE) + "\n")
    with pytest.raises(FileFormatError, match="line 2"):
        read_frontier(path)


@pytest.mark.parametrize("kind", ["search", "group"])
def test_journals_are_found_by_the_names_that_prune_and_runs_give(tmp_path, kind):
    for index in range(2):
        journal(tmp_path / f"{kind}-{index}.jsonl", WHOLE | {"loss": 1.0 + index})
    (tmp_path / "group-0").mkdir()
    assert [f.loss for f in read_frontiers(tmp_path, 2)] == [(1.0,), (2.0,)]
    with pytest.raises(InputError, match="a journal of timestep group 1 and there are 1 groups"):
        read_frontiers(tmp_path, 1)
    with pytest.raises(MissingFileError, match=rf"{kind}-2\.jsonl does not exist; record frontiers with"):
        read_frontiers(tmp_path, 3)
    journal(tmp_path / f"{kind}-1.jsonl", WHOLE | {"macs": 50})
    with pytest.raises(InputError, match="expected one base"):
        read_frontiers(tmp_path, 2)


def test_the_missing_journal_is_named_as_the_others_are(tmp_path):
    journal(tmp_path / "search-1.jsonl", WHOLE)
    with pytest.raises(MissingFileError, match=r"search-0\.jsonl does not exist"):
        read_frontiers(tmp_path, 2)


def test_a_folder_without_journals_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(MissingFileError, match="has no journals search-0"):
            read_frontiers(folder, 2)


def test_the_samplers_steps_weigh_the_groups():
    schedule = NoiseSchedule.linear(1000)
    groups = TimestepGroups.from_cuts(1000, [100])
    frontiers = [frontier((50, 4.0), (100, 1.0)), frontier((50, 2.0), (100, 1.5))]
    steps = sampler_timesteps(1000, 10)  # one in the clean group, nine in the other
    allocation = allocate(groups, schedule, 0.55, steps, "measured", frontiers=frontiers)
    assert [g.target_macs for g in allocation.groups] == [100, 50]
