"""A base with its channel groups and costs, and functions that score and prune it for timestep groups."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prunekit._files import json_hash
from prunekit._json import JsonObject
from prunekit.allocation import Sensitivity
from prunekit.checkpoint import Base
from prunekit.cost import CostModel, LatencyModel, LatencyOptions, LatencyTable
from prunekit.data import ImageData
from prunekit.errors import InputError
from prunekit.graph import ChannelGraph, Constraints, HeadMode, NormMode, Shrink, attributes, trace
from prunekit.groups import TimestepGroup
from prunekit.importance import ImportanceMap, Loss, Probe, no_loss
from prunekit.recipe import PruneOptions
from prunekit.schedule import Parameterization, TimeUnit
from prunekit.search import SearchResult, ranks
from prunekit.slim import SlimModel
from prunekit.steps.objectives import objective_for
from prunekit.steps.placing import placed
from prunekit.steps.reach import Reach
from prunekit.steps.searching import score, search_and_repair, search_provenance
from prunekit.steps.timing_layers import measure_times, read_times, times_in
from prunekit.training import DenoisingObjective, Tally

__all__ = ["Bench", "Traces", "prune_group", "score_groups", "slack_of"]


@dataclass(frozen=True, eq=False)
class Bench:
    """A base with its channel groups, its cost model and, if needed, its layer times. Scoring and pruning start from it."""

    base: Base
    graph: ChannelGraph
    cost: CostModel
    macs: int
    latency: LatencyModel | None = None

    @classmethod
    def of(
        cls,
        base: Base,
        norm_mode: NormMode = "even",
        head_mode: HeadMode = "whole",
        constraints: Constraints | None = None,
        shrink: Shrink = "width",
    ) -> "Bench":
        """Trace the base and count its costs, once.

        Arguments are those of :func:`prunekit.graph.trace`.
        """
        inputs = base.spec.example_inputs()
        graph = trace(base.model, inputs, norm_mode, head_mode, constraints=constraints, shrink=shrink)
        cost = CostModel.of(base.model, graph, inputs)
        return cls(base, graph, cost, int(cost.macs(graph.full_widths)))

    def timed(self, path: Path | str, batch_size: int | None = None) -> "Bench":
        """The same bench with the layer times in a file. If there is no such file, they are measured on this machine and written.

        Args:
            path: the file.
            batch_size: samples in a batch; those of the file if missing, or :class:`~prunekit.cost.LatencyOptions`' default.

        Raises:
            FileFormatError: the file is no table of layer times.
            InputError: the table was measured for another network, norm mode or batch size.
        """
        table = times_in(path, batch_size, self.base.model, self.graph, self.base.spec.example_inputs())
        return replace(self, latency=table.bind(self.graph, self.cost))

    def measured(self, options: LatencyOptions) -> LatencyTable:
        """Layer times of the base, measured now, on widths and residual branches whatever the bench shrinks.

        Raises:
            InputError: this machine does not have the options' device.
        """
        return measure_times(self.base.model, self.graph, self.base.spec.example_inputs(), options)

    def with_times(self, path: Path | str, batch_size: int | None = None) -> "Bench":
        """The same bench with the layer times in a file, which must exist; they may be another machine's.

        Args:
            path: the file.
            batch_size: samples in a batch that the times must be for; any if missing.

        Raises:
            MissingFileError: there is no such file.
            FileFormatError: the file is no table of layer times.
            InputError: the table was measured for another network, norm mode or batch size.
        """
        return replace(self, latency=read_times(path, batch_size).bind(self.graph, self.cost))


class Traces:
    """Channel groups and costs of bases by the files that they were read from, for runs that open the same base one after another.

    Each run keeps a network of its own, since scoring, searches and teachers move it between devices.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[ChannelGraph, CostModel]] = {}

    def bench(self, base: Base, options: PruneOptions) -> Bench:
        """A base's bench; it is traced only if no base of the same file was, with the same options."""
        own = [options.norm_mode, options.head_mode, options.shrink]
        key = json_hash([base.sha256, base.spec.to_json(), *own, options.constraints.to_json()])
        if base.sha256 and key in self._known:
            graph, cost = self._known[key]
            return Bench(base, graph, cost, int(cost.macs(graph.full_widths)))
        found = Bench.of(base, options.norm_mode, options.head_mode, options.constraints, options.shrink)
        self._known[key] = found.graph, found.cost
        return found


def score_groups(
    bench: Bench,
    images: ImageData | None,
    groups: Iterable[TimestepGroup],
    options: PruneOptions,
    tally: Tally | None = None,
) -> ImportanceMap:
    """Importance of every channel group for the given timestep groups; ``tally`` counts the samples that it uses.

    A criterion that evaluates the loss needs images.
    """
    base = bench.base
    objective: DenoisingObjective | None = None
    if images is not None:
        objective = objective_for(images, base.spec, base.parameterization, tally=tally or Tally())
    inputs, timesteps = base.spec.example_inputs(), base.schedule.num_timesteps
    return score(base.model, inputs, objective, groups, options, bench.graph, timesteps)


def prune_group(
    bench: Bench,
    images: ImageData | None,
    scores: ImportanceMap,
    group: TimestepGroup,
    target: float | int,
    options: PruneOptions,
    journal: Path | str | None = None,
    slack: float = 1.0,
) -> tuple[SlimModel, SearchResult]:
    """Search a plan for one timestep group, apply it, and check the result against the counter.

    Args:
        bench: the base.
        images: for the probe; None if neither the proposer nor the repair evaluates the network.
        scores: importance for this timestep group and possibly others.
        group: the timestep group.
        target: MACs, or a fraction of the base's in (0, 1]. For a search with a target of parameters or latency, the same
            fraction of the base's value is used.
        options: how to search.
        journal: file of the search's memory bank, from which an interrupted search resumes.
        slack: what the search's ``negligible`` is multiplied by for this group, see :func:`slack_of`.

    Raises:
        BudgetError: the target is below what the network can be pruned to.
        GraphError: the pruned network does not run, its cost differs from the predicted one, or it has weights that are not finite.
        MissingFileError: there is no table of layer times for a target of latency; :meth:`Bench.timed` makes one.
    """
    base, of = bench.base, options.search.target_of
    options = replace(options, search=replace(options.search, negligible=options.search.negligible * slack))
    objective: Loss = no_loss
    if images is not None:
        objective = objective_for(images, base.spec, base.parameterization)
    if of == "latency" and bench.latency is None and options.latency_table is not None:
        bench = bench.with_times(
            options.latency_table, options.latency_batch_size
        )  # only read, since a recipe may name any path
    wanted = Reach.of(bench, options).target(target)
    model, result = search_and_repair(
        base.model,
        base.spec.example_inputs(),
        bench.graph,
        bench.cost,
        objective,
        scores.of(group.index),
        group,
        wanted,
        options,
        bench.latency,
        journal,
    )
    about = {**base.about(), "provenance": _provenance(bench, result, options)}
    if images is not None:
        about |= _told(images, base.parameterization)
    sizes = attributes(base.model, bench.graph, result.plan)
    slim = SlimModel(
        model, base.spec, result.plan, sizes, group, base.schedule.num_timesteps, result.macs, result.params, about
    )
    return slim, result


def slack_of(
    bench: Bench, images: ImageData | None, sensitivity: Sensitivity | None, options: PruneOptions
) -> tuple[float, ...]:
    """What the search's ``negligible`` is multiplied by in each group, so that it is the same change of the sample in all groups.

    See :meth:`prunekit.allocation.Sensitivity.slack`. Losses are those of the base on the calibration sets of the search.

    Args:
        bench: the base.
        images: for the losses.
        sensitivity: of the timestep groups; None if the groups' own losses count.
        options: how to search.

    Returns:
        One number for each group; none if nothing is negligible.

    Raises:
        InputError: the base's losses cannot be measured without images.
    """
    if sensitivity is None or options.search.negligible == 0:
        return ()
    if images is None:
        raise InputError(
            "What is negligible depends on the losses of all timestep groups, and there are no images to measure them on; name "
            "some by `data`."
        )
    loss = objective_for(images, bench.base.spec, bench.base.parameterization)
    groups = sensitivity.timestep_groups
    with placed(bench.base.model):
        losses = [
            Probe(loss, group, options.samples, options.batch_size, options.seed).mean(bench.base.model)
            for group in groups
        ]
    return tuple(ranks.same(sensitivity.slack(np.array(losses)).tolist()))  # machines differ in the last bits


def _told(images: ImageData, parameterization: Parameterization) -> JsonObject:
    """How the network is called on these images, as far as it is not called by whole timesteps."""
    unit = images.time_unit or (TimeUnit() if parameterization.is_flow else None)
    found: JsonObject = {} if unit is None else {"time_unit": unit.to_config()}
    return {**found, "pipeline_arguments": dict(images.arguments)} if images.arguments else found


def _provenance(bench: Bench, result: SearchResult, options: PruneOptions) -> JsonObject:
    """The base and the options from which a pruned network was made."""
    provenance = {
        "base_sha256": bench.base.sha256,
        "base_macs": bench.macs,
        **search_provenance(result, options),
    }
    if "base_model" in bench.base.provenance:
        provenance["base_model"] = bench.base.provenance["base_model"]
    if options.search.target_of == "latency" and bench.latency is not None:
        provenance["latency"] = bench.latency.table.about()
    return provenance
