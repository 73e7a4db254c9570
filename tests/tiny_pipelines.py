"""Pipelines of diffusers, each class's own but tiny, with random weights and a vocabulary of letters. Nothing is downloaded."""

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

logging.getLogger("transformers").setLevel(logging.ERROR)

NAMES = ("sd", "sdxl", "sd3", "flux", "pixart", "sana", "dit", "wan")
SIDE = 32
"""Of the pictures."""


def _seeded(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        found = make(*args, **kwargs)
        return found.eval() if isinstance(found, nn.Module) else found

    return made


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


@_seeded
def _clip(projected: bool = False) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


@_seeded
def _t5(kind: str = "T5") -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=60, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


@_seeded
def _vae(**config: Any) -> Any:
    from diffusers import AutoencoderKL

    levels = config.pop("levels", 3)
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=[8] * levels,
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        sample_size=SIDE,
        **config,
    )


@_seeded
def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    usual = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(**{**usual, **config})


_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def _sd(words: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=words,
        unet=_unet(),
        scheduler=DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(words: Any) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = _unet(
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        text_encoder_2=_clip(projected=True),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading"),
    )


@_seeded
def _sd3_transformer() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=16,
    )


def _sd3(words: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(
        transformer=_sd3_transformer(),
        vae=_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=_clip(projected=True),
        tokenizer=words,
        text_encoder_2=_clip(projected=True),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


@_seeded
def _flux_transformer() -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[2, 2, 4],
        guidance_embeds=True,
    )


def _flux(words: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    return FluxPipeline(
        transformer=_flux_transformer(),
        vae=_vae(shift_factor=0.11, scaling_factor=0.36),
        text_encoder=_clip(),
        tokenizer=words,
        text_encoder_2=_t5(),
        tokenizer_2=words,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


_OF_PATCHES = {
    "sample_size": 8,
    "num_layers": 2,
    "patch_size": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "in_channels": 4,
    "out_channels": 8,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False,
}


@_seeded
def _pixart_transformer() -> Any:
    from diffusers import PixArtTransformer2DModel

    own = {"caption_channels": 32, "cross_attention_dim": 16, "norm_type": "ada_norm_single", "norm_eps": 1e-6}
    return PixArtTransformer2DModel(**_OF_PATCHES, **own)


def _pixart(words: Any) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline

    return PixArtSigmaPipeline(
        transformer=_pixart_transformer(),
        vae=_vae(),
        text_encoder=_t5(),
        tokenizer=words,
        scheduler=DPMSolverMultistepScheduler(),
    )


@_seeded
def _sana_parts() -> tuple[Any, Any, Any]:
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=16,
    )
    both = {"block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8), "layers_per_block": (1, 1)}
    both |= {"qkv_multiscales": ((), (5,))}
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in both.items()},
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    config = Gemma2Config(
        head_dim=16,
        hidden_size=8,
        intermediate_size=8,
        max_position_embeddings=1024,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=2,
        vocab_size=60,
    )
    return transformer, vae, Gemma2Model(config)


def _sana(words: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline

    transformer, vae, text = _sana_parts()
    return SanaPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def _lumina2(words: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 32, 32),
        cap_feat_dim=8,
    )
    return Lumina2Pipeline(
        transformer=transformer.eval(),
        vae=_vae(shift_factor=0.11, scaling_factor=0.36, levels=4),
        text_encoder=_sana_parts()[2].eval(),
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


@_seeded
def _dit_transformer() -> Any:
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(**_OF_PATCHES, norm_type="ada_norm_zero")


def _dit(_: Any) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline

    return DiTPipeline(transformer=_dit_transformer(), vae=_vae(), scheduler=DDIMScheduler())


@_seeded
def _wan_parts() -> tuple[Any, Any]:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return transformer, vae


def _wan(words: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    transformer, vae = _wan_parts()
    return WanPipeline(
        transformer=transformer.eval(),
        vae=vae.eval(),
        text_encoder=_t5("UMT5"),
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "pixart": _pixart,
    "sana": _sana,
    "lumina2": _lumina2,
    "dit": _dit,
    "wan": _wan,
}


def tiny_pipeline(name: str, folder: Path) -> Any:
    """A tiny pipeline.

    Args:
        name: one of :data:`NAMES`.
        folder: exists; the vocabulary is written there.
    """
    found = _MAKERS[name](_tokenizer(folder))
    found.set_progress_bar_config(disable=True)
    return found


def saved_pipeline(name: str, folder: Path) -> Path:
    """The folder of a tiny pipeline, as diffusers writes it."""
    (folder / "words").mkdir(parents=True, exist_ok=True)
    tiny_pipeline(name, folder / "words").save_pretrained(folder / name)
    return folder / name
