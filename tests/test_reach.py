"""How far a network can be pruned is known without a search, in every unit of a target, and targets below it are named."""

from dataclasses import replace

import numpy as np
import pytest
from networks import unet

import prunekit as pk
from prunekit.checkpoint import Base, ModelSpec
from prunekit.errors import BudgetError
from prunekit.groups import make_groups
from prunekit.importance import ImportanceMap
from prunekit.recipe import FinetuneOptions, PruneOptions
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.search import SearchOptions
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.reach import Reach
from prunekit.training import TrainOptions

GROUPS = make_groups(NoiseSchedule.linear(), 2)
WITHOUT_DATA = PruneOptions(criterion="magnitude", repair="none", search=SearchOptions(proposer="oneshot"))


@pytest.fixture(scope="module")
def bench() -> Bench:
    model = unet()
    return Bench.of(Base(model, ModelSpec.of(model), Parameterization(NoiseSchedule.linear())))


@pytest.fixture(scope="module")
def scores(bench: Bench) -> ImportanceMap:
    return score_groups(bench, None, GROUPS, WITHOUT_DATA)


@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_the_floor_can_be_reached_and_nothing_below_it(
    of: str, floor: float, bench: Bench, scores: ImportanceMap
) -> None:
    options = replace(WITHOUT_DATA, floor=floor, search=replace(WITHOUT_DATA.search, target_of=of))
    reach = Reach.of(bench, options)
    plan = pk.allocate(GROUPS, NoiseSchedule.linear(), reach.floor, network_floor=reach.floor).for_model(bench.macs)
    target = plan.groups[1].target_macs
    assert target is not None
    reach.check({1: target}, "mend it")
    _, result = prune_group(bench, None, scores, GROUPS[1], target, options)
    assert result.spent <= result.target
    assert result.spent == reach.least
    below = int(0.98 * target)
    with pytest.raises(BudgetError, match="is below what this network can be pruned to") as caught:
        reach.check({0: bench.macs, 1: below}, "mend it")
    assert caught.value.feasible == (reach.least, reach.full)
    with pytest.raises(BudgetError):
        prune_group(bench, None, scores, GROUPS[1], below, options)


def test_the_error_names_the_groups_the_floor_and_the_remedy(bench: Bench) -> None:
    reach = Reach.of(bench, WITHOUT_DATA)
    with pytest.raises(
        BudgetError, match=r"^The targets of timestep groups 1 \(0\.0001\d*\), 3 \(0\.0002\d*\) are below"
    ) as caught:
        reach.check({0: 1.0, 1: 0.00015, 2: 0.9, 3: 0.00025}, "do this")
    assert str(caught.value).endswith(f"({reach.shown}); do this.")
    assert float(reach.shown) >= reach.floor


def test_make_experts_refuses_a_budget_below_the_floor_before_it_scores() -> None:
    images = np.zeros((4, 1, 8, 8), dtype=np.uint8)
    said: list[str] = []
    tuned = FinetuneOptions(train=TrainOptions(steps=1))
    with pytest.raises(BudgetError, match="this network can be pruned to"):
        pk.make_experts(unet(), images, budget=0.0005, groups=2, finetuning=tuned, progress=said.append)
    assert said == ["following the network"]
