"""What short fine-tunings recover: frontiers that are corrected for it, the file, and train steps that are shared."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.allocation import (
    Allocation,
    Frontier,
    GroupRecoveries,
    GroupSensitivity,
    Recoveries,
    Recovery,
    Sensitivity,
    after_recovery,
    allocate,
    shared_steps,
)
from prunekit.errors import FileFormatError, InputError
from prunekit.groups import TimestepGroup, TimestepGroups, make_groups
from prunekit.ledger import LedgerRow
from prunekit.results.schemas import file_schema
from prunekit.runs.kept_recoveries import kept_recovery
from prunekit.schedule import NoiseSchedule, sampler_timesteps
from prunekit.training.checkpoints import save_checkpoint

SCHEDULE = NoiseSchedule.linear(100)
STEPS = sampler_timesteps(100, 10)
BASE = 1000
LOSSES = st.floats(1e-6, 1e3)
RATIOS = st.integers(200, 1000).map(lambda macs: macs / BASE)


@given(
    points=st.lists(st.tuples(LOSSES, LOSSES), min_size=1, max_size=4, unique_by=lambda point: point[0]),
    factor=st.floats(1e-3, 1e3),
)
@settings(max_examples=100, deadline=None)
def test_the_loss_of_a_trained_network_is_its_own_and_units_do_not_matter(points, factor):
    recoveries = [Recovery(100 + i, before, after) for i, (before, after) in enumerate(points)]
    before = [one.before for one in recoveries]
    assert after_recovery(before, recoveries) == pytest.approx([one.after for one in recoveries], rel=1e-9)
    scaled = [Recovery(one.macs, factor * one.before, factor * one.after) for one in recoveries]
    at = [0.5 * min(before), float(np.mean(before)), 2 * max(before)]
    found = after_recovery([factor * loss for loss in at], scaled)
    assert found == pytest.approx(factor * after_recovery(at, recoveries), rel=1e-7)
    lowest, highest = min(recoveries, key=lambda one: one.before), max(recoveries, key=lambda one: one.before)
    expected = [0.5 * lowest.after, 2 * highest.after]
    assert after_recovery([at[0], at[2]], recoveries) == pytest.approx(expected, rel=1e-9)  # the nearest one's factor


def test_between_trained_networks_the_logarithm_is_linear_and_equal_losses_are_averaged():
    recoveries = [Recovery(300, 0.16, 0.04), Recovery(1000, 0.01, 0.01)]
    assert after_recovery([0.04], recoveries) == pytest.approx([0.02])
    twice = [Recovery(300, 0.16, 0.04), Recovery(400, 0.16, 0.01)]
    assert after_recovery([0.16], twice) == pytest.approx([0.02])


def test_a_flat_frontier_stays_flat():
    """Interpolating over MACs instead would put a dip between the trained networks."""
    frontier = Frontier((300, 600, 1000), (0.5, 0.12, 0.1), BASE)
    corrected = frontier.corrected([Recovery(300, 0.5, 0.12), Recovery(1000, 0.1, 0.1)])
    part = math.log(1.2) / math.log(5)
    assert corrected.loss[1] == pytest.approx(0.12**part * 0.1 ** (1 - part), rel=1e-9)
    assert list(corrected.loss) == sorted(corrected.loss, reverse=True)


def test_a_larger_network_that_recovers_to_a_higher_loss_leaves_the_frontier():
    """As in the noisiest group of a real base, at 0.3 of its MACs."""
    frontier = Frontier((300, 600, 1000), (0.00148, 0.0004, 0.0002), BASE)
    corrected = frontier.corrected([Recovery(300, 0.00148, 0.00015), Recovery(1000, 0.0002, 0.00017)])
    assert corrected.macs == (300,)
    assert corrected.loss == pytest.approx((0.00015,))
    assert corrected.base_macs == BASE


def test_corrected_frontiers_change_the_choice():
    """The noisy group's losses before fine-tuning draw the budget; after it there is nothing to gain there."""
    groups = make_groups(SCHEDULE, count=2)
    frontiers = [Frontier((400, 1000), (0.2, 0.1), BASE), Frontier((400, 1000), (0.9, 0.1), BASE)]
    recoveries = [[Recovery(400, 0.2, 0.19)], [Recovery(400, 0.9, 0.1001), Recovery(1000, 0.1, 0.1)]]
    corrected = [one.corrected(points) for one, points in zip(frontiers, recoveries, strict=True)]
    plain = allocate(groups, SCHEDULE, 0.7, STEPS, "measured", frontiers=frontiers)
    plan = allocate(groups, SCHEDULE, 0.7, STEPS, "measured", frontiers=corrected)
    assert [group.mac_ratio for group in plain.groups] == pytest.approx([0.4, 1.0])
    assert [group.mac_ratio for group in plan.groups] == pytest.approx([1.0, 0.4])
    assert (plain.when, plan.when) == ("before fine-tuning", "after a short fine-tuning")
    assert Allocation.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_what_cannot_be_corrected_is_refused():
    frontier = Frontier((400, 1000), (0.2, 0.1), BASE)
    point = Recovery(400, 0.2, 0.1)
    with pytest.raises(InputError, match="no recoveries"):
        frontier.corrected([])
    with pytest.raises(InputError, match="corrected for recoveries already"):
        frontier.corrected([point]).corrected([point])
    with pytest.raises(InputError, match="expected losses above 0"):
        Frontier((400, 1000), (0.2, -0.1), BASE).corrected([point])
    for bad in ((0, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, math.nan), (1, math.inf, 1.0)):
        with pytest.raises(ValueError, match="positive"):
            Recovery(*bad)


def recoveries(index: int, points: list[Recovery], steps: int = 50) -> Recoveries:
    group = list(make_groups(SCHEDULE, count=2))[index]
    return Recoveries(100, BASE, steps, (GroupRecoveries(group, tuple(points)),), "a" * 64)


def test_recoveries_are_joined_and_belong_to_their_groups():
    low, high = Recovery(400, 0.2, 0.15), Recovery(1000, 0.1, 0.1)
    joined = recoveries(1, [high]).joined(recoveries(0, [low])).joined(recoveries(1, [low]))
    assert joined.of_each(make_groups(SCHEDULE, count=2)) == ((low,), (low, high))
    assert Recoveries.from_json(json.loads(json.dumps(joined.to_json()))) == joined
    with pytest.raises(InputError, match="expected the same base and steps"):
        joined.joined(recoveries(0, [low], steps=60))
    with pytest.raises(InputError, match="0–49, 50–99 and the allocation is for 0–29, 30–99"):
        joined.of_each(TimestepGroups.from_cuts(100, [30]))
    with pytest.raises(InputError, match="expected the same"):
        recoveries(0, [low]).of_each(make_groups(SCHEDULE, count=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps"),
        ({"base_macs": "many"}, "base_macs"),
        ({"groups": []}, "one or more points"),
        ({"groups": [{"index": 0, "start": 0, "stop": 50, "points": []}]}, "one or more points"),
        (
            {"groups": [{"index": 0, "start": 0, "stop": 50, "points": [{"macs": 4, "before": 0, "after": 1}]}]},
            "before",
        ),
        ({"format": "other"}, "format"),
    ],
)
def test_a_damaged_file_is_refused(change, said):
    good = recoveries(0, [Recovery(400, 0.2, 0.15)]).to_json()
    with pytest.raises(FileFormatError, match=said):
        Recoveries.from_json(good | change, "recoveries.json")


def test_the_file_follows_its_schema():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(recoveries(0, [Recovery(400, 0.2, 0.15)]).to_json(), file_schema("recoveries"))


def test_a_recovery_that_ended_is_not_trained_again(tmp_path):
    file, point = tmp_path / "group-0.json", Recovery(400, 0.2, 0.15)
    cost = LedgerRow("recovery, group 0", "training", 16, 4800, 1600)
    trained: list[object] = []

    def train(checkpoints):
        trained.append(checkpoints)
        save_checkpoint(checkpoints, 3, {"step": 3})
        return point, [cost]

    assert kept_recovery(file, train) == (point, [cost])
    assert kept_recovery(file, train) == (point, [cost])
    assert trained == [tmp_path / "group-0"]
    assert list(tmp_path.iterdir()) == [file]
    file.write_text(json.dumps(vars(point)))  # as earlier versions wrote it
    assert kept_recovery(file, train) == (point, [])
    file.write_text(json.dumps(vars(point) | {"after": 0}))
    with pytest.raises(FileFormatError, match="delete it"):
        kept_recovery(file, train)


def planned(weights: list[float], ratios: list[float], losses: list[float]) -> Allocation:
    """An allocation with these amplifications, targets, and losses at the targets."""
    groups = make_groups(SCHEDULE, count=len(weights))
    frontiers = [Frontier((round(BASE * ratio),), (loss,), BASE) for ratio, loss in zip(ratios, losses, strict=True)]
    counts = np.bincount(groups.index_of(STEPS), minlength=len(groups)).tolist()
    parts = tuple(
        GroupSensitivity(g.index, g.start, g.stop, n, 1e-4, weight, 0.0, 1.0)
        for g, n, weight in zip(groups, counts, weights, strict=True)
    )
    found = Sensitivity(100, "ddim", 10, 1.0, "pixels", 32, 0, 0.02, 0.04, False, parts)
    budget = round(float(groups.shares(STEPS) @ np.array(ratios)), 9)
    return allocate(groups, SCHEDULE, budget, STEPS, "measured", frontiers=frontiers, sensitivity=found)


@given(
    found=st.lists(
        st.tuples(st.floats(0, 1e3), st.integers(200, 1000).map(lambda n: n / BASE), st.floats(1e-4, 1.0)),
        min_size=2,
        max_size=5,
    ),
    steps=st.integers(1, 4000),
)
@settings(max_examples=100, deadline=None)
def test_shared_steps_cost_the_same_together_and_no_group_starves(found, steps):
    allocation = planned(*(list(column) for column in zip(*found, strict=True)))
    shared = shared_steps(allocation, steps)
    macs = [group.target_macs for group in allocation.groups]
    spent = sum(n * c for n, c in zip(shared, macs, strict=True))
    assert steps * sum(macs) - sum(macs) < spent <= steps * sum(macs)
    assert min(shared) >= max(1, steps // 4) - 1


def test_shared_steps_make_the_expected_change_smallest():
    """Of all ways to share: no move of steps from one group to another lowers the sum of worth / steps."""
    allocation = planned([1.0, 9.0, 4.0], [1.0, 0.5, 0.8], [0.1, 0.05, 0.2])
    shared = np.array(shared_steps(allocation, 10000), dtype=float)
    macs = np.array([group.target_macs for group in allocation.groups], dtype=float)
    worth = np.array([1.0, 9.0, 4.0]) * np.array([0.1, 0.05, 0.2])
    best = (worth / shared).sum()
    for give in range(3):
        for take in range(3):
            if give != take:
                moved = shared.copy()
                moved[give] -= 200
                moved[take] += 200 * macs[give] / macs[take]
                assert (worth / moved).sum() > best
    assert shared_steps(planned([0.0, 0.0], [1.0, 0.5], [0.1, 0.1]), 30) == (30, 30)
    assert shared_steps(planned([4.0, 1.0], [1.0, 1.0], [0.1, 0.1]), 300, [True, False]) == (300, 0)


def test_a_group_without_a_loss_at_its_target_gets_the_least():
    assert shared_steps(planned([1.0, 1.0], [1.0, 1.0], [0.0, 0.1]), 1000) == (250, 1750)


def test_recoveries_that_leave_no_finite_losses_are_refused():
    with pytest.raises(InputError, match="The recoveries leave no frontier"):
        Frontier((100,), (1.0,), 100).corrected([Recovery(100, 1e-300, 1e308)])


def test_steps_are_not_shared_without_a_sensitivity():
    groups = make_groups(SCHEDULE, count=2)
    with pytest.raises(InputError, match="rule auto without a sensitivity"):
        shared_steps(allocate(groups, SCHEDULE, 0.8, STEPS), 10)


def test_no_network_is_larger_than_the_base():
    group = GroupRecoveries(TimestepGroup(0, 0, 10), (Recovery(101, 0.2, 0.1),))
    with pytest.raises(ValueError, match="a network has 101 MACs and the base 100"):
        Recoveries(10, 100, 5, (group,))
