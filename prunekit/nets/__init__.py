"""Networks made of several: timestep experts behind one router, and one encoder with a decoder for each timestep group."""

from prunekit.nets.drop_in import DropInOutput
from prunekit.nets.experts import TimestepExperts, load_experts, save_experts
from prunekit.nets.multi_decoder import MultiDecoderUNet, Stage
from prunekit.nets.multi_decoder_files import (
    is_multi_decoder,
    load_multi_decoder,
    multi_decoder_slim,
    save_multi_decoder,
)

__all__ = [
    "DropInOutput",
    "MultiDecoderUNet",
    "Stage",
    "TimestepExperts",
    "is_multi_decoder",
    "load_experts",
    "load_multi_decoder",
    "multi_decoder_slim",
    "save_experts",
    "save_multi_decoder",
]
