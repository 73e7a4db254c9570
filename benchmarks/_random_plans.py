"""Plans for networks with random weights, which have no loss to lose: importance is random, in proportion to the MACs it saves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from prunekit._types import FloatArray, IntArray
from prunekit.cost import CostModel, LatencyModel
from prunekit.graph import ChannelGraph
from prunekit.search import Measure, WidthProblem, default_multiples, lost_importance, meet_target


def importance(graph: ChannelGraph, cost: CostModel) -> dict[str, FloatArray]:
    """Scores of every channel and branch: the MACs that it saves alone, times a random number with mean 1.

    So every layer loses about the same share of its channels.
    """
    rng, full, scores = np.random.default_rng(0), graph.full_widths, {}
    for place, group in enumerate(graph):
        narrower = full.copy()
        narrower[place] -= group.step
        saved = int(cost.macs(full) - cost.macs(narrower)) / group.step
        scores[group.name] = saved * rng.uniform(0.0, 2.0, group.size)
    return scores


def plan_of(
    graph: ChannelGraph,
    cost: CostModel,
    scores: Mapping[str, FloatArray],
    target: int,
    measure: Measure | None = None,
) -> IntArray:
    """Widths that meet a target with little importance lost: of MACs, or of another measure.

    Raises:
        BudgetError: the network cannot be pruned that far.
    """
    full = int((measure or Measure.by_name("macs", cost)).of(graph.full_widths))
    problem = WidthProblem(graph, cost, lost_importance(graph, dict(scores)), target, full // 1000, measure)
    return problem.widths(meet_target(problem))


def matched_plans(
    graph: ChannelGraph, cost: CostModel, latency: LatencyModel, scores: Mapping[str, FloatArray], fraction: float
) -> dict[str, IntArray]:
    """Widths at a share of the MACs, and those that take as long as the first of them by prediction; with branches and without.

    Raises:
        BudgetError: the network cannot be pruned that far.
    """
    still = {group.name for group in graph if group.branch is not None}
    usual = default_multiples(graph)
    timed, seconds = latency.multiples(usual), Measure.by_name("latency", cost, latency)
    target = int(fraction * int(cost.macs(graph.full_widths)))
    first = plan_of(usual.with_whole(still), cost, scores, target)
    same = int(latency.nanoseconds(first))
    return {
        "MACs, width": first,
        "MACs, both": plan_of(usual, cost, scores, target),
        "time, width": plan_of(timed.with_whole(still), cost, scores, same, seconds),
        "time, both": plan_of(timed, cost, scores, same, seconds),
    }


def about(
    graph: ChannelGraph, cost: CostModel, latency: LatencyModel, scores: Mapping[str, FloatArray], widths: IntArray
) -> dict[str, Any]:
    """Widths, MACs, removed branches, lost importance and predicted time of a plan, as shares of the base's."""
    full, lost = graph.full_widths, lost_importance(graph, dict(scores))
    places = [int(np.flatnonzero(group.widths == width)[0]) for group, width in zip(graph, widths, strict=True)]
    total = sum(float(each.sum()) for each in scores.values())
    inside = sum(table[place] for table, place in zip(lost, places, strict=True))
    return {
        "widths": widths.tolist(),
        "mac_ratio": int(cost.macs(widths)) / int(cost.macs(full)),
        "removed": sum(
            group.branch is not None and not width for group, width in zip(graph, widths.tolist(), strict=True)
        ),
        "lost": float(inside) / total,
        "predicted": int(latency.nanoseconds(widths)) / int(latency.nanoseconds(full)),
    }
