"""Composite networks: timestep experts behind one router, and one encoder with a decoder for each timestep group."""

from typing import TYPE_CHECKING

from prunekit._lazy import at_need
from prunekit.nets.drop_in import DropInOutput
from prunekit.nets.experts import TimestepExperts, load_experts, save_experts

if TYPE_CHECKING:
    from prunekit.nets.multi_decoder import MultiDecoderUNet, StageUNet
    from prunekit.nets.multi_decoder_files import (
        is_multi_decoder,
        load_multi_decoder,
        multi_decoder_slim,
        save_multi_decoder,
    )

__all__ = [
    "DropInOutput",
    "MultiDecoderUNet",
    "StageUNet",
    "TimestepExperts",
    "is_multi_decoder",
    "load_experts",
    "load_multi_decoder",
    "multi_decoder_slim",
    "save_experts",
    "save_multi_decoder",
]

_HOMES = {  # they import diffusers, which takes seconds
    "multi_decoder": ("MultiDecoderUNet", "StageUNet"),
    "multi_decoder_files": ("is_multi_decoder", "load_multi_decoder", "multi_decoder_slim", "save_multi_decoder"),
}
__getattr__ = at_need(__name__, _HOMES)
