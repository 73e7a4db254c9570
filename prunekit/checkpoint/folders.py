"""Folders as diffusers saves them, here or on the Hugging Face Hub."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunekit._files import json_hash, sha256_file
from prunekit._json import read_json
from prunekit._messages import one_line
from prunekit._types import JsonDict
from prunekit.checkpoint.base import Base
from prunekit.checkpoint.bounds import check_schedule
from prunekit.checkpoint.claims import checked_prediction
from prunekit.checkpoint.denoisers import denoiser
from prunekit.checkpoint.spec import ModelSpec, shapes_of
from prunekit.checkpoint.tensors import read_content
from prunekit.checkpoint.weights import fitting
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.schedule import NoiseSchedule

__all__ = ["fetched", "is_hub_id", "load_folder"]

_WEIGHTS = "diffusion_pytorch_model"
_NETWORKS = ("unet", "transformer")
_CONFIGS = ("model_index.json", "config.json", "scheduler_config.json", "scheduler/scheduler_config.json")


def is_hub_id(name: str) -> bool:
    """Whether a name that is no path here reads like ``owner/name``; one in a folder that is here does not."""
    owner, _, model = name.partition("/")
    known = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and Path(name).suffix not in (
        ".pt",
        ".pth",
        ".ckpt",
        ".bin",
        ".safetensors",
        ".json",
    )
    return known and not Path(owner).exists() and owner.strip(".") != "" and model.strip(".") != ""


def fetched(hub_id: str) -> Path:
    """The local copy of a hub model's configs and weights, downloaded where it is not in the hub's cache; never code.

    Raises:
        MissingFileError: it is neither on the hub nor in the cache, or the hub cannot be reached.
    """
    import huggingface_hub  # noqa: PLC0415 - only hub ids need it

    folders = ("", *(f"{name}/" for name in _NETWORKS))
    configs = [*_CONFIGS, *(f"{name}/config.json" for name in _NETWORKS)]
    try:
        for suffix in ("safetensors", "bin"):
            wanted = [f"{folder}{_WEIGHTS}*.{suffix}" for folder in folders]
            found = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=[*configs, *wanted]))
            if _has_weights(found):
                break
    except Exception as error:  # its HTTP library's errors have changed their base from version to version
        raise MissingFileError(
            f"{hub_id} is no file or folder here, and could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}); check the name and the connection, or give a local path."
        ) from error
    return found


def _has_weights(folder: Path) -> bool:
    return any(any((folder / name).glob(f"{_WEIGHTS}*")) for name in ("", *_NETWORKS))


def load_folder(folder: Path, provenance: JsonDict) -> Base:
    """Read a model's folder, or a pipeline's with its scheduler.

    Raises:
        MissingFileError: configs or weights are missing.
        FileFormatError: a config is unknown or hostile, or the tensors do not fit it.
    """
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        name = next((key for key in _NETWORKS if key in index), None)
        if name is None:
            raise FileFormatError(f"The pipeline in {folder} has neither a unet nor a transformer to prune.")
        flat = not (folder / name).is_dir() and (folder / "config.json").is_file()  # as pipelines of 2022 were saved
        base = _load_model(folder if flat else folder / name, provenance)
        for config in ("scheduler/scheduler_config.json", "scheduler_config.json"):
            if (folder / config).is_file():
                schedule, prediction_type = _scheduler(folder / config)
                return replace(base, schedule=schedule, prediction_type=prediction_type)
        return base
    return _load_model(folder, provenance)


def _load_model(folder: Path, provenance: JsonDict) -> Base:
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"{folder} has no config.json or model_index.json; expected a diffusers folder.")
    spec = ModelSpec.from_json(read_json(folder / "config.json"))
    try:
        denoiser(spec.class_name)
    except InputError as error:
        raise FileFormatError(
            f"{folder} names {spec.class_name[:80]!r}; expected one of the installed diffusers' denoisers, such as UNet2DModel."
        ) from error
    files = _weight_files(folder)
    state = {key: value for file in files for key, value in read_content(file)[1].items()}
    shapes = shapes_of(
        spec.skeleton({str(key): getattr(value, "shape", ()) for key, value in state.items()}).state_dict()
    )
    weights = fitting(state, shapes, spec.class_name, folder)
    model = spec.build()
    model.load_state_dict(weights.state)
    variant = files[0].name.removeprefix(f"{_WEIGHTS}.").split(".")[0]
    odd = len(files) == 1 and files[0].name.count(".") > 1
    return Base(
        model=model.eval(),
        spec=spec,
        schedule=NoiseSchedule.linear(),
        provenance={**provenance, "weights": variant} if odd else dict(provenance),
        sha256=sha256_file(files[0]) if len(files) == 1 else json_hash([sha256_file(file) for file in files]),
        notes=(f"Reading the {variant} weights of {folder}; it has no others.",) if odd else (),
    )


def _weight_files(folder: Path) -> Sequence[Path]:
    """The weights in one file or in numbered shards; a variant (``fp16``) only where there is nothing else."""
    for suffix in ("safetensors", "bin"):
        whole = folder / f"{_WEIGHTS}.{suffix}"
        shards = sorted(folder.glob(f"{_WEIGHTS}-*-of-*.{suffix}"))
        variants = sorted(folder.glob(f"{_WEIGHTS}.*.{suffix}"))
        if whole.is_file() or shards or variants:
            return [whole] if whole.is_file() else shards or variants[:1]
    raise MissingFileError(f"{folder} has no {_WEIGHTS}.safetensors or .bin.")


def _scheduler(path: Path) -> tuple[NoiseSchedule, str]:
    """Noise schedule and prediction type of a diffusers scheduler's config; it may name scheduler classes only."""
    import diffusers  # noqa: PLC0415 - takes seconds, and only diffusers folders need it

    config = read_json(path)
    check_schedule(config, str(path))
    name = str(config.get("_class_name"))
    scheduler_class: Any = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not hasattr(scheduler_class, "from_config"):
        raise FileFormatError(
            f"{path} names {name[:80]!r}; expected a scheduler class of diffusers {diffusers.__version__}."
        )
    try:
        scheduler = scheduler_class.from_config(config)
    except (
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        NotImplementedError,
        RuntimeError,
        ImportError,
        MemoryError,
    ) as error:
        raise FileFormatError(f"{path} is no config that {name} takes ({one_line(error)}).") from error
    default = "flow_prediction" if "FlowMatch" in name else "epsilon"
    kind = checked_prediction(scheduler.config.get("prediction_type") or default, str(path))
    try:
        return NoiseSchedule.from_diffusers(scheduler), kind
    except (InputError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise FileFormatError(f"{path} describes no noise schedule that can be used ({one_line(error)}).") from error
