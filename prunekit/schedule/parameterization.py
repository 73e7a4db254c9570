r"""What a denoiser predicts, and the formulas that depend on it.

From :math:`x_t = a x_0 + b \varepsilon` a network is trained to predict ε, x_0, or :math:`v = a \varepsilon - b x_0`
(arXiv:2202.00512, appendix D). The formulas work on torch tensors and numpy arrays alike.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np

from prunekit._json import JsonDict, JsonObject
from prunekit._types import FloatArray
from prunekit.choices import PredictionType, ReadablePrediction
from prunekit.errors import InputError
from prunekit.schedule.noise import NoiseSchedule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PREDICTION_TYPES", "READABLE_TYPES", "Parameterization", "Parameterized"]

PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)
"""What a network can be trained to predict here; ``sample`` is x_0."""
READABLE_TYPES: tuple[str, ...] = get_args(ReadablePrediction)
"""What checkpoints may say."""
_Array = TypeVar("_Array", "Tensor", FloatArray)


@dataclass(frozen=True, eq=False)
class Parameterization:
    """A noise schedule, and what the network predicts on it.

    Args:
        schedule: the noise schedule that the network was trained with.
        prediction_type: one of :data:`READABLE_TYPES`.

    Raises:
        InputError: the prediction type is unknown.

    Example:
        >>> kind = Parameterization(NoiseSchedule.linear(10), "v_prediction")
        >>> float(kind.target(np.float64(1), np.float64(0), signal=0.8, noise_level=0.6))
        -0.6
    """

    schedule: NoiseSchedule
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction_type not in READABLE_TYPES:
            raise InputError(_unknown(self.prediction_type))

    @classmethod
    def from_config(cls, config: JsonDict) -> "Parameterization":
        """Of the metadata of a checkpoint or a slim model; ``epsilon`` if it states no prediction type.

        Raises:
            InputError: the noise schedule cannot be made, or the prediction type is unknown.
        """
        schedule = NoiseSchedule.from_config(config["noise_schedule"])
        return cls(schedule, str(config.get("prediction_type", "epsilon")))

    def to_config(self) -> JsonObject:
        """JSON-able; :meth:`from_config` reads it."""
        return {"noise_schedule": self.schedule.to_config(), "prediction_type": self.prediction_type}

    def check_trainable(self) -> None:
        """Refuse what no objective and no sampler here supports.

        Raises:
            InputError: the prediction type is none of :data:`PREDICTION_TYPES`.
        """
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(_unknown(self.prediction_type))

    def target(self, clean: _Array, noise: _Array, signal: Any, noise_level: Any) -> _Array:
        """What the network should output for x_t = a·x_0 + b·ε, the shape of ``clean``.

        Args:
            clean: x_0.
            noise: ε, same shape.
            signal: a, a number or an array that broadcasts.
            noise_level: b, likewise.
        """
        self.check_trainable()
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        return signal * noise - noise_level * clean  # type: ignore[no-any-return]

    def clean(self, prediction: _Array, state: _Array, signal: float, noise_level: float) -> _Array:
        """Convert a prediction at x_t = a·x_0 + b·ε to x_0, same shape, not clamped.

        Args:
            prediction: the network's output.
            state: x_t, same shape, on a variance-preserving scale (a² + b² = 1).
            signal: a.
            noise_level: b.
        """
        self.check_trainable()
        if self.prediction_type == "epsilon":
            return (state - noise_level * prediction) / signal
        if self.prediction_type == "sample":
            return prediction
        return signal * state - noise_level * prediction

    @property
    def error_scale(self) -> FloatArray:
        r"""Squared error of the prediction, divided by the squared error of the x_0 that it stands for, shape (T,), float64.

        .. math:: L_\varepsilon = \frac{a^2}{b^2} L_{x0}, \qquad L_v = \frac{(a^2 + b^2)^2}{b^2} L_{x0}
        """
        self.check_trainable()
        if self.prediction_type == "sample":
            return np.ones(self.schedule.num_timesteps)
        if self.prediction_type == "epsilon":
            return self.schedule.snr
        signal, noise = self.schedule.signal, self.schedule.noise
        scale: FloatArray = ((signal**2 + noise**2) / noise) ** 2
        return scale


class Parameterized:
    """Something with a parameterization, whose parts are also attributes of its own."""

    parameterization: Parameterization

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return self.parameterization.schedule

    @property
    def prediction_type(self) -> str:
        """What the network predicts: ``epsilon``, ``sample`` (x_0) or ``v_prediction``."""
        return self.parameterization.prediction_type


def _unknown(prediction_type: str) -> str:
    return f"Unknown prediction type {prediction_type!r:.60}; expected one of {', '.join(PREDICTION_TYPES)}."
