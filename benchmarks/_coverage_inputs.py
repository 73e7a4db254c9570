"""Arguments of one forward pass for the denoisers whose config does not tell them; each is made of the network's config."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

_TEXT = 4  # tokens


def _bria(config: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle of text features for the resampler, and one for each block that takes some."""
    bundles = 1 + len(config.get("injection_layer_ids", (6, 14, 22, 30, 38)))
    return {
        "hidden_states": torch.zeros(1, 32, 8, 8),
        "timestep": torch.full((1,), 0.5),
        "encoder_hidden_states": torch.zeros(1, bundles, _TEXT, config["cap_feat_dim"]),
    }


def _cosmos_omni(config: Mapping[str, Any]) -> dict[str, Any]:
    """Four tokens of text, and one frame of 2 × 2 patches."""
    tokens, total = 4, _TEXT + 4
    return {
        "input_ids": torch.arange(_TEXT),
        "text_indexes": torch.arange(_TEXT),
        "position_ids": torch.arange(total).repeat(3, 1),
        "und_len": _TEXT,
        "sequence_length": total,
        "vision_tokens": [torch.zeros(1, 48, 1, 4, 4)],
        "vision_token_shapes": [(1, 2, 2)],
        "vision_sequence_indexes": torch.arange(_TEXT, total),
        "vision_mse_loss_indexes": torch.arange(_TEXT, total),
        "vision_timesteps": torch.full((tokens,), 3.0),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


def _cosmos(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 16, 2, 8, 8),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, _TEXT, config["text_embed_dim"]),
    }


def _dream_lite(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, config["in_channels"], 8, 8),
        "encoder_hidden_states": torch.zeros(1, _TEXT, config["cross_attention_dim"]),
    }


def _framepack(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 16, 2, 8, 8),
        "timestep": torch.zeros(1, dtype=torch.long),
        "encoder_hidden_states": torch.zeros(1, _TEXT, config["text_embed_dim"]),
        "encoder_attention_mask": torch.ones(1, _TEXT),
        "pooled_projections": torch.zeros(1, config["pooled_projection_dim"]),
        "image_embeds": torch.zeros(1, 9, config["image_proj_dim"]),
        "indices_latents": torch.arange(2),
        "latents_clean": torch.zeros(1, 16, 1, 8, 8),
        "indices_latents_clean": torch.arange(1),
        "latents_history_2x": torch.zeros(1, 16, 2, 8, 8),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": torch.zeros(1, 16, 4, 8, 8),
        "indices_latents_history_4x": torch.arange(4),
        "guidance": torch.full((1,), 6.0),
    }


def _joy_image(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 16, 16, 1, 2, 2),
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, _TEXT, config["text_dim"]),
        "encoder_hidden_states_mask": torch.ones(1, _TEXT),
        "shape_list": [[(1, 4, 4)]],
    }


def _minimax(config: Mapping[str, Any]) -> dict[str, Any]:
    """Four rows of text, four of a video and two of sound."""
    return {
        "hidden_states": torch.zeros(1, 4, 24 * 4),
        "audio_hidden_states": torch.zeros(1, 2, 32),
        "encoder_hidden_states": torch.zeros(1, _TEXT, config["text_dim"]),
        "timestep": torch.tensor([0.5]),
        "timestep_indices": torch.zeros(10, dtype=torch.long),
        "token_tags": torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 2, 2]),
        "position_ids": torch.arange(10)[:, None].repeat(1, 3),
        "video_indices": torch.arange(4, 8),
        "audio_indices": torch.arange(8, 10),
        "text_indices": torch.arange(4),
    }


def _omni_gen(config: Mapping[str, Any]) -> dict[str, Any]:
    total = _TEXT + 1 + 16
    return {
        "hidden_states": torch.zeros(1, 4, 8, 8),
        "timestep": torch.zeros(1),
        "input_ids": torch.arange(_TEXT)[None],
        "input_img_latents": [torch.zeros(1, 4, 4, 4)],
        "input_image_sizes": {0: []},
        "attention_mask": torch.ones(1, total, total),
        "position_ids": torch.arange(total)[None],
    }


def _qwen(config: Mapping[str, Any]) -> dict[str, Any]:
    """A target of 4 × 4 tokens, each slot of which stands for 2 × 2."""
    mask = torch.tensor([[False] * _TEXT + [True] * 4])
    return {
        "hidden_states": torch.zeros(1, 16, 64),
        "encoder_hidden_states": torch.zeros(1, _TEXT, config["context_in_dim"]),
        "timestep": torch.full((1,), 0.5),
        "img_shapes": [[(1, 4, 4)]],
        "img_mask": mask,
    }


def _proteina(config: Mapping[str, Any]) -> dict[str, Any]:
    tokens = 6
    return {
        "bb_ca": torch.zeros(1, tokens, 3),
        "local_latents": torch.zeros(1, tokens, 32),
        "bb_ca_time": torch.full((1,), 0.5),
        "local_latents_time": torch.full((1,), 0.5),
        "padding_mask": torch.ones(1, tokens, dtype=torch.bool),
        "token_type": torch.zeros(1, tokens, dtype=torch.long),
        "atom37_mask": torch.ones(1, tokens, 37, dtype=torch.bool),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(1, tokens, dtype=torch.bool),
            "supports_local_latent": torch.ones(1, tokens, dtype=torch.bool),
        },
    }


def _sana_world(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 128, 2, 4, 4),
        "timestep": torch.full((1, 1, 2), 3.0),
        "encoder_hidden_states": torch.zeros(1, 1, _TEXT, config["caption_channels"]),
        "encoder_attention_mask": torch.ones(1, _TEXT, dtype=torch.long),
    }


def _unet_1d(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"sample": torch.zeros(1, 2, 256), "timestep": torch.full((1,), 3.0)}


def _animate(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_states": torch.zeros(1, 36, 3, 8, 8),
        "timestep": torch.zeros(1, dtype=torch.long),
        "encoder_hidden_states": torch.zeros(1, _TEXT, config["text_dim"]),
        "encoder_hidden_states_image": torch.zeros(1, 9, config["image_dim"]),
        "pose_hidden_states": torch.zeros(1, 16, 2, 8, 8),
        "face_pixel_values": torch.zeros(1, 3, 5, 32, 32),
    }


def _animate_2(config: Mapping[str, Any]) -> dict[str, Any]:
    """The pass over the reference, which fills the cache."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache  # noqa: PLC0415 - takes seconds

    return {
        "hidden_states": [torch.zeros(16, 1, 8, 8)],
        "timestep": torch.full((1,), 3.0),
        "encoder_hidden_states": [torch.zeros(_TEXT, config["text_dim"])],
        "condition_latents": [torch.zeros(20, 1, 8, 8)],
        "kv_cache": WanAnimate2KVCache(config.get("num_layers", 40)),
        "kv_cache_mode": "extract",
        "seq_len": 16,
        "encoder_hidden_states_image": torch.zeros(1, 257, 1280),
        "offset_grid_sizes": torch.tensor([[1, 4, 4]]),
    }


INPUTS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "BriaFibo2Transformer2DModel": _bria,
    "Cosmos3OmniTransformer": _cosmos_omni,
    "CosmosTransformer3DModel": _cosmos,
    "DreamLiteTransformer2DModel": _dream_lite,
    "HunyuanVideoFramepackTransformer3DModel": _framepack,
    "JoyImageEditPlusTransformer3DModel": _joy_image,
    "MiniMaxH3Transformer3DModel": _minimax,
    "OmniGenTransformer2DModel": _omni_gen,
    "QwenImage21Transformer2DModel": _qwen,
    "RFD4ProteinaTransformer": _proteina,
    "SanaWMTransformer3DModel": _sana_world,
    "UNet1DModel": _unet_1d,
    "WanAnimate2Transformer3DModel": _animate_2,
    "WanAnimateTransformer3DModel": _animate,
}
