"""Timestep experts: one drop-in denoiser that sends every sample to its timestep group's own network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._files import atomic_folder, atomic_path, write_json
from prunekit._json import JsonDict, JsonObject, read_json
from prunekit._kinds import FolderKind, has_format
from prunekit._leftovers import restore
from prunekit._names import without_paths
from prunekit._types import FloatArray
from prunekit.card import experts_card
from prunekit.checkpoint import Factory, ModelSpec
from prunekit.checkpoint.hub import pushed
from prunekit.checkpoint.tensors import safetensors_shapes
from prunekit.conditions import rows_of
from prunekit.errors import FileFormatError, InputError
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.nets.differences import FILE as DIFFERENCE
from prunekit.nets.differences import load_difference, save_difference
from prunekit.nets.drop_in import DropInConfig, DropInOutput, rows_by_group, scattered
from prunekit.nets.sharing import read_networks, shared, shared_networks
from prunekit.results.formats import EXPERTS
from prunekit.slim import FOLDER as _SLIM
from prunekit.slim import WEIGHTS, SlimModel, load_slim, save_slim, slim_config

__all__ = ["FOLDER", "TimestepExperts", "load_experts", "save_experts"]

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


class TimestepExperts(nn.Module):
    """Routes each SAMPLE of a batch to the expert of its timestep's group.

    Usable as ``unet`` in diffusers' pipelines: it has ``config``, ``dtype`` and ``device`` and returns an object with ``sample``.
    Groups whose slim models hold the same module share it: it is in memory once, and training it changes all of them.

    Args:
        groups: the partition of the timesteps.
        slims: one slim model for each group, in order.
        resident: ``all`` keeps every expert in memory; ``one`` keeps only the last used expert and loads another when needed.

    Raises:
        InputError: the slim models do not match the groups.
    """

    def __init__(self, groups: TimestepGroups, slims: Sequence[SlimModel], resident: str = "all") -> None:
        super().__init__()
        self._cuts: Tensor
        self._like: Tensor
        found = [slim.group for slim in slims]
        if found != list(groups):
            raise InputError(
                f"The slim models serve timestep groups {[(g.index, g.start, g.stop) for g in found]}; "
                f"expected one for each of {[(g.index, g.start, g.stop) for g in groups]}."
            )
        if resident not in ("all", "one"):
            raise InputError(f"Unknown residency {resident!r}; expected 'all' or 'one'.")
        self.groups = groups
        self.about = dict(slims[0].about)
        self.spec: ModelSpec = slims[0].spec
        self.macs = tuple(slim.macs for slim in slims)
        self.params = tuple(slim.params for slim in slims)
        self.resident = resident
        self.networks: tuple[int, ...] = _by_module(slims)
        self._stored = 0
        self.experts = nn.ModuleList([slim.model for slim in slims] if resident == "all" else [])
        self._told = tuple(_without_weights(slim) for slim in slims)
        self._loaders: list[Callable[[], nn.Module]] = []
        if resident == "one":  # these still hold all weights; load_experts replaces them by loaders that read from disk
            self._loaders = [lambda model=slim.model: model for slim in slims]  # type: ignore[misc]
        self._loaded: tuple[int, nn.Module] | None = None
        # integers, so a change of dtype leaves them exact
        self.register_buffer("_cuts", torch.tensor(groups.cuts, dtype=torch.int64), persistent=False)
        weight = next(slims[0].model.parameters(), torch.empty(0))
        # follows the module's device and dtype, even while no expert is resident
        self.register_buffer("_like", weight.new_empty(0), persistent=False)
        self.config = DropInConfig.of(self.spec.config)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._like.device

    @property
    def stored_params(self) -> int:
        """Number of parameters of all experts, where a network that several groups share counts once.

        For experts that were read from a folder of differences, it is the number of values in its files.
        """
        return self._stored or sum(self.params[network] for network in set(self.networks))

    @property
    def resident_params(self) -> int:
        """Number of parameters in memory at a time: all different ones, or with ``resident="one"`` the largest network's."""
        if self.resident == "one":
            return max(self.params)
        return sum(parameter.numel() for parameter in self.parameters())

    def evaluates_alone(self) -> bool:
        """Whether a batch must not be evaluated in parts at the same time, since each part would load its own expert."""
        return self.resident == "one"

    @property
    def slims(self) -> list[SlimModel]:
        """The experts as slim models, ready to be saved, cleanest group first."""
        return [replace(slim, model=self.expert(index)) for index, slim in enumerate(self._told)]

    def save(self, folder: Path | str, share: float | None = None) -> None:
        """Write an experts folder, see :func:`save_experts`; :func:`load_experts` reads it.

        Args:
            folder: folder to write.
            share: tolerance for storing differences from the largest network; None stores every network whole.

        Raises:
            InputError: there is something else in the folder than earlier experts.
        """
        save_experts(self.slims, self.groups, folder, share=share)

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Push the experts with the model card to the Hugging Face Hub; returns the page of the commit.

        Args:
            repo_id: ``name`` or ``user/name``; it is created if it does not exist.
            private: whether a new repository is private (default: as the account or organisation sets it).
            token: the hub's access token (default: that of ``hf auth login``, or of the variable ``HF_TOKEN``).

        Raises:
            InputError: the hub refuses, or cannot be reached.
        """
        with TemporaryDirectory() as folder:
            self.save(Path(folder) / "model")
            return pushed(Path(folder) / "model", repo_id, private, token)

    def mean_macs(self, sampling_steps: Sequence[int] | FloatArray) -> float:
        """Mean MACs per evaluation over a sampler's timesteps."""
        shares = self.groups.shares(np.asarray(sampling_steps, dtype=np.int64))
        return float(shares @ np.array(self.macs, dtype=np.float64))

    def expert(self, index: int) -> nn.Module:
        """The network of a timestep group, loaded if it is not resident."""
        if self.resident == "all":
            return self.experts[index]
        network = self.networks[index]
        if self._loaded is None or self._loaded[0] != network:
            self._loaded = None  # frees the last expert before the next is read
            self._loaded = (network, self._loaders[network]().train(self.training))
        return self._loaded[1].to(self._like)

    def forward(
        self, sample: Tensor, timestep: Tensor | float | int, *args: Any, return_dict: bool = True, **kwargs: Any
    ) -> DropInOutput | tuple[Tensor]:
        """Predict with each sample's own expert.

        Args:
            sample: noisy input, shape (batch, channels, height, width).
            timestep: a number, or shape (), (1,) or (batch,); fractional ones belong to the group that contains them.
            args: passed on unchanged to every expert; per-sample tensors must be passed by name.
            return_dict: False returns a tuple.
            kwargs: passed on; tensors with the batch as first dimension are split like the batch.

        Raises:
            InputError: there are neither one nor as many timesteps as samples, or there are no samples.
        """
        batch, output = len(sample), sample.new_empty(0)
        for index, rows in rows_by_group(self.groups, self._cuts.to(sample.device), timestep, batch):
            own = {key: rows_of(value, rows, batch) for key, value in kwargs.items()}
            times = timestep if rows is None else torch.as_tensor(timestep, device=sample.device)[rows]
            part = self.expert(index)(rows_of(sample, rows, batch), times, *args, return_dict=False, **own)[0]
            output = scattered(output, part, rows, batch)
        return DropInOutput(output) if return_dict else (output,)


def _by_module(slims: Sequence[SlimModel]) -> tuple[int, ...]:
    """For each slim model, the index of the first one that holds the same module."""
    modules = [slim.model for slim in slims]
    return tuple(next(other for other, model in enumerate(modules) if model is own) for own in modules)


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
        write_json(part / "experts.json", {**extra, **groups.to_json(), **some, "format": EXPERTS})
        with atomic_path(part / "README.md") as card:
            card.write_text(experts_card([slim_config(slim) for slim in slims], extra, networks), encoding="utf-8")


def load_experts(
    folder: Path | str, resident: str = "all", factory: Factory | nn.Module | None = None, inputs: Any = None
) -> TimestepExperts:
    """Read an experts folder.

    Args:
        folder: a folder that :func:`save_experts` wrote.
        resident: ``all``, or ``one`` to hold a single expert in memory at a time.
        factory: builds the unpruned architecture, as for :func:`prunekit.slim.load_slim`.
        inputs: arguments of one forward pass, as for :func:`prunekit.slim.load_slim`.

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
    own = {"factory": factory, "inputs": inputs} if factory else {}
    reference = known.reference
    if reference is not None and reference not in networks:
        raise FileFormatError(f"{source} names the reference {reference}; expected a group with a network of its own.")

    def read(network: int, base: SlimModel | None = None) -> SlimModel:
        if reference is None or network == reference:
            return load_slim(paths[network], **own)
        return load_difference(paths[network], base or load_slim(paths[reference], **own), **own)

    base = None if reference is None else read(reference)
    found: dict[int, SlimModel] = {}
    for network in dict.fromkeys(networks):
        slim = _found_in(folder, groups.groups[network], base if base and network == reference else read(network, base))
        found[network] = slim if resident == "all" else _without_weights(slim)
    slims = shared(
        [replace(found[network], group=group) for group, network in zip(groups, networks, strict=True)], networks
    )
    experts = TimestepExperts(groups, slims, resident)
    _check_alike(folder, groups, slims)
    if resident == "one":
        experts._loaders = [lambda network=network: read(network).model for network in networks]  # type: ignore[misc]
    if reference is not None:
        experts._stored = sum(_values_in(path) for path in dict.fromkeys(paths))
    return experts.eval()


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


def _check_alike(folder: Path, groups: TimestepGroups, slims: Sequence[SlimModel]) -> None:
    """Refuse experts with different diffusion processes: one would be sampled with the schedule of another."""
    for slim in slims:
        where = f"group-{slim.group.index} of {folder}"
        if slim.num_timesteps != groups.num_timesteps:
            raise FileFormatError(f"{where} is of {slim.num_timesteps} timesteps; expected {groups.num_timesteps}.")
        for key, words in (("noise_schedule", "noise schedule"), ("prediction_type", "prediction type")):
            if slim.about.get(key) != slims[0].about.get(key):
                raise FileFormatError(f"{where} has another {words} than group-0; expected experts of one base.")


def _without_weights(slim: SlimModel) -> SlimModel:
    """The same slim model with one empty parameter of the same dtype as its network, so that the memory is freed."""
    stub = nn.ParameterList([parameter.new_empty(0) for parameter in slim.model.parameters()][:1])
    return replace(slim, model=stub)
