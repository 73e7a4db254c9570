import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunekit.allocation import DIFFICULTY_RULES, Allocation, allocate, feasible_budgets
from prunekit.errors import BudgetError, FileFormatError, InputError
from prunekit.groups import TimestepGroups, make_groups
from prunekit.schedule import NoiseSchedule, sampler_timesteps
from prunekit.steps.budgets import cut_groups, evaluations, plan_budget

KINDS = ("linear", "scaled_linear", "cosine", "sigmoid", "rectified_flow")


@st.composite
def problems(draw):
    """Groups, schedule and sampler steps of any kind."""
    num_timesteps = draw(st.integers(2, 300))
    schedule = NoiseSchedule.from_config({"kind": draw(st.sampled_from(KINDS)), "num_timesteps": num_timesteps})
    cuts = draw(st.sets(st.integers(1, num_timesteps - 1), max_size=7))
    steps = draw(st.lists(st.integers(0, num_timesteps - 1), min_size=1, max_size=60))
    return TimestepGroups.from_cuts(num_timesteps, sorted(cuts)), schedule, np.array(steps)


@given(problem=problems(), rule=st.sampled_from(DIFFICULTY_RULES), part=st.floats(0, 1), floor=st.floats(0.01, 0.99))
@settings(max_examples=300, deadline=None)
def test_the_mean_over_the_steps_is_the_budget_exactly(problem, rule, part, floor):
    groups, schedule, steps = problem
    low, high = feasible_budgets(rule, groups.shares(steps), floor)
    budget = low + part * (high - low)
    allocation = allocate(groups, schedule, budget, steps, rule, floor=floor)

    ratios = np.array([group.mac_ratio for group in allocation.groups])
    assert allocation.mean_mac_ratio == pytest.approx(budget, abs=1e-9)
    assert ratios[groups.index_of(steps)].mean() == pytest.approx(
        budget, abs=1e-9
    )  # step by step, as a sampler spends it
    assert ratios.max() <= 1 + 1e-12
    assert ratios.min() >= (floor if rule != "linear" else 1 / len(groups)) - 1e-12
    assert (np.diff(ratios) <= 1e-12).all()  # never more for a noisier group
    assert allocation.feasible == (low, high)
    assert (allocation.rule, allocation.sampler_steps, allocation.base_macs) == (rule, len(steps), None)


@given(
    problem=problems(),
    floor=st.floats(0.001, 1),
    network=st.booleans(),
    part=st.floats(0, 1),
)
@settings(max_examples=400, deadline=None)
def test_the_default_rule_meets_any_budget_that_the_network_can(problem, floor, network, part):
    """Whatever the groups and the sampler's steps: the mean is exact, and no group is below the network's floor or above 1."""
    groups, schedule, steps = problem
    least = floor if network else 0.0
    budget = least + part * (1 - least)
    assume(budget > 0)
    allocation = allocate(groups, schedule, budget, steps, network_floor=least)
    ratios = np.array([group.mac_ratio for group in allocation.groups])
    assert ratios[groups.index_of(steps)].mean() == pytest.approx(budget, abs=1e-9)
    assert ratios.min() >= least - 1e-12
    assert ratios.min() >= min(0.625 * budget**2, budget) - 1e-12
    assert ratios.max() <= 1 + 1e-12
    assert (np.diff(ratios) <= 1e-12).all()
    assert (allocation.rule, allocation.network_floor) == ("auto", least or None)
    for macs in allocation.for_model(12_345_678_901).groups if network else ():
        assert macs.target_macs >= int(least * 12_345_678_901)


@given(problem=problems(), rule=st.sampled_from(DIFFICULTY_RULES), floor=st.floats(0.05, 0.95), part=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_no_rule_goes_below_what_the_network_can_be_pruned_to(problem, rule, floor, part):
    groups, schedule, steps = problem
    low, high = feasible_budgets(rule, groups.shares(steps), network_floor=floor)
    assert low >= floor
    budget = low + part * (high - low)
    allocation = allocate(groups, schedule, budget, steps, rule, network_floor=floor)
    ratios = np.array([group.mac_ratio for group in allocation.groups])
    assert allocation.mean_mac_ratio == pytest.approx(budget, abs=1e-9)
    assert ratios.min() >= floor - 1e-12
    assert ratios.max() <= 1 + 1e-12


def test_the_default_rule_leaves_the_cleaner_groups_whole_and_spares_the_noisiest():
    schedule = NoiseSchedule.linear(1000)
    steps = sampler_timesteps(1000, 50)
    ratios = {
        budget: [round(group.mac_ratio, 3) for group in allocate(make_groups(schedule), schedule, budget, steps).groups]
        for budget in (0.9, 0.8, 0.6)
    }
    assert ratios == {
        0.9: [1.0, 1.0, 1.0, 0.994, 0.506],
        0.8: [1.0, 1.0, 1.0, 0.6, 0.4],
        0.6: [1.0, 1.0, 0.55, 0.225, 0.225],
    }


def test_a_budget_below_the_networks_floor_is_refused_by_the_floor():
    schedule = NoiseSchedule.linear(1000)
    with pytest.raises(BudgetError, match=r"can be pruned to 0\.3125 of its MACs and no further; expected 0\.3125 … 1"):
        allocate(make_groups(schedule), schedule, 0.3, network_floor=0.3125)
    with pytest.raises(
        BudgetError, match="or the `rule` auto, which meets every budget that the network can be pruned to"
    ):
        allocate(make_groups(schedule), schedule, 0.5, rule="linear", network_floor=0.3125)


@given(problem=problems(), rule=st.sampled_from(DIFFICULTY_RULES), budget=st.floats(-1, 2))
@settings(max_examples=100, deadline=None)
def test_a_budget_is_met_or_refused_with_the_range(problem, rule, budget):
    groups, schedule, steps = problem
    low, high = feasible_budgets(rule, groups.shares(steps))
    assume(min(abs(budget - low), abs(budget - high)) > 1e-9)
    if low < budget < high:
        assert allocate(groups, schedule, budget, steps, rule).mean_mac_ratio == pytest.approx(budget, abs=1e-9)
    else:
        with pytest.raises(BudgetError) as caught:
            allocate(groups, schedule, budget, steps, rule)
        assert caught.value.feasible == (low, high)
        expected = f"{low:.6g} … {high:g}" if low > 0 else f"above 0 and at most {high:g}"
        assert f"expected {expected}" in str(caught.value)


@given(count=st.integers(2, 10), part=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_linear_is_the_papers_closed_form_where_groups_weigh_the_same(count, part):
    schedule = NoiseSchedule.linear(20 * count)
    groups = make_groups(schedule, count)
    every_step = np.arange(20 * count)
    lowest = (count + 1) / (2 * count)
    budget = lowest + part * (1 - lowest)
    k = (2 * count * budget - (count + 1)) / (count - 1)
    expected = [rank / count + (count - rank) / count * k for rank in range(count, 0, -1)]  # rank 1 is the noisiest
    allocation = allocate(groups, schedule, budget, every_step, "linear")
    assert [group.mac_ratio for group in allocation.groups] == pytest.approx(expected, abs=1e-9)
    assert allocation.groups[0].mac_ratio == pytest.approx(1)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_linear_refuses_what_no_k_can_reach(count):
    schedule = NoiseSchedule.linear(1000)
    groups = make_groups(schedule, count)
    lowest = (count + 1) / (2 * count)
    at_the_limit = allocate(groups, schedule, lowest, np.arange(1000), "linear")
    assert at_the_limit.groups[-1].mac_ratio == pytest.approx(1 / count)
    with pytest.raises(BudgetError, match=f"expected {lowest:.6g} … 1") as caught:
        allocate(groups, schedule, lowest - 1e-6, np.arange(1000), "linear")
    assert caught.value.feasible == pytest.approx((lowest, 1))


def test_linear_with_unequal_shares_solves_for_the_samplers_own_steps():
    schedule = NoiseSchedule.linear(1000)
    groups = TimestepGroups.from_cuts(1000, [100])
    steps = sampler_timesteps(1000, 10)  # one of ten is in the clean group, whose ratio is 1
    allocation = allocate(groups, schedule, 0.73, steps, "linear")
    assert [group.share for group in allocation.groups] == pytest.approx([0.1, 0.9])
    assert [group.mac_ratio for group in allocation.groups] == pytest.approx([1.0, 0.7])


def test_snr_targets_are_proportional_to_the_signals_share_of_the_amplitude():
    schedule = NoiseSchedule.linear(1000)
    groups = make_groups(schedule, 5)
    allocation = allocate(groups, schedule, 0.5, sampler_timesteps(1000, 50), "snr", floor=0.01)
    db = np.array([schedule.snr_db[group.start : group.stop].mean() for group in groups])
    assert [group.snr_db for group in allocation.groups] == pytest.approx(db.tolist())
    ratios = np.array([group.mac_ratio for group in allocation.groups])
    inside = (ratios > 0.01) & (ratios < 1)
    assert inside.sum() >= 2
    factors = ratios[inside] * (1 + 10 ** (-db[inside] / 20))
    assert np.ptp(factors) < 1e-9


def test_uniform_gives_every_group_the_budget():
    schedule = NoiseSchedule.cosine(100)
    allocation = allocate(make_groups(schedule, 3), schedule, 0.37, [5, 50], "uniform")
    assert [group.mac_ratio for group in allocation.groups] == [0.37] * 3


@given(problem=problems(), rule=st.sampled_from(DIFFICULTY_RULES), base_macs=st.integers(1, 10**13))
@settings(max_examples=100, deadline=None)
def test_targets_in_macs_are_whole_and_never_exceed_the_ratio(problem, rule, base_macs):
    groups, schedule, steps = problem
    allocation = allocate(groups, schedule, 1.0, steps, rule)
    lower = allocate(groups, schedule, (1 + allocation.feasible[0]) / 2, steps, rule)
    for plan in (allocation, lower):
        with_macs = plan.for_model(base_macs)
        assert with_macs.base_macs == base_macs
        for group, before in zip(with_macs.groups, plan.groups, strict=True):
            exact = group.mac_ratio * base_macs
            assert type(group.target_macs) is int
            assert group.target_macs <= exact + 1e-9 + 1e-15 * exact  # float rounding of the ratio aside
            assert group.target_macs > exact - 1
            assert group.mac_ratio == before.mac_ratio
    assert plan.groups[0].target_macs is None


def test_a_ratio_that_means_a_whole_number_of_macs_gives_it():
    schedule = NoiseSchedule.linear(1000)
    allocation = allocate(make_groups(schedule), schedule, 0.8, sampler_timesteps(1000, 50), "linear").for_model(1000)
    assert [group.target_macs for group in allocation.groups] == [1000, 900, 800, 700, 600]


def test_the_json_form():
    schedule = NoiseSchedule.linear(1000)
    data = allocate(make_groups(schedule, 4), schedule, 0.8, sampler_timesteps(1000, 40), "linear").to_json()
    assert data["format"] == "prunekit-allocation/1"
    top = {"format", "budget", "rule", "num_timesteps", "sampler_steps", "groups", "mean_mac_ratio", "base_macs"}
    assert top <= data.keys()
    for index, group in enumerate(data["groups"]):
        assert {"index", "start", "stop", "snr_db", "share", "mac_ratio", "target_macs"} <= group.keys()
        assert (group["index"], group["start"], group["stop"]) == (index, 250 * index, 250 * (index + 1))
        assert group["share"] == 0.25
        assert group["target_macs"] is None
    assert (data["budget"], data["rule"], data["num_timesteps"], data["sampler_steps"]) == (0.8, "linear", 1000, 40)
    assert data["mean_mac_ratio"] == pytest.approx(0.8, abs=1e-9)
    assert data["base_macs"] is None


@given(problem=problems(), rule=st.sampled_from(DIFFICULTY_RULES), base_macs=st.none() | st.integers(1, 10**12))
@settings(max_examples=60, deadline=None)
def test_json_comes_back_equal(problem, rule, base_macs):
    groups, schedule, steps = problem
    allocation = allocate(groups, schedule, 1.0, steps, rule, sampler="heun")
    if base_macs is not None:
        allocation = allocation.for_model(base_macs)
    again = Allocation.from_json(json.loads(json.dumps(allocation.to_json())))
    assert again == allocation
    assert again.timestep_groups.groups == groups.groups


@pytest.fixture
def written():
    schedule = NoiseSchedule.linear(100)
    return allocate(make_groups(schedule, 2), schedule, 0.8, [10, 60]).to_json()


@pytest.mark.parametrize("key", ["budget", "rule", "num_timesteps", "sampler_steps", "groups", "base_macs"])
def test_a_file_without_a_key_is_refused_by_name(written, key):
    del written[key]
    with pytest.raises(FileFormatError, match=rf"'{key}'.*make it again with `prunekit allocate`"):
        Allocation.from_json(written)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("budget", "0.8"),
        ("budget", None),
        ("budget", math.inf),
        ("num_timesteps", 99),
        ("num_timesteps", "100"),
        ("sampler_steps", 2.5),
        ("base_macs", "many"),
        ("groups", []),
        ("groups", 3),
        ("groups", [{"index": 0}]),
        ("feasible", [0.1]),
        ("feasible", ["low", "high"]),
        ("feasible", [0.9, 0.1]),
        ("rule", "nonsense"),
    ],
)
def test_a_file_with_a_wrong_value_is_refused(written, key, value):
    written[key] = value
    with pytest.raises(FileFormatError, match="The allocation cannot be read"):
        Allocation.from_json(written)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mac_ratio", "0.8"),
        ("mac_ratio", math.nan),
        ("share", None),
        ("snr_db", True),
        ("start", 1),
        ("stop", "50"),
        ("index", 1),
        ("target_macs", 1.5),
    ],
)
def test_a_group_with_a_wrong_value_is_refused(written, key, value):
    written["groups"][0][key] = value
    with pytest.raises(FileFormatError, match="The allocation cannot be read"):
        Allocation.from_json(written)


def test_extra_keys_are_no_hindrance(written):
    written["note"] = written["groups"][0]["note"] = "by hand"
    assert Allocation.from_json(written).budget == 0.8


@pytest.mark.parametrize("floor", [0.0, -0.5, 1.5, math.nan])
def test_a_floor_outside_zero_to_one_is_refused(floor):
    schedule = NoiseSchedule.linear(100)
    with pytest.raises(InputError, match="above 0 and at most 1"):
        allocate(make_groups(schedule, 2), schedule, 0.8, [10, 60], "snr", floor=floor)


@pytest.mark.parametrize("rule", DIFFICULTY_RULES)
def test_a_budget_that_is_no_number_is_refused(rule):
    schedule = NoiseSchedule.linear(100)
    with pytest.raises(BudgetError, match="A budget of nan cannot be met"):
        allocate(make_groups(schedule, 2), schedule, math.nan, [10, 60], rule)


def test_an_unknown_rule_and_a_schedule_of_another_length_are_refused():
    schedule = NoiseSchedule.linear(100)
    with pytest.raises(InputError, match="'cubic'; expected one of auto, linear, snr, uniform"):
        allocate(make_groups(schedule, 2), schedule, 0.8, [10], "cubic")
    with pytest.raises(InputError, match="cover 100 timesteps and the noise schedule has 200"):
        allocate(make_groups(schedule, 2), NoiseSchedule.linear(200), 0.8, [10])


def test_groups_are_cut_by_method_or_where_the_user_says():
    schedule = NoiseSchedule.linear(1000)
    assert cut_groups(schedule, 4, "snr") == make_groups(schedule, 4, "snr")
    assert cut_groups(schedule, 4, "snr", cuts=(100, 900)).cuts == (100, 900)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize(
    ("num_timesteps", "steps"), [(1000, 50), (1000, 600), (1000, 999), (77, 10), (4000, 1000), (10, 1)]
)
def test_evaluations_without_torch_are_those_of_diffusers(sampler, num_timesteps, steps):
    from prunekit.sampling import real_timesteps

    schedule = NoiseSchedule.linear(num_timesteps)
    ours = evaluations(schedule, sampler, steps)
    np.testing.assert_array_equal(ours, real_timesteps(sampler, steps, schedule))
    assert (ours.dtype, len(ours)) == (np.float64, steps)


@pytest.mark.parametrize("steps", [2, 10, 37])
def test_heun_evaluates_twice_at_every_step_but_the_last(steps):
    real = evaluations(NoiseSchedule.linear(1000), "heun", steps)
    assert len(real) == 2 * steps - 1
    assert len(set(real)) == steps


def test_the_budget_is_a_mean_over_evaluations_not_steps():
    schedule = NoiseSchedule.linear(1000)
    allocation = plan_budget(make_groups(schedule, 5), schedule, 0.8, sampler="heun", steps=10)
    assert (allocation.sampler, allocation.sampler_steps) == ("heun", 19)
    counts = make_groups(schedule, 5).shares(evaluations(schedule, "heun", 10)) * 19
    assert [group.share * 19 for group in allocation.groups] == pytest.approx(counts.tolist())
    assert allocation.mean_mac_ratio == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize(
    ("sampler", "steps", "message"),
    [
        ("ddim", 0, "expected 1 … 1000"),
        ("heun", 0, "expected 1 … 1000"),
        ("euler", 1001, "expected 1 … 1000"),
        ("nonsense", 10, "Unknown sampler 'nonsense'; expected one of ddim"),
        ("pndm", 3, "3 steps"),
        ("FlowMatchEulerDiscreteScheduler", 10, "is for flow matching, and the network is not"),
    ],
)
def test_a_sampler_that_cannot_do_it_is_refused(sampler, steps, message):
    with pytest.raises(InputError, match=message):
        evaluations(NoiseSchedule.linear(1000), sampler, steps)
