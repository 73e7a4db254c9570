"""Conditions: what a denoiser is given beside its noisy samples and the timestep, by the argument's path.

A condition has a row for each sample. Its name is the way to the argument: ``encoder_hidden_states``, ``class_labels``, or
``added_cond_kwargs.text_embeds`` for an entry of a mapping. Arguments that are the same for every sample are fixed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prunekit.schedule import TimeUnit

__all__ = ["Calling", "flat", "nested", "prediction_of", "rows_of"]


def flat(arguments: Mapping[str, object]) -> dict[str, object]:
    """Arguments by their paths: entries of mappings become arguments of their own. Empty mappings stay.

    Example:
        >>> flat({"a": 1, "b": {"c": 2, "d": {}}})
        {'a': 1, 'b.c': 2, 'b.d': {}}
    """
    found: dict[str, object] = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{inner}": own for inner, own in flat(value).items()}
        else:
            found[name] = value
    return found


def nested(paths: Mapping[str, object]) -> dict[str, Any]:
    """Keyword arguments from values by their paths; undoes :func:`flat`.

    Example:
        >>> nested({"a": 1, "b.c": 2, "b.d": {}})
        {'a': 1, 'b': {'c': 2, 'd': {}}}
    """
    found: dict[str, Any] = {}
    for path, value in paths.items():
        *way, last = path.split(".")
        place = found
        for name in way:
            place = place.setdefault(name, {})
        place[last] = value
    return found


def rows_of(value: Any, rows: Tensor | slice | None, batch: int) -> Any:
    """The given rows of every tensor with the batch as its first dimension, also inside mappings, lists and tuples.

    Args:
        value: of an argument; what is no such tensor is returned unchanged.
        rows: indices of samples, shape (rows,), or a slice, which copies nothing; None for all of them.
        batch: number of samples.
    """
    if rows is None:
        return value
    if isinstance(value, Tensor):
        if value.ndim == 0 or len(value) != batch:
            return value
        return value[rows.to(value.device) if isinstance(rows, Tensor) else rows]
    if isinstance(value, Mapping):
        return {name: rows_of(own, rows, batch) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(rows_of(own, rows, batch) for own in value)
    return value


def prediction_of(output: Any) -> Tensor:
    """The prediction in what a denoiser returns: a tensor, diffusers' output, or a tuple."""
    if isinstance(output, Tensor):
        return output
    prediction: Tensor = output.sample if hasattr(output, "sample") else output[0]
    return prediction


@dataclass(frozen=True, eq=False)
class Calling:
    """How a denoiser is called.

    Args:
        sample: name of the argument for the noisy samples; empty where they come first.
        timestep: name of the argument for the timestep; empty where it comes second.
        fixed: arguments that are the same for every sample, by their paths.
        unit: in which the network is told the timestep, and the sign of its prediction; None for timesteps as they are.

    Example:
        >>> import torch
        >>> net = lambda hidden_states, scale, timestep: scale * hidden_states + timestep
        >>> call = Calling("hidden_states", "timestep")
        >>> call(net, torch.ones(2), torch.tensor(3), {"scale": torch.tensor(2)}).tolist()
        [5.0, 5.0]
    """

    sample: str = ""
    timestep: str = ""
    fixed: Mapping[str, object] = field(default_factory=dict)
    unit: TimeUnit | None = None

    def __call__(
        self,
        model: Callable[..., Any],
        noisy: Tensor,
        timesteps: Tensor,
        conditions: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The denoiser's prediction.

        Args:
            model: a diffusers network or a plain one.
            noisy: x_t, shape (batch, …).
            timesteps: the scheduler's, shape (batch,), or () for one timestep for all samples.
            conditions: by their paths, each of shape (batch, …).
        """
        if self.unit is not None and self.unit != TimeUnit():
            timesteps = timesteps.to(noisy.dtype) * self.unit.scale + self.unit.offset
        fixed = {name: _like(value, noisy) for name, value in self.fixed.items()}
        others = nested({**fixed, **(conditions or {})})
        first = () if self.sample else (noisy,)
        own = {self.sample: noisy} if self.sample else {}
        if self.timestep:
            own[self.timestep] = timesteps
        else:
            first = (*first, timesteps)
        prediction = prediction_of(model(*first, **own, **others))
        return -prediction if self.unit is not None and self.unit.sign < 0 else prediction


def _like(value: object, noisy: Tensor) -> object:
    """A fixed argument on the samples' device, and in their precision if it has one."""
    if not isinstance(value, Tensor):
        return value
    return value.to(noisy) if value.is_floating_point() else value.to(noisy.device)
