"""A base: a trained denoiser with everything needed to use it, and the checkpoint that it is saved as."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

from prunekit._files import atomic_path
from prunekit._json import JsonDict, JsonObject
from prunekit._names import public_about
from prunekit.checkpoint.spec import ModelSpec
from prunekit.results.formats import BASE
from prunekit.schedule import Parameterization, Parameterized

__all__ = ["Base", "save_base"]


@dataclass(frozen=True)
class Base(Parameterized):
    """A trained denoiser and its metadata.

    Args:
        model: the network, in eval mode on the CPU.
        spec: how to build it again.
        parameterization: what the network predicts, and the noise schedule that it was trained with.
        data: images that it was trained on (``source``, ``sha256``, ``resolution``), or empty.
        provenance: free-form JSON: how it was made, with its figures.
        sha256: hash of the file that it was read from, empty for one made in memory.
        notes: what a user should know about how it was read, one sentence each; not saved.
    """

    model: nn.Module
    spec: ModelSpec
    parameterization: Parameterization
    data: JsonDict = field(default_factory=dict)
    provenance: JsonDict = field(default_factory=dict)
    sha256: str = ""
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        prediction, steps = self.parameterization.prediction_type, self.parameterization.schedule.num_timesteps
        return f"<Base: {type(self.model).__name__} that predicts {prediction}, timesteps {steps}>"

    def about(self) -> JsonObject:
        """Everything except the weights, JSON-able."""
        return {
            "model": self.spec.to_json(),
            **self.parameterization.to_config(),
            "data": dict(self.data),
            "provenance": dict(self.provenance),
        }


def save_base(base: Base, path: Path | str) -> None:
    """Write a base checkpoint; the suffix chooses the form (``.safetensors``, else torch's zip). Atomic.

    It contains names of files, such as the images', but no paths.
    """
    path = Path(path)
    about = public_about(base.about())
    state = {key: value.detach().cpu().contiguous() for key, value in base.model.state_dict().items()}
    with atomic_path(path) as part:
        if path.suffix.lower() == ".safetensors":
            text = json.dumps({"format": BASE, **about}, sort_keys=True)
            part.write_bytes(safetensors_bytes(state, metadata={"prunekit": text}))
        else:
            buffer = io.BytesIO()  # gives the archive a fixed inner name, so that equal weights are equal bytes
            torch.save({"format": BASE, **about, "state_dict": state}, buffer)
            part.write_bytes(buffer.getvalue())
