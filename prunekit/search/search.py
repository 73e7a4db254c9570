"""From a trained network and a MAC target to a pruning plan for one timestep group."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from prunekit.cost import CostModel
from prunekit.errors import GraphError, InputError
from prunekit.graph import ChannelGraph, PruningPlan
from prunekit.importance import Probe, Scores
from prunekit.search.proposers import Task, proposer
from prunekit.search.targets import WidthProblem, lost_importance

__all__ = ["SearchOptions", "SearchResult", "search"]


@dataclass(frozen=True)
class SearchOptions:
    """How to search; rounds and short list are this project's choice, the paper does not publish its own.

    Args:
        proposer: name of the proposer.
        rounds: decisions on the way to the target.
        shortlist: candidates measured in the first round.
        tolerance: fraction of the base's MACs by which the target may be missed before nearness outweighs importance.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    proposer: str = "greedy"
    rounds: int = 12
    shortlist: int = 8
    tolerance: float = 0.002

    def __post_init__(self) -> None:
        proposer(self.proposer)
        if self.rounds < 1 or self.shortlist < 1 or not 0 <= self.tolerance < 1:
            raise InputError("Expected rounds and shortlist of at least 1 and a tolerance in [0, 1).")


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A plan at its target.

    Args:
        plan: what to keep.
        macs: MACs of the pruned network, at most ``target``.
        params: its parameters.
        target: what was asked.
        widths: channel group name to (before, after).
        memory: every measured candidate: round, steps, MACs, loss.
    """

    plan: PruningPlan
    macs: int
    params: int
    target: int
    widths: dict[str, tuple[int, int]]
    memory: list[dict[str, Any]]


def search(
    model: nn.Module,
    graph: ChannelGraph,
    cost: CostModel,
    scores: Scores,
    probe: Probe,
    target: int,
    options: SearchOptions | None = None,
) -> SearchResult:
    """Find a plan whose MACs meet ``target`` and whose loss on the probe's timestep group rises little.

    Args:
        model: the full network, unchanged.
        graph: its channel groups.
        cost: their cost model.
        scores: importance of every channel for this timestep group.
        probe: loss on the timestep group.
        target: MACs per sample per evaluation, never exceeded.
        options: see :class:`SearchOptions`.

    Raises:
        BudgetError: the target is below what the network can be pruned to.
        GraphError: the proposer exceeded the target.
    """
    options = options or SearchOptions()
    full = int(cost.macs(graph.full_widths))
    problem = WidthProblem(graph, cost, lost_importance(graph, scores), target, int(options.tolerance * full))
    problem.check()
    task = Task(model, problem, scores, probe, options.rounds, options.shortlist)
    steps = proposer(options.proposer)(task)
    if problem.macs(steps) > target:
        raise GraphError(
            f"Proposer {options.proposer!r} exceeded the target of {target:,} MACs; it must end at or below it."
        )
    plan = task.plan(steps)
    widths = problem.widths(steps)
    by_name = {group.name: (group.size, int(width)) for group, width in zip(graph, widths, strict=True)}
    return SearchResult(plan, int(cost.macs(widths)), int(cost.params(widths)), target, by_name, task.memory)
