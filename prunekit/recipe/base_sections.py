"""The sections of a recipe that say what images there are and which base."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from prunekit._json import JsonObject
from prunekit.checkpoint import Asked, ModelSpec
from prunekit.checkpoint.config_limits import check_schedule
from prunekit.choices import PredictionType, Weights
from prunekit.errors import InputError
from prunekit.recipe.fields import STRICT, Positive, Train
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.schedule.noise import NAMED_KINDS
from prunekit.training import TrainOptions

__all__ = ["BaseOptions", "DataOptions"]

_MODEL = Field(
    json_schema_extra={
        "properties": {
            "class": {"type": "string", "description": "A class of diffusers."},
            "config": {"type": "object", "description": "Arguments of its constructor."},
        }
    }
)
_NOISE_SCHEDULE = Field(
    json_schema_extra={
        "properties": {
            "kind": {
                "enum": [*NAMED_KINDS, "explicit"],
                "description": "The form of the schedule; `explicit` lists it.",
            },
            "num_timesteps": {"type": "integer", "minimum": 1, "description": "T, the number of timesteps."},
            "beta_start": {
                "type": "number",
                "description": "β of timestep 0: of `linear`, `scaled_linear` and `sigmoid`.",
            },
            "beta_end": {"type": "number", "description": "β of timestep T − 1, of the same."},
            "offset": {"type": "number", "description": "s of `cosine` (arXiv:2102.09672)."},
            "max_beta": {"type": "number", "description": "Largest β of `cosine`."},
            "sigma_min": {"type": "number", "description": "Smallest σ of `edm` (arXiv:2206.00364)."},
            "sigma_max": {"type": "number", "description": "Largest σ of `edm`."},
            "rho": {"type": "number", "description": "ρ of `edm`."},
            "shift": {"type": "number", "description": "Shift of the times of `rectified_flow`; 1 for none."},
            "betas": {
                "type": "array",
                "items": {"type": "number"},
                "description": "β of each timestep, of `explicit`.",
            },
            "signal": {
                "type": "array",
                "items": {"type": "number"},
                "description": "Factor of the clean sample at each timestep, of `explicit`; with `noise`.",
            },
            "noise": {
                "type": "array",
                "items": {"type": "number"},
                "description": "Factor of the noise at each timestep, of `explicit`; with `signal`.",
            },
        }
    }
)
_LINEAR = {"kind": "linear", "num_timesteps": 1000}


def _known_schedule(config: JsonObject) -> JsonObject:
    """The config of a noise schedule, after a check that there is one."""
    check_schedule(config, "The noise schedule")
    NoiseSchedule.from_config(config)
    return config


def _one_or_two(value: object) -> object:
    """A number or two, as they are; here so that an error names the key, and not one of the two forms."""
    numbers = value if isinstance(value, list) and len(value) == 2 else [value]
    if value is not None and not all(type(number) is int for number in numbers):
        raise ValueError(f"Got {value!r:.80}; expected a number of pixels, or height and width such as [32, 48].")
    return value


@dataclass(frozen=True)
class DataOptions:
    """Where images come from, see :func:`prunekit.data.load_images`.

    Args:
        source: ``digits``, ``embedded:fashion``, a folder or zip of pictures, a folder of arrays or of encoded images, an ``.npz``,
            ``.npy`` or ``.safetensors`` file, a parquet file or dataset folder, or idx files. ``FILE::KEY`` names the array of
            images, and ``FOLDER::SPLIT`` the split of a dataset. ``~`` is the home folder.
        resolution: side of the square images in pixels, or height and width; the source's own if missing.
        labels: whether the images' classes are read; a class-conditional network needs them.
        shapes: of one row of each argument of the network, as encoded images will have them, such as
            ``{encoder_hidden_states: [77, 768]}``; ``latents`` are the noisy samples. ``estimate`` counts with them as long as the
            encoded images are not there. Arguments that are left out have the shapes that follow from the network's config.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    source: str = "digits"
    resolution: Annotated[
        int | Annotated[list[int], Field(min_length=2, max_length=2)] | None, BeforeValidator(_one_or_two)
    ] = None
    labels: bool = False
    shapes: dict[str, Annotated[list[Positive], Field(min_length=1, max_length=7)]] | None = None


@dataclass(frozen=True)
class BaseOptions:
    """The base: either a checkpoint or a network to train.

    Args:
        checkpoint: a file, a diffusers folder, a Hub id, ``embedded:digits`` or ``embedded:fashion``; it is loaded and not trained.
        model: the network to train, by ``class`` and ``config``; give either this or ``checkpoint``.
        noise_schedule: the noise schedule by ``kind`` and the arguments of that kind, see
            :meth:`prunekit.schedule.NoiseSchedule.from_config`. If missing: the checkpoint's own. For a network to train it is then
            linear over 1000 timesteps, or that of the prediction type: ``rectified_flow`` or ``edm``.
        prediction_type: what the network predicts. If missing: the checkpoint's own, or epsilon for a network to train.
        train: how the network is trained.
        weights: which weights to read of a checkpoint that has both; the moving average is preferred if missing.

    Raises:
        InputError: neither or both of checkpoint and model are given, or ``weights`` without a checkpoint.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    checkpoint: str | None = None
    model: Annotated[JsonObject, _MODEL] | None = None
    noise_schedule: Annotated[JsonObject, _NOISE_SCHEDULE, AfterValidator(_known_schedule)] | None = None
    prediction_type: PredictionType | None = None
    train: Train = field(default_factory=TrainOptions)
    weights: Weights | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.model is None):
            raise InputError("A base needs either a checkpoint or a model to train, and not both.")
        if self.model is not None:
            self.spec()
            if self.weights is not None:
                raise InputError("Got weights with a model to train; expected them with a checkpoint.")
            prediction = self.prediction_type or "epsilon"
            usual = {**_LINEAR, "kind": Parameterization.usual_schedule(prediction).config["kind"]}
            object.__setattr__(self, "noise_schedule", self.noise_schedule or usual)
            object.__setattr__(self, "prediction_type", prediction)
        _ = self.schedule

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the options name; linear if they name none."""
        return NoiseSchedule.from_config(self.noise_schedule or _LINEAR)

    @property
    def parameterization(self) -> Parameterization:
        """The noise schedule and prediction type of a network to train."""
        return Parameterization(self.schedule, self.prediction_type or "epsilon")

    @property
    def asked(self) -> Asked:
        """The weights, noise schedule and prediction type that the options ask for."""
        schedule = None if self.noise_schedule is None else self.schedule
        return Asked(self.weights, schedule, self.prediction_type)

    def spec(self) -> ModelSpec:
        """The network to train."""
        return ModelSpec.from_json(self.model or {})
