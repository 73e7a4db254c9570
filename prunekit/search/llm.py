"""The paper's proposer: a language model that reads the memory bank and answers with pruning ratios (TDC, arXiv:2312.13307)."""

import json
import logging
import math
import time
from typing import Annotated

import numpy as np
from typing_extensions import TypedDict

from prunekit._json import Bounded, JsonObject, Ratio, checked, parse_json
from prunekit._types import FloatArray, IntArray
from prunekit.errors import InputError
from prunekit.search import ranks
from prunekit.search.baselines import at_target
from prunekit.search.endpoint import Endpoint, EndpointError
from prunekit.search.greedy import greedy
from prunekit.search.task import Task

__all__ = ["llm"]

_log = logging.getLogger(__name__)

_TASK = """You prune channels of a neural network, for one range of a diffusion model's timesteps. In every round you say which
fraction of the channels of every channel group to remove. Your fractions are scaled together so that the pruned network
costs exactly the target, so what counts is how they compare. The pruned network's loss is then measured.
Find the fractions of lowest loss.
Answer with one JSON object and nothing else: {"ratios": {"<channel group>": <fraction to remove, 0 to 1>, ...}}.
Channel groups that you leave out keep all their channels."""


class _AnswerForm(TypedDict):
    ratios: Annotated[dict[str, Ratio], Bounded(min_length=1, max_length=100_000)]


def llm(task: Task) -> IntArray:
    """Each round, a language model sees what was measured and answers with ratios; greedy takes its place when it fails.

    The paper's model is GPT-4 and its prompt is not published; the wording is ours. An answer is checked, scaled to the target and
    measured; the best of all rounds is taken. Answers are kept in the journal, so a resumed search asks no question twice.

    Raises:
        InputError: there is no endpoint, or its key is not in the environment.
    """
    if task.llm is None:
        raise InputError("The proposer llm needs an endpoint and a model's name (`llm_endpoint` and `llm_model`).")
    task.llm.key()
    problem = task.widths
    best = np.zeros_like(problem.max_steps)
    if problem.target >= int(problem.spent(best)):
        return best
    base, lowest, best_round = task.measure(best, 0), math.inf, 0
    for search_round in range(1, task.rounds + 1):
        said = ranks.same(_said(task, task.llm, search_round, base))
        task.remember(said)
        if "failed" in said:
            _log.warning("The language model failed (%s); greedy takes its place.", said["failed"])
            steps, source = greedy(task), "greedy"
        else:
            steps, source = at_target(problem, _fractions(said["ratios"], task)), f"round {search_round}"
        loss = task.measure(steps, search_round)
        if loss < lowest:
            best, lowest, best_round, chosen = steps, loss, search_round, source
        if "failed" in said:
            break
    task.choose(chosen, best, best_round, lowest)
    return best


def _said(task: Task, endpoint: Endpoint, search_round: int, base: float) -> JsonObject:
    """The round's entry: the ratios that the model answered with, or how it failed. Rank 0 asks."""
    known = task.journal.answer(search_round)
    if known is not None or ranks.place()[0] != 0:
        return known or {}
    question = [{"role": "system", "content": _TASK}, {"role": "user", "content": _memory_bank(task, base)}]
    reason = ""
    for attempt in range(endpoint.retries + 1):
        if attempt:
            time.sleep(min(0.25 * 2**attempt, endpoint.timeout))
        try:
            text = endpoint.complete(question)
        except EndpointError as error:
            reason = str(error)
            continue
        try:
            return {"round": search_round, "ratios": _ratios(text, task)}
        except ValueError as error:
            reason = str(error)
            if len(question) == 2:
                question.append({"role": "user", "content": ""})
            question[2]["content"] = f"Your last answer was refused: {reason}. Answer with the JSON object only."
    return {"round": search_round, "failed": reason}


def _memory_bank(task: Task, base: float) -> str:
    """The prompt's facts: the channel groups, the target, and all measurements so far."""
    problem = task.widths
    full = int(problem.spent(np.zeros_like(problem.max_steps)))
    lines = [
        f"Target: {problem.target / full:.4f} of the whole network's {problem.spends.name}. Loss of the whole network: {base:.6g}.",
        "Channel groups (channels, smallest step, share of the cost that goes with its largest ratio):",
    ]
    for g, group in enumerate(problem.graph):
        alone = np.zeros_like(problem.max_steps)
        alone[g] = problem.max_steps[g]
        share = 1 - int(problem.spent(alone)) / full
        largest = 1 - group.widths[-1] / group.size
        lines.append(f"{group.name}: {group.size}, {group.step}, {share:.4f} at {largest:.3f}")
    lines.append("Measured so far (removed ratios -> cost, loss):")
    rounds = [entry for entry in task.memory if "steps" in entry and "chosen" not in entry and entry["round"] > 0]
    for entry in rounds:
        removed = task.removed(np.array(entry["steps"], dtype=np.int64))
        ratios = {group.name: round(float(r), 3) for group, r in zip(problem.graph, removed, strict=True) if r > 0}
        cost = entry["spent" if "spent" in entry else "macs"] / full
        lines.append(f"{json.dumps(ratios)} -> {cost:.4f}, {entry['loss']:.6g}")
    return "\n".join(lines if rounds else [*lines, "nothing yet"])


def _ratios(text: str, task: Task) -> dict[str, float]:
    """The ratios of an answer.

    Raises:
        ValueError: the text holds no ratios, or unusable ones; the message does not quote it.
    """
    try:
        told = text[text.index("{") : text.rindex("}") + 1].encode()
        ratios = checked(_AnswerForm, parse_json(told, "the answer"), "the answer")["ratios"]
    except ValueError:  # the message would quote it
        raise ValueError("it held no JSON object with ratios from 0 to 1 by channel group") from None
    unknown = sum(name not in task.widths.graph.index for name in ratios)
    if unknown:
        raise ValueError(f"{unknown} of its channel groups are unknown")
    return {name: float(ratio) for name, ratio in ratios.items()}


def _fractions(ratios: dict[str, float], task: Task) -> FloatArray:
    return np.array([ratios.get(group.name, 0.0) for group in task.widths.graph], dtype=np.float64)
