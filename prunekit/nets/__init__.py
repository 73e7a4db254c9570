"""Networks made of several: timestep experts behind one router, and one encoder with a decoder for each timestep group."""

from prunekit.nets.drop_in import DropInOutput
from prunekit.nets.experts import TimestepExperts, load_experts, save_experts
from prunekit.nets.multi_decoder import MultiDecoderUNet, Stage

__all__ = ["DropInOutput", "MultiDecoderUNet", "Stage", "TimestepExperts", "load_experts", "save_experts"]
