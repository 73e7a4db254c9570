"""The repair that screens candidates: it starts from the repaired network that they are made from, without sums over rows.

:class:`~prunekit.search.repair.Repair` fits every layer to the inputs that it has in the pruned network. That takes a regression
over all rows, layer by layer, for each candidate. Here it is done once, for the plan that the candidates are made from, and the
Gram matrices of that network's inputs are kept. A candidate loses a few more channels, and the inputs that stay are assumed to be
what they were. Then its equations are rows and columns of the kept matrices. No candidate needs sums over rows, and a layer that
reads the same channels in two candidates is repaired once. The drift of the inputs that stay is left out;
benchmarks/search_speed.py measures the effect on the result of a search.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._types import IntArray
from prunekit.choices import RepairKind
from prunekit.graph import PruningPlan, Template, slicer
from prunekit.search.layer_inputs import FAINT, RIDGE, plainly
from prunekit.search.repair import Drift, Repair

__all__ = ["InputSums", "SlicedRepair"]

_REMEMBERED = 2  # mended versions of a layer: that of the plan that candidates are made from, and a candidate's


@dataclass(frozen=True, eq=False)
class InputSums:
    """Sums over the inputs of a layer in the full network.

    Args:
        means: mean of each input channel, shape (channels,), float64; zero if the layer cannot add a constant.
        gram: products of the input channels about these means, summed over the rows, shape (channels, channels).
        rows: number of rows.
    """

    means: Tensor
    gram: Tensor
    rows: int

    @classmethod
    def of(cls, signals: Tensor, intercept: bool, gram: Tensor | None = None) -> "InputSums":
        """The sums of inputs of shape (channels, rows); ``gram`` if it is known."""
        wide = signals.to(torch.promote_types(signals.dtype, torch.float32))
        means = wide.double().mean(1) if intercept else wide.new_zeros(len(wide), dtype=torch.float64)
        if gram is None:
            about = wide - means.to(wide.dtype).unsqueeze(1)
            gram = about @ about.T
        return cls(means, gram, wide.shape[1])

    def predicting(self, kept: Tensor, lost: Tensor) -> Tensor | None:
        """Coefficients that predict lost channels from kept ones, shape (lost, kept); None if the equations cannot be solved.

        The ridge is that of :class:`~prunekit.search.repair.Repair`. They are factorised in float32, and in float64 if that fails.
        """
        gram = self.gram[kept][:, kept]
        spread = float(self.gram.diagonal().double().mean())
        ridge = max(RIDGE * float(gram.diagonal().double().mean()), FAINT * spread) + 1e-12 * self.rows
        wanted = self.gram[kept][:, lost]
        for kind in (gram.dtype, torch.float64):
            factor, failed = torch.linalg.cholesky_ex(
                gram.to(kind) + ridge * torch.eye(len(kept), dtype=kind, device=gram.device)
            )
            if not failed:
                found = torch.cholesky_solve(wanted.to(kind), factor).T
                if bool(found.isfinite().all()):
                    return found.to(gram.dtype)
        return None


@dataclass(frozen=True, eq=False)
class _Reading:
    """How a layer of a repaired network predicts the full network's inputs from its own.

    Args:
        sums: sums over the layer's own inputs.
        kept: positions of these inputs among the full network's, rising, shape (kept,).
        mix: coefficients, shape (full, kept).
        shift: constants, shape (full,), float64.
        is_whole: whether its inputs are the full network's.
    """

    sums: InputSums
    kept: IntArray
    mix: Tensor
    shift: Tensor
    is_whole: bool

    @classmethod
    def of(cls, signals: Tensor, intercept: bool, kept: IntArray, full: int, drift: Drift | None) -> "_Reading":
        """From inputs of shape (kept, rows), and how the full network's are predicted from them."""
        sums = InputSums.of(signals, intercept, None if drift is None else drift.gram)
        mix = None if drift is None else drift.mix
        if mix is None:
            mix = torch.zeros(full, len(kept), device=signals.device)
            mix[torch.from_numpy(kept).to(signals.device), torch.arange(len(kept), device=signals.device)] = 1
        shift = torch.zeros(full, dtype=torch.float64, device=signals.device) if drift is None else drift.shift
        return cls(sums, kept, mix.to(sums.gram.dtype), shift, drift is None)

    def reading(self, stays: IntArray, kind: RepairKind) -> tuple[Tensor, Tensor]:
        """Coefficients (full, stays) and constants (full,) once only the inputs at positions ``stays`` are left."""
        left = np.isin(self.kept, stays)
        kept, lost = (torch.from_numpy(np.flatnonzero(x)).to(self.mix.device) for x in (left, ~left))
        mix, shift = self.mix[:, kept], self.sums.means[lost]
        if not len(lost):
            return mix, self.shift
        if kind == "least-squares" and (found := self.sums.predicting(kept, lost)) is not None:
            mix = mix + self.mix[:, lost] @ found
            shift = shift - found.double() @ self.sums.means[kept]
        return mix, self.shift + self.mix[:, lost].double() @ shift


class SlicedRepair:
    """Repairs networks that lose a few more channels than a repaired one, without running them.

    Args:
        repair: how the network that they start from is repaired.
        pruned_by: prunes the full network.
    """

    def __init__(self, repair: Repair, pruned_by: Template) -> None:
        self.model, self.graph = repair.model, repair.graph
        self._repair, self._pruned_by = repair, pruned_by
        self._near: PruningPlan | None = None
        self._readings: dict[str, _Reading] = {}
        self._mended: dict[str, OrderedDict[bytes, dict[str, Tensor]]] = {}
        self._narrowing = {
            member.layer for group in repair.graph for member in group.members if member.axis == "in"
        } & repair.inputs.keys()

    def start_from(self, near: PruningPlan) -> None:
        """Make the network of this plan the one that others are made from, if it is not already."""
        if near != self._near:
            self.repaired(near)

    def repaired(self, near: PruningPlan) -> nn.Module:
        """Repair the network of a plan that others are made from, and take the sums over its layers' inputs.

        Returns:
            The repaired network, good until the next one is pruned.
        """
        pruned = self._pruned_by(near)
        positions, old = near.positions(self.graph), self._readings
        self._near, self._readings, self._mended = near, {}, {}

        def note(name: str, signals: Tensor, drift: Drift | None) -> None:
            if name not in self._narrowing:
                return
            before = old.get(name)
            if drift is None and before is not None and before.is_whole:
                self._readings[name] = before
                return
            inputs = self._repair.inputs[name]
            intercept = self.model.get_submodule(name)._parameters.get("bias") is not None
            kept = positions.get((name, "in"), np.arange(len(inputs)))
            self._readings[name] = _Reading.of(signals, intercept, kept, len(inputs), drift)

        self._repair.mend(pruned, near, see=note)
        if near.is_whole:
            for name, signals in self._repair.inputs.items():
                note(name, signals, None)
        return pruned

    def mend(self, pruned: nn.Module, plan: PruningPlan, known: Collection[str] = (), *, once: bool = False) -> None:
        """Repair a network with fewer channels than the one that it starts from, in place.

        Args:
            pruned: the network that the plan's channels were cut from.
            plan: what it keeps.
            known: layers that return recorded outputs without running.
            once: has no effect.
        """
        cut, positions = slicer(self.model, self.graph, plan), plan.positions(self.graph)
        modules: dict[str, Any] = dict(pruned.named_modules())
        for name, reading in self._readings.items():
            stays = positions.get((name, "in"), reading.kept)
            if name in known or name not in modules or (reading.is_whole and len(stays) == len(reading.kept)):
                continue
            for own, tensor in self._weights(name, stays).items():
                old = modules[name]._parameters[own]
                new = plainly(cut(f"{name}.{own}", tensor, done=1 if own == "weight" else None))
                modules[name]._parameters[own] = nn.Parameter(new, old.requires_grad)

    def _weights(self, name: str, stays: IntArray) -> dict[str, Tensor]:
        """Weight and bias of a layer that reads these of its input channels and makes all of its outputs."""
        known = self._mended.setdefault(name, OrderedDict())
        key = stays.tobytes()
        if key not in known:
            known[key] = self._mend(name, stays)
            if len(known) > _REMEMBERED:
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]

    def _mend(self, name: str, stays: IntArray) -> dict[str, Tensor]:
        full: Any = self.model.get_submodule(name)
        weight = full.weight.detach()
        wide = torch.promote_types(weight.dtype, torch.float32)
        mix, shift = self._readings[name].reading(stays, self._repair.kind)
        made = {"weight": torch.tensordot(weight.to(wide), mix.to(wide), ([1], [0])).movedim(-1, 1).to(weight.dtype)}
        if full._parameters.get("bias") is not None:
            made["bias"] = full.bias.detach() + self._repair.sums[name] @ shift.to(weight.dtype)
        return made
