"""Timestep experts: one drop-in denoiser that sends every sample to its timestep group's own network."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._files import atomic_folder, atomic_path, write_json
from prunekit._json import JsonDict, read_json
from prunekit._kinds import FolderKind, has_format
from prunekit._leftovers import restore
from prunekit._names import without_paths
from prunekit._types import FloatArray
from prunekit.card import experts_card
from prunekit.checkpoint import Factory, ModelSpec
from prunekit.checkpoint.hub import pushed
from prunekit.errors import FileFormatError, InputError
from prunekit.groups import TimestepGroups
from prunekit.nets.drop_in import DropInConfig, DropInOutput, rows_by_group, rows_of, scattered
from prunekit.results.formats import EXPERTS
from prunekit.slim import FOLDER as _SLIM
from prunekit.slim import SlimModel, load_slim, save_slim, slim_config

__all__ = ["FOLDER", "TimestepExperts", "load_experts", "save_experts"]

FOLDER = FolderKind(
    "experts",
    ("README.md",),
    {f"group-{digits}": _SLIM for digits in ("[0-9]", "[0-9][0-9]", "[0-9][0-9][0-9]")},
    marker="experts.json",
    is_ours=has_format(EXPERTS),
)
"""Files that :func:`save_experts` may replace."""


class TimestepExperts(nn.Module):
    """Routes each SAMPLE of a batch to the expert of its timestep's group.

    Usable as ``unet`` in diffusers' pipelines: it has ``config``, ``dtype`` and ``device`` and returns an object with ``sample``.

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
    def evaluates_alone(self) -> bool:
        """Whether a batch must not be evaluated in parts at the same time, since each part would load its own expert."""
        return self.resident == "one"

    @property
    def slims(self) -> list[SlimModel]:
        """The experts as slim models, ready to be saved, cleanest group first."""
        return [replace(slim, model=self.expert(index)) for index, slim in enumerate(self._told)]

    def save(self, folder: Path | str) -> None:
        """Write an experts folder, see :func:`save_experts`; :func:`load_experts` reads it.

        Raises:
            InputError: there is something else in the folder than earlier experts.
        """
        save_experts(self.slims, self.groups, folder)

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
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None  # frees the last expert before the next is read
            self._loaded = (index, self._loaders[index]().train(self.training))
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


def save_experts(
    slims: Sequence[SlimModel], groups: TimestepGroups, folder: Path | str, extra: JsonDict | None = None
) -> None:
    """Write an experts folder: ``experts.json``, one slim folder per group and a model card, atomically.

    Raises:
        InputError: there is something else in the folder than earlier experts.
    """
    folder = Path(folder)
    TimestepExperts(groups, slims)  # refuses experts that could not be loaded again
    extra = without_paths(extra or {})
    with atomic_folder(folder, FOLDER) as part:
        for slim in slims:
            save_slim(slim, part / f"group-{slim.group.index}")
        write_json(part / "experts.json", {**extra, **groups.to_json(), "format": EXPERTS})
        with atomic_path(part / "README.md") as card:
            card.write_text(experts_card([slim_config(slim) for slim in slims], extra), encoding="utf-8")


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
    groups = TimestepGroups.from_json(ExpertsFile.of(read_json(source, EXPERTS), str(source)), source)
    paths = [folder / f"group-{group.index}" for group in groups]
    own = {"factory": factory, "inputs": inputs} if factory else {}
    slims = [
        load_slim(path, **own) if resident == "all" else _without_weights(load_slim(path, **own)) for path in paths
    ]
    try:
        experts = TimestepExperts(groups, slims, resident)
    except InputError as error:
        raise FileFormatError(f"{folder} is inconsistent: {error}") from error
    _check_alike(folder, groups, slims)
    if resident == "one":
        experts._loaders = [lambda path=path: load_slim(path, **own).model for path in paths]  # type: ignore[misc]
    return experts.eval()


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
