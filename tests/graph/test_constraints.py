"""What a user says about pruning holds for every plan, and what makes no sense is refused in one sentence."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import unet, unet_inputs
from test_flow import silenced
from torch import nn

from prunekit.cost import CostModel, count_macs
from prunekit.errors import BudgetError, InputError, PlanError
from prunekit.graph import Constraints, PruningPlan, apply, trace
from prunekit.graph.running import run_once
from prunekit.search import WidthProblem, lost_importance, meet_target

BLOCKS = ("conv_in", "down_blocks.0", "mid_block", "up_blocks.*.resnets", "*.to_q", "*.conv1")


@pytest.fixture(scope="module")
def network():
    return unet(), unet_inputs()


def of_layers(graph, *layers):
    return [group for group in graph if not set(layers).isdisjoint(group.makers)]


@settings(max_examples=12, deadline=None)
@given(
    keep=st.lists(st.sampled_from(BLOCKS), max_size=1, unique=True),
    limit=st.dictionaries(st.sampled_from(BLOCKS), st.one_of(st.floats(0.1, 0.9), st.integers(1, 8)), max_size=2),
    ties=st.sampled_from([(), (("mid_block.resnets.*.conv1",),), (("down_blocks.1.*.conv1", "mid_block.*.conv1"),)]),
    norm=st.dictionaries(st.sampled_from(BLOCKS[1:4]), st.sampled_from(["whole"]), max_size=2),
    head=st.dictionaries(st.sampled_from(["mid_block", "*.to_q"]), st.sampled_from(["even"]), max_size=1),
    seed=st.integers(0, 999),
)
def test_every_plan_respects_any_constraints_and_costs_what_is_predicted(network, keep, limit, ties, norm, head, seed):
    model, inputs = network
    asked = Constraints(tuple(keep), ties, limit, {}, norm, head)
    try:
        graph = trace(model, inputs, constraints=asked)
    except InputError as error:
        assert set(limit) & set(keep) or keep == ["*.conv1"] or "keep keeps whole" in str(error)
        return
    cost = CostModel.of(model, graph, inputs)
    rng = np.random.default_rng(seed)
    scores = {group.name: rng.random(group.size) for group in graph}
    full = int(cost.macs(graph.full_widths))
    problem = WidthProblem(graph, cost, lost_importance(graph, scores), int(0.7 * full), int(0.05 * full))
    try:
        found = problem.widths(meet_target(problem))
    except BudgetError:
        found = graph.full_widths
    for widths in (found, np.array([int(rng.choice(group.widths)) for group in graph])):
        plan = PruningPlan.from_widths(graph, widths, scores)
        pruned = apply(model, graph, plan)
        counted = count_macs(pruned, inputs)
        assert (counted.macs, counted.params) == (int(cost.macs(widths)), int(cost.params(widths)))
        left = dict(pruned.named_modules())
        for name, module in model.named_modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            now, before = (len(one.weight) for one in (left[name], module))
            inside = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
            for pattern in keep:
                if any(_glob(pattern, one) for one in inside):
                    assert now == before
            for pattern, least in limit.items():
                if any(_glob(pattern, one) for one in inside):
                    assert now >= min(before, before * least if isinstance(least, float) else least) - 1e-6
        if ties:
            same = {len(module.weight) for name, module in left.items() if any(_glob(p, name) for p in ties[0])}
            assert len(same) == 1


def _glob(pattern, name):
    return torch.package.GlobGroup is not None and __import__("fnmatch").fnmatchcase(name, pattern)
