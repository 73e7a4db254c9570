"""From a trained network and a target to a pruning plan for one timestep group."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import torch
from torch import nn

import prunekit
from prunekit._chosen import check_choice
from prunekit._files import json_hash
from prunekit._json import JsonObject
from prunekit._types import FloatArray
from prunekit.cost import CostModel, LatencyModel
from prunekit.cost.counter import count_by_shapes
from prunekit.errors import GraphError, InputError
from prunekit.graph import ChannelGraph, PruningPlan, apply
from prunekit.graph.forward_pass import undisturbing
from prunekit.importance import Probe, Scores
from prunekit.search import ranks
from prunekit.search.endpoint import Endpoint
from prunekit.search.journal import Journal
from prunekit.search.meeting_targets import Measure, TargetOf, WidthProblem, in_units, lost_importance
from prunekit.search.multiples import WidthMultiples, default_multiples, price_of, within_reach
from prunekit.search.proposers import proposer
from prunekit.search.proxies import PROXIES, make_proxy
from prunekit.search.task import Task
from prunekit.search.whole import nothing_to_prune

__all__ = ["SearchOptions", "SearchResult", "search"]


@dataclass(frozen=True)
class SearchOptions:
    """How to search; rounds and short list are this project's choice, the paper does not publish its own.

    Args:
        proposer: what proposes the candidates, see :data:`prunekit.search.PROPOSERS`.
        rounds: number of decisions on the way to the target.
        shortlist: number of candidates that the first round measures; with a screening, no round measures more.
        tolerance: fraction of the base's cost by which the target may be missed before nearness counts more than importance.
        target_of: what the target bounds; ``latency`` needs a table of layer times.
        proxy: what candidates are judged by, see :mod:`prunekit.search.proxies`.
        fresh: least number of candidates that every round of ``greedy`` measures anew; use about 3 for the proxy ``loss``, which
            is noisy.
        bite: largest share of a channel group's current width that one round of ``greedy`` takes.
        trials: number of candidates that ``evolution`` and ``tpe`` try.
        screening: number of draws on which the rounds of ``greedy`` compare candidates, see :mod:`prunekit.search.screening`; 0 for
            all draws.
        finalists: number of exchanges at the end of a search with screening that are measured on all draws.
        negligible: rise of the loss that is too small to matter, as a share of the whole network's loss. A search ends early once
            what it still has to measure can gain no more than that: further trials of ``evolution`` and ``tpe``, exchanges at the
            target, residual branches. The rounds of ``greedy`` are measured in any case. 0 for no early end.
        seed: seed of the random draws.
        study: Optuna journal file that several processes share; each of them ends with the same plan.
        llm: endpoint of the language model that the proposer ``llm`` asks.

    Raises:
        InputError: an option is unknown or out of its range, or does not go with the proposer.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    proposer: str = "greedy"
    rounds: int = 12
    shortlist: int = 8
    tolerance: float = 0.001
    target_of: TargetOf = "macs"
    proxy: str = "least-squares"
    fresh: int = 1
    bite: float = 1.0
    trials: int = 64
    screening: int = 0
    finalists: int = 4
    negligible: float = 0.0
    seed: int = 0
    study: str | None = None
    llm: Endpoint | None = None

    def __post_init__(self) -> None:
        proposer(self.proposer)
        check_choice("target_of", self.target_of, get_args(TargetOf))
        check_choice("proxy", self.proxy, PROXIES)
        if min(self.rounds, self.shortlist, self.fresh, self.trials) < 1 or not 0 <= self.tolerance < 1:
            raise InputError("Expected rounds, shortlist, fresh and trials of at least 1 and a tolerance in [0, 1).")
        if self.screening < 0 or self.finalists < 1:
            raise InputError(
                f"Got screening {self.screening} and finalists {self.finalists}; expected at least 0 and at least 1."
            )
        if not 0 <= self.negligible < math.inf:
            raise InputError(
                f"Got negligible {self.negligible:g}; expected a share of the whole network's loss of at least 0, such as 0.01."
            )
        if not 0 < self.bite <= 1:
            raise InputError(
                f"Got bite {self.bite:g}; expected a share of a channel group's width, above 0 and at most 1."
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"Got seed {self.seed}; expected a whole number from 0 to 4,294,967,295.")
        if self.proposer == "llm" and self.llm is None:
            raise InputError(
                "The proposer llm needs an endpoint and a model's name; give them as search.llm, or `llm_endpoint` and `llm_model`."
            )
        if self.study is not None and self.proposer not in ("evolution", "tpe"):
            raise InputError(
                f"Got a shared study for the proposer {self.proposer}; expected evolution or tpe, or no study."
            )

    def screened(self, samples: int) -> int:
        """Number of draws that rounds compare candidates on, of a calibration set of ``samples``; 0 for all of them.

        A repair is fitted to others, so a set of less than twice as many draws is used as a whole.
        """
        return self.screening if 2 * self.screening <= samples else 0


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A plan that meets its target.

    Args:
        plan: what to keep.
        macs: MACs of the pruned network.
        params: parameters of the pruned network.
        target: the target, in the unit of the measure (MACs, parameters, nanoseconds per batch).
        spent: cost of the pruned network in the same unit, at most ``target``.
        missed: how far the cost lies below the target (or below the whole network's cost, if that is less); it exceeds the
            tolerance only if no widths nearer to the target were found, or if the loss is less without a branch that saves more.
        base: cost of the whole network.
        widths: channel group name to (before, after); 0 after for channels that are gone with a removed branch.
        memory: measured candidates and choices, as in :class:`prunekit.search.Journal`.
        multiples: the multiples that the widths respect, and what they cost.
        nothing_to_prune: why nothing can be pruned under the given constraints; None if something can.
        target_of: the measure of ``target``, ``spent`` and ``base``.
    """

    plan: PruningPlan
    macs: int
    params: int
    target: int
    spent: int
    missed: int
    base: int
    widths: dict[str, tuple[int, int]]
    memory: list[dict[str, object]]
    multiples: WidthMultiples
    nothing_to_prune: str | None = None
    target_of: TargetOf = "macs"

    def __repr__(self) -> str:
        return (
            f"<SearchResult: {self.target_of} {self.spent:,} of {self.base:,} for a target of {self.target:,}, "
            f"candidates measured {len(self.measured)}>"
        )

    @property
    def measured(self) -> list[JsonObject]:
        """The measured candidates: round, steps, MACs, loss."""
        return [entry for entry in self.memory if "steps" in entry and "chosen" not in entry]


@undisturbing
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
    """Find a plan that meets ``target`` and raises the loss on the probe's timestep group little.

    If torch.distributed is initialised, every rank must call this. The ranks share the measurements, and all get the plan that a
    single process would get.

    Args:
        model: the full network, unchanged.
        graph: its channel groups; :meth:`prunekit.graph.ChannelGraph.with_multiples` restricts their widths. By default,
            widths are multiples of 8 under the conditions in :mod:`prunekit.search.multiples`, and finer if the target needs it.
        cost: the cost model of the channel groups.
        scores: importance of every channel for this timestep group.
        probe: loss on the timestep group.
        target: upper limit of the cost, in MACs per sample per evaluation or in the unit of ``options.target_of``; or a float in
            (0, 1], a fraction of the whole network's cost.
        options: see :class:`SearchOptions`.
        latency: needed for a target of latency, see :meth:`prunekit.cost.LatencyTable.bind`.
        journal: file of the memory bank. A killed search resumes from it and finds the same plan.

    Raises:
        BudgetError: the target is below the smallest cost that the network can be pruned to; ``feasible`` has the range.
        InputError: the target is a latency and ``latency`` is missing, or a loss of the network or of the plan is not finite.
        GraphError: the proposer exceeded the target, or the pruned network runs other layers or has another cost than predicted.
    """
    options = options or SearchOptions()
    measure = Measure.by_name(options.target_of, cost, latency)
    full = int(measure.of(graph.full_widths))
    target = in_units(target, full, measure.unit)
    tolerance = max(int(options.tolerance * full), _coarseness(graph, measure))
    scores = ranks.same(dict(scores))  # machines differ in the last bits, but all ranks need the same scores
    asked = graph.has_multiples
    wished = graph if asked else default_multiples(graph)
    if not asked and options.target_of == "latency" and latency is not None:
        wished = latency.multiples(wished)
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
        options.screened(probe.samples),
        options.finalists,
        options.negligible,
        Path(options.study) if options.study else None,
        options.llm,
        bank,
        f"timesteps {probe.group.start} to {probe.group.stop - 1}",
    )
    steps = problem.settled(proposer(options.proposer)(task))
    bank.sync()
    task.check(steps)
    spent = int(problem.spent(steps))
    if spent > target:
        raise GraphError(
            f"Proposer {options.proposer!r} exceeded the target of {target:,} {measure.unit}; it must end at or below it."
        )
    plan = task.plan(steps)
    widths = problem.widths(steps)
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
        plan.channels(graph),
        task.memory,
        multiples,
        nothing_to_prune(problem.graph),
        options.target_of,
    )


def _coarseness(graph: ChannelGraph, measure: Measure) -> int:
    """Half of what a branch saves in the median where only branches can be removed: nothing between their costs can be met."""
    if any(len(group.widths) > 1 and group.branch is None for group in graph):
        return 0
    ones = graph.full_widths - np.eye(len(graph), dtype=np.int64) * np.array([len(g.widths) > 1 for g in graph])
    saved = int(measure.of(graph.full_widths)) - measure.of(ones)
    return int(np.median(saved[saved > 0])) // 2 if (saved > 0).any() else 0


def _within_reach(graph: ChannelGraph, cost: CostModel, target: int, tolerance: int, measure: Measure) -> ChannelGraph:
    """Apply the default multiples, as far as the target can be met with them."""
    lost = [np.zeros(len(group.widths)) for group in graph]
    return within_reach(WidthProblem(graph, cost, lost, target, tolerance, measure)).graph


def _recount(model: nn.Module, graph: ChannelGraph, plan: PruningPlan, macs: int, params: int) -> None:
    """Count the pruned network's MACs and parameters and compare: a network may run other layers at other widths."""
    if graph.witness is None:
        return
    pruned = apply(model, graph, plan, share=True)
    if not plan.is_whole:
        graph.witness.check(pruned, plan.stubs(graph))
    counted = count_by_shapes(pruned, graph.witness.inputs_of(pruned))
    if (counted.macs, counted.params) != (macs, params):
        raise GraphError(
            f"The pruned network costs {counted.macs:,} MACs and {counted.params:,} parameters; its plan says {macs:,} and "
            f"{params:,}. This is a defect of prunekit."
        )


def _journal(path: Path | None, key: str) -> Journal:
    """Rank 0's journal; the other ranks know its entries and write nothing."""
    key = ranks.same(key)
    journal = Journal.open(path, key) if path is not None and ranks.place()[0] == 0 else Journal(key=key)
    entries = ranks.same(journal.entries)
    return journal if ranks.place()[0] == 0 else Journal(key=key, entries=entries)


def _key(
    model: nn.Module, problem: WidthProblem, scores: Mapping[str, FloatArray], probe: Probe, options: SearchOptions
) -> str:
    """Hash of everything that decides the measurements and the result of a search."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for name, values in scores.items():
        digest.update(f"{name} {len(values)}".encode() + values.astype("<f8").tobytes())
    asked = asdict(options)
    del asked["study"]  # workers may spell its path differently
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
