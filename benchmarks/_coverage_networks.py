"""The networks that ``coverage.py`` measures: tiny widths, as many levels, blocks and layers as the real ones."""

import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.checkpoint import ModelSpec, denoisers
from prunekit.checkpoint.denoisers import denoiser

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # networks that the tests share
from _coverage_inputs import INPUTS
from manners import sinusoid
from peers import karras, lucid, lucid_1d, small_dit, small_mlp, small_unet, stand_ins
from research_code import RESEARCH
from tiny_denoisers import DEPTHS, WIDTHS, tiny

_LEVELS: dict[str, Any] = {"block_out_channels": (32, 32, 64, 64), "norm_num_groups": 8, "cross_attention_dim": 32}
_DEFAULT = {"down_block_types": ..., "up_block_types": ..., "layers_per_block": ...}
_KANDINSKY = {"model_dim": 64, "ff_dim": 128, "time_dim": 32, "axes_dims": (8, 12, 12)}
_SOUND = {"audio_num_attention_heads": 2, "audio_cross_attention_dim": 128}
DEEP: dict[str, dict[str, Any]] = {
    "LTX2VideoTransformer3DModel": _SOUND,
    "SanaWMLTX2RefinerTransformer3DModel": _SOUND,
    "Cosmos3OmniTransformer": {
        "vocab_size": 64,
        "dtype": "float32",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 512,
    },
    "CosmosTransformer3DModel": {"concat_padding_mask": False, "adaln_lora_dim": 32},  # its mask needs torchvision
    "HunyuanDiT2DModel": {"cross_attention_dim_t5": 64, "pooled_projection_dim": 64},
    "HunyuanVideoFramepackTransformer3DModel": {
        "has_image_proj": True,
        "image_proj_dim": 32,
        "has_clean_x_embedder": True,
    },
    "OmniGenTransformer2DModel": {"vocab_size": 64, "pad_token_id": 0, "num_key_value_heads": 2},  # it shares none
    "RFD4ProteinaTransformer": {
        "token_dim": 64,
        "nheads": 4,
        "dim_cond": 32,
        "pair_repr_dim": 32,
        "tri_mult_c": 32,
        "feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type"),  # of the others, molecules have to be prepared
        "feats_pair_repr": ("xt_bb_ca_pair_dists",),
        "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
    },
    "SanaWMTransformer3DModel": {"hidden_size": 112, "num_attention_heads": 2, "linear_head_dim": 56},
    "UNet1DModel": {"sample_size": 256, "extra_in_channels": 64},
    "WanAnimateTransformer3DModel": {
        "motion_encoder_size": 32,
        "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16, "32": 16},
        "motion_encoder_dim": 32,
        "motion_style_dim": 32,
        "face_encoder_hidden_dim": 32,
        "face_encoder_num_heads": 2,
        "image_dim": 32,
    },
    "DreamLiteTransformer2DModel": {"attention_head_dim": 8, "num_layers": 4},
    "DreamLiteUNetModel": {**_LEVELS, "block_out_channels": (32, 32, 64), "attention_head_dim": 8},
    "HiDreamImageTransformer2DModel": {"llama_layers": [0, 1] * 24},
    "I2VGenXLUNet": {**_LEVELS, "attention_head_dim": 8},
    "Kandinsky5Transformer3DModel": _KANDINSKY,
    "Kandinsky6SRTransformer3DModel": _KANDINSKY,
    "Kandinsky6Transformer3DModel": _KANDINSKY,
    "Kandinsky3UNet": {
        "block_out_channels": (32, 32, 64, 64),
        "groups": 8,
        "attention_head_dim": 16,
        "time_embedding_dim": 64,
        "cross_attention_dim": 32,
        "encoder_hid_dim": 32,
    },
    "ChromaTransformer2DModel": {"approximator_hidden_dim": 64},
    "LatteTransformer3DModel": {"num_layers": 28},
    "StableCascadeUNet": {
        "block_out_channels": (64, 64),
        "num_attention_heads": (2, 2),
        "conditioning_dim": 64,
        "clip_text_pooled_in_channels": 32,
    },
    "Transformer2DModel": {"num_layers": 10, "attention_head_dim": 16},
    "UNet2DConditionModel": {**_LEVELS, **_DEFAULT},
    "UNet2DModel": {**_LEVELS, **_DEFAULT, "cross_attention_dim": ...},
    "UNet3DConditionModel": {**_LEVELS, **_DEFAULT, "attention_head_dim": 8},
    "UNetControlNetXSModel": {**_LEVELS, "num_attention_heads": 2, "sample_size": 16},
    "UNetMotionModel": {**_LEVELS, **_DEFAULT, "num_attention_heads": 2},
    "UNetSpatioTemporalConditionModel": {
        "block_out_channels": (32, 32, 64, 64),
        "cross_attention_dim": 32,
        "num_attention_heads": (2, 2, 4, 4),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
    },
    "WanVACETransformer3DModel": {"vace_layers": ...},
}
"""Configs of networks whose depth is not a number of their own; … stands for the default of the class."""


def deep(name: str, layers: int | None = None) -> dict[str, Any]:
    """The tiny config with as many layers as the class has by default, or at most ``layers`` of each kind."""
    takes = inspect.signature(denoiser(name)).parameters
    config = {key: value for key, value in tiny(name).items() if key not in DEPTHS} | DEEP.get(name, {})
    config = {key: value for key, value in config.items() if value is not ... and key in takes}
    shared = [key for key in _KEY_HEADS if config.get(key) == 1]
    if shared:  # of a single key with two queries, no head can leave
        config |= dict.fromkeys(shared, 2)
        config |= {key: 2 * config[key] for key in (*_QUERY_HEADS, *WIDTHS) if key in config}
    if layers is not None:
        depths = {key: config.get(key, takes[key].default) for key in DEPTHS if key in takes}
        config |= {key: min(depth, layers) for key, depth in depths.items() if isinstance(depth, int)}
        config |= _SHALLOW.get(name, lambda _: {})(layers)
    return config


_KEY_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "num_key_value_attention_heads")
_QUERY_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_SHALLOW: dict[str, Callable[[int], dict[str, Any]]] = {
    "HiDreamImageTransformer2DModel": lambda n: {"llama_layers": [0, 1] * n},
    "WanVACETransformer3DModel": lambda n: {"vace_layers": [0, n - 1]},
    "StableCascadeUNet": lambda n: {"down_num_layers_per_block": (n, n), "up_num_layers_per_block": (n, n)},
    "BriaFibo2Transformer2DModel": lambda n: {"injection_layer_ids": (n - 1,)},
    "RFD4ProteinaTransformer": lambda n: {"nlayers": n},
    "WanAnimateTransformer3DModel": lambda n: {"inject_face_latents_blocks": n},
    "SanaWMTransformer3DModel": lambda n: {"chunk_plucker_post_attn_blocks": n},
}
"""What else changes with the number of layers."""


def networks() -> dict[str, Callable[[int | None], ModelSpec]]:
    """What describes each network by name, with the most layers of each kind."""
    found: dict[str, Callable[[int | None], ModelSpec]] = {}
    for name in denoisers():
        found[name] = lambda layers, name=name: ModelSpec(name, deep(name, layers), inputs=INPUTS.get(name))
    for name, make in _OTHERS.items():
        found[name] = lambda _, name=name, make=make: _described(name, *make())
    return found


def _described(name: str, build: Callable[[], nn.Module], inputs: Any) -> ModelSpec:
    return ModelSpec(name, {}, lambda _: _seeded(build), inputs)


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def _peer(make: Callable[..., Any], side: int = 0, **config: Any) -> Callable[[], Any]:
    """A network that the tests have smaller, with images of another side if one is given."""

    def found() -> Any:
        inputs = make(**config).inputs
        return lambda: make(**config).model, (_noise(1, 3, side, side), *inputs[1:]) if side else inputs

    return found


_LUCID = {"dim": 16, "dim_mults": (1, 2, 4, 8)}
_LUCID_KARRAS = {
    "image_size": 32,
    "dim": 16,
    "dim_max": 64,
    "num_downsamples": 3,
    "num_blocks_per_stage": 4,
    "attn_res": (16, 8),
}
_SMALL_UNET = {"in_dim": 32, "ch_mult": (1, 2, 2, 2), "num_res_blocks": 2, "attn_resolutions": (16,)}


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def _timm_vit() -> Any:
    make = _library("timm.models.vision_transformer", "torchvision").VisionTransformer
    config = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "num_heads": 4, "num_classes": 10}
    return lambda: make(**config), (_noise(1, 3, 32, 32),)


def _timm_dit() -> Any:
    vit = _library("timm.models.vision_transformer", "torchvision")
    return lambda: DiT(vit), (_noise(1, 4, 16, 16), torch.tensor([3.0]), torch.tensor([1]))


class DiT(nn.Module):
    """DiT of 28 blocks, made of timm's patches, attention and MLPs as the published code is."""

    def __init__(self, vit: Any, width: int = 32, heads: int = 4, depth: int = 28) -> None:
        super().__init__()
        self.width, self.patches = width, vit.PatchEmbed(16, 2, 4, width, bias=True)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = nn.Embedding(11, width)
        self.positions = nn.Parameter(torch.randn(1, 64, width), requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(vit, width, heads) for _ in range(depth)])
        self.norm, self.last = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 2 * 2 * 8)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.patches(x) + self.positions
        c = self.time(sinusoid(t, self.width)) + self.labels(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        x = self.last(self.norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1))
        x = x.reshape(x.shape[0], 8, 8, 2, 2, 8)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], 8, 16, 16)


class DiTBlock(nn.Module):
    def __init__(self, vit: Any, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = vit.Attention(width, num_heads=heads, qkv_bias=True)
        self.mlp = vit.Mlp(in_features=width, hidden_features=4 * width, act_layer=lambda: nn.GELU(approximate="tanh"))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(self.norm1(x) * (1 + scale1.unsqueeze(1)) + shift1.unsqueeze(1))
        return x + gate2.unsqueeze(1) * self.mlp(self.norm2(x) * (1 + scale2.unsqueeze(1)) + shift2.unsqueeze(1))


def _k_unet() -> Any:
    """As the config for CIFAR-10 has it, with narrow channels."""
    make = _library("k_diffusion.models.image_v1", *_K_NEEDS).ImageDenoiserModelV1
    config = {
        "c_in": 3,
        "feats_in": 32,
        "depths": [2, 4, 4],
        "channels": [32, 64, 64],
        "self_attn_depths": [False, True, True],
    }
    return lambda: make(**config), (_noise(1, 3, 32, 32), torch.tensor([0.3]))


def _k_transformer() -> Any:
    make = _library("k_diffusion.models.image_transformer_v1", *_K_NEEDS).ImageTransformerDenoiserModelV1
    config = {"n_layers": 12, "d_model": 128, "d_ff": 256, "in_features": 3, "out_features": 3, "patch_size": [4, 4]}
    return lambda: make(**config), (_noise(1, 3, 32, 32), torch.tensor([0.3]))


_K_NEEDS = (
    *(
        "accelerate",
        "clip",
        "cleanfid",
        "dctorch",
        "jsonmerge",
        "kornia",
        "PIL",
        "safetensors",
        "skimage",
        "tqdm",
        "wandb",
    ),
    *("torchdiffeq", "torchsde", "torchvision", "clip_anytorch", "scipy", "resize_right"),
)


def _imagen() -> Any:
    """As its class for 64×64 images has it, with narrow channels; importing it asks a text encoder for its width."""
    text: Any = ModuleType("imagen_pytorch.t5")
    text.DEFAULT_T5_NAME, text.get_encoded_dim, text.t5_encode_text = "", lambda _: 768, None
    sys.modules |= {text.__name__: text, "beartype.typing": typing}
    make = _library("imagen_pytorch.imagen_pytorch", *_IMAGEN_NEEDS).BaseUnet64
    config = {"dim": 16, "text_embed_dim": 32, "attn_dim_head": 8, "attn_heads": 2}
    inputs = {"x": _noise(1, 3, 32, 32), "time": torch.tensor([0.3]), "text_embeds": _noise(1, 8, 32)}
    return lambda: make(**config), inputs


_IMAGEN_NEEDS = (
    *(
        "accelerate",
        "beartype",
        "kornia",
        "torchvision",
        "transformers",
        "datasets",
        "pytorch_warmup",
        "fsspec",
        "pydantic",
    ),
    *("packaging", "tqdm", "PIL", "click"),
)


def _library(name: str, *missing: str) -> Any:
    """A module of a package of which only the networks are needed: what else it imports may be missing."""
    with stand_ins(*missing):
        return importlib.import_module(name)


_OTHERS: dict[str, Callable[[], tuple[Callable[[], nn.Module], Any]]] = {
    "lucidrains: Unet": _peer(lucid, 16, **_LUCID),
    "lucidrains: Unet, linear attention": _peer(lucid, 16, **_LUCID, full_attn=(False,) * 4),
    "lucidrains: Unet1D": _peer(lucid_1d, **_LUCID),
    "lucidrains: KarrasUnet": _peer(karras, 32, **_LUCID_KARRAS),
    "smalldiffusion: Unet": _peer(small_unet, 32, **_SMALL_UNET),
    "smalldiffusion: DiT": _peer(small_dit, depth=12),
    "smalldiffusion: MLP": _peer(small_mlp),
    "timm: ViT": _timm_vit,
    "timm: DiT of its blocks": _timm_dit,
    "k-diffusion: U-Net v1": _k_unet,
    "k-diffusion: transformer v1": _k_transformer,
    "imagen-pytorch: BaseUnet64": _imagen,
    **{name: (lambda one=one: one) for name, one in RESEARCH.items()},
}
