"""Folders of weights: diffusers' models and pipelines, and the ``checkpoint-N`` folders of training scripts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit._json import JsonDict, JsonObject, read_json
from prunekit.checkpoint.asked import Asked, Task
from prunekit.checkpoint.base import Base
from prunekit.checkpoint.configs import FoundConfig, found_config, read_config
from prunekit.checkpoint.layouts import Target
from prunekit.checkpoint.scheduler import read_scheduler
from prunekit.checkpoint.tensors import read_content
from prunekit.checkpoint.weight_files import ACCELERATE, DIFFUSERS, WeightFiles, weight_files
from prunekit.checkpoint.weights import fitting, shapes_within
from prunekit.errors import FileFormatError, InputError, MissingFileError, UnsafeFileError

__all__ = ["NETWORKS", "SCHEDULERS", "is_weights_folder", "load_folder", "load_weights_folder"]

NETWORKS = ("unet", "transformer")
"""Folders of a pipeline that may have the network to prune."""
_EMA = "_ema"
SCHEDULERS = ("scheduler/scheduler_config.json", "scheduler_config.json")
"""Where a scheduler's config may be, from a network's or a pipeline's folder."""


@dataclass(frozen=True)
class _Place:
    """A network's folder, and what is known of it from the folders around."""

    folder: Path
    ema: bool = False
    note: str = ""


@dataclass(frozen=True, eq=False)
class _Found:
    """A network's parts on disk.

    Args:
        place: its folder.
        config: its architecture.
        files: its weights.
        content: their contents, possibly with a moving average.
        ema: whether they are known to be a moving average.
    """

    place: _Place
    config: FoundConfig
    files: WeightFiles
    content: Mapping[Any, Any]
    ema: bool = False


def load_folder(folder: Path, provenance: JsonDict, asked: Asked) -> Base:
    """Read a network's folder, a pipeline's, or a training script's ``checkpoint-N``.

    Raises:
        MissingFileError: configs or weights are missing.
        FileFormatError: a config is unknown or hostile, or the tensors do not fit it.
        InputError: the folder does not have the weights that were asked for.
    """
    place = _network(folder, asked.weights)
    config = read_config(place.folder / "config.json")
    ema = place.ema or config.ema
    if ema and asked.weights == "raw":
        raise InputError(
            f"{place.folder} has EMA weights; leave `weights` raw out, or give the folder of the raw ones."
        )
    files = weight_files(place.folder, (*DIFFUSERS, *ACCELERATE), None if ema else asked.weights)
    return _loaded(folder, _Found(place, config, files, files.read(), ema), provenance, asked)


def is_weights_folder(folder: Path) -> bool:
    """Whether a folder has weights of accelerate's without the architecture's config."""
    named = any(
        path.name.startswith(ACCELERATE) and path.suffix in (".safetensors", ".bin") for path in folder.iterdir()
    )
    return named and not (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()


def load_weights_folder(folder: Path, config: JsonDict, provenance: JsonDict, asked: Asked) -> Base:
    """Read weights that accelerate saved, for a network given by its config; a moving average in the folder is preferred.

    Raises:
        MissingFileError: a file is missing.
        FileFormatError: the tensors do not fit the config, or there are several networks.
        InputError: the folder does not have the weights that were asked for.
    """
    second = next((path for name in ACCELERATE for path in folder.glob(f"{name}_1*") if path.suffix != ".json"), None)
    if second is not None:
        raise FileFormatError(
            f"{folder} has the weights of several networks ({second.name} is the second); give the file of one, with `config`."
        )
    files = weight_files(folder, ACCELERATE)
    content: JsonObject = {"model": files.read()}
    for path in sorted(folder.glob("custom_checkpoint_*.pkl")):
        try:
            held = read_content(path)[1]
        except (UnsafeFileError, FileFormatError):  # of something else, such as a learning rate's schedule
            continue
        if "shadow_params" in held:
            content[path.name.replace(".", "-")] = {"shadow_params": held["shadow_params"]}
    return _loaded(folder, _Found(_Place(folder), found_config(config), files, content), provenance, asked)


def _loaded(folder: Path, found: _Found, provenance: JsonDict, asked: Asked) -> Base:
    place, config, files = found.place, found.config, found.files
    spec, averaged = config.spec, found.ema or bool(files.ema)
    skeleton = spec.skeleton(shapes_within(found.content, place.folder))
    target = Target.of(skeleton, spec.class_name)
    weights = fitting(found.content, target, place.folder, asked.weights, averaged)
    model = spec.build()
    model.load_state_dict(weights.state)
    parameterization, notes = asked.completed(_task(folder, place.folder, asked), folder)
    said = {"weights_file": files.name}
    if files.variant:
        said["weights"] = files.variant
    elif weights.ema:
        said["weights"] = "ema"
    note = place.note or files.note or weights.note(place.folder)
    return Base(
        model=model.eval(),
        spec=spec,
        parameterization=parameterization,
        provenance={**provenance, **said},
        sha256=files.sha256(),
        notes=(*((note,) if note else ()), *config.notes(place.folder), *notes),
    )


def _network(folder: Path, weights: str | None) -> _Place:
    """The folder of the network in a folder: the averaged one's where there are two.

    Raises:
        MissingFileError: there is none; the message names what is there.
        FileFormatError: a pipeline without one.
    """
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json", infinities=True)
        name = next((key for key in NETWORKS if key in index), None)
        if name is None:
            raise FileFormatError(f"The pipeline in {folder} has neither a unet nor a transformer to prune.")
        flat = not (folder / name).is_dir() and (folder / "config.json").is_file()  # as pipelines of 2022 were saved
        return _Place(folder) if flat else _of_two(folder / name, weights)
    if (folder / "config.json").is_file():
        return _alone(folder, weights)
    for name in NETWORKS:
        if (folder / name / "config.json").is_file() or (folder / f"{name}{_EMA}" / "config.json").is_file():
            return _of_two(folder / name, weights)
    if slims := sorted(path.parent for path in folder.glob("group-*/config.json")):
        raise InputError(
            f"{folder} holds one slim model for each timestep group; put them together with `prunekit assemble {folder}`, or give "
            f"one of them, such as {slims[0]}."
        )
    if any(folder.glob("search-*.jsonl")):
        raise MissingFileError(f"{folder} holds searches and no slim model yet; `prunekit prune` goes on with them.")
    there = [path.name for path in sorted(folder.iterdir()) if _may_be_read(path)][:4]
    instead = f"; it holds {', '.join(there)}: give one of them" if there else "; expected a diffusers folder"
    raise MissingFileError(f"{folder} has no config.json or model_index.json{instead}.")


def _of_two(network: Path, weights: str | None) -> _Place:
    """A network's folder inside another, or the folder of its moving average next to it."""
    averaged = network.with_name(network.name + _EMA)
    if not (averaged / "config.json").is_file():
        return _Place(network)
    if weights == "raw" and network.is_dir():
        return _Place(network, note=f"Reading the raw weights of {network}, not the EMA weights in {averaged.name}.")
    others = f", not the raw weights in {network.name}" if network.is_dir() else ""
    return _Place(averaged, ema=True, note=f"Reading the EMA weights of {averaged}{others}.")


def _alone(folder: Path, weights: str | None) -> _Place:
    """A network's folder that was named directly; a note says whether its averaged or raw counterpart is next to it."""
    ema = folder.name.endswith(_EMA)
    twin = folder.with_name(folder.name.removesuffix(_EMA) if ema else folder.name + _EMA)
    if folder.name.removesuffix(_EMA) not in NETWORKS or not (twin / "config.json").is_file():
        return _Place(folder, ema, f"Reading the EMA weights of {folder}." if ema else "")
    if weights is None:
        kinds = ("EMA", "raw") if ema else ("raw", "EMA")
        return _Place(
            folder, ema, f"Reading the {kinds[0]} weights of {folder}, not the {kinds[1]} weights in {twin.name}."
        )
    return _of_two(twin if ema else folder, weights)


def _may_be_read(path: Path) -> bool:
    saved = path.name.startswith("checkpoint-") and path.is_dir()
    return saved or path.suffix.lower() in (".pt", ".pth", ".ckpt", ".safetensors", ".bin")


def _task(folder: Path, network: Path, asked: Asked) -> Task:
    """What the scheduler near a network says; one that cannot be read is left out where the caller says all that it could.

    Raises:
        FileFormatError: its config is no scheduler's, or describes no noise schedule.
    """
    for place in _around(folder, network):
        for name in SCHEDULERS:
            if (place / name).is_file():
                try:
                    found = read_scheduler(place / name)
                except FileFormatError as error:
                    if not asked.says_task:
                        raise
                    return Task(notes=(f"The pipeline's scheduler is left out: {error}",))
                note = f"Taking the noise schedule and the prediction type of {place / name}."
                outside = place not in (folder, network)
                return Task(found.schedule, found.prediction_type, (*found.notes, *((note,) if outside else ())))
    return Task()


def _around(folder: Path, network: Path) -> Iterator[Path]:
    """Where a network's scheduler may be: in its folder, its pipeline's, and the one that a training script writes both to."""
    yield from dict.fromkeys((folder, network))
    place = folder.absolute()
    while place.name.startswith("checkpoint-") or place.name.removesuffix(_EMA) in NETWORKS:
        place = place.parent
        yield place
