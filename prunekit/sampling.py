"""Sampling with diffusers' schedulers, from initial noise that is the same for every model."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from prunekit._types import FloatArray
from prunekit.errors import InputError
from prunekit.graph.surgery import evaluation_mode
from prunekit.schedule import NoiseSchedule
from prunekit.training import predict

__all__ = ["SAMPLERS", "Sampler", "make_sampler", "real_timesteps", "to_images"]

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Short names; any other scheduler class of diffusers can be named in full."""


def to_images(samples: Tensor) -> Tensor:
    """Float samples in −1 … 1 (clamped) to uint8 on the CPU, same shape."""
    return samples.clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8).cpu()


def make_scheduler(name: str, schedule: NoiseSchedule, prediction_type: str = "epsilon") -> Any:
    """A diffusers scheduler with exactly this noise schedule.

    Raises:
        InputError: diffusers has no such scheduler, or it does not take a schedule of betas.
    """
    import diffusers  # noqa: PLC0415 - takes seconds, and planning alone does not need it

    class_name = SAMPLERS.get(name, name)
    scheduler = getattr(diffusers, class_name, None) if class_name.endswith("Scheduler") else None
    if scheduler is None:
        raise InputError(
            f"Unknown sampler {name!r}; expected one of {', '.join(SAMPLERS)}, or a diffusers scheduler's class name."
        )
    bar = schedule.alphas_cumprod
    betas = 1 - bar / np.concatenate([[1.0], bar[:-1]])
    try:
        made = scheduler(
            num_train_timesteps=schedule.num_timesteps, trained_betas=betas.tolist(), prediction_type=prediction_type
        )
    except (TypeError, ImportError) as error:  # some need packages that diffusers does not
        raise InputError(f"{class_name} does not take a schedule of betas and a prediction type ({error}).") from error
    own = np.asarray(getattr(made, "alphas_cumprod", []))
    if own.shape != bar.shape or not np.allclose(own, bar, rtol=1e-4, atol=1e-6):
        raise InputError(f"{class_name} does not follow the noise schedule; expected one of {', '.join(SAMPLERS)}.")
    return made


def real_timesteps(name: str, steps: int, schedule: NoiseSchedule) -> FloatArray:
    """Timestep of every network evaluation that a sampler makes, in order, shape (evaluations,).

    Second-order samplers evaluate more often than they step; every evaluation is listed.
    """
    scheduler = make_scheduler(name, schedule)
    _set_timesteps(scheduler, steps)
    return np.asarray(scheduler.timesteps, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws samples from a denoiser.

    Args:
        scheduler: a diffusers scheduler.
        steps: sampling steps.
        shape: of one sample, (channels, height, width).
    """

    scheduler: Any
    steps: int
    shape: tuple[int, int, int]

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module,
        count: int,
        seed: int,
        batch_size: int = 256,
        report: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Sample ``count`` images.

        Args:
            model: network or experts; called as ``model(x, t)``.
            count: number of samples.
            seed: of the initial noise (and of the sampler's own): equal seeds mean equal noise for every model.
            batch_size: samples at a time; it changes no noise, neither the initial nor the sampler's own.
            report: called with (samples done, count).

        Returns:
            Float samples, about −1 … 1, shape (count, channels, height, width), on the CPU.
        """
        noise = torch.randn((count, *self.shape), generator=Generator().manual_seed(seed))
        generators = [Generator().manual_seed(seed * 1_000_003 + i + 1) for i in range(count)]  # one for each sample
        device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), noise.device)
        done: list[Tensor] = []
        with evaluation_mode(model):
            for part in noise.split(batch_size):
                first = sum(map(len, done))
                _set_timesteps(self.scheduler, self.steps)
                x = part.to(device) * self.scheduler.init_noise_sigma
                for t in self.scheduler.timesteps:
                    prediction = predict(model, self.scheduler.scale_model_input(x, t), t)
                    x = _step(self.scheduler, prediction, t, x, generators[first : first + len(part)])
                done.append(x.cpu())
                if report is not None:
                    report(first + len(part), count)
        return torch.cat(done)


def make_sampler(
    name: str, steps: int, schedule: NoiseSchedule, prediction_type: str, shape: tuple[int, int, int]
) -> Sampler:
    """A sampler by short name or diffusers class name, see :data:`SAMPLERS`.

    Raises:
        InputError: the sampler is unknown, or the schedule's noisy samples are not scaled as diffusers' samplers scale them.
    """
    if not np.allclose(schedule.signal**2 + schedule.noise**2, 1, atol=1e-4):
        raise InputError(
            "Samplers are for variance-preserving noise schedules (a² + b² = 1); a network that was trained on another scale "
            "would get inputs that it has never seen."
        )
    return Sampler(make_scheduler(name, schedule, prediction_type), steps, shape)


def _set_timesteps(scheduler: Any, steps: int) -> None:
    try:
        if steps < 1:
            raise ValueError("at least one is needed")
        scheduler.set_timesteps(steps)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise InputError(f"{type(scheduler).__name__} cannot take {steps} steps ({error}).") from error


def _step(scheduler: Any, prediction: Tensor, t: Tensor, x: Tensor, generators: list[Generator]) -> Tensor:
    """One scheduler step; those that draw noise get the samples' generators, those that draw none do not take one."""
    try:
        stepped: Tensor = scheduler.step(prediction, t, x, generator=generators, return_dict=False)[0]
    except TypeError:
        stepped = scheduler.step(prediction, t, x, return_dict=False)[0]
    return stepped
