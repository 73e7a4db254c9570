"""``save_pretrained`` and ``from_pretrained`` of composite networks, in this project's formats; no code is run from a folder."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import nn

from prunekit.checkpoint.hub import fetched_whole, pushed
from prunekit.errors import InputError
from prunekit.nets.residency import cast

__all__ = ["Pretrained"]

_LOADING = frozenset(
    {
        *("cache_dir", "disable_mmap", "force_download", "local_files_only", "low_cpu_mem_usage", "max_memory"),
        *("offload_folder", "offload_state_dict", "proxies", "revision", "token", "use_flashpack", "use_safetensors"),
    }
)
"""Options of diffusers that say how files are fetched or read; these networks are read in one safe way."""


class Pretrained:
    """Mixed into a model of diffusers before ``ModelMixin``, whose way of storing one network it replaces."""

    def save(self, folder: Path | str) -> None:
        """Write the network's folder.

        Args:
            folder: folder to write.
        """
        raise NotImplementedError

    @classmethod
    def _read(cls, folder: Path, **options: Any) -> Self:
        """Read what :meth:`save` wrote."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: Path | str,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        **hub: Any,
    ) -> None:
        """Write the network's folder, as ``pipeline.save_pretrained`` does for each of its parts.

        Args:
            save_directory: folder to write.
            safe_serialization: must be True: weights are stored as safetensors only.
            variant: must be None: the files have one name.
            push_to_hub: whether to push the folder to the Hugging Face Hub, too.
            hub: ``repo_id``, ``private`` and ``token``, as for :meth:`push_to_hub`.

        Raises:
            InputError: there is something else in the folder than an earlier network of this kind, or an option is not supported.
        """
        if not safe_serialization or variant is not None:
            raise InputError("These networks are stored as safetensors without a variant; leave both options out.")
        self.save(save_directory)
        if push_to_hub:
            self.push_to_hub(str(hub.pop("repo_id", Path(save_directory).name)), **hub)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Push the network with the model card to the Hugging Face Hub; returns the page of the commit.

        Args:
            repo_id: ``name`` or ``user/name``; it is created if it does not exist.
            private: whether a new repository is private (default: as the account or organisation sets it).
            token: the hub's access token (default: that of ``hf auth login``, or of the variable ``HF_TOKEN``).

        Raises:
            InputError: the hub refuses, or cannot be reached.
        """
        with TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            return pushed(Path(folder) / "model", repo_id, private, token)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path | str,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        device_map: Any = None,
        variant: str | None = None,
        **options: Any,
    ) -> Self:
        """Read what :meth:`save_pretrained` wrote, as ``DiffusionPipeline.from_pretrained`` does for each part of a pipeline.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the Hugging Face Hub.
            subfolder: folder in it, such as ``unet``.
            torch_dtype: type of the weights; layers that their class wants in 32 bits keep them.
            device_map: a device, or ``{"": device}``.
            variant: must be None.
            options: those of the network's own reader, such as ``resident="one"``; diffusers' options of fetching are ignored.

        Raises:
            MissingFileError: there is no such folder.
            FileFormatError: it is damaged.
            InputError: an option is not supported.
        """
        if variant is not None or options.get("quantization_config") is not None:
            raise InputError(
                f"A {cls.__name__} has no variants and is not quantised while it is read; load it, then quantise each expert."
            )
        place = Path(pretrained_model_name_or_path)
        folder = place if place.is_dir() else fetched_whole(str(pretrained_model_name_or_path))
        own = {key: value for key, value in options.items() if key not in _LOADING and key != "quantization_config"}
        dtype = own.pop("dtype", torch_dtype)
        try:
            made = cls._read(folder / subfolder if subfolder else folder, **own)
        except TypeError as error:
            raise InputError(
                f"{cls.__name__} cannot be read with {', '.join(own) or 'these options'}: {error}."
            ) from error
        device = device_map.get("") if isinstance(device_map, dict) else device_map
        _move(made, dtype, None if device is None else torch.device(device))
        return made


def _move(network: Any, dtype: torch.dtype | None, device: torch.device | None) -> None:
    """Give a composite network another type or place; every part keeps the 32-bit layers of its class."""
    if dtype is not None:
        for part in [*getattr(network, "experts", ())] or [network]:
            cast(part, dtype)
        for name, buffer in network.named_buffers(recurse=False):
            setattr(network, name, buffer.to(dtype))
    if device is not None:
        nn.Module.to(network, device=device)
