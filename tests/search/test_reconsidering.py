"""Residual branches in the search: removals are decided with the widths, and undone where the loss at the target says so."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunekit.cost import CostModel
from prunekit.graph import trace
from prunekit.search.greedy import greedy
from prunekit.search.meeting_targets import WidthProblem, lost_importance
from prunekit.search.reconsidering import reconsider
from prunekit.search.task import Task


class Residual(nn.Module):
    """A linear layer of two, added to what goes in."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


NET = nn.Sequential(nn.Linear(4, 16), Residual(16, 64), Residual(16, 32), Residual(16, 16), nn.Linear(16, 4))
INPUTS = (torch.zeros(1, 4),)


@pytest.fixture(scope="module")
def problem() -> WidthProblem:
    """Three branches, the first of which is the largest."""
    graph = trace(NET, INPUTS, shrink="both")
    assert [branch.name for branch in graph.branches] == ["branch:1", "branch:2", "branch:3"]
    cost = CostModel.of(NET, graph, INPUTS)
    scores = {group.name: np.ones(group.size) for group in graph}
    full = int(cost.macs(graph.full_widths))
    return WidthProblem(graph, cost, lost_importance(graph, scores), int(0.5 * full), int(0.02 * full))


def task_of(problem: WidthProblem, evaluate) -> Task:
    scores = {group.name: np.arange(group.size, dtype=float) for group in problem.graph}
    return Task(problem, scores, lambda plan, near=None, draws=None, anew=True: evaluate(plan), rounds=4, shortlist=4)


def kept(problem: WidthProblem, plan) -> dict[str, float]:
    """Share of each group that a plan keeps."""
    return dict(zip(problem.graph.index, plan.widths(problem.graph) / problem.graph.full_widths, strict=True))


def test_a_removal_that_is_wrong_at_the_target_is_undone(problem):
    def evaluate(plan):
        share = kept(problem, plan)
        cut = 1 - min(share["0"], share["2.up"], share["3.up"])
        return 1 + 0.1 * cut + (1 - share["branch:1"]) * (0.5 + 8 * cut) + 0.2 * (1 - share["1.up"]) ** 2

    first = np.zeros(len(problem.graph), dtype=np.int64)
    place = problem.graph.index["branch:1"]
    first[place] = 1
    first[problem.graph.index["2.up"]] = 16
    assert problem.spent(first) <= problem.target
    task = task_of(problem, evaluate)
    rates = dict.fromkeys(range(len(first)), 1e-6)
    found = reconsider(task, first, rates)
    assert found[place] == 0
    assert problem.spent(found) <= problem.target
    assert task.measure(found, -1) < task.measure(first, -1)
    assert any(entry.get("chosen") == "branches" for entry in task.memory)


def test_a_flip_that_gains_less_than_is_negligible_is_not_taken(problem):
    place = problem.graph.index["branch:1"]
    first = np.zeros(len(problem.graph), dtype=np.int64)
    first[place], first[problem.graph.index["2.up"]] = 1, 16

    def evaluate(plan):
        return 1 + 0.05 * (1 - kept(problem, plan)["branch:1"])

    found = []
    for negligible in (0.0, 0.01, 0.2):
        task = task_of(problem, evaluate)
        task.negligible = negligible
        found.append(int(reconsider(task, first, dict.fromkeys(range(len(first)), 1e-6))[place]))
    assert found == [0, 0, 1]


def test_nothing_is_measured_where_no_branch_may_be_removed(problem):
    graph = problem.graph.shrinking("width")
    narrow = WidthProblem(graph, CostModel.of(NET, graph, INPUTS), [], 1, 1)
    task = task_of(narrow, lambda plan: pytest.fail("measured"))
    steps = np.zeros(len(graph), dtype=np.int64)
    assert reconsider(task, steps, {}) is steps


@given(seed=st.integers(0, 2**32 - 1))
def test_second_thoughts_meet_the_target_and_never_measure_worse(problem, seed):
    rng = np.random.default_rng(seed)
    worth, pairs = rng.random(len(problem.graph)) ** 4, rng.normal(size=(len(problem.graph),) * 2) * 0.2

    def evaluate(plan):
        gone = 1 - np.array(list(kept(problem, plan).values()))
        return float(1 + worth @ gone + gone @ pairs @ gone)

    task = task_of(problem, evaluate)
    found = greedy(task)
    assert problem.spent(found) <= problem.target
    closed = [entry["loss"] for entry in task.memory if "chosen" not in entry and entry["round"] == -1]
    chosen = [entry for entry in task.memory if entry.get("chosen") == "branches"]
    assert not chosen or chosen[-1]["loss"] <= min(closed)
    widths = problem.widths(found)
    assert (problem.graph.settled(widths) == widths).all()
