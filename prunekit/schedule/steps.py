"""The timesteps that a sampler visits, without torch."""

import numpy as np

from prunekit._types import IntArray
from prunekit.errors import InputError

__all__ = ["check_count", "sampler_timesteps"]

_MAX_TIMESTEPS = 1_000_000


def sampler_timesteps(num_timesteps: int, steps: int, spacing: str = "leading", offset: int = 0) -> IntArray:
    """The training timesteps that a DDIM- or DDPM-like sampler visits, noisiest first.

    The three spacings of "Common diffusion noise schedules…" (arXiv:2305.08891, table 2), as diffusers rounds them.

    Args:
        num_timesteps: T.
        steps: number of sampling steps, 1 … T.
        spacing: ``leading`` (diffusers' DDIM default), ``trailing`` or ``linspace``.
        offset: added to ``leading`` timesteps (diffusers' ``steps_offset``).

    Returns:
        Integers of shape (steps,) in 0 … T−1.

    Raises:
        InputError: the spacing is unknown, or it has fewer than ``steps`` timesteps in 0 … T−1.

    Example:
        >>> sampler_timesteps(1000, 4).tolist()
        [750, 500, 250, 0]
    """
    check_count(num_timesteps)
    if not 1 <= steps <= num_timesteps:
        raise InputError(
            f"Got {steps} sampling steps for {num_timesteps} training timesteps; expected 1 … {num_timesteps}."
        )
    match spacing:
        case "leading":
            ascending = np.round(np.arange(steps) * (num_timesteps // steps)) + offset
            timesteps = ascending[::-1].astype(np.int64)
            if not 0 <= timesteps.min() <= timesteps.max() < num_timesteps:
                raise InputError(
                    f"{steps} leading steps with offset {offset} go from timestep {timesteps.max()} to {timesteps.min()}; expected "
                    f"timesteps from 0 to {num_timesteps - 1}: take fewer steps."
                )
        case "trailing":
            timesteps = np.round(np.arange(num_timesteps, 0, -num_timesteps / steps)).astype(np.int64)[:steps] - 1
        case "linspace":
            timesteps = np.linspace(0, num_timesteps - 1, steps).round()[::-1].astype(np.int64)
        case _:
            raise InputError(f"Unknown timestep spacing {spacing!r}; expected leading, trailing or linspace.")
    return np.clip(timesteps, 0, num_timesteps - 1)


def check_count(num_timesteps: int) -> None:
    """Refuse an impossible number of training timesteps.

    Raises:
        InputError: it is not an integer in 2 … a million.
    """
    if not isinstance(num_timesteps, int | np.integer) or not 2 <= num_timesteps <= _MAX_TIMESTEPS:
        raise InputError(f"Got {num_timesteps!r} training timesteps; expected an integer in 2 … {_MAX_TIMESTEPS:,}.")
