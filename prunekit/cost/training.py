"""Cost of a train step: its memory, computed on meta tensors, and the time that a GPU needs for a number of MACs."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from prunekit.cost.counter import MacCount, count_macs
from prunekit.errors import InputError
from prunekit.graph.forward_pass import Inputs

__all__ = ["GPUS", "StepCost", "gpu_hours"]

_BYTES = 4  # of a float32 number
_COPIES = {"weights": 1, "gradients": 1, "moments": 2, "average": 1}

GPUS: Mapping[str, Mapping[str, float]] = {
    "A100": {"bf16": 312e12, "no": 19.5e12},
    "H100": {"bf16": 989e12, "no": 66.9e12},
    "RTX4090": {"bf16": 165.2e12, "no": 82.6e12},
}
"""FLOP/s as stated by the manufacturers: dense bfloat16 products, and plain float32 (fp16 is as fast as bf16)."""


@dataclass(frozen=True, eq=False)
class StepCost:
    """MACs and memory of training one network.

    Args:
        count: MACs of one forward pass at batch 1.
        activations: bytes that one sample's forward pass keeps for the backward pass, in float32.
        recomputed: the same with gradient checkpointing: the inputs of its blocks, what is kept outside of them, and the largest
            block, which is computed again; None for a network without such blocks.
    """

    count: MacCount
    activations: int
    recomputed: int | None = None

    @classmethod
    def of(cls, build: Callable[[], nn.Module], inputs: Callable[[], Inputs]) -> "StepCost":
        """Count on a network on the meta device: its passes compute shapes only.

        Activations are the tensors that autograd keeps, without weights; each storage counts once. Temporary buffers of operators
        and rounding by the allocator come on top. Mixed precision keeps less, at best about half.

        Args:
            build: makes the network; it is called on the meta device.
            inputs: makes the arguments of one forward pass at batch 1.
        """
        with FakeTensorMode():
            model, arguments = build(), inputs()
            counted = count_macs(model, arguments)
            return cls(counted, _kept(model.train(), arguments), _kept_between(model, arguments))

    def memory(self, batch: int, recomputing: bool = False, eight_bit: bool = False) -> dict[str, int]:
        """Bytes of a train step of ``batch`` samples on one GPU, by purpose, and the ``total``.

        In addition to activations these are the weights, their gradients, Adam's two moments and the moving average, in float32.

        Args:
            batch: number of samples.
            recomputing: with gradient checkpointing, if the network has blocks for it.
            eight_bit: with Adam's moments in 8 bits.
        """
        parts = {name: copies * _BYTES * self.count.params for name, copies in _COPIES.items()}
        if eight_bit:
            parts["moments"] //= _BYTES
        kept = self.recomputed if recomputing and self.recomputed is not None else self.activations
        parts["activations"] = batch * kept
        return {**parts, "total": sum(parts.values())}


def gpu_hours(macs: float, gpu: str = "A100", precision: str = "bf16", utilisation: float = 0.3) -> float:
    """Hours that one GPU needs for a number of MACs, at a share of the FLOP/s that its manufacturer states.

    Args:
        macs: total MACs, backward passes included.
        gpu: one of :data:`GPUS`.
        precision: ``no`` for float32, ``bf16`` or ``fp16``.
        utilisation: share of the stated FLOP/s that is reached.

    Raises:
        InputError: the GPU is not listed, or the share is invalid.

    Example:
        >>> round(gpu_hours(312e12 * 3600 / 2, utilisation=0.5), 2)
        2.0
    """
    if gpu not in GPUS or not 0 < utilisation <= 1:
        raise InputError(
            f"Got GPU {gpu!r} at utilisation {utilisation:g}; expected one of {', '.join(GPUS)} and a share in (0, 1]."
        )
    return 2 * macs / (GPUS[gpu]["no" if precision == "no" else "bf16"] * utilisation * 3600)


class _Keeping:
    """Counts the storages that autograd keeps, without those of weights and buffers (``own``)."""

    def __init__(self, own: Set[int]) -> None:
        self._own = own
        self._kept: dict[int, Tensor] = {}  # keeps the tensors alive, so that no address is reused

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a tensor, once for all its views."""
        if _storage(tensor) not in self._own:
            self._kept.setdefault(_storage(tensor), tensor)
        return tensor

    def noting(self) -> Any:
        """A context in which everything is counted that autograd keeps."""
        return torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        """Of all storages."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())


def _kept(model: nn.Module, inputs: Inputs) -> int:
    """Bytes that a forward pass keeps for the backward pass, without weights and buffers."""
    keeping = _Keeping(_storages(model))
    with keeping.noting():
        _run(model, inputs)
    return keeping.bytes


def _kept_between(model: nn.Module, inputs: Inputs) -> int | None:
    """The same with gradient checkpointing, None for a network of diffusers without blocks for it, and for any other."""
    if not getattr(model, "_supports_gradient_checkpointing", False):
        return None
    own, blocks = _storages(model), [0]
    between = _Keeping(own)

    def block(module: Callable[..., Any], *args: Any) -> Any:
        for value in tree_leaves(args):
            if isinstance(value, Tensor):
                between.keep(value)
        within = _Keeping(own)
        with within.noting():
            result = module(*args)
        blocks.append(within.bytes)
        return result

    switch: Any = model
    switch.enable_gradient_checkpointing(block)
    try:
        with between.noting():
            _run(model, inputs)
    finally:
        switch.disable_gradient_checkpointing()
    return between.bytes + max(blocks)


def _run(model: nn.Module, inputs: Inputs) -> None:
    _ = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def _storages(model: nn.Module) -> set[int]:
    """Where a network's weights and buffers are."""
    return {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}


def _storage(tensor: Tensor) -> int:
    """Address of a tensor's storage: the same for all its views."""
    address: Any = tensor.untyped_storage()._cdata
    return int(address)
