"""Networks on disk as their differences from another one.

A tensor that is equal to the other network's takes no space. One of the same shape is stored as two thin matrices, whose product is
the difference up to a tolerance (Eckart and Young 1936), if these are smaller; every other tensor is stored whole.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._files import sha256_file
from prunekit._json import read_json
from prunekit.checkpoint.tensors import read_tensors
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.graph.surgery import all_tensors
from prunekit.results.formats import SLIM
from prunekit.slim import SlimModel, check_bound, check_plain, load_slim, save_tensors, with_shapes

__all__ = ["FILE", "differs_by", "load_difference", "save_difference"]

FILE = "difference.safetensors"
"""Name of the file in place of a slim model's ``model.safetensors``."""
_LEFT, _RIGHT, _WHOLE = "left", "right", "whole"


def differs_by(model: nn.Module, reference: nn.Module, tolerance: float) -> dict[str, Tensor]:
    """The tensors that say how a network differs from another one.

    Args:
        model: the network.
        reference: the other one.
        tolerance: largest error of a tensor's difference, relative to the difference, both in the Frobenius norm.

    Returns:
        ``<name>.left`` of shape (rows, rank) and ``<name>.right`` of shape (rank, values per row), whose product is added to the
        reference's tensor; or ``<name>.whole``. Equal tensors are left out.
    """
    own, other = all_tensors(model), all_tensors(reference)
    found: dict[str, Tensor] = {}
    for name, tensor in own.items():
        base = other.get(name)
        alike = base is not None and base.shape == tensor.shape and base.dtype == tensor.dtype
        if base is not None and alike and torch.equal(base, tensor):
            continue
        thin = _thin(tensor - base, tolerance) if base is not None and alike and tensor.is_floating_point() else None
        parts = {_WHOLE: tensor} if thin is None else dict(zip((_LEFT, _RIGHT), thin, strict=True))
        found |= {f"{name}.{kind}": part.detach().clone().contiguous() for kind, part in parts.items()}
    return found


def save_difference(slim: SlimModel, reference: SlimModel, folder: Path, tolerance: float) -> None:
    """Write a slim model's folder with :data:`FILE` in place of its weights.

    Args:
        slim: the slim model.
        reference: the slim model that it is compared with; it must be stored whole.
        folder: an empty or missing folder.
        tolerance: see :func:`differs_by`.

    Raises:
        InputError: the tolerance is not a number from 0 to 1, or the weights are quantised.
    """
    if not 0 <= tolerance <= 1:
        raise InputError(f"Got a tolerance of {tolerance:g}; expected a number from 0 to 1.")
    check_plain(all_tensors(slim.model))
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(differs_by(slim.model, reference.model, tolerance), with_shapes(slim), folder, FILE)


def load_difference(folder: Path, reference: SlimModel, **own: Any) -> SlimModel:
    """Read a folder that :func:`save_difference` wrote. Tensors that equal the reference's are the same parameters.

    Args:
        folder: the folder.
        reference: the slim model that it was compared with.
        own: ``factory`` and ``inputs``, as for :func:`prunekit.slim.load_slim`.

    Raises:
        MissingFileError: a file is missing.
        FileFormatError: it is damaged, or of another reference.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist; expected the weights of a shared network: copy the folder again."
        )
    config = dict(read_json(folder / "config.json", SLIM))
    if config.get("sha256") != sha256_file(path):
        raise FileFormatError(
            f"{path} is not the file that config.json describes (its SHA-256 differs); copy the folder again."
        )
    check_bound(path, config)
    other = all_tensors(reference.model)
    state = _rebuilt(read_tensors(path), other, config.get("shapes"), path)
    with TemporaryDirectory() as place:  # read like any slim model, with all its checks
        save_tensors(state, config, Path(place))
        slim = load_slim(Path(place), **own)
    equal = {name for name in state if name in other and state[name] is other[name]}
    return replace(slim, model=_tied(slim.model, reference.model, equal))


def _thin(difference: Tensor, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """Two thin matrices whose product is a difference up to a tolerance; None if they are not smaller than it."""
    if difference.ndim < 2 or not difference.isfinite().all():
        return None
    matrix = difference.detach().double().reshape(len(difference), -1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    beyond = values.square().flip(0).cumsum(0).flip(0).sqrt()  # error of each rank, 0 … full − 1
    rank = int((beyond > tolerance * beyond[0]).sum())
    if rank * sum(matrix.shape) >= matrix.numel():
        return None
    return (left[:, :rank] * values[:rank]).to(difference.dtype), right[:rank].to(difference.dtype)


def _rebuilt(
    parts: Mapping[str, Tensor], reference: Mapping[str, Tensor], shapes: object, path: Path
) -> dict[str, Tensor]:
    """All tensors of a network, where those that are not stored are the reference's own objects.

    Raises:
        FileFormatError: a tensor is missing, or has another shape than the config says.
    """
    if not isinstance(shapes, Mapping):
        raise FileFormatError(f"The config of {path} says no shapes; copy the folder again.")
    unknown = {name for name in parts if name.rpartition(".")[0] not in shapes}
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        base, left, right = reference.get(name), parts.get(f"{name}.{_LEFT}"), parts.get(f"{name}.{_RIGHT}")
        tensor = parts.get(f"{name}.{_WHOLE}", base)
        if left is not None and right is not None and base is not None:
            fits = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]
            if fits and base.ndim > 1 and (len(left), right.shape[1]) == (len(base), base[0].numel()):
                tensor = base.detach() + (left @ right).reshape(base.shape).to(base.dtype)
            else:
                tensor = None
        if tensor is None or list(tensor.shape) != shape:
            unknown.add(name)
        else:
            state[name] = tensor
    if unknown:
        raise FileFormatError(
            f"{path} does not fit its config and the network that it is compared with ({min(unknown)})."
        )
    return state


def _tied(model: nn.Module, reference: nn.Module, names: set[str]) -> nn.Module:
    """The model with the reference's own parameters where they are equal."""
    others = dict(reference.named_parameters())
    for name in names & others.keys():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = others[name]
    return model
