"""Base checkpoints: a trained denoiser with what is needed to use it, read without running code from any file."""

from prunekit.checkpoint.base import FORMAT, Base, save_base
from prunekit.checkpoint.reading import load_base
from prunekit.checkpoint.spec import ARCHITECTURES, Factory, ModelSpec
from prunekit.checkpoint.tensors import load_state

__all__ = ["ARCHITECTURES", "FORMAT", "Base", "Factory", "ModelSpec", "load_base", "load_state", "save_base"]
