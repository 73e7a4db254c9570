"""One round of greedy on a network with random weights, ready to be timed."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import nn

from prunekit.cost import CostModel
from prunekit.graph import ChannelGraph
from prunekit.importance import Probe
from prunekit.search import Task, WidthProblem, lost_importance, make_proxy
from prunekit.search.greedy import candidates_of

ROUNDS, TARGET = 12, 0.6


def one_round(
    model: nn.Module, graph: ChannelGraph, cost: CostModel, probe: Probe, candidates: int
) -> Callable[[], list[float]]:
    """A round's measurements: the plan that it starts from, and candidates that start from its repaired network.

    Args:
        model: the full network.
        graph: its channel groups.
        cost: their cost model.
        probe: the calibration draws; half of them screen.
        candidates: how many are measured; a search measures one for each channel group at most.
    """
    full = int(cost.macs(graph.full_widths))
    scores = {group.name: np.random.default_rng(0).random(group.size) for group in graph}
    problem = WidthProblem(graph, cost, lost_importance(graph, scores), int(TARGET * full), int(0.001 * full))
    draws, reach = probe.samples // 2, (1 - TARGET) * full / ROUNDS
    task = Task(problem, scores, make_proxy("least-squares", model, graph, replace(probe)), screening=draws)
    steps = np.zeros(len(graph), dtype=np.int64)
    first = next(iter(candidates_of(problem, steps, reach, 1.0).values()))
    chosen = list(candidates_of(problem, first, reach, 1.0).values())[:candidates]

    def measure() -> list[float]:
        losses = [task.measure(first, 1, near=first, draws=draws, anew=False)]
        return losses + list(task.measure_all(chosen, 1, first, draws, anew=False))

    return measure
