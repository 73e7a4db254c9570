"""Reads base checkpoints in every common form.

- ``.pt`` and ``.safetensors`` files written by :func:`prunekit.checkpoint.save_base`;
- bare state dicts and trainers' checkpoints (``.pt``, ``.pth``, ``.ckpt``, ``.bin``, ``.safetensors``) together with the
  architecture's config, or with a factory that builds the network;
- diffusers folders: a model's, or a whole pipeline's (its ``unet`` or ``transformer``, and its ``scheduler``);
- ``checkpoint-N`` folders of training scripts, and accelerate's folders together with the architecture's config;
- models of the Hugging Face Hub by their id (``owner/name``): configs and weights are fetched, never code;
- the bases that prunekit ships, ``embedded:digits`` and ``embedded:fashion``.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from torch import nn

from prunekit._files import sha256_file
from prunekit._json import JsonDict, read_json
from prunekit._missing import EMBEDDED, is_hub_id
from prunekit.checkpoint.asked import Asked, Task
from prunekit.checkpoint.base import Base
from prunekit.checkpoint.configs import found_config
from prunekit.checkpoint.finite import check_finite
from prunekit.checkpoint.folders import is_weights_folder, load_folder, load_weights_folder
from prunekit.checkpoint.hub import fetched
from prunekit.checkpoint.layouts import Target, says_ema
from prunekit.checkpoint.metadata import checked_prediction, read_schedule
from prunekit.checkpoint.spec import Factory, ModelSpec
from prunekit.checkpoint.tensors import read_content
from prunekit.checkpoint.weights import Weights, fitting, shapes_within
from prunekit.errors import FileFormatError, InputError
from prunekit.schedule import NoiseSchedule

__all__ = ["load_base"]

_LOG = logging.getLogger(__name__)


def load_base(
    path: Path | str,
    config: Path | str | JsonDict | None = None,
    factory: Factory | None = None,
    inputs: Any = None,
    *,
    weights: str | None = None,
    noise_schedule: NoiseSchedule | str | None = None,
    prediction_type: str | None = None,
) -> Base:
    """Read a base checkpoint of any of the forms above.

    EMA weights are preferred if a file has them. :attr:`Base.notes` and the log (level INFO) list this and all other choices and
    assumptions.

    Args:
        path: a file, a diffusers folder, the name of a shipped base, or, if there is no such path, the id of a model on the Hugging
            Face Hub.
        config: the architecture (``_class_name`` and its arguments) or a JSON file of it, for a bare state dict.
        factory: builds the network from the config's arguments, if its class is not a denoiser of diffusers.
        inputs: arguments of one forward pass at batch 1, or a callable that makes them from the config; derived from the config if
            missing.
        weights: ``ema`` or ``raw`` to accept only these.
        noise_schedule: overrides the files: a schedule, or a text as for :func:`prunekit.checkpoint.named_schedule`.
        prediction_type: overrides the files.

    Raises:
        MissingFileError: the checkpoint exists neither locally nor on the hub.
        UnsafeFileError: it is a pickle that would run code.
        FileFormatError: it is not a checkpoint, or its tensors do not fit its architecture or are not finite.
        InputError: it does not have the requested weights, the noise schedule or the prediction type is unknown, or no shipped base
            has this name.
    """
    if str(path).startswith(EMBEDDED):
        with as_file(_shipped(str(path).removeprefix(EMBEDDED))) as file:
            return load_base(
                file,
                config,
                factory,
                inputs,
                weights=weights,
                noise_schedule=noise_schedule,
                prediction_type=prediction_type,
            )
    where, asked = Path(path), Asked(weights, noise_schedule, prediction_type)
    if not where.exists() and is_hub_id(str(path)):
        base = load_folder(fetched(str(path)), {"source": str(path), "base_model": str(path)}, asked)
    elif where.is_dir() and config is not None and is_weights_folder(where):
        base = load_weights_folder(where, _architecture(config), {"source": where.resolve().name}, asked)
    elif where.is_dir():
        base = load_folder(where, {"source": where.resolve().name}, asked)
    else:
        base = _load_file(where, config, factory, inputs, asked)
    if inputs is not None and base.spec.factory is None:
        base = replace(base, spec=replace(base.spec, inputs=inputs))
    check_finite(base.model, where)
    for note in base.notes:
        _LOG.info(note)
    return base


def _shipped(name: str) -> Traversable:
    asset = files("prunekit") / "assets" / f"{name}-base.safetensors"
    if not name.isalnum() or not asset.is_file():
        raise InputError(f"There is no embedded base {name!r}; expected embedded:digits, embedded:fashion, or a path.")
    return asset


def _load_file(
    path: Path, config: Path | str | JsonDict | None, factory: Factory | None, inputs: Any, asked: Asked
) -> Base:
    path, beside = _of_two(path, asked.weights)
    about, content = read_content(path)
    if config is not None:
        about = {**about, "model": _architecture(config)}
    if "model" not in about and factory is None:
        shapes_within(content, path)  # refuses what holds no tensors
        raise FileFormatError(
            f"{path} is a bare state dict; give the architecture's JSON (with its _class_name) by `config`."
        )
    parameterization, notes = asked.completed(_task(about, path), path)
    if factory is None:
        found = found_config(about["model"])
        spec, model, weights = _of_registry(found.spec, content, path, asked)
    else:
        found = None
        spec, model, weights = _of_factory(about.get("model"), factory, inputs, content, path, asked)
    provenance = dict(about.get("provenance", {}))
    if weights.ema:
        provenance["weights"] = "ema"
    note = " ".join(each for each in (weights.note(path), beside) if each)
    return Base(
        model=model.eval(),
        spec=spec,
        parameterization=parameterization,
        data=about.get("data", {}),
        provenance=provenance,
        sha256=sha256_file(path),
        notes=(*((note,) if note else ()), *(found.notes(path) if found else ()), *notes),
    )


def _architecture(config: Path | str | JsonDict) -> JsonDict:
    return config if isinstance(config, Mapping) else read_json(Path(config), infinities=True)


def _task(about: JsonDict, path: Path) -> Task:
    """The noise schedule and prediction type that a checkpoint states."""
    schedule = about.get("noise_schedule")
    kind = about.get("prediction_type")
    return Task(
        None if schedule is None else read_schedule(schedule, f"The noise schedule of {path}"),
        None if kind is None else checked_prediction(kind, str(path)),
    )


def _of_two(path: Path, weights: str | None) -> tuple[Path, str]:
    """A file, or the other of two that improved-diffusion writes at a step: ``model000500.pt`` and ``ema_0.9999_000500.pt``.

    Raises:
        InputError: there are several averages, or the raw weights that were asked for are missing.
    """
    averaged = re.fullmatch(r"ema_[\d.]+_(\d+)\.pt", path.name)
    if averaged is not None:
        raw = path.with_name(f"model{averaged[1]}.pt")
        if weights == "raw" and not raw.is_file():
            raise InputError(f"{path} has EMA weights, and {raw.name} is not beside it; leave `weights` raw out.")
        return (raw, f"Reading the raw weights of {raw}, not {path.name}.") if weights == "raw" else (path, "")
    step = re.fullmatch(r"model(\d+)\.pt", path.name)
    others = sorted(path.parent.glob(f"ema_*_{step[1]}.pt")) if step is not None and path.is_file() else []
    if not others or weights == "raw":
        return path, ""
    names = ", ".join(one.name for one in others)
    if weights is None:
        return path, f"Reading the raw weights of {path}, not its EMA weights in {names}: give that file for those."
    if len(others) > 1:
        raise InputError(f"{path} has several EMA weights beside it ({names}); give one of these files.")
    return others[0], ""


def _of_registry(
    spec: ModelSpec, content: Mapping[Any, Any], path: Path, asked: Asked
) -> tuple[ModelSpec, nn.Module, Weights]:
    """A network of the registry with the file's weights; it is made only after the shapes were found to fit."""
    skeleton = spec.skeleton(shapes_within(content, path))
    weights = fitting(content, Target.of(skeleton, spec.class_name), path, asked.weights, says_ema(path.stem))
    model = spec.build()
    model.load_state_dict(weights.state)
    return spec, model, weights


def _of_factory(
    data: JsonDict | None, factory: Factory, inputs: Any, content: Mapping[Any, Any], path: Path, asked: Asked
) -> tuple[ModelSpec, nn.Module, Weights]:
    """A network that the caller builds, with the file's weights."""
    named = isinstance(data, Mapping) and ("class" in data or "_class_name" in data)
    spec = ModelSpec.from_json(data if named else {"class": "", "config": data or {}})  # type: ignore[arg-type]
    spec = spec.with_factory(factory, inputs)
    model = spec.build()
    spec = spec if spec.class_name else ModelSpec(type(model).__name__, spec.config, factory, inputs)
    weights = fitting(content, Target.of(model, spec.class_name), path, asked.weights, says_ema(path.stem))
    model.load_state_dict(weights.state)
    return spec, model, weights
