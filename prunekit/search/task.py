"""The task that a proposer solves, and the protocol of proposers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from prunekit._json import JsonObject
from prunekit._progress import tell
from prunekit._types import FloatArray, IntArray
from prunekit.errors import InputError
from prunekit.graph import PruningPlan
from prunekit.importance import Scores
from prunekit.search import ranks
from prunekit.search.endpoint import Endpoint
from prunekit.search.journal import Journal, Measured
from prunekit.search.meeting_targets import WidthProblem
from prunekit.search.proxies import Evaluate

__all__ = ["Proposer", "Task"]

_WORST = 1e30  # stands in for a loss that is NaN or infinite


@dataclass(eq=False)
class Task:
    """The task that a proposer solves, with the search's memory.

    Args:
        widths: the channel groups, their costs and the target.
        scores: importance of every channel for this timestep group; the least important channels of a channel group go first.
        evaluate: the proxy: a number for a plan, lower is better, on fixed draws of the timestep group.
        rounds: number of decisions that a multi-round proposer takes.
        shortlist: number of candidates that are measured in the first round.
        fresh: least number of best-ranked candidates that every round measures anew.
        bite: largest share of a channel group's current width that one round takes; at least one step.
        trials: number of candidates that a sampling proposer tries.
        seed: seed of a proposer's random draws.
        screening: number of the calibration set's first draws that candidates are compared on; 0 for all.
        finalists: number of candidates at the end of a search with screening that are measured on all draws.
        negligible: rise of the loss that does not count, as a share of the whole network's.
        study: Optuna journal that several workers share.
        llm: endpoint of a language model.
        journal: returns the measurements of an earlier run of this search, and stores those of this one.
        where: description of the timestep group, for messages.
        memory: measured candidates (round, steps, MACs, loss; the cost in the target's unit if that is not MACs; the number of
            draws if it was a screening, and whether it was made from a repaired plan) and choices, in order; round −1 closes the
            last stretch.
    """

    widths: WidthProblem
    scores: Scores
    evaluate: Evaluate
    rounds: int = 12
    shortlist: int = 8
    fresh: int = 1
    bite: float = 1.0
    trials: int = 64
    seed: int = 0
    screening: int = 0
    finalists: int = 4
    negligible: float = 0.0
    study: Path | None = None
    llm: Endpoint | None = None
    journal: Journal = field(default_factory=Journal)
    where: str = "its timestep group"
    memory: list[JsonObject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known: dict[Measured, float] = self.journal.losses()
        self._measured: set[Measured] = set()

    def plan(self, steps: IntArray) -> PruningPlan:
        """The plan that keeps the best channels after ``steps`` of shape (groups,)."""
        return PruningPlan.from_widths(self.widths.graph, self.widths.widths(steps), self.scores)

    def measure(
        self,
        steps: IntArray,
        search_round: int,
        ahead: Sequence[IntArray] = (),
        near: IntArray | None = None,
        draws: int = 0,
        anew: bool = True,
    ) -> float:
        """The proxy of one candidate; it is measured at most once and remembered.

        Args:
            steps: steps of every channel group, shape (groups,).
            search_round: number of the round, for the memory.
            ahead: candidates that may be needed next. Other ranks, if any, measure them meanwhile. A result enters the memory only
                when it is asked for, so the memory and the decisions are the same as with one process.
            near: steps that the candidates were made from; layer outputs that they share may be computed once.
            draws: number of the calibration set's first draws to measure on; 0 for all. The result compares with those of the same
                number of draws only.
            anew: whether the candidate is repaired anew. On few draws it may start from the repaired network of ``near`` instead;
                the result then compares with others from the same plan, and with ``near`` measured near itself.

        Raises:
            InputError: the loss of the whole network is NaN or infinite.
        """
        source = None if anew else near
        key = _key(steps, draws, source)
        if key not in self._known:
            others = dict.fromkeys(_key(other, draws, source) for other in ahead)
            self._spread([key, *(other for other in others if other != key and other not in self._known)], near, anew)
        if key not in self._measured:
            self._measured.add(key)
            self.remember({"round": search_round, **self._described(steps, self._known[key]), **key.about})
        return self._known[key]

    @property
    def full(self) -> int:
        """Cost of the whole network."""
        return int(self.widths.spent(np.zeros(len(self.widths.graph), dtype=np.int64)))

    @property
    def slack(self) -> float:
        """Rise of the loss that does not count; above 0, the whole network is measured for it."""
        if self.negligible == 0:
            return 0.0
        whole = np.zeros(len(self.widths.graph), dtype=np.int64)
        return self.negligible * max(self.measure(whole, 0), 0.0)

    def said_far(self, spent: int, full: int) -> None:
        """Tell how much of the way from the whole network's cost ``full`` to the target is gone at a cost ``spent``."""
        measured = f"{len(self._measured)} candidates of {self.where}"
        tell("search", full - max(spent, self.widths.target), full - self.widths.target, measured)

    def measure_all(
        self,
        candidates: Sequence[IntArray],
        search_round: int,
        near: IntArray | None = None,
        draws: int = 0,
        anew: bool = True,
    ) -> list[float]:
        """The proxies of several candidates, in order; ranks share the work. Arguments as for :meth:`measure`."""
        return [
            self.measure(steps, search_round, candidates[i + 1 :], near, draws, anew)
            for i, steps in enumerate(candidates)
        ]

    def best_of(
        self,
        candidates: Sequence[IntArray],
        search_round: int,
        near: IntArray | None = None,
        enough: float = -math.inf,
    ) -> tuple[IntArray, float]:
        """The candidate of least loss and its loss; with a screening, only the ``finalists`` that it finds best see all draws.

        Args:
            candidates: steps of every channel group, those first that promise most.
            search_round: number of the round, for the memory.
            near: see :meth:`measure`.
            enough: loss on all draws at or below which no further candidate is measured.
        """
        finalists = list(candidates)
        if self.screening and len(finalists) > self.finalists:
            common = np.min(finalists, axis=0)  # what they share is repaired once
            losses = self.measure_all(finalists, search_round, common, self.screening, anew=False)
            finalists = [finalists[i] for i in np.argsort(losses, kind="stable")[: self.finalists]]
        losses = list[float]()
        for i, steps in enumerate(finalists):
            losses.append(self.measure(steps, search_round, finalists[i + 1 :], near))
            if losses[-1] <= enough:
                break
        best = int(np.argmin(losses))
        if self.screening:  # compares the losses of rounds, which are on fewer draws, with those on all
            self.measure(finalists[best], search_round, near=near, draws=self.screening)
        return finalists[best], losses[best]

    def check(self, steps: IntArray) -> None:
        """Refuse a final candidate with a measured loss that is NaN or infinite.

        Raises:
            InputError: the loss is NaN or infinite.
        """
        if self._known.get(_key(steps)) == _WORST:
            raise InputError(
                f"The loss of the plan that was found for {self.where} is no number; expected a higher target, or another proposer."
            )

    def choose(self, what: str, steps: IntArray, search_round: int, loss: float, draws: int = 0) -> None:
        """Remember a choice; the choices are the timestep group's frontier of MACs and loss. ``draws`` if it was a screening's."""
        self.remember(
            {
                "round": search_round,
                "chosen": what,
                **self._described(steps, loss),
                **({"draws": draws} if draws else {}),
            }
        )

    def remember(self, entry: JsonObject) -> None:
        """Put an entry into the memory and the journal."""
        self.memory.append(entry)
        self.journal.write(entry)

    def removed(self, steps: IntArray) -> FloatArray:
        """Fraction of every channel group that ``steps`` remove, both of shape (..., groups)."""
        return np.asarray(1 - self.widths.widths(steps) / self.widths.graph.full_widths, dtype=np.float64)

    def _described(self, steps: IntArray, loss: float) -> dict[str, object]:
        found = {"steps": [int(n) for n in steps], "macs": int(self.widths.macs(steps)), "loss": loss}
        if self.widths.spends.name != "macs":
            found["spent"] = int(self.widths.spent(steps))
        return found

    def _spread(self, wave: Sequence[Measured], near: IntArray | None, anew: bool) -> None:
        """Evaluate the first candidates of a wave, one on each rank."""
        rank, size = ranks.place()
        wave = wave[:size]
        mine = math.nan
        if rank < len(wave):
            mine = self._evaluated(wave[rank], near, anew)
        for key, loss in zip(wave, ranks.gather(mine), strict=False):
            if not math.isfinite(loss) and not any(key.steps):
                raise InputError(
                    f"The whole network's loss on {self.where} is no number ({loss}); expected a trained network and a loss that "
                    "fits it."
                )
            self._known[key] = loss if math.isfinite(loss) else _WORST

    def _evaluated(self, key: Measured, near: IntArray | None, anew: bool) -> float:
        plan = self.plan(np.array(key.steps, dtype=np.int64))
        source = None if near is None else self.plan(near)
        if key.draws:
            return float(self.evaluate(plan, source, key.draws, anew))
        return float(self.evaluate(plan) if source is None else self.evaluate(plan, source))


class Proposer(Protocol):
    """Decides the widths."""

    def __call__(self, task: Task) -> IntArray:
        """Steps of every channel group, shape (groups,), that meet the task's target."""
        ...


def _key(steps: IntArray, draws: int = 0, near: IntArray | None = None) -> Measured:
    sliced = bool(draws) and near is not None and not np.array_equal(near, steps)
    return Measured(tuple(int(number) for number in steps), draws, sliced)
