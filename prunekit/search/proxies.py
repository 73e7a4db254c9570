"""Proxies: cheap estimates of how good a pruned network will be after fine-tuning. Lower is better.

A search needs the order of plans after fine-tuning, and the loss right after the cut does not predict that order.
benchmarks/proxies.py measures how well each proxy predicts it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from prunekit._messages import did_you_mean
from prunekit.errors import InputError
from prunekit.graph import ChannelGraph, PruningPlan
from prunekit.importance import Probe
from prunekit.search.repair import Repair, RepairKind
from prunekit.search.repaired_loss import RepairedLoss

__all__ = ["PROXIES", "Evaluate", "make_proxy", "proxy_evaluations", "proxy_samples"]

_RECOVERY_STEPS = 10


class Evaluate(Protocol):
    """The proxy of one plan."""

    def __call__(
        self, plan: PruningPlan, near: PruningPlan | None = None, draws: int | None = None, anew: bool = True
    ) -> float:
        """A number, lower is better, the same for the same arguments.

        Args:
            plan: what to keep.
            near: the plan that it was made from; outputs that both share may be computed once and reused for other plans.
            draws: number of the calibration set's first draws to measure on, for a quick look; None for all.
            anew: False allows a repair on few draws to start from the repaired network of ``near``, see
                :mod:`prunekit.search.screening`. The number then compares with those of plans that were made from the same one.
        """
        ...


class Proxy(Protocol):
    """Prepares an evaluation for one network and timestep group."""

    def __call__(self, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Evaluate:
        """Prepare an evaluation that takes any plan and returns the same number each time for the same plan.

        Args:
            model: the full network.
            graph: its channel groups.
            probe: the loss on the timestep group.
        """
        ...


def after(kind: RepairKind) -> Proxy:
    """The proxy that measures the timestep group's loss after a repair, see :mod:`prunekit.search.repair`."""

    def proxy(model: nn.Module, graph: ChannelGraph, probe: Probe) -> Evaluate:
        return RepairedLoss(model, graph, probe, kind)

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
    evaluations: dict[int | None, Callable[[PruningPlan], float]] = {
        None: _recovery(model, graph, probe, steps, learning_rate, repaired)
    }

    def evaluate(
        plan: PruningPlan, near: PruningPlan | None = None, draws: int | None = None, anew: bool = True
    ) -> float:
        if draws not in evaluations and draws is not None:
            quick = replace(probe.part(draws), batch_size=min(draws, probe.batch_size))
            evaluations[draws] = _recovery(model, graph, quick, steps, learning_rate, repaired)
        return evaluations[draws](plan)

    return evaluate


def _recovery(
    model: nn.Module, graph: ChannelGraph, probe: Probe, steps: int, learning_rate: float, repaired: bool
) -> Callable[[PruningPlan], float]:
    """:func:`recovery` on one number of draws."""
    repair = Repair.of(model, graph, probe, "least-squares" if repaired else "none")

    def evaluate(plan: PruningPlan) -> float:
        pruned = repair.apply(plan)
        parameters = [parameter for parameter in pruned.parameters() if parameter.is_floating_point()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        masters = [_master(parameter) for parameter in parameters]
        optimizer = torch.optim.Adam(masters, lr=learning_rate)
        draws = Generator().manual_seed(probe.seed + 7919)
        pruned.eval()  # dropout would draw from the global generator
        for _ in range(steps):
            timesteps = torch.randint(probe.group.start, probe.group.stop, (probe.batch_size,), generator=draws)
            with torch.enable_grad():
                loss = probe.loss(pruned, timesteps, draws)
                pruned.zero_grad()
                loss.backward()
            _step(optimizer, parameters, masters)
        return probe.mean(pruned)

    return evaluate


def _master(parameter: nn.Parameter) -> Tensor:
    """What Adam changes: a copy in float32 of a parameter in half precision, where its ε would be 0; else the parameter itself."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return parameter if wide == parameter.dtype else parameter.detach().to(wide)


def _step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], masters: Sequence[Tensor]) -> None:
    """A step on the masters, with the parameters' gradients; the parameters follow."""
    copied = [(own, master) for own, master in zip(parameters, masters, strict=True) if own is not master]
    for own, master in copied:
        master.grad = None if own.grad is None else own.grad.to(master.dtype)
    optimizer.step()
    for own, master in copied:
        own.data.copy_(master)


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
    """Number of single-sample evaluations that a proxy needs for one plan; a sample of a train step counts as three."""
    forward, backward = proxy_samples(name, samples, batch_size)
    return forward + 2 * backward


def proxy_samples(name: str, samples: int, batch_size: int) -> tuple[int, int]:
    """Samples that go forward through a plan's network for its proxy, and how many of them go backward too.

    Args:
        name: name of the proxy.
        samples: number of draws that the loss is measured on.
        batch_size: number of draws in a train step, and at most in a repair; the pass that repairs also gives their loss.
    """
    trained = name in ("recovery", "repaired-recovery")
    repaired_first = min(batch_size, samples) * (name == "repaired-recovery")
    backward = _RECOVERY_STEPS * batch_size * trained
    return samples + repaired_first + backward, backward


def make_proxy(name: str, model: nn.Module, graph: ChannelGraph, probe: Probe) -> Evaluate:
    """An evaluation by a proxy's name. The network is not run before the first plan is evaluated.

    Raises:
        InputError: the name is unknown.
    """
    if name not in PROXIES:
        raise InputError(f"Unknown proxy {name!r}{did_you_mean(name, PROXIES)}; expected one of {', '.join(PROXIES)}.")
    return _Prepared(partial(PROXIES[name], model, graph, probe))


@dataclass
class _Prepared:
    """An evaluation that is prepared only when the first plan is evaluated: proposers that measure nothing need no loss."""

    prepare: Callable[[], Evaluate]

    def __call__(
        self, plan: PruningPlan, near: PruningPlan | None = None, draws: int | None = None, anew: bool = True
    ) -> float:
        return self._evaluate(plan, near, draws, anew)

    @cached_property
    def _evaluate(self) -> Evaluate:
        return self.prepare()
