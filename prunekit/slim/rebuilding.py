"""How a slim model's folder is read: checked on the meta device with the shapes of the file's header before any tensor is read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prunekit._files import json_hash, sha256_file
from prunekit._json import read_json
from prunekit._leftovers import restore
from prunekit._messages import one_line
from prunekit._missing import check_slim
from prunekit.checkpoint import Factory, ModelSpec
from prunekit.checkpoint.denoisers import denoiser
from prunekit.checkpoint.finite import check_finite
from prunekit.checkpoint.metadata import check_kept, check_params, checked_prediction, counted, read_schedule
from prunekit.checkpoint.tensors import read_tensors, safetensors_shapes
from prunekit.errors import FileFormatError, InputError, PlanError, PrunekitError
from prunekit.graph import PruningPlan, fit
from prunekit.graph.branch import Stub, is_within
from prunekit.graph.copying import copied
from prunekit.graph.explaining import check_explained
from prunekit.graph.forward_pass import Inputs, run_once
from prunekit.graph.stubs import put_stubs
from prunekit.graph.surgery import all_tensors, are_gone, without_own_saving
from prunekit.groups import TimestepGroup
from prunekit.results.formats import SLIM
from prunekit.schedule import TimeUnit
from prunekit.slim.storing import WEIGHTS, SlimModel, check_bound

if TYPE_CHECKING:
    from prunekit.results.model_files import SlimFile

__all__ = ["load_slim"]

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

_RUNS: dict[str, int | None] = {}
"""What :func:`_check_run` found, by all that it depends on. A run reads the same shapes often: pruned, tuned, put together."""

Shapes = Mapping[str, tuple[int, ...]]
Sizes = Mapping[str, Mapping[str, int]]


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
        _check_class(spec)
        model = _fitted(folder, spec, shapes, known, plan, {} if inputs is not None else _RUNS)
    except PlanError as error:
        raise FileFormatError(f"{folder} does not fit its architecture: {error}") from error
    except PrunekitError:
        raise
    except _MISFITS as error:
        raise FileFormatError(f"{folder} does not fit its architecture: {one_line(error)}.") from error
    check_params(model, known.params, str(source))
    check_bound(folder / WEIGHTS, data)
    about = {key: data[key] for key in _ABOUT if key in data}
    model = without_own_saving(model.eval(), plan)
    return SlimModel(model, spec, plan, sizes, group, known.num_timesteps, macs, known.params, about)


def _check_class(spec: ModelSpec) -> None:
    """Refuse a class that diffusers does not have, unless the caller gave the network."""
    if spec.factory is not None:
        return
    try:
        denoiser(spec.class_name)
    except InputError as error:
        raise InputError(
            f"{error} Pass the unpruned network and its example inputs: load_slim(folder, network, inputs)."
        ) from error


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


def _fitted(
    folder: Path,
    spec: ModelSpec,
    shapes: Shapes,
    known: "SlimFile",
    plan: PruningPlan,
    runs: dict[str, int | None],
) -> nn.Module:
    """The network with the file's tensors; these are read only after a check that their shapes agree.

    Args:
        folder: the slim model's folder.
        spec: its architecture.
        shapes: of the file's tensors, by name.
        known: what config.json says.
        plan: what was pruned.
        runs: what runs with the file's own inputs have found; a new one is added.
    """
    sizes, macs, stubs = known.sizes, known.macs, tuple(map(Stub.of, known.stubs or ()))
    _check_stubs(folder, stubs, plan)
    skeleton = spec.skeleton(shapes)
    unpruned = copied(skeleton) if stubs else skeleton
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
        same = json_hash([known.model, known.shapes, sizes, [stub.to_json() for stub in stubs]])
        if same not in runs:
            runs[same] = _check_run(folder, spec, skeleton, unpruned, shapes, sizes)
        _check_macs(folder, spec, runs[same], macs)
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
            copied(skeleton).to("meta"), {name: torch.empty(shape) for name, shape in shapes.items()}, sizes
        ).float()
        try:
            inputs = _on_meta(spec.example_inputs())
        except InputError:  # the inputs cannot be derived from the config
            return None
        (failure, found), macs = counted(lambda: _output_shape(sliced, inputs))
        channels = spec.config.get("out_channels")
        if found is not None and (*found[:1], *found[2:]) == _image_shape(inputs) and found[1] == channels:
            return macs
        other, expected = _output_shape(copied(whole).to("meta"), inputs)
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
