"""Proxies: cheap numbers for how good a pruned network will be once it is fine-tuned. Lower is better.

What a search needs is the order of plans after fine-tuning, which the loss right after the cut does not tell: benchmarks/proxies.py
measures how well each proxy keeps that order.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Generator, nn

from prunekit.errors import InputError
from prunekit.graph import ChannelGraph, PruningPlan, Template
from prunekit.importance import Probe
from prunekit.search.repair import Repair, RepairKind

__all__ = ["PROXIES", "Evaluate", "make_proxy", "proxy_evaluations", "proxy_samples"]

_RECOVERY_STEPS = 10

Evaluate = Callable[[PruningPlan], float]
"""The proxy of one plan."""


class Proxy(Protocol):
    """Prepares an evaluation for one network and timestep group."""

    def __call__(self, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Evaluate:
        """An evaluation of any plan, the same each time for the same plan.

        Args:
            model: the full network.
            graph: its channel groups.
            probe: the loss on the timestep group.
        """
        ...


def after(kind: RepairKind) -> Proxy:
    """The proxy that is the timestep group's loss after a repair of the cut, see :mod:`prunekit.search.repair`."""

    def proxy(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Evaluate:
        repair, pruned_by = Repair.of(model, graph, probe, kind), Template(model, graph)

        def evaluate(plan: PruningPlan) -> float:
            pruned = pruned_by(plan)
            return probe.mean(pruned, first=repair.mend(pruned, plan))

        return evaluate

    return proxy


def recovery(
    model: nn.Module,
    graph: ChannelGraph,
    probe: Probe,
    steps: int = _RECOVERY_STEPS,
    learning_rate: float = 5e-4,
    repaired: bool = False,
) -> Evaluate:
    """The loss after a few steps of Adam on fresh draws of the timestep group, the same ones for every plan."""
    repair = Repair.of(model, graph, probe, "least-squares" if repaired else "none")

    def evaluate(plan: PruningPlan) -> float:
        pruned = repair.apply(plan)
        parameters = [parameter for parameter in pruned.parameters() if parameter.is_floating_point()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        draws = Generator().manual_seed(probe.seed + 7919)
        pruned.eval()  # dropout would draw from the global generator
        for _ in range(steps):
            timesteps = torch.randint(probe.group.start, probe.group.stop, (probe.batch_size,), generator=draws)
            with torch.enable_grad():
                loss = probe.loss(pruned, timesteps, draws)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
        return probe.mean(pruned)

    return evaluate


def repaired_recovery(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Evaluate:
    """:func:`recovery` from repaired weights."""
    return recovery(model, graph, probe, repaired=True)


PROXIES: Mapping[str, Proxy] = {
    "loss": after("none"),
    "bias": after("bias"),
    "least-squares": after("least-squares"),
    "recovery": recovery,
    "repaired-recovery": repaired_recovery,
}


def proxy_evaluations(name: str, samples: int, batch_size: int) -> int:
    """Evaluations of the network on one sample that a proxy of one plan takes; a train step counts as three."""
    forward, backward = proxy_samples(name, samples, batch_size)
    return forward + 2 * backward


def proxy_samples(name: str, samples: int, batch_size: int) -> tuple[int, int]:
    """Samples that go forward through a plan's network for its proxy, and how many of them go backward too.

    Args:
        name: the proxy's.
        samples: draws that the loss is measured on.
        batch_size: draws that a train step takes, and that a repair is fitted to where there are as many; the pass that repairs
            gives the loss on them too.
    """
    trained = name in ("recovery", "repaired-recovery")
    repaired_first = min(batch_size, samples) * (name == "repaired-recovery")
    backward = _RECOVERY_STEPS * batch_size * trained
    return samples + repaired_first + backward, backward


def make_proxy(name: str, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Evaluate:
    """An evaluation by a proxy's name.

    Raises:
        InputError: the name is unknown.
    """
    if name not in PROXIES:
        raise InputError(f"Unknown proxy {name!r}; expected one of {', '.join(PROXIES)}.")
    return PROXIES[name](model, graph, probe)
