"""Base checkpoints: a trained denoiser with everything needed to use it, read without running code from any file."""

from prunekit.checkpoint.asked import WEIGHTS, Asked, named_schedule
from prunekit.checkpoint.base import Base, save_base
from prunekit.checkpoint.denoisers import denoisers
from prunekit.checkpoint.inputs import read_inputs
from prunekit.checkpoint.reading import load_base
from prunekit.checkpoint.spec import Factory, InputsOf, ModelSpec
from prunekit.checkpoint.tensors import load_state

__all__ = [
    "WEIGHTS",
    "Asked",
    "Base",
    "Factory",
    "InputsOf",
    "ModelSpec",
    "denoisers",
    "load_base",
    "load_state",
    "named_schedule",
    "read_inputs",
    "save_base",
]
