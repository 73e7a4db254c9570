"""Targets are met whenever some widths meet them: held against brute force on networks that mix coarse and fine groups."""

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import rows
from numpy.typing import NDArray
from torch import nn

from prunekit.cost import CostModel
from prunekit.graph import trace
from prunekit.search import WidthProblem, lost_importance, meet_target
from prunekit.search.exact import nearest_below


@dataclass
class Chain:
    """Cost of linear layers in a row; each group's width shrinks from ``size`` by its own step."""

    sizes: NDArray[np.int64]
    step: NDArray[np.int64]
    target: int
    tolerance: int

    @property
    def max_steps(self):
        return (self.sizes - 1) // self.step

    def spent(self, steps):
        widths = self.sizes - self.step * steps
        ends = np.full((*widths.shape[:-1], 1), 5)
        padded = np.concatenate([ends, widths, ends], -1)
        return (padded[..., :-1] * padded[..., 1:]).sum(-1)


def all_misses(problem):
    states = np.array(list(itertools.product(*[range(most + 1) for most in problem.max_steps])))
    missed = problem.target - problem.spent(states)
    return missed[missed >= 0]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 24), st.sampled_from([1, 2, 7, 16])), min_size=1, max_size=4),
    st.floats(0.02, 1.0),
    st.sampled_from([0.0, 0.001, 0.02]),
)
def test_no_state_is_nearer_to_the_target_than_the_one_that_is_called_certain(groups, ratio, tolerance):
    sizes, steps = np.array(groups).T
    problem = Chain(sizes, steps, 0, 0)
    full, least = (int(problem.spent(s)) for s in (np.zeros_like(sizes), problem.max_steps))
    problem = replace(problem, target=least + int(ratio * (full - least)), tolerance=int(tolerance * full))
    found, certain = nearest_below(problem, problem.max_steps)
    assert certain
    assert (found >= 0).all()
    assert (found <= problem.max_steps).all()
    missed = problem.target - int(problem.spent(found))
    assert missed >= 0
    assert max(missed - problem.tolerance, 0) == max(int(all_misses(problem).min()) - problem.tolerance, 0)


def test_a_coarse_group_is_traded_for_many_steps_of_a_fine_one():
    """What exchanges of two steps cannot do: 64 coarse channels at once against dozens of single ones."""
    layers = [nn.Linear(6, 128), nn.Linear(128, 96), nn.Linear(96, 128), nn.Linear(128, 3)]
    model = nn.Sequential(*[module for layer in layers for module in (layer, nn.ReLU())][:-1])
    graph = trace(model, (rows(1, 6),))
    coarse = replace(graph, groups=tuple(replace(g, multiple=64 if i != 1 else 1) for i, g in enumerate(graph.groups)))
    cost = CostModel.of(model, graph, (rows(1, 6),))
    full = int(cost.macs(graph.full_widths))
    for seed, ratio in itertools.product(range(2), np.linspace(0.3, 0.98, 6)):
        scores = {group.name: np.random.default_rng(seed).random(group.size) for group in coarse}
        problem = WidthProblem(coarse, cost, lost_importance(coarse, scores), int(ratio * full), full // 1000)
        steps = meet_target(problem)
        states = np.array(list(itertools.product(*[range(most + 1) for most in problem.max_steps])))
        missed = problem.target - problem.macs(states)
        best = int(missed[missed >= 0].min())
        assert max(problem.missed(steps) - problem.tolerance, 0) == max(best - problem.tolerance, 0)


def test_250_groups_are_decided_in_seconds():
    rng = np.random.default_rng(0)
    sizes, steps = rng.integers(64, 1280, 250), rng.choice([1, 8, 64], 250)
    problem = Chain(sizes, steps, 0, 0)
    full = int(problem.spent(np.zeros(250, dtype=np.int64)))
    began = time.process_time()
    for ratio in (0.35, 0.6, 0.9):
        asked = replace(problem, target=int(ratio * full), tolerance=full // 1000)
        found, _ = nearest_below(asked, asked.max_steps)
        assert 0 <= asked.target - int(asked.spent(found)) <= asked.tolerance
    assert time.process_time() - began < 10
