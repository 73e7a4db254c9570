"""A search with its follow-up: surgery, repair, and checks of the result."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from prunekit._json import JsonObject
from prunekit.checkpoint.finite import first_not_finite
from prunekit.cost import CostModel, LatencyModel, verify
from prunekit.errors import GraphError
from prunekit.graph import ChannelGraph
from prunekit.graph.forward_pass import Inputs, device_of
from prunekit.groups import TimestepGroup
from prunekit.importance import ImportanceMap, Loss, Probe, Scores, importance
from prunekit.search import SearchResult, repair, search
from prunekit.steps.placing import inputs_on, placed

if TYPE_CHECKING:
    from prunekit.recipe import PruneOptions

__all__ = ["restricted", "score", "search_and_repair", "search_provenance"]


def score(
    model: nn.Module,
    inputs: Inputs,
    loss: Loss | None,
    groups: Iterable[TimestepGroup],
    options: "PruneOptions",
    graph: ChannelGraph,
    num_timesteps: int,
) -> ImportanceMap:
    """Importance of every channel group by the options, where computing is fast; see :func:`prunekit.importance.importance`."""
    with placed(model):
        return importance(
            model,
            inputs,
            loss,
            groups,
            by=options.criterion,
            samples=options.samples,
            batch_size=options.batch_size,
            seed=options.seed,
            graph=graph,
            num_timesteps=num_timesteps,
        )


def restricted(graph: ChannelGraph, options: "PruneOptions") -> ChannelGraph:
    """The channel groups with the floor and the width multiples of the options."""
    floored = graph.with_floor(options.floor)
    return floored if options.multiples is None else floored.with_multiples(options.multiples)


def search_and_repair(
    model: nn.Module,
    inputs: Inputs,
    graph: ChannelGraph,
    cost: CostModel,
    loss: Loss,
    scores: Scores,
    group: TimestepGroup,
    target: float | int,
    options: "PruneOptions",
    latency: LatencyModel | None = None,
    journal: Path | str | None = None,
) -> tuple[nn.Module, SearchResult]:
    """Search a plan for one timestep group, apply it, repair the affected layers, and check the result against the counter.

    Args:
        model: the full network; it is not changed.
        inputs: arguments of one forward pass at batch 1, on any device.
        graph: its channel groups.
        cost: the cost model of these channel groups.
        loss: as for :class:`prunekit.importance.Probe`.
        scores: importance of every channel for the timestep group.
        group: the timestep group.
        target: in the unit of the search's target, or a fraction of the base's value in (0, 1].
        options: how to search and repair.
        latency: needed for a target of latency.
        journal: file of the search's memory bank, from which an interrupted search resumes.

    Returns:
        The pruned network on the CPU, and the search's result.

    Raises:
        BudgetError: the target is below what the network can be pruned to.
        GraphError: the pruned network does not run, its cost differs from the predicted one, or it has weights that are not finite.
    """
    probe = Probe(loss, group, options.samples, options.batch_size, options.seed)
    with placed(model):
        result = search(
            model, restricted(graph, options), cost, scores, probe, target, options.search, latency, journal
        )
        pruned = repair(model, graph, result.plan, probe, options.repair)
    own = device_of(model)
    pruned.to(own)
    if (found := first_not_finite(pruned)) is not None:
        raise GraphError(
            f"After the repair of timestep group {group.index} {found}; expected finite weights: prune it with `repair` none."
        )
    verify(model, pruned, graph, result.plan, cost, inputs_on(own, inputs))
    return pruned.cpu(), result


def search_provenance(result: SearchResult, options: "PruneOptions") -> dict[str, object]:
    """How a pruned network was scored and searched, and its costs, for the record that is saved with it."""
    of = options.search.target_of
    provenance: JsonObject = {
        "criterion": options.criterion,
        "proposer": options.search.proposer,
        "proxy": options.search.proxy,
        "repair": options.repair,
        "seed": options.seed,
        "target_of": of,
        "target": result.target,
        "spent": result.spent,
        "base": result.base,
    }
    if of == "macs":
        provenance["target_macs"] = result.target
    if options.shrink != "width":
        provenance["shrink"] = options.shrink
    if options.multiples:
        provenance["width_multiples"] = {str(side): multiple for side, multiple in options.multiples.items()}
    if result.multiples.largest > 1:
        provenance["multiples"] = result.multiples.to_json()
    if options.constraints:
        provenance["constraints"] = options.constraints.to_json()
    return provenance
