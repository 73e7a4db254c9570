"""Closed-form repair of a pruned network, so that its layers compute nearly what they did before: no gradient, no training.

After pruning, a layer has lost some of its input channels, and the others have drifted because earlier layers were cut. The repair
predicts the layer's inputs in the full network from its inputs now, by least squares over calibration activations, and multiplies
the prediction into its weights. Layers are repaired in the order in which they run, within one forward pass, so that each one sees
the outputs of the repaired layers before it. (Least-squares reconstruction after channel pruning, layer by layer: He et al.,
arXiv:1707.06168, eq. 3. Fitting a layer's inputs instead of its outputs is this project's choice; it takes one regression for any
kernel size.)
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.choices import RepairKind
from prunekit.graph import ChannelGraph, PruningPlan, apply, slicer
from prunekit.graph.forward_pass import undisturbing
from prunekit.graph.layers import layer_kind
from prunekit.importance import Probe
from prunekit.search.layer_inputs import (
    FAINT,
    RIDGE,
    LastRead,
    can_be_repaired,
    constant_sums,
    mixed,
    plainly,
    readers,
    run_first_batch,
    signals_of,
)

__all__ = ["Drift", "Repair", "RepairKind", "repair"]


@undisturbing
def repair(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, probe: Probe, kind: RepairKind = "least-squares"
) -> nn.Module:
    """A new network in eval mode: pruned by the plan, with its layers repaired in closed form.

    Args:
        model: the full network; it is not changed.
        graph: its channel groups.
        plan: what to keep.
        probe: the calibration set, whose first batch is used.
        kind: ``none``, ``bias`` (only what is lost of the means) or ``least-squares``.
    """
    return Repair.of(model, graph, probe, kind).apply(plan)


@dataclass(frozen=True, eq=False)
class Drift:
    """How a layer's inputs in the full network are predicted from its inputs in the pruned one.

    Args:
        mix: coefficients, shape (full, kept), float64; None if the inputs are used unchanged, since only the means are mended.
        shift: constants, shape (full,), float64.
        gram: products of the inputs in the pruned network about their means, or about 0 if the layer cannot add a constant, summed
            over the rows, shape (kept, kept); None if they were not needed.
    """

    mix: Tensor | None
    shift: Tensor
    gram: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Repair:
    """How to repair a network for any plan, from the first batch of a timestep group's calibration set.

    Args:
        model: the full network.
        graph: its channel groups.
        probe: the calibration set.
        kind: ``none``, ``bias`` (only what is lost of the means) or ``least-squares``.
        inputs: inputs of each repairable layer in the full network, shape (channels, rows).
    """

    model: nn.Module
    graph: ChannelGraph
    probe: Probe
    kind: RepairKind
    inputs: dict[str, Tensor]

    @cached_property
    def sums(self) -> dict[str, Tensor]:
        """How much a constant 1 in each input channel adds to each output of those layers, shape (outputs, channels)."""
        return constant_sums(self.model, self.inputs)

    @cached_property
    def spreads(self) -> dict[str, float]:
        """Mean variance of those layers' inputs in the full network, or mean square where a layer cannot add a constant."""
        found = {}
        for name, signal in self.inputs.items():
            centred = self.model.get_submodule(name)._parameters.get("bias") is not None
            about = signal - signal.mean(1, keepdim=True) if centred else signal
            found[name] = float(about.square().mean())
        return found

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, probe: Probe, kind: RepairKind = "least-squares") -> "Repair":
        """Record the inputs of the full network's layers; nothing is run for ``none``.

        Some layers are not repaired: those that run several times in one forward pass, those that share their weight, and those
        with an output that is not proportional to the weight.
        """
        if kind == "none":
            return cls(model, graph, probe, kind, {})
        inputs: dict[str, Tensor] = {}
        samples: dict[str, Tensor] = {}
        runs: Counter[str] = Counter()
        last = LastRead()

        def note(name: str, module: nn.Module, signal: Tensor) -> None:
            runs[name] += 1
            if name and name not in inputs:
                if not last.is_again(signal, layer_kind(module)):
                    last.result = signals_of(module, signal).clone()
                inputs[name], samples[name] = last.result, signal[:1].clone()

        run_first_batch(model, ("", *readers(model)), probe, note)

        repairable = can_be_repaired(model, samples, runs)
        return cls(model, graph, probe, kind, {name: own for name, own in inputs.items() if name in repairable})

    def apply(self, plan: PruningPlan) -> nn.Module:
        """A copy of the network, pruned by the plan and repaired."""
        pruned = apply(self.model, self.graph, plan)
        self.mend(pruned, plan)
        return pruned

    def mend(
        self,
        pruned: nn.Module,
        plan: PruningPlan,
        known: Collection[str] = (),
        *,
        once: bool = False,
        see: Callable[[str, Tensor, Drift | None], None] | None = None,
    ) -> Tensor | None:
        """Repair a network that the plan's channels were cut from, in place.

        Args:
            pruned: the network.
            plan: what it keeps.
            known: layers that are repaired already, or that return recorded outputs without running.
            once: the network is not used afterwards. A layer with more weights than inputs is then given the full network's
                predicted inputs; this gives the same output and is cheaper than multiplying the prediction into its weights.
            see: called for each layer with its name, its inputs now of shape (kept, rows), and how the full network's inputs are
                predicted from them; None if it needs no repair.

        Returns:
            The repaired network's loss on the probe's first batch, a by-product; None if nothing was run.
        """
        if self.kind == "none" or plan.is_whole:
            return None
        cut, positions = slicer(self.model, self.graph, plan), plan.positions(self.graph)
        there = dict(pruned.named_modules())  # without the layers of removed branches
        waiting, last = (self.inputs.keys() & there.keys()).difference(known), LastRead()

        def layer(name: str, module: Any, signal: Tensor) -> Tensor | None:
            if name not in waiting:
                return None
            waiting.remove(name)
            full: Any = self.model.get_submodule(name)
            weight, wanted = full.weight.detach(), self.inputs[name]
            stays = positions.get((name, "in"))
            kept = torch.arange(len(wanted)) if stays is None else torch.from_numpy(stays)
            kept = kept.to(weight.device)
            intercept = full.bias is not None
            if not last.is_again(signal, id(wanted), kept.tolist(), intercept):
                faint = FAINT * self.spreads[name]
                last.result = _drift(signals_of(module, signal), wanted, kept, self.kind, intercept, faint)
            drift = last.result
            if see is not None:
                see(name, signals_of(module, signal), drift)
            return None if drift is None else self._put(name, module, signal, drift, cut, once=once)

        return run_first_batch(pruned, tuple(waiting), self.probe, layer)

    def _put(
        self,
        name: str,
        module: Any,
        signal: Tensor,
        drift: Drift,
        cut: Callable[..., Tensor],
        *,
        once: bool,
    ) -> Tensor | None:
        """Give a layer its repaired weights; with ``once`` perhaps predicted inputs instead, which are returned."""
        full: Any = self.model.get_submodule(name)
        weight, mended, predicted = full.weight.detach(), dict[str, Tensor](), None
        if drift.mix is not None:
            wide = torch.promote_types(
                weight.dtype, torch.float32
            )  # products of half precision would lose what is mended
            cut_weight, mix = cut(f"{name}.weight", weight, done=1), drift.mix.to(wide)
            if once and cut_weight[:, 0].numel() > self.inputs[name].shape[1]:
                mended["weight"], predicted = cut_weight, mixed(module, mix, signal.to(wide)).to(signal.dtype)
            else:
                product = torch.tensordot(cut_weight.to(wide), mix, ([1], [0])).movedim(-1, 1)
                mended["weight"] = plainly(product.to(weight.dtype))
        if full.bias is not None:
            by_input = self.sums[name]
            mended["bias"] = cut(f"{name}.bias", full.bias.detach() + by_input @ drift.shift.to(weight.dtype))
        for own, tensor in mended.items():
            flag = module._parameters[own].requires_grad
            module._parameters[own] = nn.Parameter(tensor, flag)
        return predicted


def _drift(
    signals: Tensor, wanted: Tensor, kept: Tensor, kind: RepairKind, intercept: bool, faint: float
) -> Drift | None:
    """How a layer's inputs in the full network are predicted from its inputs now.

    Args:
        signals: the layer's inputs now, shape (kept, rows).
        wanted: its inputs in the full network, shape (full, rows).
        kept: index of each kept channel among the full network's channels.
        kind: see :class:`Repair`.
        intercept: whether the layer can add a constant.
        faint: variance of an input below which it predicts nothing.

    Returns:
        None if no channel is missing, or if the rows do not match.
    """
    channels, rows = signals.shape
    if rows != wanted.shape[1]:
        return None
    if torch.equal(signals, wanted):
        return None
    wide = torch.promote_types(signals.dtype, torch.float32)  # sums of half precision are too coarse to be solved for
    signals, wanted = signals.to(wide), wanted.to(wide)
    missing = wanted.index_add(0, kept, signals, alpha=-1)
    means = [x.mean(1).double() for x in (signals, missing)]
    if not all(bool(mean.isfinite().all()) for mean in means):
        return None
    if not intercept:
        means = [torch.zeros_like(mean) for mean in means]
    if kind == "bias":
        return Drift(None, means[1])
    signals = signals - means[0].to(signals.dtype).unsqueeze(1)
    # (S Sᵀ + λ)⁻¹ S = S (Sᵀ S + λ)⁻¹: whichever matrix is smaller
    fewer = signals if channels <= rows else signals.T
    products = fewer @ fewer.T
    gram = products.double()
    ridge = max(RIDGE * float(gram.diagonal().sum()) / channels, faint * rows)
    gram.diagonal().add_(ridge + 1e-12 * rows)
    factor = torch.linalg.cholesky(gram)
    if channels <= rows:
        mix = torch.cholesky_solve((signals @ missing.T).double(), factor).T
    else:
        missing = missing - means[1].to(missing.dtype).unsqueeze(1)
        mix = torch.cholesky_solve(missing.T.double(), factor).T @ signals.T.double()
    shift = means[1] - mix @ means[0]
    mix[kept, torch.arange(channels, device=kept.device)] += 1
    return Drift(mix, shift, products if fewer is signals else None)
