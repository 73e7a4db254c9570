"""The machine that a recipe will run on: how long MACs take there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from prunekit._json import JsonObject
from prunekit.checkpoint import ModelSpec
from prunekit.cost import MacCount, gpu_hours, train_step_rate

__all__ = ["Gpus", "Machine", "ThisMachine", "count_said", "size_said", "this_machine", "time_said"]

_MEASURED_MACS = 5e9  # of a timed step: a second or so on a processor
_LARGEST = 300_000_000  # parameters of the largest network that is trained to measure a rate
_TIMES = ((24 * 365.25, "years"), (48, "days"), (1, "h"), (1 / 60, "min"))  # from so many hours on
_HOURS = {"years": 24 * 365.25, "days": 24.0, "h": 1.0, "min": 1 / 60}


class Machine(Protocol):
    """Where a recipe will run."""

    @property
    def count(self) -> int:
        """Number of devices, which share a training's batch or the timestep groups."""
        ...

    def hours(self, macs: int, precision: str) -> float:
        """Hours for some MACs, summed over all devices; ``precision`` is ``no`` for float32, ``bf16`` or ``fp16``."""
        ...

    def said(self, hours: Mapping[str, float]) -> str:
        """The hours of every stage as a sentence, with where and how fast."""
        ...

    def to_json(self) -> JsonObject:
        """The machine's fields."""
        ...


def time_said(hours: float) -> str:
    """Hours in the unit that suits them."""
    unit = next((unit for least, unit in _TIMES if hours >= least), None)
    return f"{hours * 3600:.2g} s" if unit is None else f"{hours / _HOURS[unit]:.3g} {unit}"


def size_said(count: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def count_said(number: float) -> str:
    """A large number with its prefix: ``39.7 G``; the unit follows without a space."""
    prefix, scale = next(((p, s) for p, s in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if number >= s), ("", 1.0))
    return f"{number / scale:.3g} {prefix}"


@dataclass(frozen=True)
class Gpus:
    """GPUs of one kind.

    Args:
        gpu: a kind of GPU, one of :data:`prunekit.cost.GPUS`.
        count: number of GPUs, which share a training's batch or the timestep groups.
        utilisation: reached share of the GPU's specified FLOP/s.
    """

    gpu: str = "A100"
    count: int = 1
    utilisation: float = 0.3

    def hours(self, macs: int, precision: str) -> float:
        """See :class:`Machine`.

        Raises:
            InputError: the GPU is not listed, or the share is invalid.
        """
        return gpu_hours(macs, self.gpu, precision, self.utilisation)

    def said(self, hours: Mapping[str, float]) -> str:
        """See :class:`Machine`."""
        stages = ", ".join(f"{stage} {time_said(own)}" for stage, own in hours.items())
        share = f"{100 * self.utilisation:.0f} %"
        return f"{time_said(sum(hours.values()))} of one {self.gpu} at {share} of its stated FLOP/s: {stages}."

    def to_json(self) -> JsonObject:
        """See :class:`Machine`."""
        return dict(vars(self))


@dataclass(frozen=True)
class ThisMachine:
    """The machine that the estimate is made on.

    Args:
        rate: MACs per second that it reached in train steps of the recipe's base.
    """

    rate: float
    count: int = 1

    def hours(self, macs: int, precision: str) -> float:
        """See :class:`Machine`; every precision takes as long as float32."""
        return macs / self.rate / 3600

    def said(self, hours: Mapping[str, float]) -> str:
        """See :class:`Machine`."""
        stages = ", ".join(f"{stage} {time_said(own)}" for stage, own in hours.items())
        rate = f"{self.rate / 1e9:.3g} GMAC/s in a train step of the base"
        return f"About {time_said(sum(hours.values()))} on this machine, which reaches {rate}: {stages}."

    def to_json(self) -> JsonObject:
        """See :class:`Machine`."""
        return {"macs_per_second": self.rate}


def this_machine(spec: ModelSpec, count: MacCount) -> ThisMachine | None:
    """This machine, with a rate measured in a few train steps of a network; None for one that is too large for that.

    Args:
        spec: the network.
        count: its MACs and parameters.
    """
    if count.params > _LARGEST:
        return None
    batch_size = max(1, min(64, int(_MEASURED_MACS / (3 * count.macs))))
    return ThisMachine(train_step_rate(spec.build(), spec.example_inputs(), count.macs, batch_size))
