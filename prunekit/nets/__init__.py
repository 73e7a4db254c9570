"""Composite networks: timestep experts behind one router, and one encoder with a decoder for each timestep group."""

from typing import TYPE_CHECKING

from prunekit._lazy import at_need
from prunekit.nets.drop_in import DropInOutput

if TYPE_CHECKING:
    from prunekit.nets.experts import TimestepExperts
    from prunekit.nets.experts_files import load_experts, save_experts
    from prunekit.nets.multi_decoder import MultiDecoderUNet, StageUNet
    from prunekit.nets.multi_decoder_files import (
        is_multi_decoder,
        load_multi_decoder,
        multi_decoder_slim,
        save_multi_decoder,
    )
    from prunekit.nets.two_experts import write_two_experts

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
    "write_two_experts",
]

_HOMES = {  # they import diffusers, which takes seconds
    "experts": ("ModelMixin", "TimestepExperts"),
    "experts_files": ("load_experts", "save_experts"),
    "multi_decoder": ("MultiDecoderUNet", "StageUNet"),
    "multi_decoder_files": ("is_multi_decoder", "load_multi_decoder", "multi_decoder_slim", "save_multi_decoder"),
    "two_experts": ("write_two_experts",),
}
__getattr__ = at_need(__name__, _HOMES)
