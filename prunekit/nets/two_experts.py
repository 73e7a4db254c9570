"""Two experts as the two denoisers of a pipeline that has two of its own (Wan 2.2), to run where prunekit is not installed.

Such a pipeline sends timesteps from ``boundary_ratio``·T on to its first denoiser and the cleaner ones to its second, which is the
rule of two timestep groups. Its folder has networks of diffusers' own classes only, so a config must describe each expert.
"""

import inspect
import shutil
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit._files import atomic_folder, write_json
from prunekit._json import JsonDict, JsonObject, read_json
from prunekit.checkpoint import ModelSpec
from prunekit.errors import InputError, MissingFileError, PrunekitError
from prunekit.graph.forward_pass import run_once
from prunekit.graph.surgery import all_tensors
from prunekit.nets.experts import TimestepExperts
from prunekit.slim import SlimModel

__all__ = ["as_diffusers", "write_two_experts"]

_NAMES = ("transformer", "transformer_2")
_BOUNDARY = "boundary_ratio"
_INDEX = "model_index.json"


def write_two_experts(experts: TimestepExperts, pipeline: Path | str, output: Path | str) -> None:
    """Copy a pipeline's folder with two experts in place of its denoisers.

    Args:
        experts: two of them, or one network for each of two groups.
        pipeline: the folder of a pipeline whose class takes ``transformer``, ``transformer_2`` and ``boundary_ratio``.
        output: folder to write; it is missing or empty.

    Raises:
        MissingFileError: there is no pipeline in the folder.
        InputError: there are not two groups, the pipeline's class has no two denoisers, or a config of diffusers cannot describe
            an expert's widths.
    """
    source, output = Path(pipeline), Path(output)
    if not (source / _INDEX).is_file():
        raise MissingFileError(f"{source / _INDEX} does not exist; expected the folder of a diffusers pipeline.")
    index = dict(read_json(source / _INDEX))
    _check(experts, index)
    clean, noisy = (as_diffusers(slim) for slim in experts.slims)
    with atomic_folder(output) as part:
        for place in source.iterdir():
            if place.name in (*_NAMES, _INDEX):
                continue
            (shutil.copytree if place.is_dir() else shutil.copy2)(place, part / place.name)
        for name, network in zip(_NAMES, (noisy, clean), strict=True):
            network.save_pretrained(part / name)  # type: ignore[operator]
            index[name] = ["diffusers", type(network).__name__]
        index[_BOUNDARY] = _ratio(experts.groups.cuts[0], experts.groups.num_timesteps)
        write_json(part / _INDEX, index)


def as_diffusers(slim: SlimModel) -> nn.Module:
    """An expert as a network of its diffusers class, found by its widths and compared with it.

    Args:
        slim: the expert.

    Raises:
        InputError: no config of the class has such widths, or the network that has them computes something else.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in slim.model.state_dict().items()}
    config = _config_of(slim.spec, shapes)
    network = ModelSpec(slim.spec.class_name, config).build().to(next(slim.model.parameters()).dtype)
    network.load_state_dict(slim.model.state_dict())
    inputs = slim.spec.example_inputs()
    if isinstance(inputs, Mapping):
        inputs = {name: _drawn(value) for name, value in inputs.items()}
    with torch.no_grad():
        found, expected = run_once(network.eval(), inputs)[0], run_once(slim.model, inputs)[0]
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
        raise InputError(
            f"A {slim.spec.class_name} of the widths of group {slim.group.index} computes something else than the expert; expected "
            "an expert that keeps the base's widths, or whole parts that a config counts."
        )
    return network


def _check(experts: TimestepExperts, index: JsonDict) -> None:
    """Refuse other numbers of experts, and pipelines that have no two denoisers."""
    if len(experts.groups) != 2:
        raise InputError(f"Got {len(experts.groups)} timestep groups; expected two, for {' and '.join(_NAMES)}.")
    import diffusers  # noqa: PLC0415 - its import structure is read on use

    name = str(index.get("_class_name"))
    kind = getattr(diffusers, name, None) if name.isidentifier() and not name.startswith("_") else None
    takes = set(inspect.signature(kind).parameters) if inspect.isclass(kind) else set()
    if not {*_NAMES, _BOUNDARY} <= takes:
        raise InputError(
            f"{name[:80]} has no two denoisers of its own; expected a pipeline that takes {', '.join((*_NAMES, _BOUNDARY))}, such "
            "as WanPipeline."
        )


def _config_of(spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> JsonObject:
    """The config whose network has tensors of these shapes.

    Raises:
        InputError: none was found.
    """
    config = dict(spec.config)
    wrong = _differing(spec.class_name, config, shapes)
    while wrong:
        better = next(_better(spec.class_name, config, shapes, wrong), None)
        if better is None:
            name, wanted = next(iter(wrong.items()))
            raise InputError(
                f"{name} of the expert has shape {shapes.get(name)}, where a {spec.class_name} with the nearest config has "
                f"{wanted}; expected an expert that keeps the base's widths, or has one width in all blocks."
            )
        config, wrong = better
    return config


def _better(
    class_name: str, config: JsonObject, shapes: Mapping[str, tuple[int, ...]], wrong: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[JsonObject, dict[str, tuple[int, ...]]]]:
    """Configs with one other whole number that leave fewer tensors with another shape."""
    ratios = {
        Fraction(own, full)
        for name, whole in wrong.items()
        for own, full in zip(shapes.get(name, ()), whole, strict=False)
        if own != full
    }
    for key, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        for ratio in sorted(ratios):
            if (value * ratio).denominator == 1 and value * ratio > 0:
                changed = {**config, key: int(value * ratio)}
                left = _differing(class_name, changed, shapes)
                if len(left) < len(wrong):
                    yield changed, left


def _differing(class_name: str, config: JsonDict, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a config's network that are others than the given ones; all of them if it cannot be built."""
    try:
        with torch.device("meta"):
            own = all_tensors(ModelSpec(class_name, config).build())
    except PrunekitError:
        return {name: () for name in [*shapes, "another"]}
    return {name: tuple(one.shape) for name, one in own.items() if name in shapes and shapes[name] != tuple(one.shape)}


def _ratio(cut: int, count: int) -> float:
    """A number that times T is the border, so that the pipeline compares timesteps with the border itself."""
    found = cut / count
    while found * count > cut:
        found = float(torch.nextafter(torch.tensor(found, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)))
    return found


def _drawn(value: object) -> object:
    """Random numbers like an example input; integers stay."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
        return value
    return torch.randn(value.shape, generator=torch.Generator().manual_seed(0)).to(value.dtype)
