"""From a trained network and a target to a pruning plan for one timestep group."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import nn

import prunekit
from prunekit._files import json_hash
from prunekit._messages import did_you_mean
from prunekit._types import FloatArray
from prunekit.cost import CostModel, LatencyModel
from prunekit.cost.counter import count_by_shapes
from prunekit.errors import GraphError, InputError
from prunekit.graph import ChannelGraph, PruningPlan, apply
from prunekit.importance import Probe, Scores
from prunekit.search import ranks
from prunekit.search.endpoint import Endpoint
from prunekit.search.journal import Journal
from prunekit.search.multiples import WidthMultiples, default_multiples, price_of, within_reach
from prunekit.search.proposers import proposer
from prunekit.search.proxies import PROXIES, make_proxy
from prunekit.search.targets import Measure, TargetOf, WidthProblem, in_units, lost_importance
from prunekit.search.task import Task
from prunekit.search.whole import nothing_to_prune

__all__ = ["SearchOptions", "SearchResult", "search"]


@dataclass(frozen=True)
class SearchOptions:
    """How to search; rounds and short list are this project's choice, the paper does not publish its own.

    Args:
        proposer: what proposes the candidates, see :data:`prunekit.search.PROPOSERS`.
        rounds: number of decisions on the way to the target.
        shortlist: number of candidates that the first round measures.
        tolerance: fraction of the base's cost by which the target may be missed before nearness outweighs importance.
        target_of: what the target bounds; ``latency`` needs a table of layer times.
        proxy: what candidates are judged by, see :mod:`prunekit.search.proxies`.
        fresh: least number of candidates that every round of ``greedy`` measures anew; use about 3 for the proxy ``loss``, which
            is noisy.
        bite: largest share of a channel group's current width that one round of ``greedy`` takes.
        trials: number of candidates that ``evolution`` and ``tpe`` try.
        seed: seed of the random draws.
        study: Optuna journal file that several processes share; each of them ends with the same plan.
        llm: endpoint of the language model that the proposer ``llm`` asks.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    proposer: str = "greedy"
    rounds: int = 12
    shortlist: int = 8
    tolerance: float = 0.001
    target_of: TargetOf = "macs"
    proxy: str = "least-squares"
    fresh: int = 1
    bite: float = 1.0
    trials: int = 64
    seed: int = 0
    study: str | None = None
    llm: Endpoint | None = None

    def __post_init__(self) -> None:
        proposer(self.proposer)
        if self.target_of not in get_args(TargetOf):
            meant = did_you_mean(self.target_of, get_args(TargetOf))
            raise InputError(
                f"Got target_of {self.target_of!r}{meant}; expected one of {', '.join(get_args(TargetOf))}."
            )
        if self.proxy not in PROXIES:
            raise InputError(
                f"Got proxy {self.proxy!r}{did_you_mean(self.proxy, PROXIES)}; expected one of {', '.join(PROXIES)}."
            )
        if min(self.rounds, self.shortlist, self.fresh, self.trials) < 1 or not 0 <= self.tolerance < 1:
            raise InputError("Expected rounds, shortlist, fresh and trials of at least 1 and a tolerance in [0, 1).")
        if not 0 < self.bite <= 1:
            raise InputError(
                f"Got bite {self.bite:g}; expected a share of a channel group's width, above 0 and at most 1."
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"Got seed {self.seed}; expected a whole number from 0 to 4,294,967,295.")
        if self.proposer == "llm" and self.llm is None:
            raise InputError(
                "The proposer llm needs an endpoint and a model's name; give them as search.llm or by --llm-endpoint."
            )
        if self.study is not None and self.proposer not in ("evolution", "tpe"):
            raise InputError(
                f"Got a shared study for the proposer {self.proposer}; expected evolution or tpe, or no study."
            )


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
        memory: measured candidates and choices, as in :class:`prunekit.search.Journal`.
        multiples: which multiples the widths are, and what that costs.
        nothing_to_prune: why nothing of the network can be pruned, as it was constrained; None where something can.
        target_of: what ``target``, ``spent`` and ``base`` count.
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
    multiples: WidthMultiples
    nothing_to_prune: str | None = None
    target_of: TargetOf = "macs"

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The measured candidates: round, steps, MACs, loss."""
        return [entry for entry in self.memory if "steps" in entry and "chosen" not in entry]


def search(
    model: nn.Module,
    graph: ChannelGraph,
    cost: CostModel,
    scores: Scores,
    probe: Probe,
    target: float | int,
    options: SearchOptions | None = None,
    latency: LatencyModel | None = None,
    journal: Path | str | None = None,
) -> SearchResult:
    """Find a plan whose cost meets ``target`` and whose loss on the probe's timestep group rises little.

    With torch.distributed initialised, every rank calls this and gets the plan that one process gets; they share the measuring.

    Args:
        model: the full network, unchanged.
        graph: its channel groups; :meth:`prunekit.graph.ChannelGraph.with_multiples` restricts their widths. If nobody decided on
            multiples, widths are multiples of 8 as far as :mod:`prunekit.search.multiples` says; those that the target needs are
            finer.
        cost: their cost model.
        scores: importance of every channel for this timestep group.
        probe: loss on the timestep group.
        target: never exceeded: MACs per sample per evaluation, or what ``options.target_of`` says; or a fraction of what the
            whole network costs, a float in (0, 1].
        options: see :class:`SearchOptions`.
        latency: needed for a target of latency, see :meth:`prunekit.cost.LatencyTable.bind`.
        journal: file of the memory bank. A search that was killed goes on from it to the plan it would have found.

    Raises:
        BudgetError: the target is below what the network can be pruned to; ``feasible`` has the range.
        InputError: a target of latency without ``latency``, or a loss of the network or of the plan that is no number.
        GraphError: the proposer exceeded the target, or the pruned network runs other layers, or costs something else.
    """
    options = options or SearchOptions()
    measure = Measure.by_name(options.target_of, cost, latency)
    full = int(measure.of(graph.full_widths))
    target = in_units(target, full, measure.unit)
    tolerance = int(options.tolerance * full)
    scores = ranks.same(dict(scores))  # machines differ in the last bits, and ranks must not
    asked = graph.has_multiples
    wished = graph if asked else default_multiples(graph)
    held = wished if asked else _within_reach(wished, cost, target, tolerance, measure)
    problem = WidthProblem(held, cost, lost_importance(held, scores), target, tolerance, measure)
    problem.check()
    alone = replace(probe, distributed=False)  # ranks share candidates, not batches
    bank = _journal(None if journal is None else Path(journal), _key(model, problem, scores, probe, options))
    task = Task(
        problem,
        scores,
        make_proxy(options.proxy, model, graph, alone),
        options.rounds,
        options.shortlist,
        options.fresh,
        options.bite,
        options.trials,
        options.seed,
        Path(options.study) if options.study else None,
        options.llm,
        bank,
        f"timesteps {probe.group.start} to {probe.group.stop - 1}",
    )
    steps = proposer(options.proposer)(task)
    bank.sync()
    task.check(steps)
    spent = int(problem.spent(steps))
    if spent > target:
        raise GraphError(
            f"Proposer {options.proposer!r} exceeded the target of {target:,} {measure.unit}; it must end at or below it."
        )
    plan = task.plan(steps)
    widths = problem.widths(steps)
    by_name = {group.name: (group.size, int(width)) for group, width in zip(graph, widths, strict=True)}
    macs, params = int(cost.macs(widths)), int(cost.params(widths))
    _recount(model, graph, plan, macs, params)
    multiples = WidthMultiples.of(held, asked, wished, price_of(problem, steps))
    return SearchResult(
        plan,
        macs,
        params,
        target,
        spent,
        problem.missed(steps),
        full,
        by_name,
        task.memory,
        multiples,
        nothing_to_prune(problem.graph),
        options.target_of,
    )


def _within_reach(graph: ChannelGraph, cost: CostModel, target: int, tolerance: int, measure: Measure) -> ChannelGraph:
    """The default's multiples as far as they meet the target."""
    lost = [np.zeros(len(group.widths)) for group in graph]
    return within_reach(WidthProblem(graph, cost, lost, target, tolerance, measure)).graph


def _recount(model: nn.Module, graph: ChannelGraph, plan: PruningPlan, macs: int, params: int) -> None:
    """Count what the pruned network costs: a network may run other layers at other widths."""
    if graph.witness is None:
        return
    pruned = apply(model, graph, plan, share=True)
    if plan.kept:
        graph.witness.check(pruned)
    counted = count_by_shapes(pruned, graph.witness.inputs_of(pruned))
    if (counted.macs, counted.params) != (macs, params):
        raise GraphError(
            f"The pruned network costs {counted.macs:,} MACs and {counted.params:,} parameters; its plan says {macs:,} and "
            f"{params:,}. This is a defect of prunekit."
        )


def _journal(path: Path | None, key: str) -> Journal:
    """Rank 0's journal; the others know what is in it and write nothing."""
    key = ranks.same(key)
    journal = Journal.open(path, key) if path is not None and ranks.place()[0] == 0 else Journal(key=key)
    entries = ranks.same(journal.entries)
    return journal if ranks.place()[0] == 0 else Journal(key=key, entries=entries)


def _key(
    model: nn.Module, problem: WidthProblem, scores: Mapping[str, FloatArray], probe: Probe, options: SearchOptions
) -> str:
    """Hash of all that decides what a search measures and finds."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for name, values in scores.items():
        digest.update(f"{name} {len(values)}".encode() + values.astype("<f8").tobytes())
    asked = asdict(options)
    del asked["study"]  # workers may spell its place differently
    fingerprint = getattr(probe.loss, "fingerprint", None)
    return json_hash(
        {
            "prunekit": prunekit.__version__,
            "weights and scores": digest.hexdigest(),
            "graph": problem.graph.fingerprint,
            "widths": [group.widths.tolist() for group in problem.graph],
            "full": int(problem.spent(problem.max_steps * 0)),
            "target": problem.target,
            "options": asked,
            "probe": [
                probe.samples,
                probe.batch_size,
                probe.chunk,
                probe.seed,
                probe.group.index,
                probe.group.start,
                probe.group.stop,
            ],
            "loss": fingerprint() if callable(fingerprint) else None,
        }
    )
