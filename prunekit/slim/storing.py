"""Slim models, and how they are written."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file
from torch import Tensor, nn

from prunekit._files import atomic_folder, atomic_path, json_hash, sha256_file, write_json
from prunekit._json import JsonDict, JsonObject, parse_json, read_json
from prunekit._kinds import FolderKind, has_format
from prunekit._names import public_about
from prunekit.card import slim_card
from prunekit.checkpoint import ModelSpec
from prunekit.checkpoint.hub import pushed
from prunekit.checkpoint.metadata import check_params
from prunekit.checkpoint.tensors import safetensors_metadata
from prunekit.errors import FileFormatError, InputError
from prunekit.graph import PruningPlan
from prunekit.graph.stubs import stubs_in
from prunekit.graph.surgery import all_tensors
from prunekit.groups import TimestepGroup
from prunekit.results.formats import EXPERTS, SLIM

__all__ = [
    "FOLDER",
    "WEIGHTS",
    "SlimModel",
    "check_bound",
    "check_not_needed",
    "check_plain",
    "save_slim",
    "save_tensors",
    "slim_config",
    "with_shapes",
]

WEIGHTS = "model.safetensors"
"""Name of the file of a slim model's weights."""

FOLDER = FolderKind("slim model", ("model.safetensors", "README.md"), marker="config.json", is_ours=has_format(SLIM))
"""Folders that :func:`save_slim` may replace."""

_BINDING = "config_sha256"  # in the metadata of the weights: hash of the config without the weights' hash
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SlimModel:
    """A pruned network for one timestep group.

    Args:
        model: the network, eval mode.
        spec: the base's architecture, before pruning.
        plan: the channels that were kept.
        sizes: sizes stored outside tensors that differ from the architecture's, by module and name (``num_groups``, ``heads`` …).
        group: the timesteps that it is used for.
        num_timesteps: T.
        macs: MACs per sample per evaluation.
        params: number of parameters.
        about: noise schedule, prediction type, data and provenance, as from :meth:`prunekit.checkpoint.Base.about`.
    """

    model: nn.Module
    spec: ModelSpec
    plan: PruningPlan
    sizes: Mapping[str, Mapping[str, int]]
    group: TimestepGroup
    num_timesteps: int
    macs: int
    params: int
    about: JsonDict = field(default_factory=dict)

    def __repr__(self) -> str:
        steps = f"timesteps {self.group.start} to {self.group.stop - 1}"
        return f"<SlimModel: {type(self.model).__name__} for {steps}, MACs {self.macs:,}, parameters {self.params:,}>"

    @property
    def is_whole(self) -> bool:
        """Whether the plan keeps every channel of the base."""
        return self.plan.is_whole

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Push the slim model with the model card to the Hugging Face Hub; returns the page of the commit.

        Args:
            repo_id: ``name`` or ``user/name``; it is created if it does not exist.
            private: whether a new repository is private (default: as the account or organisation sets it).
            token: the hub's access token (default: that of ``hf auth login``, or of the variable ``HF_TOKEN``).

        Raises:
            InputError: the hub refuses, or cannot be reached.
        """
        with TemporaryDirectory() as folder:
            save_slim(self, Path(folder) / "model")
            return pushed(Path(folder) / "model", repo_id, private, token)

    def with_weights(self, model: nn.Module, **provenance: object) -> "SlimModel":
        """The same slim model with other weights and additional provenance."""
        known = {**self.about.get("provenance", {}), **provenance}
        return replace(self, model=model, about={**self.about, "provenance": known})


def slim_config(slim: SlimModel) -> JsonObject:
    """The content of a slim model's ``config.json`` without shapes and hash; it has names of files but no paths."""
    stubs = stubs_in(slim.model)
    return {
        "format": SLIM,
        "model": slim.spec.to_json(),
        "timestep_group": vars(slim.group),
        "num_timesteps": slim.num_timesteps,
        "macs": slim.macs,
        "params": slim.params,
        "plan": slim.plan.to_json(),
        "sizes": {name: dict(values) for name, values in slim.sizes.items()},
        **({"stubs": [stub.to_json() for stub in stubs]} if stubs else {}),
        **{key: value for key, value in public_about(slim.about).items() if key != "model"},
    }


def save_slim(slim: SlimModel, folder: Path | str) -> None:
    """Write a slim model's folder, atomically; an earlier slim model there is replaced as a whole.

    Raises:
        InputError: the folder contains something else, other experts need its network, or the model's stated number of parameters
            is wrong, so it could not be loaded again.
    """
    folder = Path(folder)
    check_not_needed(folder)
    try:
        check_params(slim.model, slim.params, "The slim model")
    except FileFormatError as error:
        raise InputError(str(error)) from error
    state = all_tensors(slim.model)
    check_plain(state)
    with atomic_folder(folder, FOLDER) as part:
        save_tensors(state, with_shapes(slim), part)


def check_not_needed(folder: Path | str) -> None:
    """Refuse to replace a slim model in experts, if other timestep groups have its network or are stored as differences from it.

    Raises:
        InputError: they are.
    """
    folder = Path(folder)
    source, name = folder.parent / "experts.json", folder.name
    if not has_format(EXPERTS)(source):
        return
    known = read_json(source)
    networks, reference = known.get("networks"), known.get("reference")
    served = (
        []
        if not isinstance(networks, list)
        else [group for group, network in enumerate(networks) if name == f"group-{network}"]
    )
    why = f"is the network of the timestep groups {', '.join(map(str, served))}" if len(served) > 1 else ""
    if reference is not None and name == f"group-{reference}":
        why = "is the network from which the others are stored as differences"
    if why:
        raise InputError(f"{folder} {why}; expected another output, from which experts are assembled again.")


def check_plain(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that safetensors cannot hold, such as quantised ones.

    Raises:
        InputError: there are some; the message names the first.
    """
    special = next((name for name, tensor in tensors.items() if type(tensor.data) is not Tensor), None)
    if special is not None:
        raise InputError(
            f"{special} is of type {type(tensors[special].data).__name__}, which is not stored; save the networks before they are "
            "quantised, and quantise them again when they are loaded."
        )


def with_shapes(slim: SlimModel) -> JsonObject:
    """The content of a slim model's ``config.json`` without the hash of the weights."""
    shapes = {key: list(tensor.shape) for key, tensor in all_tensors(slim.model).items()}
    return {**slim_config(slim), "shapes": shapes}


def save_tensors(tensors: Mapping[str, Tensor], config: JsonDict, folder: Path | str, name: str = WEIGHTS) -> None:
    """Write tensors, the config that is bound to them, and the model card into a folder that exists.

    Args:
        tensors: by name.
        config: as from :func:`with_shapes`.
        folder: the folder.
        name: name of the tensors' file.
    """
    folder, known = Path(folder), {key: value for key, value in config.items() if key != "sha256"}
    save_file(_own_storage(tensors), folder / name, {_BINDING: _config_hash(known)})
    known["sha256"] = sha256_file(folder / name)
    write_json(folder / "config.json", known)
    shutil.copymode(folder / "config.json", folder / name)  # safetensors writes files that only the owner can read
    with atomic_path(folder / "README.md") as card:
        card.write_text(slim_card(known), encoding="utf-8")


def check_bound(path: Path | str, config: JsonDict) -> None:
    """Refuse a config that is not the one that the weights were written with.

    Args:
        path: the weights' file.
        config: the content of ``config.json`` in its folder.

    Raises:
        FileFormatError: the config was changed.
    """
    path = Path(path)
    bound = safetensors_metadata(path).get(_BINDING)
    if bound is None:
        _log.warning(
            "%s was written by a version that did not bind the config to the weights; a changed config is not noticed.",
            path.parent,
        )
    elif bound != _config_hash(config):
        raise FileFormatError(f"{path.parent / 'config.json'} was changed after it was written; copy the folder again.")


def _config_hash(config: JsonDict) -> str:
    """Hash of a config without the weights' hash, since the weights file cannot contain its own hash."""
    told = {key: value for key, value in config.items() if key != "sha256"}
    return json_hash(parse_json(json.dumps(told).encode(), "The config"))  # in the form in which it is read back


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU without shared memory, since safetensors refuses shared tensors."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        state[key] = own.clone() if own.untyped_storage().data_ptr() in seen else own
        seen.add(own.untyped_storage().data_ptr())
    return state
