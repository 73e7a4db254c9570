"""Rule measured with losses that are weighed by the sampler's sensitivity, and the sensitivity's file."""

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.allocation import Allocation, BySensitivity, Frontier, GroupSensitivity, Sensitivity, allocate
from prunekit.errors import FileFormatError, InputError
from prunekit.groups import Grouping, TimestepGroups, make_groups
from prunekit.results.schemas import file_schema
from prunekit.schedule import NoiseSchedule, sampler_timesteps
from prunekit.steps.budgets import plan_budget, side_by_side

SCHEDULE = NoiseSchedule.linear(100)
STEPS = sampler_timesteps(100, 10)
BASE = 1000


def sensitivity(groups: TimestepGroups, weights: list[float], sampler: str = "ddim", steps: int = 10) -> Sensitivity:
    counts = np.bincount(groups.index_of(sampler_timesteps(100, steps)), minlength=len(groups)).tolist()
    parts = tuple(
        GroupSensitivity(
            g.index, g.start, g.stop, count, 4e-4 if count else 0.0, weight if count else 0.0, 0.1 * weight, 1.1
        )
        for g, weight, count in zip(groups, weights, counts, strict=True)
    )
    about = {
        "prunekit": "0.1.0",
        "model": {
            "name": "base.pt",
            "architecture": "UNet2DModel",
            "prediction_type": "epsilon",
            "weights_sha256": "0" * 64,
        },
        "noise_schedule": SCHEDULE.to_config(),
    }
    return Sensitivity(100, sampler, steps, 1.0, "pixels", 32, 0, 0.02, 0.04, False, parts, about=about)


@st.composite
def problems(draw):
    """Frontiers of a few groups, their weights, and a budget that the frontiers reach."""
    count = draw(st.integers(2, 3))
    frontiers = []
    for _ in range(count):
        macs = [*sorted(draw(st.sets(st.integers(200, 999), min_size=1, max_size=4))), BASE]
        losses = sorted(draw(st.sets(st.integers(1, 99), min_size=len(macs), max_size=len(macs))), reverse=True)
        frontiers.append(Frontier(tuple(macs), tuple(loss / 100 for loss in losses), BASE))
    weights = [draw(st.floats(1e-3, 1e3)) for _ in range(count)]
    return frontiers, weights, draw(st.sampled_from([1.0, 0.7, 0.4]))


@given(problem=problems())
@settings(max_examples=60, deadline=None)
def test_the_weighed_losses_are_the_lowest_of_all_choices(problem):
    """By trying every choice of recorded points; targets between points only use what is left over."""
    frontiers, weights, place = problem
    groups = TimestepGroups.from_cuts(100, [(100 * i) // len(weights) for i in range(1, len(weights))])
    shares = groups.shares(STEPS)
    least = float(shares @ [frontier.macs[0] / BASE for frontier in frontiers])
    budget = round(least + place * (1 - least) + 1e-6, 6) if place < 1 else 1.0
    given_weights = sensitivity(groups, weights)
    plan = allocate(groups, SCHEDULE, budget, STEPS, "measured", frontiers=frontiers, sensitivity=given_weights)
    best = min(
        sum(weight * frontier.loss[i] for weight, frontier, i in zip(weights, frontiers, choice, strict=True))
        for choice in itertools.product(*(range(len(frontier.macs)) for frontier in frontiers))
        if sum(s * f.macs[i] for s, f, i in zip(shares, frontiers, choice, strict=True)) <= budget * BASE + 1e-6
    )
    recorded = sum(
        weight * frontier.recorded_at(group.mac_ratio)
        for weight, frontier, group in zip(weights, frontiers, plan.groups, strict=True)
    )
    assert recorded == pytest.approx(best, rel=1e-9)
    assert plan.expected_change() <= recorded * (1 + 1e-12)
    plain = allocate(groups, SCHEDULE, budget, STEPS, "measured", frontiers=frontiers)
    unweighed = replace(plain, sensitivity=given_weights)
    known = sum(
        weight * frontier.recorded_at(group.mac_ratio)
        for weight, frontier, group in zip(weights, frontiers, unweighed.groups, strict=True)
    )
    assert recorded <= known * (1 + 1e-9)


def two_alike() -> tuple[TimestepGroups, list[Frontier]]:
    frontier = Frontier((400, 600, 800, 1000), (0.4, 0.3, 0.2, 0.1), BASE)
    return make_groups(SCHEDULE, count=2), [frontier, frontier]


def test_the_group_in_which_errors_grow_gets_the_macs():
    groups, frontiers = two_alike()
    for weights, ratios in (([1.0, 9.0], [0.4, 1.0]), ([9.0, 1.0], [1.0, 0.4])):
        found = sensitivity(groups, weights)
        plan = allocate(groups, SCHEDULE, 0.7, STEPS, "measured", frontiers=frontiers, sensitivity=found)
        assert [group.mac_ratio for group in plan.groups] == pytest.approx(ratios)
        assert plan.mean_mac_ratio == pytest.approx(0.7)
    worse = allocate(groups, SCHEDULE, 0.7, STEPS, "uniform", frontiers=frontiers, sensitivity=found)
    assert plan.expected_change() < worse.expected_change()


def test_only_the_ratios_of_the_weights_matter():
    groups, frontiers = two_alike()
    plans = [
        allocate(
            groups, SCHEDULE, 0.75, STEPS, "measured", frontiers=frontiers, sensitivity=sensitivity(groups, weights)
        )
        for weights in ([1e-9, 3e-9], [1e6, 3e6])
    ]
    assert plans[0].groups == plans[1].groups


def test_weights_in_proportion_to_the_steps_change_nothing():
    groups = TimestepGroups.from_cuts(100, [30])
    frontiers = [Frontier((400, 700, 1000), (0.9, 0.3, 0.1), BASE), Frontier((300, 500, 1000), (0.5, 0.2, 0.19), BASE)]
    plain = allocate(groups, SCHEDULE, 0.6, STEPS, "measured", frontiers=frontiers)
    weighed = sensitivity(groups, [3.0, 7.0])
    assert (
        allocate(groups, SCHEDULE, 0.6, STEPS, "measured", frontiers=frontiers, sensitivity=weighed).groups
        == plain.groups
    )


def test_without_a_sensitivity_nothing_is_stored_and_nothing_is_expected():
    groups, frontiers = two_alike()
    plan = allocate(groups, SCHEDULE, 0.7, STEPS, "measured", frontiers=frontiers)
    assert plan.expected_change() is None
    assert "sensitivity" not in plan.to_json()


def test_the_allocation_keeps_the_sensitivity_and_compares_rules_by_it():
    groups, frontiers = two_alike()
    plan = plan_budget(
        groups,
        SCHEDULE,
        0.8,
        rule="measured",
        steps=10,
        frontiers=frontiers,
        sensitivity=sensitivity(groups, [1.0, 5.0]),
    )
    again = Allocation.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    rules = side_by_side(plan, SCHEDULE, 10)
    changes = {name: made.expected_change() for name, made in rules.items() if made is not None}
    assert min(changes, key=lambda name: changes[name]) == "measured"
    broken = plan.to_json()
    broken["sensitivity"] = sensitivity(TimestepGroups.from_cuts(100, [40]), [1.0, 5.0]).to_json()
    with pytest.raises(FileFormatError, match="other timestep groups"):
        Allocation.from_json(json.loads(json.dumps(broken)))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda groups: sensitivity(TimestepGroups.from_cuts(100, [40]), [1.0, 1.0]), "timestep groups 0–39, 40–99"),
        (
            lambda groups: sensitivity(TimestepGroups.from_cuts(100, [20, 50]), [1.0] * 3),
            "the allocation is for 0–49, 50–99",
        ),
        (lambda groups: sensitivity(groups, [1.0, 1.0], "heun"), "measured with heun"),
        (lambda groups: sensitivity(groups, [1.0, 1.0], steps=20), "evaluates the groups 10, 10 times"),
    ],
)
def test_a_sensitivity_of_other_groups_or_another_sampler_is_refused(found, said):
    groups, frontiers = two_alike()
    with pytest.raises(InputError, match=said) as refused:
        allocate(groups, SCHEDULE, 0.8, STEPS, "measured", frontiers=frontiers, sensitivity=found(groups))
    assert str(refused.value).count(". ") == 0
    assert "prunekit sensitivity" in str(refused.value)


def test_a_sensitivity_of_another_noise_schedule_is_refused():
    found = sensitivity(TimestepGroups.from_cuts(100, [50]), [1.0, 1.0])
    found.check_schedule(NoiseSchedule.linear(100))
    with pytest.raises(InputError, match="measured with another noise schedule than the base's"):
        found.check_schedule(NoiseSchedule.cosine(100))


def test_an_allocation_with_frontiers_or_a_sensitivity_of_something_else_is_refused():
    groups, frontiers = two_alike()
    made = allocate(
        groups, SCHEDULE, 0.8, STEPS, "measured", frontiers=frontiers, sensitivity=sensitivity(groups, [1.0, 2.0])
    )
    data = json.loads(json.dumps(made.to_json()))
    assert Allocation.from_json(data) == made
    data["frontiers"][1]["base_macs"] *= 3
    with pytest.raises(FileFormatError, match="its frontiers and targets are of networks of"):
        Allocation.from_json(data)
    data = json.loads(json.dumps(made.to_json()))
    data["sensitivity"]["sampler"] = "euler"
    with pytest.raises(FileFormatError, match="the sensitivity is of another sampler or number of steps"):
        Allocation.from_json(data)


def test_the_file_comes_back_as_it_was_and_fits_its_schema():
    jsonschema = pytest.importorskip("jsonschema")
    found = sensitivity(make_groups(SCHEDULE, count=3), [0.1, 2.0, 30.0])
    data = json.loads(json.dumps(found.to_json()))
    assert Sensitivity.from_json(data) == found
    assert found.weights_sha256 == "0" * 64
    jsonschema.validate(data, file_schema("sensitivity"))
    in_features = replace(found, measured_in="features", features={"name": "fashion-cnn"})
    assert Sensitivity.from_json(json.loads(json.dumps(in_features.to_json()))) == in_features


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "prunekit-sensitivity/9"}, "prunekit-sensitivity/1"),
        ({"measured_in": "taste"}, "measured_in"),
        ({"count": 0}, "count"),
        ({"size": 0}, "size"),
        ({"groups": []}, "cannot be read"),
        ({"features": {"name": "fashion-cnn"}}, "features are described"),
        ({"measured_in": "features"}, "features are described"),
        ({"num_timesteps": 90}, "cannot be read"),
        ({"groups.1.start": 60}, "cannot be read"),
        ({"groups.1.amplification": -1.0}, "amplification"),
        ({"groups.1.amplification": float("nan")}, "amplification"),
        ({"groups.1.amplification": "7"}, "amplification"),
        ({"groups.1.evaluations": 0}, "no evaluations and an amplification"),
        ({"groups.1.error": 0.0}, "evaluations and no error"),
        ({"groups.1.se": None, "groups.0.index": 1}, "cannot be read"),
        ({"noise_schedule": {"kind": "x"}}, "cannot be read"),
        (
            {"noise_schedule": {"kind": "linear", "num_timesteps": 50}},
            "its noise schedule has 50 timesteps, expected 100",
        ),
        ({"steps": 777}, "fewer evaluations than the sampler has steps, 777"),
    ],
)
def test_a_tampered_file_is_refused(change, said):
    data = copy.deepcopy(sensitivity(make_groups(SCHEDULE, count=2), [1.0, 2.0]).to_json())
    data = json.loads(json.dumps(data))
    for path, value in change.items():
        *way, last = path.split(".")
        place = data
        for key in way:
            place = place[int(key) if key.isdigit() else key]
        place[last] = value
    with pytest.raises(FileFormatError, match=said):
        Sensitivity.from_json(data, "sensitivity.json")


def test_changes_that_are_not_proportional_to_errors_are_said():
    found = sensitivity(make_groups(SCHEDULE, count=2), [1.0, 2.0])
    assert "proportional to errors: with" in found.describe_linearity()
    first = replace(found.groups[0], linearity=2.5)
    doubtful = replace(found, groups=(first, found.groups[1]))
    assert doubtful.not_linear == (first,)
    assert "not proportional" in doubtful.describe_linearity()
    assert "× 2.5 in group 0" in doubtful.describe_linearity()
    unchecked = replace(
        found, checked_size=None, groups=tuple(replace(group, linearity=None) for group in found.groups)
    )
    assert unchecked.describe_linearity() == "Linearity was not checked."


def test_cuts_by_sensitivity_are_those_of_least_spread():
    """By trying every choice of cuts."""
    fine = make_groups(SCHEDULE, count=6)
    values = [0.01, 0.012, 0.05, 0.06, 1.0, 1.4]
    found = sensitivity(fine, values)
    counts = [part.evaluations for part in found.groups]
    each = np.log([value / count for value, count in zip(values, counts, strict=True)])

    def spread(edges):
        return sum(
            float(
                np.average((each[a:b] - np.average(each[a:b], weights=counts[a:b])) ** 2, weights=counts[a:b])
                * sum(counts[a:b])
            )
            for a, b in itertools.pairwise(edges)
        )

    for count in (1, 2, 3, 4):
        made = BySensitivity(found)(SCHEDULE, count)
        best = min(itertools.combinations(range(1, 6), count - 1), key=lambda inner: spread((0, *inner, 6)))
        assert made.groups.cuts == tuple(fine[i].start for i in best)
    assert BySensitivity(found)(SCHEDULE, 3).groups.cuts == (fine[2].start, fine[4].start)
    assert BySensitivity(found)(SCHEDULE, 6).groups.cuts == fine.cuts
    read = Grouping.from_json(json.loads(json.dumps(made.to_json())))
    assert read.groups == made.groups


def test_groups_without_steps_have_no_say_in_the_cuts():
    fine = make_groups(SCHEDULE, count=25)  # ten steps, so that most have none
    found = sensitivity(fine, [0.01] * 10 + [1.0] * 15)
    (cut,) = BySensitivity(found)(SCHEDULE, 2).groups.cuts
    assert 30 < cut <= 50


@given(st.lists(st.floats(1e-4, 1e3), min_size=25, max_size=25), st.integers(1, 10))
def test_every_group_that_is_cut_by_a_sensitivity_has_a_step(values, count):
    found = sensitivity(make_groups(SCHEDULE, count=25), values)  # ten steps
    made = BySensitivity(found)(SCHEDULE, count)
    steps = made.groups.index_of(sampler_timesteps(SCHEDULE.num_timesteps, 10))
    assert set(steps.tolist()) == set(range(count))
    with pytest.raises(InputError, match="Got 11 groups to make of 10 in which the sensitivity's sampler has a step"):
        BySensitivity(found)(SCHEDULE, 11)


def test_cuts_that_a_sensitivity_does_not_give_are_refused():
    found = sensitivity(make_groups(SCHEDULE, count=3), [0.1, 0.2, 0.3])
    with pytest.raises(InputError, match=r"Got 4 groups to make of the 3 .* expected 1 … 3"):
        BySensitivity(found)(SCHEDULE, 4)
    with pytest.raises(InputError, match="of 100 timesteps and the noise schedule has 1000"):
        BySensitivity(found)(NoiseSchedule.linear(1000), 2)
    nothing = sensitivity(make_groups(SCHEDULE, count=3), [0.0, 0.0, 0.0])
    with pytest.raises(InputError, match="no group with an amplification"):
        BySensitivity(nothing)(SCHEDULE, 2)


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
    losses=st.lists(st.floats(1e-3, 1), min_size=4, max_size=4),
    share=st.floats(1e-3, 0.5),
)
def test_what_every_group_may_give_away_is_the_same_change_of_the_sample(weights, losses, share):
    own = np.array(losses[: len(weights)])
    found = sensitivity(make_groups(SCHEDULE, count=len(weights)), weights)
    slack = found.slack(own)
    changes = found.weights * own * share * slack
    assert changes == pytest.approx(np.full(len(weights), share * (found.weights @ own) / len(weights)))


def test_where_errors_do_not_reach_the_sample_nearly_everything_is_negligible():
    found = sensitivity(make_groups(SCHEDULE, count=2), [1.0, 0.0])
    assert found.slack(np.array([0.1, 0.2])).tolist() == [0.5, 1e6]
    assert found.slack(np.zeros(2)).tolist() == [1e6, 1e6]
