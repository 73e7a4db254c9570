"""The table of proposers: ways to decide how much to prune in each channel group. Each one meets the target."""

from prunekit._messages import did_you_mean
from prunekit.errors import InputError
from prunekit.search.baselines import oneshot, uniform
from prunekit.search.greedy import greedy
from prunekit.search.llm import llm
from prunekit.search.sampled import evolution, installed, tpe
from prunekit.search.task import Proposer

__all__ = ["MEASURING_NOTHING", "PROPOSERS", "check_available", "proposer"]

PROPOSERS: dict[str, Proposer] = {
    "greedy": greedy,
    "evolution": evolution,
    "tpe": tpe,
    "llm": llm,
    "oneshot": oneshot,
    "uniform": uniform,
}
MEASURING_NOTHING = frozenset({"oneshot", "uniform"})
"""Proposers that never evaluate the proxy, so they need no images."""


def proposer(name: str) -> Proposer:
    """A proposer by name.

    Raises:
        InputError: the name is unknown.
    """
    if name not in PROPOSERS:
        raise InputError(
            f"Unknown proposer {name!r}{did_you_mean(name, PROPOSERS)}; expected one of {', '.join(PROPOSERS)}."
        )
    return PROPOSERS[name]


def check_available(name: str) -> None:
    """Refuse a proposer whose library is missing, before anything else is done.

    Raises:
        InputError: the name is unknown, or a library is not installed.
    """
    if proposer(name) in (evolution, tpe):
        installed()
