"""Which networks are in memory: loaders that read a network when it is needed, and the next one ahead of time."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import nn

__all__ = ["Loader", "Shelf", "cast"]

Loader = Callable[[], nn.Module]
"""Gives one network, from a folder or from memory."""


class Shelf:
    """Networks that are taken one at a time; the next one can be read in a thread while the last one is used.

    Args:
        loaders: one for each timestep group.
        prefetch: whether :meth:`expect` reads anything.
    """

    def __init__(self, loaders: Sequence[Loader], prefetch: bool = True) -> None:
        self.loaders, self.prefetch = list(loaders), prefetch
        self._coming: tuple[int, Future[nn.Module]] | None = None

    def take(self, index: int) -> nn.Module:
        """A network: the expected one, or read now.

        Args:
            index: of its loader.
        """
        coming, self._coming = self._coming, None
        if coming is not None and coming[0] == index:
            return coming[1].result()
        return self.loaders[index]()

    def expect(self, index: int) -> None:
        """Begin to read a network, into the memory of the CPU.

        Args:
            index: of its loader.
        """
        if not self.prefetch or (self._coming is not None and self._coming[0] == index):
            return
        pool = ThreadPoolExecutor(1, "prunekit-prefetch")
        self._coming = (index, pool.submit(self.loaders[index]))
        pool.shutdown(wait=False)

    def __deepcopy__(self, memo: dict[int, object]) -> "Shelf":
        return Shelf(self.loaders, self.prefetch)

    def __reduce__(self) -> tuple[type["Shelf"], tuple[list[Loader], bool]]:
        return Shelf, (self.loaders, self.prefetch)


def cast(network: nn.Module, dtype: torch.dtype | None, device: torch.device | None = None) -> nn.Module:
    """Move a network; in a half type, layers that its class wants in 32 bits keep them, as in diffusers.

    Args:
        network: changed in place.
        dtype: type of its floating-point weights; None leaves them.
        device: where they go; None leaves them.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    kept: set[str] = set(getattr(network, "_keep_in_fp32_modules", None) or ()) if half else set()
    if dtype is not None and not kept:
        nn.Module.to(network, dtype=dtype)
    elif dtype is not None:
        for name, module in network.named_modules():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and tensor.is_floating_point():
                    path = [*name.split("."), key]
                    tensor.data = tensor.data.to(torch.float32 if kept & set(path) else dtype)
    return network if device is None else nn.Module.to(network, device=device)
