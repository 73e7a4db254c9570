"""What needs no loss is listed, and is all that needs none."""

import numpy as np
import pytest
import torch
from networks import unet, unet_inputs

from prunekit.cost import CostModel
from prunekit.errors import InputError
from prunekit.graph import trace
from prunekit.groups import TimestepGroups
from prunekit.importance import CRITERIA, WITHOUT_LOSS, Probe, importance, no_loss
from prunekit.search import MEASURING_NOTHING, PROPOSERS, SearchOptions, search

GROUPS = TimestepGroups.from_cuts(100, [50])


@pytest.mark.slow_cases("fpgm", "magnitude-l1", "proxy", "activation")
@pytest.mark.parametrize("by", sorted(CRITERIA))
def test_criteria_without_a_loss_are_those_that_are_listed(by):
    model = unet()
    if by in WITHOUT_LOSS:
        assert importance(model, unet_inputs(), None, GROUPS, by=by).sizes
    else:
        with pytest.raises(InputError, match="A loss is evaluated here"):
            importance(model, unet_inputs(), None, GROUPS, by=by, samples=2)


@pytest.mark.parametrize("name", sorted(set(PROPOSERS) - {"llm"}))
def test_proposers_that_measure_nothing_are_those_that_are_listed(name):
    model, inputs = unet(), unet_inputs()
    graph = trace(model, inputs)
    cost = CostModel.of(model, graph, inputs)
    scores = {group.name: np.random.default_rng(0).random(group.size) for group in graph}
    probe, target = Probe(no_loss, GROUPS[0], samples=2), int(0.7 * cost.macs(graph.full_widths))
    options = SearchOptions(proposer=name, rounds=2, trials=2)
    with torch.random.fork_rng(devices=[]):
        if name in MEASURING_NOTHING:
            assert search(model, graph, cost, scores, probe, target, options).macs <= target
        else:
            with pytest.raises(InputError, match="A loss is evaluated here"):
                search(model, graph, cost, scores, probe, target, options)
