"""Schedulers of diffusers with and without clamping of the predicted clean sample."""

from typing import Any

__all__ = ["clamps", "unclamped"]

_SETTINGS = ("clip_sample", "thresholding")


def clamps(scheduler: Any) -> bool:
    """Whether a scheduler of diffusers clamps predictions of the clean sample, to −1 … 1 or by thresholding."""
    return any(scheduler.config.get(name) for name in _SETTINGS)


def unclamped(scheduler: Any) -> Any:
    """A scheduler of diffusers with the same settings that does not clamp."""
    known = {name: False for name in _SETTINGS if name in scheduler.config}
    return type(scheduler).from_config(scheduler.config, **known)
