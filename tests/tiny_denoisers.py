"""Tiny configs of diffusers' denoisers: each class's own defaults with few layers, few heads and narrow texts."""

import inspect
from typing import Any

from torch import nn

from prunekit.checkpoint.arguments import TEXT_WIDTHS
from prunekit.checkpoint.denoisers import denoiser

DEPTHS = (
    *("num_layers", "num_single_layers", "num_refiner_layers", "n_layers", "n_refiner_layers", "depth", "dit_depth"),
    *("num_hidden_layers", "num_mmdit_layers", "mmdit_layers", "num_single_dit_layers", "num_visual_blocks"),
    *("num_text_blocks", "perceiver_num_layers", "num_res_blocks", "approximator_layers", "vace_num_layers"),
)
"""Config keys that say how many layers or blocks there are."""
_ONE = (*DEPTHS, "num_key_value_heads", "n_kv_heads", "num_kv_heads", "num_key_value_attention_heads")
_TWO = (
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "num_cross_attention_heads",
    "dit_heads",
    "nheads",
    "block_num_heads",
)
_NARROW = {
    *TEXT_WIDTHS,
    "global_states_input_dim",
    "image_dim",
    "image_embed_dim",
    "in_text_dim2",
    "pooled_projection_dim",
    "text_embed_2_dim",
    "text_encoder_dim",
    "text_intermediate_dim",
} - {"cross_attention_dim", "embedding_dim", "encoder_hid_dim", "encoder_hidden_states_channels", "hidden_size"}
_FEEDFORWARD = (
    "ffn_dim",
    "ff_dim",
    "intermediate_size",
    "ffn_hidden_size",
    "moe_intermediate_dim",
    "ff_inner_dim",
    "d_ff",
)
WIDTHS = ("hidden_size", "dim", "model_dim", "embed_dim", "dit_dim", "caption_projection_dim", "d_model")
"""Config keys that say how wide the tokens are, where that is heads times their width."""
_SIZES = {"sample_size": 8, "sample_height": 8, "sample_width": 8, "sample_frames": 5, "video_length": 4}
_BLOCKS: dict[str, Any] = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8}

SPECIAL: dict[str, dict[str, Any]] = {
    "DiTTransformer2DModel": {"attention_head_dim": 8},
    "DreamLiteTransformer2DModel": {"in_channels": 32, "cross_attention_dim": 32},
    "Krea2Transformer2DModel": {"text_num_attention_heads": 2, "text_num_key_value_heads": 2},
    "LuminaNextDiT2DModel": {"num_kv_heads": 2},
    "OmniGenTransformer2DModel": {"rope_scaling": {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48}},
    "Transformer2DModel": {"in_channels": 32},
    "TransformerTemporalModel": {"in_channels": 32},
    "EasyAnimateTransformer3DModel": {"in_channels": 16, "out_channels": 16, "patch_size": 2},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "in_channels": 16,
        "caption_channels": [64, 32],
        "llama_layers": [0, 1],
        "axes_dims_rope": [64, 32, 32],
        "text_emb_dim": 32,
    },
    "HunyuanDiT2DModel": {"in_channels": 4, "patch_size": 2, "hidden_size": 176},
    "LatteTransformer3DModel": {
        "in_channels": 4,
        "patch_size": 2,
        "caption_channels": 64,
        "cross_attention_dim": 176,
        "norm_type": "ada_norm_single",
    },
    "UNet2DConditionModel": {
        **_BLOCKS,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 40,
    },
    "UNet2DModel": {
        **_BLOCKS,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    },
    "UNet3DConditionModel": {
        **_BLOCKS,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "attention_head_dim": 8,
    },
    "UNetMotionModel": {
        **_BLOCKS,
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "motion_num_attention_heads": 2,
    },
    "WanVACETransformer3DModel": {"vace_layers": [0]},
}
"""What a class's defaults leave open, or fix by a second key."""


def tiny(name: str) -> dict[str, Any]:
    """A small config of a class: values that are not its defaults."""
    network: type[nn.Module] = denoiser(name)
    defaults = {key: one.default for key, one in inspect.signature(network).parameters.items()}
    heads = next((defaults[key] for key in _TWO if isinstance(defaults.get(key), int)), None)
    wide = next((defaults[key] for key in WIDTHS if isinstance(defaults.get(key), int)), None)
    head = defaults.get("attention_head_dim") or defaults.get("head_dim") or (wide // heads if wide and heads else None)
    config: dict[str, Any] = {}
    for key, value in defaults.items():
        if isinstance(value, int) and not isinstance(value, bool):
            if key in _ONE:
                config[key] = 1
            elif key in _TWO:
                config[key] = 2
            elif key in _NARROW:
                config[key] = 32
            elif key in _FEEDFORWARD:
                config[key] = 64
            elif key in WIDTHS and isinstance(head, int):
                config[key] = 2 * head
            elif key in _SIZES:
                config[key] = _SIZES[key]
            elif key == "cross_attention_dim":
                config[key] = 2 * head if "caption_channels" in defaults and isinstance(head, int) else 32
    return config | SPECIAL.get(name, {})
