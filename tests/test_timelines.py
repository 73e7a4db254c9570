"""Which number a network is told for a timestep, and which timestep group a told number belongs to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.nets.drop_in import Router
from prunekit.schedule import NoiseSchedule, Parameterization, TimeUnit

UNITS = {
    "the scheduler's": TimeUnit(),
    "0 … 1": TimeUnit(1e-3),
    "1 … 0": TimeUnit(-1e-3, 1.0),
    "down": TimeUnit(-1.0, 1e3),
}
KINDS = {
    "diffusion": Parameterization(NoiseSchedule.linear(1000)),
    "flow": Parameterization(NoiseSchedule.rectified_flow(1000), "flow_prediction"),
    "shifted flow": Parameterization(NoiseSchedule.rectified_flow(1000, 3.0), "flow_prediction"),
    "EDM": Parameterization(NoiseSchedule.edm(1000), "edm"),
    "noise levels": Parameterization(
        replace(
            NoiseSchedule.edm(1000), scheduler={"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}
        ),
        "v_prediction",
    ),
}


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_trained_timestep_is_told_a_number_of_its_own_group(kind, unit):
    told = torch.from_numpy(unit.told(kind.timeline.trained)).float()
    groups = TimestepGroups.from_cuts(1000, (1, 250, 251, 700, 999))
    found = Router(groups, unit, kind.timeline).index_of(told)
    np.testing.assert_array_equal(found, groups.index_of(np.arange(1000)))


@given(
    cuts=st.lists(st.integers(1, 999), min_size=1, max_size=4, unique=True),
    place=st.floats(0, 1000),
    kind=st.sampled_from(sorted(KINDS)),
    unit=st.sampled_from(sorted(UNITS)),
)
def test_a_told_number_belongs_to_the_group_of_its_place(cuts, place, kind, unit):
    timeline, groups = KINDS[kind].timeline, TimestepGroups.from_cuts(1000, tuple(sorted(cuts)))
    told = torch.from_numpy(np.atleast_1d(UNITS[unit].told(timeline.time_of(np.array([place])))))
    near = np.abs(np.array(cuts) - place).min() < 1e-3
    assert near or Router(groups, UNITS[unit], timeline).index_of(told)[0] == groups.index_of([place])[0]


def test_flow_networks_are_told_noise_shares_times_1000():
    for kind in (KINDS["flow"], KINDS["shifted flow"]):
        np.testing.assert_allclose(kind.timeline.trained, 1000 * kind.schedule.noise, atol=1e-9)


def test_edm_networks_are_told_a_quarter_of_log_sigma():
    for kind in (KINDS["EDM"], KINDS["noise levels"]):
        np.testing.assert_allclose(kind.timeline.trained, np.log(kind.schedule.sigma) / 4)
        np.testing.assert_allclose(kind.timeline.place_of(kind.timeline.trained), np.arange(1000), atol=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(
    "schedule", [NoiseSchedule.edm(50), NoiseSchedule.rectified_flow(50), NoiseSchedule.cosine(50)]
)
def test_other_networks_are_told_timesteps(prediction, schedule):
    timeline = Parameterization(schedule, prediction).timeline
    assert timeline.counts_timesteps
    np.testing.assert_array_equal(timeline.trained, np.arange(50))


@pytest.mark.parametrize("kind", ["flow", "EDM", "noise levels", "diffusion"])
def test_levels_at_a_trained_timestep_are_those_of_the_training(kind):
    known = KINDS[kind]
    for t in (0, 1, 333, 999):
        levels = known.levels_at(t + known.timeline.middle)
        np.testing.assert_allclose(levels, [table[t] for table in known.input_levels], rtol=1e-9)
    if kind == "flow":
        assert known.levels_at(1000) == (0.0, 1.0)


@pytest.mark.parametrize(("unit", "told"), [(TimeUnit(1e-3), 1.5), (TimeUnit(1e-3), 500.0), (TimeUnit(), 1002.0)])
def test_times_outside_the_unit_are_refused(unit, told):
    with pytest.raises(InputError, match=f"timestep {told:g}; expected a number from 0 to"):
        Router(TimestepGroups.from_cuts(1000, (5,)), unit, KINDS["flow"].timeline).index_of(torch.tensor([told]))


def test_noise_levels_beyond_the_grid_are_refused():
    router = Router(TimestepGroups.from_cuts(1000, (5,)), None, KINDS["EDM"].timeline)
    assert router.index_of(torch.tensor([0.5, -0.5])).tolist() == [1, 1]  # nothing is ambiguous here
    with pytest.raises(InputError, match="timestep 500; expected a number from -1"):
        router.index_of(torch.tensor([500.0]))


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_small_times_are_ambiguous_where_nobody_has_stated_the_unit(kind):
    router = Router(TimestepGroups.from_cuts(1000, (5,)), None, KINDS[kind].timeline)
    with pytest.raises(InputError, match="may be in the unit 0 … 1 or 0 … 1000"):
        router.index_of(torch.tensor([900.0, 0.5]))
    assert router.index_of(torch.tensor([0.0, 1.0])).tolist() == [0, 0]
