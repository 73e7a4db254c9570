"""Opens a diffusers pipeline's folder without running code of it: components of known libraries, weights in safetensors."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit._json import JsonDict, read_json
from prunekit._messages import one_line
from prunekit.checkpoint import ModelSpec
from prunekit.checkpoint.folders import NETWORKS
from prunekit.errors import FileFormatError, InputError, MissingFileError, UnsafeFileError
from prunekit.pipelines.stand_in import StandIn

__all__ = ["DENOISERS", "check_index", "denoisers_of", "is_pipeline", "open_pipeline", "without_warnings"]

DENOISERS = (*NETWORKS, "transformer_2")
"""Components that may be a pipeline's denoiser, or one of its two."""
_LIBRARIES = ("diffusers", "transformers", "prunekit")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_INDEX = "model_index.json"


def is_pipeline(folder: Path | str) -> bool:
    """Whether a folder has a whole pipeline, and not a network alone."""
    return (Path(folder) / _INDEX).is_file()


def check_index(folder: Path) -> JsonDict:
    """The index of a pipeline's folder, if it names only what is known.

    Raises:
        MissingFileError: there is no index.
        FileFormatError: its class is no pipeline of the installed diffusers.
        UnsafeFileError: it names a library that it could run code of, or brings its own code.
    """
    import diffusers  # noqa: PLC0415 - takes seconds, and only pipelines need it

    source = folder / _INDEX
    if not source.is_file():
        raise MissingFileError(
            f"{folder} has no {_INDEX}; expected the folder of a pipeline, as diffusers' save_pretrained writes it."
        )
    index = read_json(source, infinities=True)
    name = index.get("_class_name")
    if isinstance(name, list):
        raise UnsafeFileError(
            f"{folder} brings code of its own ({name[0]}.py), which is not run; give a pipeline of diffusers."
        )
    found = getattr(diffusers, str(name), None) if str(name).isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise FileFormatError(
            f"{source} names {str(name)[:80]!r}; expected a pipeline of the installed diffusers {diffusers.__version__}."
        )
    for part, told in index.items():
        library = told[0] if isinstance(told, list) and len(told) == 2 and not part.startswith("_") else None
        known = library is None or library in _LIBRARIES or hasattr(diffusers.pipelines, str(library))
        if not known:
            raise UnsafeFileError(
                f"{source} takes {part} from the library {str(library)[:40]!r}, which is not imported for a file; expected "
                f"{', '.join(_LIBRARIES)}."
            )
    return index


def open_pipeline(folder: Path | str, dtype: torch.dtype = torch.float32, stand_in: bool = False) -> Any:
    """A pipeline of diffusers with its components in eval mode, on the CPU.

    Args:
        folder: as diffusers' ``save_pretrained`` writes it.
        dtype: of the weights.
        stand_in: put a :class:`StandIn` in place of each denoiser, whose weights are not read.

    Raises:
        MissingFileError: it is no pipeline's folder.
        FileFormatError: a component cannot be read.
        UnsafeFileError: it would run code: it names another library, or its weights are pickles.
        InputError: a library that it needs is not installed.
    """
    import diffusers  # noqa: PLC0415 - see above

    folder = Path(folder)
    index = check_index(folder)
    networks = [name for name in DENOISERS if isinstance(index.get(name), list) and index[name][1]]
    if not networks:
        raise FileFormatError(f"The pipeline in {folder} has neither a unet nor a transformer.")
    _refuse_pickles(folder, [name for name in index if not stand_in or name not in networks])
    stand_ins = {name: _stand_in(folder / name, dtype) for name in networks} if stand_in else {}
    kind = getattr(diffusers, str(index["_class_name"]))
    expected, _ = kind._get_signature_keys(kind)
    absent = {name: None for name in expected if not (isinstance(index.get(name), list) and index[name][1])}
    with _quiet(diffusers):
        try:
            found = kind.from_pretrained(
                str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, **absent, **stand_ins
            )
        except ImportError as error:
            raise InputError(
                f"The pipeline in {folder} needs a library that is not installed ({one_line(error)}); text encoders are of "
                "`pip install 'prunekit[text]'`."
            ) from error
        except Exception as error:  # components are of many classes, each with errors of its own
            raise FileFormatError(f"The pipeline in {folder} cannot be read: {one_line(error).rstrip('.')}.") from error
    for component in found.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    found.set_progress_bar_config(disable=True)
    return found


def denoisers_of(pipeline: Any) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by their component's name; most pipelines have one.

    Raises:
        InputError: it has none.
    """
    found = {name: getattr(pipeline, name, None) for name in DENOISERS}
    own = {name: network for name, network in found.items() if isinstance(network, nn.Module)}
    if not own:
        raise InputError(f"A {type(pipeline).__name__} has neither a unet nor a transformer; give one with a denoiser.")
    return own


def _stand_in(folder: Path, dtype: torch.dtype) -> StandIn:
    """A stand-in for a network, which is built without memory from its config."""
    config = read_json(folder / "config.json", infinities=True)
    with torch.device("meta"):
        network = ModelSpec.from_json(config).build()
    return StandIn(network, dtype)


def _refuse_pickles(folder: Path, parts: list[str]) -> None:
    """Refuse weights that are only there as pickles, of a component that has to be read."""
    for part in parts:
        place = folder / part
        files = list(place.iterdir()) if place.is_dir() else []
        pickles = [file.name for file in files if file.suffix in _PICKLES]
        if pickles and not any(file.suffix == ".safetensors" for file in files):
            raise UnsafeFileError(
                f"{place} has its weights as a pickle ({pickles[0]}), which could run code; write the pipeline anew with "
                "save_pretrained, which makes .safetensors."
            )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Within the block, diffusers and transformers log no warnings; their errors still arrive."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Within the block, neither bars nor warnings of diffusers and transformers; their errors still arrive."""
    switches = [library.utils.logging]
    if importlib.util.find_spec("transformers") is not None:
        switches.append(importlib.import_module("transformers.utils.logging"))
    shown = [switch.is_progress_bar_enabled() for switch in switches]
    for switch in switches:
        switch.disable_progress_bar()
    try:
        with without_warnings(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for switch, show in zip(switches, shown, strict=True):
            if show:
                switch.enable_progress_bar()
