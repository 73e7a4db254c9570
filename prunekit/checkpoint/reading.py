"""Base checkpoints of every form that users hold.

- ``.pt`` and ``.safetensors`` files written by :func:`prunekit.checkpoint.save_base`;
- bare state dicts and trainers' checkpoints (``.pt``, ``.pth``, ``.ckpt``, ``.bin``, ``.safetensors``) together with the
  architecture's config, or with a factory that builds the network;
- diffusers folders: a model's, or a whole pipeline's (its ``unet`` or ``transformer``, and its ``scheduler``);
- models of the Hugging Face Hub by their id (``owner/name``): configs and weights are fetched, never code.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from prunekit._files import sha256_file
from prunekit._json import read_json
from prunekit._types import JsonDict
from prunekit.checkpoint.base import Base
from prunekit.checkpoint.claims import checked_prediction, read_schedule
from prunekit.checkpoint.finite import check_finite
from prunekit.checkpoint.folders import fetched, is_hub_id, load_folder
from prunekit.checkpoint.spec import Factory, ModelSpec, shapes_of
from prunekit.checkpoint.tensors import read_content
from prunekit.checkpoint.weights import Weights, fitting, preferred
from prunekit.errors import FileFormatError

__all__ = ["load_base"]

_LOG = logging.getLogger(__name__)


def load_base(
    path: Path | str, config: Path | str | JsonDict | None = None, factory: Factory | None = None, inputs: Any = None
) -> Base:
    """Read a base checkpoint of any of the forms above.

    EMA weights are preferred where a file has them; :attr:`Base.notes` and the log (level INFO) say so.

    Args:
        path: a file, a diffusers folder, or the id of a model on the Hugging Face Hub where there is no such path.
        config: the architecture (``_class_name`` and its arguments) or a JSON file of it, for a bare state dict.
        factory: builds the network from the config's arguments, where its class is no denoiser of diffusers.
        inputs: arguments of one forward pass at batch 1, or a callable that makes them of the config; derived from the config if
            missing.

    Raises:
        MissingFileError: nothing is there, here or on the hub.
        UnsafeFileError: a pickle that would run code.
        FileFormatError: not a checkpoint, or its tensors do not fit its architecture, or are not finite.
    """
    where = Path(path)
    if not where.exists() and is_hub_id(str(path)):
        base = load_folder(fetched(str(path)), {"source": str(path), "base_model": str(path)})
    elif where.is_dir():
        base = load_folder(where, {"source": where.resolve().name})
    else:
        base = _load_file(where, config, factory, inputs)
    if inputs is not None and base.spec.factory is None:
        base = replace(base, spec=replace(base.spec, inputs=inputs))
    check_finite(base.model, where)
    for note in base.notes:
        _LOG.info(note)
    return base


def _load_file(path: Path, config: Path | str | JsonDict | None, factory: Factory | None, inputs: Any) -> Base:
    about, content = read_content(path)
    if config is not None:
        about = {**about, "model": config if isinstance(config, Mapping) else read_json(Path(config))}
    if "model" not in about and factory is None:
        preferred(content, path)  # refuses what holds no tensors
        raise FileFormatError(
            f"{path} is a bare state dict; give the architecture's JSON (with its _class_name) by --config."
        )
    schedule = read_schedule(about.get("noise_schedule", {"kind": "linear"}), f"The noise schedule of {path}")
    prediction_type = checked_prediction(about.get("prediction_type", "epsilon"), str(path))
    spec, model, weights = _filled(about.get("model"), content, path, factory, inputs)
    provenance = dict(about.get("provenance", {}))
    if weights.ema:
        provenance["weights"] = "ema"
    note = weights.note(path)
    return Base(
        model=model.eval(),
        spec=spec,
        schedule=schedule,
        prediction_type=prediction_type,
        data=about.get("data", {}),
        provenance=provenance,
        sha256=sha256_file(path),
        notes=(note,) if note else (),
    )


def _filled(
    data: JsonDict | None, content: Mapping[Any, Any], path: Path, factory: Factory | None, inputs: Any
) -> tuple[ModelSpec, nn.Module, Weights]:
    """The network with the file's weights; one of the registry is made only after the shapes were found to fit."""
    if factory is None:
        spec = ModelSpec.from_json(data)  # type: ignore[arg-type] # absent only beside a factory
        stored = shapes_of(preferred(content, path).state)
        weights = fitting(content, shapes_of(spec.skeleton(stored).state_dict()), spec.class_name, path)
        model = spec.build()
    else:
        named = data is not None and ("class" in data or "_class_name" in data)
        spec = ModelSpec.from_json(data if named else {"class": "", "config": data or {}})  # type: ignore[arg-type]
        spec = spec.with_factory(factory, inputs)
        model = spec.build()
        spec = spec if spec.class_name else ModelSpec(type(model).__name__, spec.config, factory, inputs)
        weights = fitting(content, shapes_of(model.state_dict()), spec.class_name, path)
    model.load_state_dict(weights.state)
    return spec, model, weights
