"""Slim models on disk: a folder with ``model.safetensors`` and ``config.json``, rebuilt without pickle and without the base.

The config names an architecture of a fixed registry and the width of every changed tensor. A config can never make the loader
import or call anything: its class is looked up among the denoisers of diffusers, or the caller passes a factory.
It cannot make the loader allocate memory either: the network is first built and run on the meta device with the shapes from the
file's header, and the tensors are read only if all parts of the folder agree. ``README.md`` is the model card; it is never read.
"""

import copy
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prunekit._files import atomic_folder, atomic_path, json_hash, sha256_file, write_json
from prunekit._json import JsonDict, JsonObject, parse_json, read_json
from prunekit._kinds import FolderKind, has_format
from prunekit._leftovers import restore
from prunekit._messages import one_line
from prunekit._missing import check_slim
from prunekit._names import public_about
from prunekit.card import slim_card
from prunekit.checkpoint import Factory, ModelSpec
from prunekit.checkpoint.finite import check_finite
from prunekit.checkpoint.hub import pushed
from prunekit.checkpoint.metadata import check_kept, check_params, checked_prediction, counted, read_schedule
from prunekit.checkpoint.tensors import read_tensors, safetensors_metadata, safetensors_shapes
from prunekit.errors import FileFormatError, InputError, PlanError, PrunekitError
from prunekit.graph import PruningPlan, fit
from prunekit.graph.branch import Stub, is_within
from prunekit.graph.explaining import check_explained
from prunekit.graph.forward_pass import Inputs, run_once
from prunekit.graph.stubs import put_stubs, stubs_in
from prunekit.graph.surgery import all_tensors, are_gone
from prunekit.groups import TimestepGroup
from prunekit.results.formats import SLIM
from prunekit.schedule import TimeUnit

if TYPE_CHECKING:
    from prunekit.results.model_files import SlimFile

__all__ = [
    "FOLDER",
    "WEIGHTS",
    "SlimModel",
    "check_bound",
    "load_slim",
    "save_slim",
    "save_tensors",
    "slim_config",
    "with_shapes",
]

WEIGHTS = "model.safetensors"
"""Name of the file of a slim model's weights."""

FOLDER = FolderKind("slim model", ("model.safetensors", "README.md"), marker="config.json", is_ours=has_format(SLIM))
"""Folders that :func:`save_slim` may replace."""
_ABOUT = ("noise_schedule", "prediction_type", "time_unit", "pipeline_arguments", "data", "provenance")
_MISFITS = (
    PlanError,
    ArithmeticError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
)

_OF_IMAGES = ("DiTTransformer2DModel", "Transformer2DModel", "UNet2DModel")  # their inputs follow from the config alone
_BINDING = "config_sha256"  # in the metadata of the weights: hash of the config without the weights' hash
_log = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
Sizes = Mapping[str, Mapping[str, int]]


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
        InputError: the folder contains something else, or the model's stated number of parameters is wrong, so it could not be
            loaded again.
    """
    folder = Path(folder)
    try:
        check_params(slim.model, slim.params, "The slim model")
    except FileFormatError as error:
        raise InputError(str(error)) from error
    state = all_tensors(slim.model)
    check_plain(state)
    with atomic_folder(folder, FOLDER) as part:
        save_tensors(state, with_shapes(slim), part)


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


def _config_hash(config: JsonDict) -> str:
    """Hash of a config without the weights' hash, since the weights file cannot contain its own hash."""
    told = {key: value for key, value in config.items() if key != "sha256"}
    return json_hash(parse_json(json.dumps(told).encode(), "The config"))  # in the form in which it is read back


def load_slim(folder: Path | str, factory: Factory | nn.Module | None = None, inputs: Any = None) -> SlimModel:
    """Read a slim model's folder.

    Args:
        folder: a folder that :func:`save_slim` wrote.
        factory: builds the unpruned architecture from its config, or an unpruned network, for classes that diffusers does not have.
        inputs: arguments of one forward pass at batch 1, for networks outside the registry and those that take more than
            a sample and a timestep; with them the network is tested before it is returned.

    Raises:
        MissingFileError: the folder or one of its two files is missing.
        FileFormatError: hashes, shapes or names disagree, widths of layers do not fit each other, the config asks for a larger
            network than its file can hold, weights are not finite, or the format is another.
        InputError: the architecture is not in the registry, or does not take its config.
    """
    folder = Path(folder)
    restore(folder)
    check_slim(folder)
    source = folder / "config.json"
    data = read_json(source, SLIM)
    from prunekit.results.model_files import SlimFile  # noqa: PLC0415 - loads pydantic

    known = SlimFile.of(data, str(source))
    shapes = _checked_shapes(folder / "model.safetensors", known)
    told = ModelSpec.from_json(known.model)
    spec = told.with_factory(factory, told.inputs if inputs is None else inputs)
    plan, group = (
        PruningPlan.from_json(known.plan, f"The plan of {source}"),
        TimestepGroup.of(known.timestep_group),
    )
    if not group.start < group.stop <= known.num_timesteps:
        raise FileFormatError(
            f"{source} is for timesteps {group.start} to {group.stop} of {known.num_timesteps}; expected a range of them."
        )
    if known.noise_schedule is not None:
        read_schedule(known.noise_schedule, f"The noise schedule of {folder}", known.num_timesteps)
    if known.prediction_type is not None:
        checked_prediction(known.prediction_type, str(source))
    if known.time_unit is not None:
        TimeUnit.from_config(known.time_unit)
    sizes, macs = known.sizes, known.macs
    try:
        model = _fitted(folder, spec, shapes, known, plan)
    except PlanError as error:
        raise FileFormatError(f"{folder} does not fit its architecture: {error}") from error
    except PrunekitError:
        raise
    except _MISFITS as error:
        raise FileFormatError(f"{folder} does not fit its architecture: {one_line(error)}.") from error
    check_params(model, known.params, str(source))
    check_bound(folder / WEIGHTS, data)
    about = {key: data[key] for key in _ABOUT if key in data}
    return SlimModel(model.eval(), spec, plan, sizes, group, known.num_timesteps, macs, known.params, about)


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


def _checked_shapes(path: Path, config: "SlimFile") -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors by name, from the file's header, after a check that hash and config agree with it."""
    shapes = safetensors_shapes(path)
    if sha256_file(path) != config.sha256:
        raise FileFormatError(
            f"{path} is not the file that config.json describes (its SHA-256 differs); copy the folder again."
        )
    if {key: list(shape) for key, shape in shapes.items()} != config.shapes:
        raise FileFormatError(f"The tensors of {path} have other names or shapes than config.json says.")
    return shapes


def _fitted(folder: Path, spec: ModelSpec, shapes: Shapes, known: "SlimFile", plan: PruningPlan) -> nn.Module:
    """The network with the file's tensors; these are read only after a check that their shapes agree."""
    sizes, macs, stubs = known.sizes, known.macs, tuple(map(Stub.of, known.stubs or ()))
    _check_stubs(folder, stubs, plan)
    skeleton = spec.skeleton(shapes)
    unpruned = copy.deepcopy(skeleton) if stubs else skeleton
    put_stubs(skeleton, stubs)
    if stubs:
        _explain(spec, unpruned, plan, stubs)
    whole = all_tensors(skeleton)
    for name in whole.keys() & shapes.keys():
        full, sliced = tuple(whole[name].shape), shapes[name]
        if len(full) != len(sliced) or any(small > large for small, large in zip(sliced, full, strict=True)):
            raise FileFormatError(f"{name} in {folder} has shape {sliced}, more than its architecture's {full}.")
    if spec.factory is None:
        kept = {name: own for name, own in plan.kept.items() if not are_gone(name, stubs)}
        check_kept(replace(plan, kept=kept), skeleton, shapes, f"{folder}")
        _check_macs(folder, spec, _check_run(folder, spec, skeleton, unpruned, shapes, sizes), macs)
    model = fit(skeleton, read_tensors(folder / "model.safetensors"), sizes)
    check_finite(model, folder)
    if spec.factory is not None and spec.inputs is not None:
        own = spec.example_inputs()
        _check_macs(folder, spec, counted(lambda: run_once(model, own))[1], macs)
    return model


def _check_macs(folder: Path, spec: ModelSpec, found: int | None, macs: int) -> None:
    """Refuse MACs that do not match the tensors, unless they depend on the caller's inputs."""
    conditioned = spec.inputs is None and spec.class_name not in _OF_IMAGES
    if found is not None and found != macs and not conditioned:
        raise FileFormatError(f"{folder} says that an evaluation takes {macs:,} MACs; its tensors take {found:,}.")


def _check_stubs(folder: Path, stubs: Sequence[Stub], plan: PruningPlan) -> None:
    """Refuse stubs that are not those of the plan's branches."""
    if bool(stubs) != bool(plan.removed):
        raise FileFormatError(f"{folder} has a plan that removes {len(plan.removed)} branches, and {len(stubs)} stubs.")
    modules = {stub.module for stub in stubs}
    if len(modules) < len(stubs):
        raise FileFormatError(f"{folder} has {len(stubs)} stubs for {len(modules)} modules; expected one for each.")
    odd = next((name for name in plan.removed if not is_within(name.removeprefix("branch:"), modules)), None)
    if odd is not None:
        raise FileFormatError(f"{folder} has a plan that removes {odd[:80]!r}, and no stub for it.")


def _explain(spec: ModelSpec, unpruned: nn.Module, plan: PruningPlan, stubs: Sequence[Stub]) -> None:
    """Refuse stubs that the plan's branches do not explain, where a pass of the unpruned network can be run.

    A network of the registry is run on the meta device. A caller's network is built with its weights, and the caller gives inputs.

    Raises:
        PlanError: there is such a stub.
    """
    if spec.factory is not None and spec.inputs is None:
        return
    try:
        inputs = spec.example_inputs()
    except InputError:  # they cannot be derived from the config
        return
    if spec.factory is not None:
        check_explained(unpruned, [inputs], plan.removed, stubs)
        return
    with torch.device("meta"):
        check_explained(unpruned.to("meta"), [_on_meta(inputs)], plan.removed, stubs)


def _check_run(
    folder: Path, spec: ModelSpec, skeleton: nn.Module, whole: nn.Module, shapes: Shapes, sizes: Sizes
) -> int | None:
    """Run a pass with the file's widths on the meta device, which computes shapes only; if it fails, run an unpruned one too.

    Returns:
        MACs of the pass; None for an architecture with other inputs, which the caller can pass.

    Raises:
        FileFormatError: the tensors do not fit their layers, the layers do not fit each other, or the output is another.
    """
    with torch.device("meta"):
        sliced = fit(
            copy.deepcopy(skeleton).to("meta"), {name: torch.empty(shape) for name, shape in shapes.items()}, sizes
        ).float()
        try:
            inputs = _on_meta(spec.example_inputs())
        except InputError:  # the inputs cannot be derived from the config
            return None
        (failure, found), macs = counted(lambda: _output_shape(sliced, inputs))
        channels = spec.config.get("out_channels")
        if found is not None and (*found[:1], *found[2:]) == _image_shape(inputs) and found[1] == channels:
            return macs
        other, expected = _output_shape(copy.deepcopy(whole).to("meta"), inputs)
    if other is not None:
        return None
    if failure is not None:
        raise FileFormatError(f"The layers of {folder} contradict each other: {one_line(failure)}.") from failure
    if found != expected:
        raise FileFormatError(f"{folder} makes outputs of shape {found}; expected {expected}.")
    return macs


def _output_shape(model: nn.Module, inputs: Any) -> tuple[Exception | None, tuple[int, ...] | None]:
    """The error that stops a forward pass, or the shape of its first output."""
    try:
        return None, tuple(run_once(model, inputs)[0].shape)
    except _MISFITS as error:
        return error, None


def _image_shape(inputs: Any) -> tuple[int, ...]:
    """Batch, height and width of the noisy input."""
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    image = next((value for value in values if isinstance(value, Tensor) and value.ndim == 4), None)
    return () if image is None else (image.shape[0], *image.shape[2:])


def _on_meta(inputs: Inputs) -> Inputs:
    """Arguments of a forward pass without their values."""
    found: Inputs = tree_map(lambda one: one.to("meta") if isinstance(one, Tensor) else one, inputs)
    return found


def _own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU without shared memory, since safetensors refuses shared tensors."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        state[key] = own.clone() if own.untyped_storage().data_ptr() in seen else own
        seen.add(own.untyped_storage().data_ptr())
    return state
