"""Base checkpoints on disk: a trained denoiser with what is needed to use it, read without running code.

Three forms are read:

- ``.pt`` and ``.safetensors`` files written by :func:`save_base`: weights with architecture, noise schedule and provenance;
- bare state dicts (``.pt``, ``.pth``, ``.bin``, ``.safetensors``) together with the architecture's JSON config;
- diffusers folders: a model's, or a whole pipeline's (its ``unet`` or ``transformer``, and its ``scheduler``).
"""

import inspect
import io
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from prunekit._files import atomic_path, json_hash, read_json, sha256_file
from prunekit._types import JsonDict
from prunekit.errors import FileFormatError, InputError, MissingFileError, UnsafeFileError
from prunekit.schedule import NoiseSchedule

__all__ = ["ARCHITECTURES", "FORMAT", "Base", "ModelSpec", "load_base", "load_state", "save_base"]

FORMAT = "prunekit-base/1"
ARCHITECTURES = (
    "DiTTransformer2DModel",
    "Transformer2DModel",
    "UNet2DConditionModel",
    "UNet2DModel",
)
"""Classes of diffusers that a file may name. A file can never name anything else."""


@dataclass(frozen=True)
class ModelSpec:
    """A network by its class name (one of :data:`ARCHITECTURES`) and constructor arguments."""

    class_name: str
    config: JsonDict

    def build(self) -> nn.Module:
        """A freshly initialised network.

        Raises:
            InputError: the class is unknown or does not take the config.
        """
        architecture = self._class()
        try:
            model: nn.Module = architecture(**self.config)
        except (
            TypeError,
            ValueError,
            LookupError,
            ArithmeticError,
            RuntimeError,
            AttributeError,
            AssertionError,
        ) as error:
            raise InputError(f"{self.class_name} does not take this config: {_reason(error)}.") from error
        return model

    def _class(self) -> Any:
        import diffusers  # noqa: PLC0415 - takes seconds, and only known architectures need it

        if self.class_name not in ARCHITECTURES:
            raise InputError(f"Unknown architecture {self.class_name!r}; expected one of {', '.join(ARCHITECTURES)}.")
        return getattr(diffusers, self.class_name)

    def example_inputs(self) -> dict[str, Tensor]:
        """Arguments of one forward pass at batch 1, by name, as the architecture wants them."""
        arguments = inspect.signature(self._class()).parameters.values()
        config = {argument.name: argument.default for argument in arguments} | dict(self.config)
        size = config.get("sample_size") or 32
        height, width = (size, size) if isinstance(size, int) else size
        noisy = torch.zeros(1, int(config["in_channels"]), int(height), int(width))
        inputs = {"sample": noisy, "timestep": torch.zeros(1, dtype=torch.long)}
        if self.class_name.endswith("Transformer2DModel"):
            inputs["hidden_states"] = inputs.pop("sample")
        if (
            self.class_name == "DiTTransformer2DModel"
            or config.get("num_class_embeds")
            or config.get("class_embed_type") == "timestep"
            or str(config.get("norm_type")).startswith("ada_norm_zero")
        ):
            inputs["class_labels"] = torch.zeros(1, dtype=torch.long)
        if self.class_name == "UNet2DConditionModel":
            inputs["encoder_hidden_states"] = torch.zeros(1, 8, int(config.get("cross_attention_dim") or 1280))
        return inputs

    @classmethod
    def of(cls, model: Any) -> "ModelSpec":
        """The spec of a diffusers model, from its own config."""
        name = type(model).__name__
        if name not in ARCHITECTURES or not hasattr(model, "config"):
            raise InputError(
                f"{name} is not one of {', '.join(ARCHITECTURES)}; it cannot be described by a config alone."
            )
        config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
        return cls(name, json.loads(json.dumps(config)))

    def to_json(self) -> dict[str, Any]:
        """``{"class", "config"}``."""
        return {"class": self.class_name, "config": dict(self.config)}

    @classmethod
    def from_json(cls, data: JsonDict) -> "ModelSpec":
        """Read ``{"class", "config"}``, or a diffusers ``config.json`` with its ``_class_name``."""
        if not isinstance(data, Mapping):
            raise FileFormatError(f"An architecture needs 'class' and 'config'; got {data!r}.")
        if "_class_name" in data:
            return cls(str(data["_class_name"]), {key: value for key, value in data.items() if not key.startswith("_")})
        try:
            return cls(str(data["class"]), dict(data["config"]))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"An architecture needs 'class' and 'config'; got {sorted(data)}.") from error


@dataclass(frozen=True)
class Base:
    """A trained denoiser and its circumstances.

    Args:
        model: the network, in eval mode on the CPU.
        spec: how to build it again.
        schedule: the noise schedule that it was trained with.
        prediction_type: what the network predicts: ``epsilon``, ``sample`` or ``v_prediction``.
        data: image source that it was trained on (``source``, ``resolution``), or empty.
        provenance: free-form JSON: who made it, with which figures.
        sha256: hash of the file that it was read from, empty for one made in memory.
    """

    model: nn.Module
    spec: ModelSpec
    schedule: NoiseSchedule
    prediction_type: str = "epsilon"
    data: JsonDict = field(default_factory=dict)
    provenance: JsonDict = field(default_factory=dict)
    sha256: str = ""

    def about(self) -> dict[str, Any]:
        """Everything but the weights, JSON-able."""
        return {
            "model": self.spec.to_json(),
            "noise_schedule": self.schedule.to_config(),
            "prediction_type": self.prediction_type,
            "data": dict(self.data),
            "provenance": dict(self.provenance),
        }


def save_base(base: Base, path: Path) -> None:
    """Write a base checkpoint; the suffix chooses the form (``.safetensors``, else torch's zip). Atomic."""
    state = {key: value.detach().cpu().contiguous() for key, value in base.model.state_dict().items()}
    with atomic_path(path) as part:
        if path.suffix == ".safetensors":
            about = json.dumps({"format": FORMAT, **base.about()}, sort_keys=True)
            part.write_bytes(safetensors_bytes(state, metadata={"prunekit": about}))
        else:
            buffer = io.BytesIO()  # gives the archive a fixed inner name, so that equal weights are equal bytes
            torch.save({"format": FORMAT, **base.about(), "state_dict": state}, buffer)
            part.write_bytes(buffer.getvalue())


def load_base(path: Path | str, config: Path | None = None) -> Base:
    """Read a base checkpoint of any of the three forms.

    Args:
        path: a file or a diffusers folder.
        config: JSON of the architecture (``_class_name`` and its arguments), for a bare state dict.

    Raises:
        MissingFileError: nothing is there.
        UnsafeFileError: a pickle that would run code.
        FileFormatError: not a checkpoint, or its tensors do not fit its architecture.
    """
    path = Path(path)
    if path.is_dir():
        return _load_diffusers(path)
    about, state = load_state(path)
    if config is not None:
        about = {**about, "model": read_json(config)}
    if "model" not in about:
        raise FileFormatError(
            f"{path} is a bare state dict; give the architecture's JSON (with its _class_name) by --config."
        )
    spec = ModelSpec.from_json(about["model"])
    model = spec.build()
    _fill(model, state, path)
    return Base(
        model=model.eval(),
        spec=spec,
        schedule=NoiseSchedule.from_config(about.get("noise_schedule", {"kind": "linear"})),
        prediction_type=str(about.get("prediction_type", "epsilon")),
        data=about.get("data", {}),
        provenance=about.get("provenance", {}),
        sha256=sha256_file(path),
    )


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a ``.pt`` or ``.safetensors`` file, never running code from it."""
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist; expected a checkpoint. Make one with `prunekit train` or `prunekit demo`."
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None and not _calls(path):
            raise FileFormatError(
                f"{path} is no readable checkpoint; expected one of torch.save or safetensors."
            ) from error
        raise UnsafeFileError(
            f"{path} needs to run code to be read ({named[1] if named else 'a pickle that calls functions'}), and is refused. "
            "Where you trust it, load it yourself once and save model.state_dict() with safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, AttributeError, TypeError) as error:
        raise FileFormatError(f"{path} is no readable checkpoint ({_reason(error)}).") from error
    if not isinstance(content, Mapping):
        raise FileFormatError(f"{path} holds a {type(content).__name__}; expected a dict of tensors.")
    about = {key: value for key, value in content.items() if not isinstance(value, Tensor)}
    tensors: Mapping[str, Any] = content
    for key in ("state_dict", "model_state_dict", "ema", "model"):
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            tensors = inner
            about.pop(key)
            break
    state = {str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not state:
        raise FileFormatError(f"{path} holds no tensors; expected a state dict.")
    return (about if about.get("format") == FORMAT else {}), state


def _calls(path: Path) -> bool:
    """Whether a file is a whole pickle with instructions that import or call; they are read, never run."""
    try:
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        found = {operation.name for operation, _, _ in pickletools.genops(content)}
    except (ValueError, StopIteration, zipfile.BadZipFile):
        return False
    return bool(found & {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE"})


def _reason(error: Exception) -> str:
    """First sentence of a message from below, on one line."""
    said = " ".join(str(error).split()).split(". ")[0].rstrip(".")
    name = type(error).__name__
    return f"{name} {said}" if isinstance(error, KeyError) else said or name


def _load_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - no mapping, has keys() only
        about = json.loads(metadata.get("prunekit", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is no readable safetensors file ({_reason(error)}).") from error
    return (about if isinstance(about, dict) and about.get("format") == FORMAT else {}), state


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load strictly, with the first differing names in the message."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise FileFormatError(f"The tensors of {path} do not fit {type(model).__name__}: {first}") from error


def _load_diffusers(folder: Path) -> Base:
    schedule, prediction_type = NoiseSchedule.linear(), "epsilon"
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        name = next((key for key in ("unet", "transformer") if key in index), None)
        if name is None:
            raise FileFormatError(f"The pipeline in {folder} has neither a unet nor a transformer to prune.")
        if (folder / "scheduler").is_dir():
            schedule, prediction_type = _scheduler(folder / "scheduler" / "scheduler_config.json")
        base = _load_diffusers(folder / name)
        return replace(base, schedule=schedule, prediction_type=prediction_type)
    if not (folder / "config.json").is_file():
        raise MissingFileError(f"{folder} has no config.json or model_index.json; expected a diffusers folder.")
    spec = ModelSpec.from_json(read_json(folder / "config.json"))
    if spec.class_name not in ARCHITECTURES:
        raise FileFormatError(f"{folder} names {spec.class_name!r}; expected one of {', '.join(ARCHITECTURES)}.")
    weights = sorted(folder.glob("diffusion_pytorch_model*.safetensors")) or sorted(
        folder.glob("diffusion_pytorch_model*.bin")
    )
    if not weights:
        raise MissingFileError(f"{folder} has no diffusion_pytorch_model.safetensors or .bin.")
    model = spec.build()
    state = {key: value for file in weights for key, value in load_state(file)[1].items()}
    _fill(model, state, folder)
    return Base(
        model=model.eval(),
        spec=spec,
        schedule=schedule,
        prediction_type=prediction_type,
        provenance={"source": folder.name},
        sha256=sha256_file(weights[0]) if len(weights) == 1 else json_hash([sha256_file(file) for file in weights]),
    )


def _scheduler(path: Path) -> tuple[NoiseSchedule, str]:
    """Noise schedule and prediction type of a diffusers scheduler's config; it may name scheduler classes only."""
    import diffusers  # noqa: PLC0415 - takes seconds, and only diffusers folders need it

    config = read_json(path)
    name = str(config.get("_class_name"))
    scheduler_class: Any = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not hasattr(scheduler_class, "from_config"):
        raise FileFormatError(
            f"{path} names {name!r}; expected a scheduler class of diffusers {diffusers.__version__}."
        )
    try:
        scheduler = scheduler_class.from_config(config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, ImportError) as error:
        raise FileFormatError(f"{path} is no config that {name} takes ({_reason(error)}).") from error
    default = "flow_prediction" if "FlowMatch" in name else "epsilon"
    return NoiseSchedule.from_diffusers(scheduler), str(scheduler.config.get("prediction_type") or default)
