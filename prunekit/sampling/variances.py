"""What samplers do with the variances that some networks predict; see :mod:`prunekit.training.learned_variance`.

diffusers' DDPM draws its noise with the predicted variances if the scheduler's ``variance_type`` is ``learned_range`` or
``learned``. Every other sampler takes the mean half alone, as diffusers' own pipelines do.
"""

import inspect
from typing import Any

from torch import Tensor, cat

from prunekit._json import JsonDict
from prunekit.errors import InputError
from prunekit.training import split_output

__all__ = ["guided", "scheduled_output", "without_unused_variances"]


def scheduled_output(scheduler: Any, output: Tensor, samples: Tensor) -> Tensor:
    """The part of a network's output that a scheduler's step takes.

    Args:
        scheduler: a diffusers scheduler.
        output: of the network, shape (batch, channels, …), or with twice the channels if it predicts variances.
        samples: the scheduler's state, shape (batch, channels, …).

    Raises:
        InputError: the scheduler needs variances and the network predicts none.
    """
    halves, learned = split_output(output, samples), _asks(scheduler.config)
    if not (learned and _splits(type(scheduler))):
        return halves.mean
    if halves.variance is None:
        raise InputError(
            f"The scheduler's variance_type is {scheduler.config['variance_type']} and the network predicts no variances; sample "
            "with `sampler` ddim, which needs none."
        )
    return output


def guided(plain: Tensor, conditional: Tensor, scale: float, samples: Tensor) -> Tensor:
    """Classifier-free guidance of the prediction; variances are those with the condition, as in DiT's pipeline.

    Args:
        plain: the network's output without the condition, shape (batch, channels, …), or with twice the channels.
        conditional: with the condition, same shape.
        scale: s in ŷ_∅ + s·(ŷ_c − ŷ_∅).
        samples: the network's input, shape (batch, channels, …).
    """
    without, own = split_output(plain, samples), split_output(conditional, samples)
    mean = without.mean + scale * (own.mean - without.mean)
    return mean if own.variance is None else cat([mean, own.variance], _axis(own.mean, plain))


def without_unused_variances(scheduler_class: Any, settings: JsonDict) -> dict[str, Any]:
    """The settings without ``variance_type`` learned… for a class that does not split the output into halves.

    Some of these cut three channels off instead, which is wrong for latents; here they get the mean half.
    """
    if not _asks(settings) or _splits(scheduler_class):
        return dict(settings)
    return {key: value for key, value in settings.items() if key != "variance_type"}


def _asks(settings: JsonDict) -> bool:
    """Whether a scheduler's settings ask for predicted variances."""
    return str(settings.get("variance_type", "")).startswith("learned")


def _splits(scheduler_class: Any) -> bool:
    """Whether the steps of a scheduler's class draw noise with predicted variances."""
    rule = getattr(scheduler_class, "_get_variance", None)
    return rule is not None and "predicted_variance" in inspect.signature(rule).parameters


def _axis(mean: Tensor, output: Tensor) -> int:
    """The axis of the channels."""
    return next(axis for axis, size in enumerate(mean.shape) if output.shape[axis] != size)
