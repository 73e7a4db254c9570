"""The inputs of layers: which layers read channels, what they read on the first calibration batch, and which can be repaired."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunekit.graph.forward_pass import evaluation_mode
from prunekit.graph.layers import layer_kind
from prunekit.importance import Probe

__all__ = [
    "FAINT",
    "RIDGE",
    "LastRead",
    "can_be_repaired",
    "constant_sums",
    "mixed",
    "plainly",
    "readers",
    "run_first_batch",
    "signals_of",
]

RIDGE = 3e-3
"""Times the mean variance: activations of one layer are often nearly dependent."""
FAINT = 1e-4
"""Times what the full network's inputs vary: inputs that vary less are noise, and weights on them would be huge."""


@dataclass(eq=False)
class LastRead:
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


def readers(model: nn.Module) -> list[str]:
    """Layers with a weight of their own that read channels."""
    return [
        name
        for name, module in model.named_modules()
        if name and layer_kind(module) in ("conv", "linear") and module._parameters.get("weight") is not None
    ]


def signals_of(module: nn.Module, signal: Tensor) -> Tensor:
    """What a layer reads, shape (channels, rows)."""
    return (
        signal.reshape(-1, signal.shape[-1]).T if layer_kind(module) == "linear" else signal.transpose(0, 1).flatten(1)
    )


def mixed(module: nn.Module, mix: Tensor, signal: Tensor) -> Tensor:
    """Linear combinations of a layer's input channels; ``mix`` has shape (mixtures, channels)."""
    return (
        signal @ mix.T if layer_kind(module) == "linear" else (mix @ signal.flatten(2)).unflatten(2, signal.shape[2:])
    )


def plainly(weight: Tensor) -> Tensor:
    """A weight with the memory layout of a new tensor: strides of size-1 dims decide how a layer lays out its output."""
    return weight.clone(memory_format=torch.contiguous_format)


def constant_sums(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """How much a constant 1 in each input channel adds to each output of these layers, shape (outputs, channels)."""
    weights = {name: model.get_submodule(name)._parameters["weight"] for name in names}
    return {
        name: weight.detach().flatten(2).sum(-1) if weight.ndim > 2 else weight.detach()
        for name, weight in weights.items()
        if weight is not None
    }


def can_be_repaired(model: nn.Module, samples: Mapping[str, Tensor], runs: Counter[str]) -> set[str]:
    """Layers whose repair works: they run once in a pass, share no parameter, and their output is proportional to the weight.

    Args:
        model: the full network.
        samples: one sample of each layer's input.
        runs: how often each layer ran; under the empty name, the network.
    """
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())

    def fits(name: str) -> bool:
        module: Any = model.get_submodule(name)
        shared = any(owners[id(own)] > 1 for own in module._parameters.values() if own is not None)
        alone = runs[name] == runs[""] and not shared
        return alone and _is_proportional(module, samples[name])

    return {name for name in samples if fits(name)}


def _is_proportional(module: Any, signal: Tensor) -> bool:
    """Whether a layer reads the channels that its weight has, and its output doubles with its weight and bias."""
    if len(signals_of(module, signal)) != module.weight.shape[1]:
        return False
    doubled = {name: 2 * tensor.detach() for name, tensor in module.named_parameters()}
    with torch.no_grad():
        once, twice = module(signal), functional_call(module, doubled, (signal,))
    return isinstance(once, Tensor) and torch.allclose(twice, 2 * once, rtol=1e-3, atol=1e-5)


def run_first_batch(
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
