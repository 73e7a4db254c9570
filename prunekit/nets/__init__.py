"""Networks made of several: timestep experts behind one router."""

from prunekit.nets.experts import ExpertsOutput, TimestepExperts, load_experts, save_experts

__all__ = ["ExpertsOutput", "TimestepExperts", "load_experts", "save_experts"]
