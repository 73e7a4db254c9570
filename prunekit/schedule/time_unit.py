"""The unit in which a pipeline tells its network the time: 0 … 1000, 0 … 1, or backwards from 1."""

from dataclasses import dataclass

import numpy as np

from prunekit._json import JsonDict, JsonObject
from prunekit._types import FloatArray
from prunekit.errors import FileFormatError, InputError

__all__ = ["TimeUnit"]


@dataclass(frozen=True)
class TimeUnit:
    """A network's time input is ``scale``·t + ``offset`` for the scheduler's timestep t.

    Args:
        scale: 1 for timesteps as they are, 0.001 for pipelines that divide by 1000, negative for those that count backwards.
        offset: what is told for t = 0.
        sign: −1 for networks that predict the velocity toward the data, as those of pipelines do whose time runs that way (Lumina,
            Z-Image); else 1.

    Raises:
        InputError: the scale is 0, a number is not finite, or the sign is neither 1 nor −1.

    Example:
        >>> import numpy as np
        >>> backwards = TimeUnit(-0.001, 1.0)
        >>> backwards.time_of(np.array([0.75, 0.25])).round(6).tolist()
        [250.0, 750.0]
    """

    scale: float = 1.0
    offset: float = 0.0
    sign: int = 1

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and np.isfinite(self.offset) and self.scale):
            raise InputError(
                f"The time unit {self.scale}·t + {self.offset} is none; expected a finite scale other than 0."
            )
        if self.sign not in (1, -1):
            raise InputError(f"Got the sign {self.sign!r:.40} of a prediction; expected 1 or -1.")

    def told(self, timesteps: FloatArray) -> FloatArray:
        """What the network is told for the scheduler's timesteps, same shape."""
        return np.asarray(self.scale * np.asarray(timesteps, dtype=np.float64) + self.offset)

    def time_of(self, told: FloatArray) -> FloatArray:
        """The scheduler's times of what the network is told, same shape; undoes :meth:`told`."""
        return np.asarray((np.asarray(told, dtype=np.float64) - self.offset) / self.scale)

    def to_config(self) -> JsonObject:
        """JSON-able; :meth:`from_config` reads it."""
        config: JsonObject = {"scale": self.scale, "offset": self.offset}
        return config if self.sign == 1 else {**config, "sign": self.sign}

    @classmethod
    def from_config(cls, config: JsonDict) -> "TimeUnit":
        """Read what :meth:`to_config` wrote.

        Raises:
            FileFormatError: a key is missing or no number.
            InputError: the numbers are no unit.
        """
        numbers = {"sign": 1, **config}
        if numbers.keys() != {"scale", "offset", "sign"} or not all(
            type(one) in (int, float) for one in numbers.values()
        ):
            raise FileFormatError(
                f"A time unit needs the numbers scale and offset, and maybe sign; got {dict(config)!r:.80}."
            )
        return cls(float(numbers["scale"]), float(numbers["offset"]), numbers["sign"])
