"""Closed-form repair of a pruned network, so that its layers compute nearly what they did before: no gradient, no training.

After pruning, a layer has lost some of its input channels, and the others have drifted because earlier layers were cut. The repair
predicts the layer's inputs in the full network from its inputs now, by least squares over calibration activations, and multiplies
the prediction into its weights. Layers are repaired in the order in which they run, within one forward pass, so that each one sees
the outputs of the repaired layers before it. (Least-squares reconstruction after channel pruning, layer by layer: He et al.,
arXiv:1707.06168, eq. 3. Fitting a layer's inputs instead of its outputs is this project's choice; it takes one regression for any
kernel size.)
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunekit.choices import RepairKind
from prunekit.graph import ChannelGraph, PruningPlan, apply, slicer
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.graph.layers import layer_kind
from prunekit.importance import Probe

__all__ = ["Repair", "RepairKind", "repair"]

_RIDGE = 3e-3  # times the mean variance: activations of one layer are often nearly dependent
_FAINT = 1e-4  # times what the full network's inputs vary: inputs that vary less are noise, and weights on them would be huge


def repair(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, probe: Probe, kind: RepairKind = "least-squares"
) -> nn.Module:
    """A new network: pruned by the plan, with its layers repaired in closed form.

    Args:
        model: the full network; it is not changed.
        graph: its channel groups.
        plan: what to keep.
        probe: the calibration set, whose first batch is used.
        kind: ``none``, ``bias`` (only what is lost of the means) or ``least-squares``.
    """
    return Repair.of(model, graph, probe, kind).apply(plan)


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
        weights = {name: self.model.get_submodule(name)._parameters["weight"] for name in self.inputs}
        return {
            name: weight.detach().flatten(2).sum(-1) if weight.ndim > 2 else weight.detach()
            for name, weight in weights.items()
            if weight is not None
        }

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
        last = _LastRead()
        owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())

        def note(name: str, module: nn.Module, signal: Tensor) -> None:
            runs[name] += 1
            if name and name not in inputs:
                if not last.is_again(signal, layer_kind(module)):
                    last.result = _signals(module, signal).clone()
                inputs[name], samples[name] = last.result, signal[:1].clone()

        _run(model, ("", *_readers(model)), probe, note)

        def can_be_mended(name: str) -> bool:
            module: Any = model.get_submodule(name)
            alone = runs[name] == runs[""] and owners[id(module.weight)] == 1
            return alone and _is_proportional(module, samples[name])

        return cls(model, graph, probe, kind, {name: own for name, own in inputs.items() if can_be_mended(name)})

    def apply(self, plan: PruningPlan) -> nn.Module:
        """A copy of the network, pruned by the plan and repaired."""
        pruned = apply(self.model, self.graph, plan)
        self.mend(pruned, plan)
        return pruned

    def mend(
        self, pruned: nn.Module, plan: PruningPlan, known: Collection[str] = (), *, once: bool = False
    ) -> Tensor | None:
        """Repair a network that the plan's channels were cut from, in place.

        Args:
            pruned: the network.
            plan: what it keeps.
            known: layers that are repaired already, or that return recorded outputs without running.
            once: the network is not used afterwards. A layer with more weights than inputs is then given the full network's
                predicted inputs; this gives the same output and is cheaper than multiplying the prediction into its weights.

        Returns:
            The repaired network's loss on the probe's first batch, a by-product; None if nothing was run.
        """
        if self.kind == "none" or plan.is_whole:
            return None
        cut, positions = slicer(self.model, self.graph, plan), plan.positions(self.graph)
        there = dict(pruned.named_modules())  # without the layers of removed branches
        waiting, last = (self.inputs.keys() & there.keys()).difference(known), _LastRead()

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
                faint = _FAINT * self.spreads[name]
                last.result = _drift(_signals(module, signal), wanted, kept, self.kind, intercept, faint)
            if last.result is None:
                return None
            mix, shift = last.result
            mended, predicted = {}, None
            if mix is not None:
                wide = torch.promote_types(
                    weight.dtype, torch.float32
                )  # products of half precision would lose what is mended
                cut_weight, mix = cut(f"{name}.weight", weight, done=1), mix.to(wide)
                if once and cut_weight[:, 0].numel() > wanted.shape[1]:
                    mended["weight"], predicted = cut_weight, _mixed(module, mix, signal.to(wide)).to(signal.dtype)
                else:
                    mixed = torch.tensordot(cut_weight.to(wide), mix, ([1], [0])).movedim(-1, 1)
                    mended["weight"] = _plainly(mixed.to(weight.dtype))
            if intercept:
                by_input = self.sums[name]
                mended["bias"] = cut(f"{name}.bias", full.bias.detach() + by_input @ shift.to(weight.dtype))
            for own, tensor in mended.items():
                flag = module._parameters[own].requires_grad
                module._parameters[own] = nn.Parameter(tensor, flag)
            return predicted

        return _run(pruned, tuple(waiting), self.probe, layer)


def _drift(
    signals: Tensor, wanted: Tensor, kept: Tensor, kind: RepairKind, intercept: bool, faint: float
) -> tuple[Tensor | None, Tensor] | None:
    """Coefficients (full, kept) and constants (full,), float64, that predict a layer's full-network inputs from its inputs now.

    If only the means are wanted, the coefficients are None, and the inputs are used unchanged.

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
        return None, means[1]
    signals = signals - means[0].to(signals.dtype).unsqueeze(1)
    # (S Sᵀ + λ)⁻¹ S = S (Sᵀ S + λ)⁻¹: whichever matrix is smaller
    fewer = signals if channels <= rows else signals.T
    gram = (fewer @ fewer.T).double()
    ridge = max(_RIDGE * float(gram.diagonal().sum()) / channels, faint * rows)
    gram.diagonal().add_(ridge + 1e-12 * rows)
    factor = torch.linalg.cholesky(gram)
    if channels <= rows:
        mix = torch.cholesky_solve((signals @ missing.T).double(), factor).T
    else:
        missing = missing - means[1].to(missing.dtype).unsqueeze(1)
        mix = torch.cholesky_solve(missing.T.double(), factor).T @ signals.T.double()
    shift = means[1] - mix @ means[0]
    mix[kept, torch.arange(channels, device=kept.device)] += 1
    return mix, shift


@dataclass(eq=False)
class _LastRead:
    """The result for the last tensor that was read, for reuse: the layers of queries, keys and values read the same tensor."""

    signal: Tensor | None = None
    version: int = 0
    about: tuple[Any, ...] = ()
    result: Any = None

    def is_again(self, signal: Tensor, *about: Any) -> bool:
        """Whether this tensor was read last, is unchanged, and is used the same way; otherwise remember it as the last."""
        again = signal is self.signal and signal._version == self.version and about == self.about
        self.signal, self.version, self.about = signal, signal._version, about
        return again


def _readers(model: nn.Module) -> list[str]:
    """Layers with a weight of their own that read channels."""
    return [
        name
        for name, module in model.named_modules()
        if name and layer_kind(module) in ("conv", "linear") and module._parameters.get("weight") is not None
    ]


def _signals(module: nn.Module, signal: Tensor) -> Tensor:
    """What a layer reads, shape (channels, rows)."""
    return (
        signal.reshape(-1, signal.shape[-1]).T if layer_kind(module) == "linear" else signal.transpose(0, 1).flatten(1)
    )


def _mixed(module: nn.Module, mix: Tensor, signal: Tensor) -> Tensor:
    """Linear combinations of a layer's input channels; ``mix`` has shape (mixtures, channels)."""
    return (
        signal @ mix.T if layer_kind(module) == "linear" else (mix @ signal.flatten(2)).unflatten(2, signal.shape[2:])
    )


def _plainly(weight: Tensor) -> Tensor:
    """A weight with the memory layout of a new tensor: strides of size-1 dims decide how a layer lays out its output."""
    return weight.clone(memory_format=torch.contiguous_format)


def _is_proportional(module: Any, signal: Tensor) -> bool:
    """Whether a layer reads the channels that its weight has, and its output doubles with its weight and bias."""
    if len(_signals(module, signal)) != module.weight.shape[1]:
        return False
    doubled = {name: 2 * tensor.detach() for name, tensor in module.named_parameters()}
    with torch.no_grad():
        once, twice = module(signal), functional_call(module, doubled, (signal,))
    return isinstance(once, Tensor) and torch.allclose(twice, 2 * once, rtol=1e-3, atol=1e-5)


def _run(
    model: nn.Module, names: Iterable[str], probe: Probe, see: Callable[[str, nn.Module, Tensor], Tensor | None]
) -> Tensor:
    """Loss of the first batch, in eval mode; ``see`` gets the input of each named layer and may return a replacement for it."""

    def before(module: nn.Module, args: tuple[Any, ...], name: str) -> tuple[Any, ...] | None:
        other = see(name, module, args[0]) if args and isinstance(args[0], Tensor) else None
        return None if other is None else (other, *args[1:])

    with ExitStack() as stack, torch.no_grad(), evaluation_mode(model):
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(partial(before, name=name))
            stack.callback(handle.remove)
        loss, _ = next(replace(probe, distributed=False).losses(model))
    return loss
