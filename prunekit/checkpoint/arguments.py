"""Arguments of denoisers: for each argument's name, a rule that derives its value from the config.

diffusers' networks share a vocabulary of arguments and config keys. The table :data:`RULES` has one entry for each argument's name,
and no network is mentioned. What names leave open (whether the sample is an image, a video or a row of tokens, which of several
widths is the text's) is a :class:`Case`; :mod:`prunekit.checkpoint.deriving` tries cases.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunekit._json import JsonDict

__all__ = ["CHANNELS", "OPTIONAL", "RULES", "SPARED", "TEXT_WIDTHS", "Case", "first"]

CHANNELS = (
    "audio_acoustic_hidden_dim",
    "in_channels",
    "in_visual_dim",
    "in_dim",
    "io_channels",
    "latent_dim",
    "embedding_dim",
    "input_dims",
)
"""Config keys of the sample's number of channels, the likeliest first."""
TEXT_WIDTHS = (
    "joint_attention_dim",
    "caption_channels",
    "text_dim",
    "text_embed_dim",
    "text_in_dim",
    "in_text_dim",
    "cap_feat_dim",
    "encoder_hid_dim",
    "cross_attention_input_dim",
    "context_in_dim",
    "dit_text_dim",
    "text_hidden_dim",
    "cond_token_dim",
    "cross_attention_dim",
    "encoder_hidden_size",
    "encoder_hidden_states_channels",
    "condition_dim",
    "llm_features_dim",
    "embedding_dim",
    "hidden_size",
)
"""Config keys of the width of text embeddings, the likeliest first."""
_TEXT_LENGTHS = ("text_len", "max_text_seq_length", "num_embeddings")
_TOKENS = 8  # text tokens if the config does not fix their number
_IMAGE_TOKENS = 9  # of an image encoder


@dataclass(frozen=True)
class Case:
    """A reading of a config.

    Args:
        config: of the network, with its class's defaults.
        layout: axes of the sample, a letter each: B batch, C channels, F frames, H height, W width, N tokens, L length.
        channels: of the sample.
        text: width of text embeddings.
        time: timesteps as ``real`` numbers, ``whole`` ones, or one for each of the ``frames``.
        mask: type of masks; None leaves out what is :data:`SPARED`.
        ids: batch axes of tables of positions, 0 or 1.
        texts: one text for each ``sample`` or each ``frame``, or a text token for each ``token`` of the sample.
    """

    config: JsonDict
    layout: str = "BCHW"
    channels: int = 1
    text: int = 0
    time: Literal["real", "whole", "frames"] = "real"
    mask: torch.dtype | None = None
    ids: int = 0
    texts: Literal["sample", "token", "frame"] = "sample"

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the sample; 32 (for a video 16) if the config does not state them."""
        get = self.config.get
        if isinstance(get("sample_height"), int) and isinstance(get("sample_width"), int):
            return get("sample_height", 0), get("sample_width", 0)
        size = get("sample_size") or (16 if "F" in self.layout or self.layout == "BNC" else 32)
        sides = [size, size] if isinstance(size, int) else list(size)
        return (int(sides[0]), int(sides[1])) if len(sides) > 1 else (int(sides[0]), int(sides[0]))

    @property
    def frames(self) -> int:
        """Number of frames of a latent video: from the config, else 4."""
        frames = first(self.config, "video_length", "num_frames", "sample_frames")
        if frames is None:
            return 4
        step = self.config.get("temporal_compression_ratio")
        return (frames - 1) // step + 1 if step else frames

    @property
    def tokens(self) -> int:
        """Number of tokens of a sample that is cut into tokens: a square image or a video."""
        return math.prod(self.sides) * (self.frames if "num_frames" in self.config.get("_arguments", ()) else 1)

    @property
    def words(self) -> int:
        """Number of text tokens."""
        if self.texts == "token":
            return self.length if "L" in self.layout else self.tokens
        return int(first(self.config, *_TEXT_LENGTHS) or _TOKENS)

    @property
    def length(self) -> int:
        """Length of a sound."""
        length = self.config.get("sample_size")
        return length if isinstance(length, int) else 64

    def sample(self, channels: int | None = None, frames: int | None = None) -> Tensor:
        """A noisy sample, or another of its kind."""
        height, width = self.sides
        sizes = {"B": 1, "H": height, "W": width, "N": self.tokens, "L": self.length}
        sizes |= {"C": channels or self.channels, "F": frames or self.frames}
        return torch.zeros([sizes[axis] for axis in self.layout])

    def masked(self, length: int) -> Tensor:
        """A mask that hides nothing, shape (1, length)."""
        return torch.ones(1, length, dtype=self.mask or torch.int64)

    def grid(self, count: int) -> Tensor:
        """Positions of the sample's tokens, shape (tokens, count): frame, row and column are the last or first three of them."""
        height, width = self.sides
        rows = torch.arange(self.tokens)
        found = torch.zeros(self.tokens, count)
        found[:, 1 % count], found[:, 2 % count] = rows // width % height, rows % width
        return found

    def batched(self, table: Tensor) -> Tensor:
        """A table of positions as the case has it."""
        return table[None] if self.ids else table


def first(config: JsonDict, *keys: str) -> int | None:
    """The first whole number among these keys of a config; of a list, its first entry."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _vector(*keys: str) -> Callable[[Case], Tensor | None]:
    """A vector for each sample, as wide as the first of these keys says; left out where none does."""

    def rule(case: Case) -> Tensor | None:
        width = first(case.config, *keys)
        return None if width is None else torch.zeros(1, width)

    return rule


def _rows(length: Callable[[Case], int], *keys: str) -> Callable[[Case], Tensor | None]:
    """Rows of embeddings, as wide as the first of these keys says; left out where none does."""

    def rule(case: Case) -> Tensor | None:
        width = first(case.config, *keys)
        return None if width is None else torch.zeros(1, length(case), width)

    return rule


def _time(case: Case) -> Tensor:
    shape = (1, case.frames) if case.time == "frames" else (1,)
    return torch.zeros(shape, dtype=torch.long if case.time == "whole" else torch.float32)


def _asked(key: str, *others: str) -> Callable[[Case], Tensor | None]:
    """A number for each sample if the config requires it."""
    return lambda case: torch.zeros(1) if any(case.config.get(one) for one in (key, *others)) else None


def _text(case: Case) -> Tensor | None:
    layers = [int(case.config["num_text_layers"])] if case.config.get("num_text_layers") else []
    count = case.frames if case.texts == "frame" else 1
    return torch.zeros(count, case.words, *layers, case.text) if case.text else None


def _mask(length: Callable[[Case], int] = lambda case: case.words) -> Callable[[Case], Tensor | None]:
    """A mask of text tokens."""
    return lambda case: case.masked(length(case))


def _one(case: Case) -> int:
    return 1


def _second_words(case: Case) -> int:
    return first(case.config, "text_len_t5") or _TOKENS


def _class_labels(case: Case) -> Tensor | None:
    """Class labels if the network has classes, or embeddings of them."""
    get, kind = case.config.get, case.config.get("class_embed_type")
    if kind in ("projection", "simple_projection"):
        return torch.zeros(1, int(get("projection_class_embeddings_input_dim") or 1))
    adaptive = get("num_embeds_ada_norm") and str(get("norm_type", "")).startswith("ada_norm_zero")
    return torch.zeros(1, dtype=torch.long) if get("num_class_embeds") or kind == "timestep" or adaptive else None


def _added(case: Case) -> Mapping[str, Tensor | None] | None:
    """Conditions in addition to text, by the kind that the config names."""
    get = case.config.get
    kind = get("addition_embed_type")
    width = int(get("encoder_hid_dim") or get("cross_attention_dim") or case.text or 1)
    if kind == "text_time":
        times = 6 * int(get("addition_time_embed_dim") or 0)
        pooled = int(get("projection_class_embeddings_input_dim") or 0) - times
        return {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
    images = {"image_embeds": torch.zeros(1, width)}
    if kind == "image_hint":
        return {**images, "hint": torch.zeros(1, 3, *(8 * side for side in case.sides))}
    if kind == "text_image" or get("encoder_hid_dim_type") == "text_image_proj":
        return {**images, "text_embeds": torch.zeros(1, int(get("cross_attention_dim") or width))}
    if kind == "image" or get("encoder_hid_dim_type") in ("image_proj", "ip_image_proj"):
        return images
    if "use_additional_conditions" not in case.config:
        return None
    asked = get("use_additional_conditions")
    if asked or (asked is None and get("sample_size") == 128):
        return {"resolution": torch.zeros(1, 2), "aspect_ratio": torch.zeros(1, 1)}
    return {"resolution": None, "aspect_ratio": None}


def _axes(case: Case) -> int:
    """Number of rotary axes of a token's position."""
    for key in ("axes_dims_rope", "rope_axes_dim", "axes_dims", "axes_dim", "mrope_section"):
        value = case.config.get(key)
        if isinstance(value, Sequence):
            return len(value)
    return 3


def _turns(case: Case) -> Tensor:
    """Cosines or sines of the rotary positions of every channel."""
    return torch.zeros(1, case.tokens, int(case.config["num_attention_heads"]) * int(case.config["attention_head_dim"]))


def _tagged(case: Case, value: int) -> Tensor:
    return torch.full((1, case.tokens), value, dtype=torch.long)


RULES: Mapping[str, Callable[[Case], object]] = {
    **dict.fromkeys(("sample", "hidden_states"), Case.sample),
    "x": lambda case: [case.sample()[0]],
    **dict.fromkeys(("timestep", "timesteps", "t", "r_timestep", "timestep_ratio"), _time),
    "timestep_r": lambda case: None if case.config.get("use_meanflow") is False else _time(case),
    "target_timestep": _asked("flow_map"),
    "guidance": _asked("guidance_embeds"),
    "ofs": _asked("ofs_embed_dim"),
    "fps": lambda case: torch.full((1,), 16, dtype=torch.long),
    "additional_t_cond": lambda case: _time(case) if case.config.get("use_additional_t_cond") else None,
    # text
    "encoder_hidden_states": _text,
    "text_bth": _text,
    "text_lens": lambda case: torch.tensor([case.words]),
    "cap_feats": lambda case: [torch.zeros(case.words, case.text)],
    "encoder_hidden_states_t5": _rows(_second_words, "cross_attention_dim_t5", "text_embed_dim_t5", "caption_channels"),
    "encoder_hidden_states_2": _rows(_second_words, "text_embed_2_dim"),
    "text_encoder_layers": lambda case: [
        torch.zeros(1, case.words, int(case.config["text_encoder_dim"]))
        for _ in range(sum(int(case.config.get(key) or 0) for key in ("num_layers", "num_single_layers")))
    ],
    **dict.fromkeys(
        ("encoder_attention_mask", "encoder_hidden_states_mask", "encoder_mask", "text_embedding_mask"),
        _mask(),
    ),
    "mask": _mask(),
    "text_embedding_mask_t5": _mask(_second_words),
    "encoder_attention_mask_2": lambda case: case.masked(_TOKENS) if case.config.get("text_embed_2_dim") else None,
    "encoder_hidden_states_llama3": lambda case: torch.zeros(
        1 + max(case.config["llama_layers"]), 1, case.words, int(case.config["caption_channels"][-1])
    ),
    "encodings_and_masks": lambda case: [
        (torch.zeros(1, case.words, int(case.config["d_model"])), case.masked(case.words))
    ],
    **dict.fromkeys(
        ("pooled_projections", "pooled_embeds", "pooled_text_emb"),
        _vector("pooled_projection_dim", "in_text_dim2", "text_emb_dim", "cond_embed_dim"),
    ),
    "clip_text_pooled": lambda case: torch.zeros(1, 1, first(case.config, "clip_text_pooled_in_channels") or 1),
    "clip_text": _rows(lambda case: case.words, "clip_text_in_channels"),
    "global_hidden_states": lambda case: (
        _vector("global_cond_dim") if "global_cond_dim" in case.config else _rows(_one, "global_states_input_dim")
    )(case),
    # sound
    "audio_hidden_states": _rows(lambda case: _TOKENS, "audio_in_channels"),
    "audio_encoder_hidden_states": _text,
    "audio_num_frames": lambda case: _TOKENS,
    "decoder_input_tokens": lambda case: torch.zeros(
        1, int(case.config["targets_length"]), int(case.config["input_dims"])
    ),
    "decoder_noise_time": lambda case: torch.zeros(1),
    # images and classes
    "class_labels": _class_labels,
    "added_cond_kwargs": _added,
    "added_time_ids": lambda case: torch.zeros(
        1, int(case.config["projection_class_embeddings_input_dim"]) // int(case.config["addition_time_embed_dim"])
    ),
    "image_embeds": _rows(lambda case: _IMAGE_TOKENS, "image_embed_dim", "image_proj_dim"),
    "encoder_hidden_states_image": _rows(lambda case: _IMAGE_TOKENS, "image_dim"),
    "image_embeddings": _vector("cross_attention_dim"),
    "image_latents": Case.sample,
    "context_latents": lambda case: case.sample(int(case.config["in_channels"]) - case.channels),
    "proj_embedding": _vector("embedding_proj_dim", "embedding_dim"),
    "controlnet_cond": lambda case: torch.zeros(1, 3, *(8 * side for side in case.sides)),
    "control_hidden_states": lambda case: case.sample(first(case.config, "vace_in_channels")),
    "face_pixel_values": lambda case: torch.zeros(
        1, 3, 4 * (case.frames - 2) + 1, *[int(case.config["motion_encoder_size"])] * 2
    ),
    "pose_hidden_states": lambda case: case.sample(first(case.config, "latent_channels"), case.frames - 1),
    "effnet": lambda case: (
        torch.zeros(1, int(width), *case.sides) if (width := first(case.config, "effnet_in_channels")) else None
    ),
    # sizes and positions
    **dict.fromkeys(("original_size", "target_size", "crop_coords"), lambda case: torch.zeros(1, 2)),
    "image_meta_size": lambda case: (
        torch.zeros(1, 6) if case.config.get("use_style_cond_and_image_meta_size", True) else None
    ),
    "style": lambda case: (
        torch.zeros(1, dtype=torch.long) if case.config.get("use_style_cond_and_image_meta_size", True) else None
    ),
    "micro_conds": lambda case: torch.zeros(
        1, (first(case.config, "micro_cond_embed_dim") or 1280) // (first(case.config, "micro_cond_encode_dim") or 256)
    ),
    "img_ids": lambda case: case.batched(case.grid(_axes(case))),
    "txt_ids": lambda case: case.batched(torch.zeros(case.words, _axes(case))),
    "img_shapes": lambda case: [[(1, *case.sides)]] if case.ids == 0 else [(1, *case.sides)],
    "num_frames": lambda case: case.frames,
    "height": lambda case: case.sides[0],
    "width": lambda case: case.sides[1],
    "padding_mask": lambda case: torch.zeros(1, 1, *case.sides) if case.config.get("concat_padding_mask") else None,
    "input_ids": lambda case: torch.zeros(1, *case.sides, dtype=torch.long),
    "visual_rope_pos": lambda case: [
        torch.arange(size // int(patch))
        for size, patch in zip((case.frames, *case.sides), case.config.get("patch_size", (1, 1, 1)), strict=True)
    ],
    "text_rope_pos": lambda case: torch.arange(case.words),
    "prior_token_id": lambda case: torch.zeros(
        1, math.prod(case.sides) // (first(case.config, "patch_size") or 1) ** 2, dtype=torch.long
    ),
    "prior_token_drop": lambda case: torch.zeros(
        1, math.prod(case.sides) // (first(case.config, "patch_size") or 1) ** 2, dtype=torch.bool
    ),
    "chunk_partition": lambda case: (1,) * case.frames,
    "position_ids": lambda case: (
        torch.cat([torch.zeros(case.words * (1 - case.ids), 3), case.grid(3)]) if case.ids == 0 else case.grid(3)[None]
    ),
    "segment_ids": lambda case: _tagged(case, 0),
    "indicator": lambda case: _tagged(case, 2),
    "cross_attention_kwargs": lambda case: {},
    "indices_latents": lambda case: torch.arange(case.frames),
    "video_rotary_emb": lambda case: (_turns(case), _turns(case)),
    "image_rotary_emb": lambda case: torch.zeros(
        *case.sides,
        int(case.config["hidden_size"]) // int(case.config["num_attention_heads"]) // 2,
        dtype=torch.complex64,
    ),
}
"""Value of an argument by its name; None means that the argument is left out, or None where it must be given."""

SPARED = frozenset({"encoder_attention_mask", "encoder_hidden_states_mask", "mask", "cross_attention_kwargs"})
"""Optional arguments that are given only in cases with masks: a few networks stop without them."""
OPTIONAL = frozenset(RULES) - {
    *("fps", "padding_mask", "input_ids", "target_size", "position_ids", "effnet", "segment_ids", "t", "clip_text"),
    *("context_latents", "image_rotary_emb"),
}
"""Arguments that are given although the network could do without, if their rule gives a value."""
