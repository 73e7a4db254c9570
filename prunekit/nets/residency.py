"""Which networks are in memory: loaders that read a network when it is needed; files that are read ahead."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread

import torch
from torch import nn

__all__ = ["Loader", "Shelf", "cast"]

Loader = Callable[[], nn.Module]
"""Gives one network, from a folder or from memory."""
_CHUNK = 2**24  # bytes


class Shelf:
    """Networks that are taken one at a time; the files of the next one can be read ahead while the last one is used.

    Only bytes are read ahead, in a thread, into the system's cache of files. A network is always built by the thread that uses it:
    one that is built in another thread stops torch from compiling anything in the whole process.

    Args:
        loaders: one for each timestep group.
        folders: of the networks' files, one for each timestep group; without them nothing is read ahead.
    """

    def __init__(self, loaders: Sequence[Loader], folders: Sequence[Path] = ()) -> None:
        self.loaders, self.folders = list(loaders), list(folders)
        self.ahead: int | None = None

    def take(self, index: int) -> nn.Module:
        """A network.

        Args:
            index: of its loader.
        """
        return self.loaders[index]()

    def expect(self, index: int) -> Thread | None:
        """Begin to read a network's files, if that was not done last.

        Args:
            index: of its loader.

        Returns:
            The thread that reads.
        """
        if not self.folders or self.ahead == index:
            return None
        self.ahead = index
        reader = Thread(target=_read, args=(self.folders[index],), name="prunekit-read-ahead", daemon=True)
        reader.start()
        return reader


def _read(folder: Path) -> None:
    """Read the files of a folder and forget them; a file that cannot be read is reported when its network is built."""
    for path in folder.glob("*"):
        with suppress(OSError), path.open("rb") as file:
            while file.read(_CHUNK):
                pass


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
