"""From a trained network and a target to a pruning plan for one timestep group."""

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

from torch import nn

from prunekit.cost import CostModel, LatencyModel
from prunekit.errors import GraphError, InputError
from prunekit.graph import ChannelGraph, PruningPlan
from prunekit.importance import Probe, Scores
from prunekit.search.proposers import Task, proposer
from prunekit.search.targets import Measure, TargetOf, WidthProblem, lost_importance

__all__ = ["SearchOptions", "SearchResult", "search"]


@dataclass(frozen=True)
class SearchOptions:
    """How to search; rounds and short list are this project's choice, the paper does not publish its own.

    Args:
        proposer: name of the proposer.
        rounds: decisions on the way to the target.
        shortlist: candidates measured in the first round.
        tolerance: fraction of the base's cost by which the target may be missed before nearness outweighs importance.
        target_of: what the target bounds: ``macs``, ``params``, or ``latency`` by a table of layer times.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    proposer: str = "greedy"
    rounds: int = 12
    shortlist: int = 8
    tolerance: float = 0.001
    target_of: TargetOf = "macs"

    def __post_init__(self) -> None:
        proposer(self.proposer)
        if self.target_of not in get_args(TargetOf):
            raise InputError(f"Got target_of {self.target_of!r}; expected one of {', '.join(get_args(TargetOf))}.")
        if self.rounds < 1 or self.shortlist < 1 or not 0 <= self.tolerance < 1:
            raise InputError("Expected rounds and shortlist of at least 1 and a tolerance in [0, 1).")


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A plan at its target.

    Args:
        plan: what to keep.
        macs: MACs of the pruned network.
        params: its parameters.
        target: what was asked, in the unit of the measure (MACs, parameters, nanoseconds per batch).
        spent: what the pruned network costs of it, at most ``target``.
        missed: how far below the target (or the whole network, if that costs less) it stays; above the tolerance only where no
            widths nearer to the target were found.
        base: what the whole network costs.
        widths: channel group name to (before, after).
        memory: every measured candidate: round, steps, MACs, loss.
    """

    plan: PruningPlan
    macs: int
    params: int
    target: int
    spent: int
    missed: int
    base: int
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
    latency: LatencyModel | None = None,
) -> SearchResult:
    """Find a plan whose cost meets ``target`` and whose loss on the probe's timestep group rises little.

    Args:
        model: the full network, unchanged.
        graph: its channel groups; :meth:`prunekit.graph.ChannelGraph.with_multiples` restricts their widths.
        cost: their cost model.
        scores: importance of every channel for this timestep group.
        probe: loss on the timestep group.
        target: never exceeded; MACs per sample per evaluation, or what ``options.target_of`` says.
        options: see :class:`SearchOptions`.
        latency: needed for a target of latency, see :meth:`prunekit.cost.LatencyTable.bind`.

    Raises:
        BudgetError: the target is below what the network can be pruned to; ``feasible`` has the range.
        InputError: a target of latency without ``latency``.
        GraphError: the proposer exceeded the target.
    """
    options = options or SearchOptions()
    measure = Measure.by_name(options.target_of, cost, latency)
    full = int(measure.of(graph.full_widths))
    tolerance = int(options.tolerance * full)
    problem = WidthProblem(graph, cost, lost_importance(graph, scores), target, tolerance, measure)
    problem.check()
    task = Task(model, problem, scores, probe, options.rounds, options.shortlist)
    steps = proposer(options.proposer)(task)
    spent = int(problem.spent(steps))
    if spent > target:
        raise GraphError(
            f"Proposer {options.proposer!r} exceeded the target of {target:,} {measure.unit}; it must end at or below it."
        )
    plan = task.plan(steps)
    widths = problem.widths(steps)
    by_name = {group.name: (group.size, int(width)) for group, width in zip(graph, widths, strict=True)}
    macs, params = int(cost.macs(widths)), int(cost.params(widths))
    return SearchResult(plan, macs, params, target, spent, problem.missed(steps), full, by_name, task.memory)
