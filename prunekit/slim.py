"""Slim models on disk: a folder with ``model.safetensors`` and ``config.json``, rebuilt without pickle and without the base.

The config names an architecture of a fixed registry and the width of every changed tensor. A config can never make the loader
import or call anything: its class is looked up in :data:`prunekit.checkpoint.ARCHITECTURES`, or the caller passes a factory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit._files import atomic_folder, read_json, sha256_file, write_json
from prunekit._types import JsonDict
from prunekit.checkpoint import ModelSpec, load_state
from prunekit.errors import FileFormatError, MissingFileError, PlanError
from prunekit.graph import PruningPlan, fit
from prunekit.groups import TimestepGroup

__all__ = ["FORMAT", "SlimModel", "load_slim", "save_slim"]

FORMAT = "prunekit-slim/1"


@dataclass(frozen=True, eq=False)
class SlimModel:
    """A pruned network for one timestep group.

    Args:
        model: the network, eval mode.
        spec: the base's architecture, before pruning.
        plan: what was kept.
        norm_groups: ``num_groups`` of each group norm that differs from the architecture's.
        group: the timesteps that it serves.
        num_timesteps: T.
        macs: per sample per evaluation.
        params: number of parameters.
        about: noise schedule, prediction type, data and provenance, as of :meth:`prunekit.checkpoint.Base.about`.
    """

    model: nn.Module
    spec: ModelSpec
    plan: PruningPlan
    norm_groups: Mapping[str, int]
    group: TimestepGroup
    num_timesteps: int
    macs: int
    params: int
    about: JsonDict = field(default_factory=dict)

    def with_weights(self, model: nn.Module, **provenance: Any) -> "SlimModel":
        """The same slim model with other weights and a richer provenance."""
        known = {**self.about.get("provenance", {}), **provenance}
        return replace(self, model=model, about={**self.about, "provenance": known})


def save_slim(slim: SlimModel, folder: Path) -> None:
    """Write a slim model's folder, atomically; a folder that is there already is replaced as a whole."""
    state = _own_storage(slim.model.state_dict())
    with atomic_folder(folder) as part:
        save_file(state, part / "model.safetensors")
        config = {
            "format": FORMAT,
            "model": slim.spec.to_json(),
            "timestep_group": vars(slim.group),
            "num_timesteps": slim.num_timesteps,
            "macs": slim.macs,
            "params": slim.params,
            "plan": slim.plan.to_json(),
            "norm_groups": dict(slim.norm_groups),
            "shapes": {key: list(tensor.shape) for key, tensor in state.items()},
            "sha256": sha256_file(part / "model.safetensors"),
            **{key: value for key, value in slim.about.items() if key != "model"},
        }
        write_json(part / "config.json", config)


def load_slim(folder: Path | str, factory: Callable[[JsonDict], nn.Module] | None = None) -> SlimModel:
    """Read a slim model's folder.

    Args:
        folder: what :func:`save_slim` wrote.
        factory: builds the unpruned architecture from its config, for networks outside the registry.

    Raises:
        MissingFileError: the folder or one of its two files is missing.
        FileFormatError: hashes, shapes or names disagree, or the format is another.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingFileError(f"{folder} does not exist; expected a slim model's folder, as `prunekit prune` writes.")
    config = read_json(folder / "config.json", FORMAT)
    state = _checked_state(folder, config)
    try:
        spec = ModelSpec.from_json(config["model"])
        group = TimestepGroup(**{key: int(config["timestep_group"][key]) for key in ("index", "start", "stop")})
        norm_groups = {str(name): int(count) for name, count in config["norm_groups"].items()}
        macs, params, num_timesteps = (int(config[key]) for key in ("macs", "params", "num_timesteps"))
        plan = PruningPlan.from_json(config["plan"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{folder / 'config.json'} cannot be read ({error!r}).") from error
    try:
        model = fit(_skeleton(spec, factory), state, norm_groups)
    except (PlanError, ZeroDivisionError) as error:
        raise FileFormatError(f"{folder} does not fit its architecture: {error}") from error
    keys = ("noise_schedule", "prediction_type", "data", "provenance")
    about = {key: config[key] for key in keys if key in config}
    return SlimModel(model.eval(), spec, plan, norm_groups, group, num_timesteps, macs, params, about)


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, none of which shares memory with another: safetensors refuses those."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        state[key] = own.clone() if own.untyped_storage().data_ptr() in seen else own
        seen.add(own.untyped_storage().data_ptr())
    return state


def _checked_state(folder: Path, config: JsonDict) -> dict[str, Tensor]:
    path = folder / "model.safetensors"
    _, state = load_state(path)
    if sha256_file(path) != config.get("sha256"):
        raise FileFormatError(
            f"{path} is not the file that config.json describes (its SHA-256 differs); copy the folder again."
        )
    shapes = {key: list(tensor.shape) for key, tensor in state.items()}
    if shapes != config.get("shapes"):
        raise FileFormatError(f"The tensors of {path} have other names or shapes than config.json says.")
    # safetensors packs them without alignment, on which kernels round differently than on a tensor of its own
    return {key: tensor.clone() for key, tensor in state.items()}


def _skeleton(spec: ModelSpec, factory: Callable[[JsonDict], nn.Module] | None) -> nn.Module:
    """The unpruned architecture without memory for its weights, or with where it has buffers that no file stores."""
    if factory is not None:
        return factory(spec.config)
    with torch.device("meta"):
        model = spec.build()
    stored = set(model.state_dict())
    if all(name in stored for name, _ in model.named_buffers()):
        return model
    return spec.build()
