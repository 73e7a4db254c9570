"""The search's parts, one changed at a time: its memory, the number of rounds and of candidates, and an early end.

As benchmarks/searches.py: each timestep group of the embedded digits base is pruned to the same share of the base's MACs, and
fine-tuned with the same steps and draws; every row is compared with the default by seed and group. A second run resumes:

    python benchmarks/search_ablations.py --seeds 0 1 2 && python benchmarks/search_ablations.py --table

The ablations are those of arXiv:2312.13307, which has them for its language model. That proposer needs an endpoint and was not run.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from _manifest import markdown_table, publish
from searches import BUDGETS, DEFAULT, GROUPS, STEPS, Method, cells, measured_or_table

from prunekit._files import atomic_path
from prunekit._types import IntArray
from prunekit.search import PROPOSERS, Task
from prunekit.search.greedy import candidates_of, close

BASELINE = "default: 12 rounds, 8 candidates, memory"


def forgetful(task: Task) -> IntArray:
    """As ``greedy``, without a memory: every round ranks all candidates by the scores and measures the short list anew."""
    problem = task.widths
    steps = np.zeros(len(problem.graph), dtype=np.int64)
    full = int(problem.spent(steps))
    if problem.target >= full:
        return steps
    chunk, rates = max((full - problem.target) / task.rounds, 1.0), dict[int, float]()
    loss = task.measure(steps, 0)
    for search_round in range(1, 10 * task.rounds):
        candidates = candidates_of(problem, steps, chunk, task.bite)
        if not candidates:
            break
        now, lost = int(problem.spent(steps)), float(problem.loss(steps))
        saved = {g: now - int(problem.spent(candidate)) for g, candidate in candidates.items()}
        by_score = {g: (float(problem.loss(candidate)) - lost) / saved[g] for g, candidate in candidates.items()}
        short = sorted(candidates, key=by_score.__getitem__)[: task.shortlist]
        losses = {g: task.measure(candidates[g], search_round, near=steps) for g in short}
        rates = {g: (losses[g] - loss) / saved[g] for g in short}
        best = min(short, key=rates.__getitem__)
        steps, loss = candidates[best], losses[best]
        task.choose(problem.graph.groups[best].name, steps, search_round, loss)
    return close(task, steps, rates)


def methods() -> Iterator[Method]:
    """The default, and the default with one thing changed."""

    def searched(**changes: Any) -> Any:
        return replace(DEFAULT, search=replace(DEFAULT.search, **changes))

    yield Method(BASELINE, DEFAULT)
    yield Method("no memory, 8 candidates a round", searched(proposer="forgetful"))
    yield Method("no memory, 2 candidates a round", searched(proposer="forgetful", shortlist=2))
    yield Method("all candidates anew in every round", searched(fresh=1000, shortlist=1000))
    for rounds in (3, 6, 24):
        yield Method(f"{rounds} rounds", searched(rounds=rounds))
    for count in (2, 4, 16):
        yield Method(f"{count} candidates", searched(shortlist=count))
    for share in (0.01, 0.05):
        yield Method(f"early end, {share:g} of the loss negligible", searched(negligible=share))
    for name in ("evolution", "tpe"):
        yield Method(f"{name}, 64 trials", searched(proposer=name))
        yield Method(f"{name}, early end at 0.01", searched(proposer=name, negligible=0.01))
    yield Method("no measurements (oneshot)", searched(proposer="oneshot"))


def markdown(summaries: list[dict[str, Any]]) -> str:
    """A table for each budget, in the order of the methods."""
    parts = [
        "# The search's parts, one changed at a time (embedded digits base)\n",
        f"Each of {GROUPS} timestep groups pruned to the budget by the proxy {DEFAULT.search.proxy} and fine-tuned for {STEPS} "
        "steps of 64 images on its own timesteps; loss on held-out images with fixed noise, averaged over the groups: mean and "
        "standard error over seeds. Against the default: change of the loss after fine-tuning, paired by seed and group. "
        "Candidates: measured by the search of one group. Seconds: of scoring and search for one group, one thread, beside other "
        "jobs. Without memory a round ranks candidates by their scores alone. The paper's proposer, a language model, was not "
        "run: no model was available. Made by `python benchmarks/search_ablations.py`; rows in `search_ablations.jsonl`.\n",
    ]
    header = ["search", "before", "after", "±", "against the default", "better in", "candidates", "seconds", "seeds"]
    for budget in BUDGETS:
        table = [
            [
                s["method"],
                f"{s['before']:.4f}",
                *cells(s),
                f"{s['measured']:.0f}",
                f"{s['search_seconds']:.1f}",
                str(s["seeds"]),
            ]
            for s in summaries
            if s["budget"] == budget
        ]
        parts.append(f"## Budget {budget:g}\n\n{markdown_table(header, table)}")
    return "\n".join(parts)


def main() -> None:
    PROPOSERS["forgetful"] = forgetful
    if (found := measured_or_table("search_ablations", __doc__, list(methods()), BASELINE)) is None:
        return
    _, summaries, output = found
    publish("search_ablations", {"groups": GROUPS, "steps": STEPS, "rows": summaries}, output)
    with atomic_path(output / "search_ablations.md") as part:
        part.write_text(markdown(summaries), encoding="utf-8")


if __name__ == "__main__":
    main()
