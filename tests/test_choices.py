"""The names that users choose by are those of the registries, each listed once."""

from typing import get_args

import pytest

from prunekit import choices
from prunekit.allocation.rules import RULES
from prunekit.groups import METHODS
from prunekit.importance import CRITERIA
from prunekit.recipe import MEASURED_METHODS
from prunekit.schedule.noise import NAMED_KINDS, NoiseSchedule
from prunekit.search import PROPOSERS, PROXIES
from prunekit.training import LEARNT_WEIGHTS, LOSS_WEIGHTS, TIMESTEP_SAMPLERS


@pytest.mark.parametrize(
    ("listed", "registry"),
    [
        (choices.AllocationRule, RULES),
        (choices.CriterionName, CRITERIA),
        (choices.GroupingName, (*METHODS, *MEASURED_METHODS)),
        (choices.LossWeights, (*LOSS_WEIGHTS, *LEARNT_WEIGHTS)),
        (choices.ProposerName, PROPOSERS),
        (choices.ProxyName, PROXIES),
        (choices.TimestepSamplers, TIMESTEP_SAMPLERS),
    ],
)
def test_every_choice_is_in_its_registry_and_the_other_way_round(listed, registry):
    assert set(get_args(listed)) == set(registry)


def test_every_named_schedule_can_be_made():
    for kind in get_args(choices.ScheduleName):
        assert NoiseSchedule.from_config({"kind": kind, "num_timesteps": 10}).num_timesteps == 10
    assert get_args(choices.ScheduleName) == NAMED_KINDS


def test_all_of_them_are_listed():
    assert choices.__all__ == sorted(name for name in vars(choices) if name[0].isupper() and name != "Literal")
