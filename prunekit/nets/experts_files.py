"""Experts on disk: ``experts.json`` and a slim folder for each network."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from prunekit._files import atomic_folder, atomic_path, sha256_file, write_json
from prunekit._json import JsonDict, JsonObject, read_json
from prunekit._kinds import FolderKind, has_format
from prunekit._leftovers import restore
from prunekit._names import without_paths
from prunekit.card import experts_card
from prunekit.checkpoint import Factory
from prunekit.checkpoint.tensors import safetensors_shapes
from prunekit.errors import FileFormatError
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.nets.differences import FILE as DIFFERENCE
from prunekit.nets.differences import load_difference, save_difference
from prunekit.nets.experts import TimestepExperts, without_weights
from prunekit.nets.sharing import read_networks, shared, shared_networks
from prunekit.results.formats import EXPERTS, SLIM
from prunekit.slim import FOLDER as _SLIM
from prunekit.slim import WEIGHTS, SlimModel, load_slim, save_slim, slim_config

__all__ = ["FOLDER", "load_experts", "save_experts"]

FOLDER = FolderKind(
    "experts",
    ("README.md",),
    {
        f"group-{digits}": replace(_SLIM, files=(*_SLIM.files, DIFFERENCE))
        for digits in ("[0-9]", "[0-9][0-9]", "[0-9][0-9][0-9]")
    },
    marker="experts.json",
    is_ours=has_format(EXPERTS),
)
"""Files that :func:`save_experts` may replace."""


def save_experts(
    slims: Sequence[SlimModel],
    groups: TimestepGroups,
    folder: Path | str,
    extra: JsonDict | None = None,
    share: float | None = None,
) -> None:
    """Write an experts folder: ``experts.json``, one slim folder per network and a model card, atomically.

    Groups with the same network, such as those that keep the whole base, share the folder of the first of them.

    Args:
        slims: one slim model for each group, in order.
        groups: the timestep groups.
        folder: folder to write.
        extra: further keys of ``experts.json``.
        share: tolerance with which the other networks are stored as their differences from the largest one, see
            :func:`prunekit.nets.differences.differs_by`; None stores every network whole. 0 changes nothing but rounding.

    Raises:
        InputError: there is something else in the folder than earlier experts, or the tolerance is not from 0 to 1.
    """
    folder = Path(folder)
    TimestepExperts(groups, slims)  # refuses experts that could not be loaded again
    extra, networks = without_paths(extra or {}), shared_networks(slims)
    own = list(dict.fromkeys(networks))
    some: JsonObject = {"networks": list(networks)} if len(own) < len(slims) else {}
    largest = max(own, key=lambda network: slims[network].params)
    if share is not None and len(own) > 1:
        some["reference"] = largest
    with atomic_folder(folder, FOLDER) as part:
        for network in own:
            place = part / f"group-{network}"
            if "reference" in some and share is not None and network != largest:
                save_difference(slims[network], slims[largest], place, share)
            else:
                save_slim(slims[network], place)
        if "reference" in some:
            some["reference_sha256"] = sha256_file(part / f"group-{largest}" / WEIGHTS)
        write_json(part / "experts.json", {**extra, **groups.to_json(), **some, "format": EXPERTS})
        with atomic_path(part / "README.md") as card:
            card.write_text(experts_card([slim_config(slim) for slim in slims], extra, networks), encoding="utf-8")


def load_experts(
    folder: Path | str,
    resident: str = "all",
    factory: Factory | nn.Module | None = None,
    inputs: Any = None,
    prefetch: bool = True,
) -> TimestepExperts:
    """Read an experts folder.

    Args:
        folder: a folder that :func:`save_experts` wrote.
        resident: ``all``, or ``one`` to hold a single expert in memory at a time.
        factory: builds the unpruned architecture, as for :func:`prunekit.slim.load_slim`.
        inputs: arguments of one forward pass, as for :func:`prunekit.slim.load_slim`.
        prefetch: with ``one``, the next expert's files are read ahead while one is used.

    Raises:
        MissingFileError: the folder or a part of it is missing.
        FileFormatError: a part is damaged.
    """
    from prunekit.results.model_files import ExpertsFile  # noqa: PLC0415 - loads pydantic

    folder = Path(folder)
    restore(folder)
    source = folder / "experts.json"
    known = ExpertsFile.of(read_json(source, EXPERTS), str(source))
    groups = TimestepGroups.from_json(known, source)
    networks = read_networks(known.networks, len(groups), str(source))
    paths = [folder / f"group-{network}" for network in networks]
    own = {name: each for name, each in (("factory", factory), ("inputs", inputs)) if each is not None}
    reference = known.reference
    if reference is not None and reference not in networks:
        raise FileFormatError(f"{source} names the reference {reference}; expected a group with a network of its own.")
    if reference is not None:
        _check_reference(folder / f"group-{reference}", known.reference_sha256)

    def read(network: int, base: SlimModel | None = None) -> SlimModel:
        if reference is None or network == reference:
            return load_slim(paths[network], **own)
        return load_difference(paths[network], base or load_slim(paths[reference], **own), **own)

    base = None if reference is None else read(reference)
    found: dict[int, SlimModel] = {}
    for network in dict.fromkeys(networks):
        slim = _found_in(folder, groups.groups[network], base if base and network == reference else read(network, base))
        found[network] = slim if resident == "all" else without_weights(slim)
    slims = shared(
        [replace(found[network], group=group) for group, network in zip(groups, networks, strict=True)], networks
    )
    experts = TimestepExperts(groups, slims, resident)
    _check_alike(folder, groups, slims)
    if resident == "one":
        loaders = [lambda network=network: read(network).model for network in networks]
        experts.read_from(loaders, paths if prefetch else ())
    if reference is not None:
        experts._stored = sum(_values_in(path) for path in dict.fromkeys(paths))
    experts.eval()
    return experts


def _values_in(folder: Path) -> int:
    """Number of values in a network's file."""
    file = next(path for path in (folder / WEIGHTS, folder / DIFFERENCE) if path.is_file())
    return sum(math.prod(shape) for shape in safetensors_shapes(file).values())


def _found_in(folder: Path, group: TimestepGroup, found: SlimModel) -> SlimModel:
    """The slim model of a timestep group's folder.

    Raises:
        FileFormatError: it is another group's.
    """
    if found.group != group:
        own, wanted = ((one.index, one.start, one.stop) for one in (found.group, group))
        raise FileFormatError(
            f"{folder} is inconsistent: group-{group.index} serves the timestep group {own}; expected {wanted}."
        )
    return found


def _check_reference(folder: Path, sha256: str | None) -> None:
    """Refuse a network that is not the one from which the others were stored as differences, if its hash is known."""
    if sha256 not in (None, read_json(folder / "config.json", SLIM)["sha256"]):
        raise FileFormatError(
            f"{folder} has been replaced, and the other networks are stored as differences from what was there; assemble the "
            "experts again, or copy them again."
        )


def _check_alike(folder: Path, groups: TimestepGroups, slims: Sequence[SlimModel]) -> None:
    """Refuse experts with different diffusion processes: one would be sampled with the schedule of another."""
    for slim in slims:
        where = f"group-{slim.group.index} of {folder}"
        if slim.num_timesteps != groups.num_timesteps:
            raise FileFormatError(f"{where} is of {slim.num_timesteps} timesteps; expected {groups.num_timesteps}.")
        for key, words in (("noise_schedule", "noise schedule"), ("prediction_type", "prediction type")):
            if slim.about.get(key) != slims[0].about.get(key):
                raise FileFormatError(f"{where} has another {words} than group-0; expected experts of one base.")
