r"""What a denoiser predicts, and the formulas that depend on it.

From :math:`x_t = a x_0 + b \varepsilon` a network is trained to predict ε, x_0, or :math:`v = a \varepsilon - b x_0`
(arXiv:2202.00512, appendix D), the velocity :math:`\varepsilon - x_0` of flow matching (arXiv:2403.03206, eq. 6 and 13), or
the output F of EDM's preconditioning (arXiv:2206.00364, eq. 7). The formulas work on torch tensors and numpy arrays alike.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import numpy as np

from prunekit._json import JsonDict, JsonObject
from prunekit._types import FloatArray
from prunekit.choices import PredictionType
from prunekit.errors import InputError
from prunekit.schedule.diffusers import is_edm, is_flow, tells_noise_levels
from prunekit.schedule.noise import NoiseSchedule
from prunekit.schedule.timeline import Timeline

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["EDM", "FLOW", "PREDICTION_TYPES", "Parameterization", "Parameterized"]

PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)
"""What a network can be trained to predict; ``sample`` is x_0."""
FLOW = "flow_prediction"
"""The velocity of flow matching, ε − x_0."""
EDM = ("edm", "edm_v")
"""The output of a network within EDM's preconditioning; ``edm_v`` is −F, as diffusers' EDM schedulers with ``v_prediction``."""
_NATURAL = {"rectified_flow": FLOW, "edm": "edm"}
_SCHEDULES = {FLOW: "rectified_flow", **dict.fromkeys(EDM, "edm")}
_Array = TypeVar("_Array", "Tensor", FloatArray)


@dataclass(frozen=True, eq=False)
class Parameterization:
    """A noise schedule, and what the network predicts on it.

    Args:
        schedule: the noise schedule that the network was trained with.
        prediction_type: one of :data:`PREDICTION_TYPES`.

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
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(_unknown(self.prediction_type))

    @classmethod
    def usual(cls, schedule: NoiseSchedule) -> "Parameterization":
        """What networks with a schedule usually predict, where only the schedule is known: plans of budgets need no more."""
        name = str(schedule.scheduler.get("_class_name", ""))
        if is_flow(name, schedule.scheduler):
            return cls(schedule, FLOW)
        if name:
            return cls(schedule, "edm" if is_edm(name) else "epsilon")
        return cls(schedule, _NATURAL.get(str(schedule.config.get("kind")), "epsilon"))

    @staticmethod
    def usual_schedule(prediction_type: str, num_timesteps: int = 1000) -> NoiseSchedule:
        """The noise schedule of networks that predict this, where nothing else is known: linear for ε, x_0 and v.

        Example:
            >>> Parameterization.usual_schedule("flow_prediction").config["kind"]
            'rectified_flow'
        """
        kind = _SCHEDULES.get(prediction_type, "linear")
        return NoiseSchedule.from_config({"kind": kind, "num_timesteps": num_timesteps})

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

    def target(self, clean: _Array, noise: _Array, signal: Any, noise_level: Any) -> _Array:
        """What the network should output for x_t = a·x_0 + b·ε, the shape of ``clean``.

        Args:
            clean: x_0.
            noise: ε, same shape.
            signal: a, a number or an array that broadcasts.
            noise_level: b, likewise.
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        if self.prediction_type == FLOW:
            return noise - clean
        if self.prediction_type in EDM:
            skip, out = self._preconditioning(noise_level / signal)
            return (clean - skip * (clean + noise_level / signal * noise)) / out  # type: ignore[no-any-return]
        return signal * noise - noise_level * clean  # type: ignore[no-any-return]

    def clean(self, prediction: _Array, state: _Array, signal: float, noise_level: float) -> _Array:
        """Convert a prediction at x_t = a·x_0 + b·ε to x_0, same shape, not clamped.

        Args:
            prediction: the network's output.
            state: x_t, same shape, on any scale.
            signal: a.
            noise_level: b.
        """
        if self.prediction_type == "epsilon":
            return (state - noise_level * prediction) / signal
        if self.prediction_type == "sample":
            return prediction
        if self.prediction_type == FLOW:
            return (state - noise_level * prediction) / (signal + noise_level)
        if self.prediction_type in EDM:
            skip, out = self._preconditioning(noise_level / signal)
            return skip / signal * state + out * prediction  # type: ignore[no-any-return]
        return (signal * state - noise_level * prediction) / (signal**2 + noise_level**2)

    @property
    def is_flow(self) -> bool:
        """Whether noisy samples are (1 − u)·x_0 + u·ε, with T·u as the network's time input."""
        settings = self.schedule.scheduler
        return self.prediction_type == FLOW or is_flow(str(settings.get("_class_name", "")), settings)

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data in EDM's preconditioning: the scheduler's ``sigma_data``, else 0.5."""
        return float(self.schedule.scheduler.get("sigma_data", 0.5))

    @cached_property
    def timeline(self) -> Timeline:
        """The scheduler's time at every timestep. A network's time input is this time in its pipeline's unit."""
        schedule = self.schedule
        if self.is_flow:
            return Timeline.of_flow(schedule.noise / (schedule.signal + schedule.noise))
        if self.prediction_type in EDM or tells_noise_levels(schedule.scheduler):
            return Timeline.of_noise_levels(schedule.sigma)
        return Timeline.of_counts(schedule.num_timesteps)

    @cached_property
    def input_levels(self) -> tuple[FloatArray, FloatArray]:
        r"""Signal a and noise b in the network's input at every timestep, each of shape (T,), float64.

        They are the schedule's own, except that networks for flow matching get x_0 and ε in shares of 1, and EDM's networks
        :math:`c_{in} (x_0 + \sigma \varepsilon)` (arXiv:2206.00364, table 1).
        """
        if self.timeline.counts_timesteps:
            return self.schedule.signal, self.schedule.noise
        scale = self._input_scale(self.schedule.sigma)
        return scale, scale * self.schedule.sigma

    def levels_at(self, timestep: float) -> tuple[float, float]:
        """Signal a and noise b in the input of a network that diffusers' samplers evaluate at a timestep, whole or fractional.

        Between training timesteps of diffusion σ = b/a is interpolated linearly, as diffusers' samplers do; the states of these
        samplers have a² + b² = 1.
        """
        time = float(self.timeline.time_of(np.array(timestep)))
        if self.is_flow:
            share = time / self.schedule.num_timesteps
            return 1 - share, share
        if self.timeline.counts:
            sigma = float(np.interp(timestep, np.arange(self.schedule.num_timesteps), self.schedule.sigma))
        else:
            sigma = math.exp(4 * time)
        signal = float(self._input_scale(sigma))
        return signal, sigma * signal

    def _input_scale(self, sigma: Any) -> Any:
        """Factor of x_0 + σ·ε in the input of a network whose diffusers sampler works on it, the shape of ``sigma``."""
        if self.is_flow:
            return 1 / (1 + sigma)
        spread = self.sigma_data if self.prediction_type in EDM else 1.0
        return 1 / (sigma**2 + spread**2) ** 0.5

    def _preconditioning(self, sigma: Any) -> tuple[Any, Any]:
        """EDM's c_skip and c_out (arXiv:2206.00364, table 1).

        The paper's loss weight is 1/c_out², so that the squared error of the network's own output has weight 1.
        """
        whole = sigma**2 + self.sigma_data**2
        sign = -1.0 if self.prediction_type == "edm_v" else 1.0
        return self.sigma_data**2 / whole, sign * sigma * self.sigma_data / whole**0.5

    @property
    def error_scale(self) -> FloatArray:
        r"""Squared error of the prediction, divided by the squared error of the x_0 that it stands for, shape (T,), float64.

        .. math:: L_\varepsilon = \frac{a^2}{b^2} L_{x0}, \qquad L_v = \frac{(a^2 + b^2)^2}{b^2} L_{x0}

        .. math:: L_{flow} = \frac{(a + b)^2}{b^2} L_{x0}, \qquad L_{EDM} = \frac{1}{c_{out}^2} L_{x0}
        """
        if self.prediction_type == "sample":
            return np.ones(self.schedule.num_timesteps)
        if self.prediction_type == "epsilon":
            return self.schedule.snr
        signal, noise = self.input_levels
        if self.prediction_type == FLOW:
            flow: FloatArray = ((signal + noise) / noise) ** 2
            return flow
        if self.prediction_type in EDM:
            edm: FloatArray = self._preconditioning(self.schedule.sigma)[1] ** -2.0
            return edm
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
        """What the network predicts, one of :data:`PREDICTION_TYPES`."""
        return self.parameterization.prediction_type


def _unknown(prediction_type: str) -> str:
    return f"Unknown prediction type {prediction_type!r:.60}; expected one of {', '.join(PREDICTION_TYPES)}."
