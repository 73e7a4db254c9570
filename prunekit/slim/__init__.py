"""Slim models on disk: a folder with ``model.safetensors`` and ``config.json``, rebuilt without pickle and without the base.

The config names an architecture of a fixed registry and the width of every changed tensor. A config can never make the loader
import or call anything: its class is looked up among the denoisers of diffusers, or the caller passes a factory.
It cannot make the loader allocate memory either: the network is first built and run on the meta device with the shapes from the
file's header, and the tensors are read only if all parts of the folder agree. ``README.md`` is the model card; it is never read.
"""

from prunekit.slim.rebuilding import load_slim
from prunekit.slim.storing import (
    FOLDER,
    WEIGHTS,
    SlimModel,
    check_bound,
    check_not_needed,
    check_plain,
    save_slim,
    save_tensors,
    slim_config,
    with_shapes,
)

__all__ = [
    "FOLDER",
    "WEIGHTS",
    "SlimModel",
    "check_bound",
    "check_not_needed",
    "check_plain",
    "load_slim",
    "save_slim",
    "save_tensors",
    "slim_config",
    "with_shapes",
]
