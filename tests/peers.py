"""Networks of two other libraries, in miniature: lucidrains' ``denoising_diffusion_pytorch`` and ``smalldiffusion``.

Both need torchvision and an FID package for pictures alone. Where these are missing, hollow modules stand in for them during the
import; the networks are the real ones.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from networks import Network
from torch import nn

_HOLLOW = ("torchvision", "pytorch_fid")


class _Names(type):
    """Classes of which every name is there."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Hollow(ModuleType):
    """A module in which every name is there and means nothing."""

    __path__: list[str] = []  # noqa: RUF012 - makes it a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].islower():
            return _Hollow(name)
        return _Names(name, (), {"__init__": lambda self, *_args, **_options: None})

    def __call__(self, *args: Any) -> Any:
        """A function that does nothing, or a decorator."""
        return args[0] if args else None


class _Finder:
    """Finds hollow modules of the names that are missing."""

    def __init__(self, missing: tuple[str, ...]) -> None:
        self.missing = missing

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in self.missing:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


@contextmanager
def stand_ins(*names: str) -> Iterator[None]:
    """Within the block, missing picture libraries, or the packages named, can be imported; afterwards they are missing again."""
    wanted = names or _HOLLOW
    missing = tuple(name for name in wanted if name not in sys.modules and importlib.util.find_spec(name) is None)
    finder: Any = _Finder(missing)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in missing]:
            del sys.modules[name]


def library(name: str) -> Any:
    """A module of one of the two libraries; the test is skipped where it cannot be imported."""
    with stand_ins():
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{name} cannot be imported: {error}")


def _built(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().eval()


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def lucid(**changes: Any) -> Network:
    """``denoising_diffusion_pytorch.Unet`` at two resolutions."""
    unet = library("denoising_diffusion_pytorch").Unet
    config = {"dim": 8, "dim_mults": (1, 2), "attn_dim_head": 4, "attn_heads": 2, **changes}
    return Network(_built(lambda: unet(**config)), (_noise(1, 3, 8, 8), torch.tensor([3])))


def lucid_1d(**changes: Any) -> Network:
    """``denoising_diffusion_pytorch.Unet1D`` at two resolutions."""
    unet = library("denoising_diffusion_pytorch").Unet1D
    config = {"dim": 8, "dim_mults": (1, 2), "channels": 3, "attn_dim_head": 4, "attn_heads": 2, **changes}
    return Network(_built(lambda: unet(**config)), (_noise(1, 3, 16), torch.tensor([3])))


def karras(**changes: Any) -> Network:
    """``denoising_diffusion_pytorch.KarrasUnet`` at two resolutions: weights are normalised wherever they are used."""
    unet = library("denoising_diffusion_pytorch").KarrasUnet
    config = {
        "image_size": 8,
        "dim": 8,
        "dim_max": 16,
        "num_downsamples": 1,
        "num_blocks_per_stage": 1,
        "attn_res": (4,),
        "attn_dim_head": 4,
        "fourier_dim": 8,
        "channels": 3,
        **changes,
    }
    return Network(_built(lambda: unet(**config)), (_noise(1, 3, 8, 8), torch.tensor([0.3])))


def small_unet(**changes: Any) -> Network:
    """``smalldiffusion.Unet`` at two resolutions."""
    unet = library("smalldiffusion").Unet
    config = {"in_dim": 8, "in_ch": 3, "out_ch": 3, "ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, **changes}
    return Network(
        _built(lambda: unet(**{"attn_resolutions": (4,), **config})), (_noise(1, 3, 8, 8), torch.tensor([0.3]))
    )


def small_dit(**changes: Any) -> Network:
    """``smalldiffusion.DiT`` of two blocks, whose modulations start at zero."""
    config = {"in_dim": 8, "channels": 3, "patch_size": 2, "depth": 2, "head_dim": 4, "num_heads": 2, **changes}
    model = _built(lambda: library("smalldiffusion").DiT(**config))
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    return Network(model, (_noise(1, 3, 8, 8), torch.tensor([0.3])))


def small_mlp(conditional: bool = False) -> Network:
    """``smalldiffusion.TimeInputMLP`` and ``ConditionalMLP``."""
    models = library("smalldiffusion")
    make = models.ConditionalMLP if conditional else models.TimeInputMLP
    inputs = (_noise(1, 2), torch.tensor([0.3]), *([torch.tensor([4])] if conditional else []))
    return Network(_built(lambda: make(dim=2, hidden_dims=(8, 12, 8))), inputs)


PEERS: dict[str, Callable[[], Network]] = {
    "lucid": lucid,
    "lucid-flash": lambda: lucid(flash_attn=True),
    "lucid-self-condition": lambda: lucid(self_condition=True, learned_variance=True),
    "lucid-full-attention": lambda: lucid(full_attn=(True, True), attn_heads=1),
    "lucid-linear-attention": lambda: lucid(full_attn=(False, False)),
    "lucid-sinusoids": lambda: lucid(learned_sinusoidal_cond=True),
    "lucid-random-sinusoids": lambda: lucid(random_fourier_features=True, attn_heads=(1, 4)),
    "lucid-1d": lucid_1d,
    "karras": karras,
    "small-unet": small_unet,
    "small-dit": small_dit,
    "small-dit-one-head": lambda: small_dit(num_heads=1, head_dim=8, patch_size=4),
    "small-mlp": small_mlp,
    "small-mlp-conditional": lambda: small_mlp(conditional=True),
}
