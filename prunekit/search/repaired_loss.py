"""The loss after a repair, on all draws of the calibration set or on its first few."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from prunekit.choices import RepairKind
from prunekit.graph import ChannelGraph, PruningPlan, Template
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.graph.layers import own_tensors
from prunekit.importance import Probe
from prunekit.search.prefix import Prefix, Recording, answering, ordering, recording
from prunekit.search.repair import Repair
from prunekit.search.screening import SlicedRepair

__all__ = ["RepairedLoss", "fitted_draws"]

_FITTED = 2  # times as many draws as the loss is measured on


def fitted_draws(draws: int, samples: int, batch_size: int) -> int:
    """Number of draws that a repair is fitted to, if losses are measured on ``draws`` of a calibration set of ``samples``."""
    return min(batch_size, samples if draws >= samples else min(_FITTED * draws, samples - draws))


class RepairedLoss:
    """The timestep group's loss after a repair.

    On few draws, the plan that others are made from is repaired in full, and the plans that are made from it by
    :class:`~prunekit.search.screening.SlicedRepair`. A repair fits few draws too well, so these are not the draws that the loss is
    measured on, but others.

    Args:
        model: the full network.
        graph: its channel groups.
        probe: the loss on the timestep group.
        kind: the repair.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, probe: Probe, kind: RepairKind) -> None:
        self._model, self._graph, self._probe, self._kind = model, graph, probe, kind
        self._pruned_by = Template(model, graph)
        self._fits: dict[int, tuple[Repair, Probe]] = {}
        self._anew: dict[int, _Loss] = {}
        self._from_near: dict[int, _FromNear] = {}
        self._loss_on(probe.samples)

    def __call__(
        self, plan: PruningPlan, near: PruningPlan | None = None, draws: int | None = None, anew: bool = True
    ) -> float:
        """See :class:`prunekit.search.proxies.Evaluate`."""
        count = self._probe.samples if draws is None else min(draws, self._probe.samples)
        if anew or near is None or not _is_part(plan, near) or self._kind == "none" or count == self._probe.samples:
            return self._loss_on(count)(plan, near)
        if count not in self._from_near:
            self._from_near[count] = _FromNear(self._pruned_by, *self._fitted(count))
        return self._from_near[count](plan, near)

    def _loss_on(self, draws: int) -> "_Loss":
        if draws not in self._anew:
            fit, probe = self._fitted(draws)
            self._anew[draws] = _Loss(self._pruned_by, fit, fit.probe, None if fit.probe is probe else probe)
        return self._anew[draws]

    def _fitted(self, draws: int) -> tuple[Repair, Probe]:
        """A repair, and the draws to measure on."""
        if draws not in self._fits:
            probe = fitted = self._probe
            if draws < probe.samples:
                probe, fitted = probe.parts(draws, fitted_draws(draws, probe.samples, probe.batch_size))
            self._fits[draws] = Repair.of(self._model, self._graph, fitted, self._kind), probe
        return self._fits[draws]


class _Mender(Protocol):
    """Repairs a pruned network in place, and may return its loss on the first batch."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def graph(self) -> ChannelGraph: ...

    def mend(
        self, pruned: nn.Module, plan: PruningPlan, known: Collection[str] = (), *, once: bool = False
    ) -> Tensor | None: ...


class _Loss:
    """The loss after a repair. Layers before a plan's first change are computed once for all plans made from the same plan.

    Args:
        pruned_by: prunes the full network.
        mender: the repair.
        probe: draws of which the first batch shows how the network runs; a repair that runs the network runs it on this batch.
        judge: the draws that the loss is measured on, if they are others.
    """

    def __init__(self, pruned_by: Template, mender: _Mender, probe: Probe, judge: Probe | None = None) -> None:
        self._pruned_by, self._mender, self._probe, self._judge = pruned_by, mender, probe, judge
        self._goes_on = judge is not None or probe.batches > 1
        self._prefix: Prefix | None = None

    def __call__(self, plan: PruningPlan, near: PruningPlan | None = None) -> float:
        if self._prefix is None:
            pruned = self._pruned_by(plan)
            with ordering(pruned) as order:
                loss = self._first_loss(pruned, plan)
            record = partial(self._record, tuple(order.macs))
            self._prefix = Prefix(self._mender.model, self._mender.graph, order, record)
        else:
            known = {} if near is None else self._prefix.shared(plan, near)
            pruned = self._pruned_by(plan, self._weights(known))
            loss = self._first_loss(pruned, plan, known)
        return self._probe.mean(pruned, first=loss) if self._judge is None else self._judge.mean(pruned)

    def _record(self, layers: Collection[str], plan: PruningPlan, known: Mapping[str, Tensor], into: Recording) -> None:
        pruned = self._pruned_by(plan, self._weights(known))
        with recording(pruned, layers, into, weights=self._goes_on):
            self._first_loss(pruned, plan, known)

    def _first_loss(
        self, pruned: nn.Module, plan: PruningPlan, known: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """Repair a network; its loss on the first batch."""
        with answering(pruned, known), torch.no_grad(), evaluation_mode(pruned):
            loss = self._mender.mend(pruned, plan, known, once=not self._goes_on)
            return next(replace(self._probe, distributed=False).losses(pruned))[0] if loss is None else loss

    def _weights(self, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the layers with known outputs on the first batch; only needed if the network is run once more."""
        if self._goes_on:
            return self._prefix.tensors(known) if self._prefix else {}
        layers = {name: self._mender.model.get_submodule(name) for name in known}
        return {f"{name}.{own}": tensor for name, layer in layers.items() for own, tensor in own_tensors(layer).items()}


class _FromNear:
    """The loss after a repair that starts from the repaired network of the plan that candidates are made from."""

    def __init__(self, pruned_by: Template, repair: Repair, probe: Probe) -> None:
        self._probe, self._sliced = probe, SlicedRepair(repair, pruned_by)
        self._loss = _Loss(pruned_by, self._sliced, probe)

    def __call__(self, plan: PruningPlan, near: PruningPlan) -> float:
        if near == plan:
            return self._probe.mean(self._sliced.repaired(near))
        self._sliced.start_from(near)
        return self._loss(plan, near)


def _is_part(plan: PruningPlan, near: PruningPlan) -> bool:
    """Whether a plan keeps no channel that the other one removes, and has the same branches, without which later layers drift."""
    return plan.removed == near.removed and all(
        name in plan.kept and set(plan.kept[name]) <= set(kept) for name, kept in near.kept.items()
    )
