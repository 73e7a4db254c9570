"""Sampling with diffusers' schedulers, from initial noise that is the same for every model."""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from prunekit._progress import tell
from prunekit.conditions import Calling
from prunekit.errors import InputError
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.graph.streams import in_streams
from prunekit.sampling.clamping import clamps, unclamped
from prunekit.sampling.schedulers import make_scheduler, set_timesteps
from prunekit.sampling.variances import guided, scheduled_output
from prunekit.schedule import Parameterization, Timeline
from prunekit.training import CLASSES, mean_half
from prunekit.training.number_checks import Watch

__all__ = [
    "BATCH",
    "Evaluation",
    "Sampler",
    "clamps",
    "clean_prediction",
    "ddim_step",
    "make_sampler",
    "to_images",
    "unclamped",
]

BATCH = 256
"""Samples at a time."""
_LABEL_SEED = 0x9E3779B1  # so that classes and noise of one seed use different random numbers
_STEP_SEED = 0x85EBCA6B  # so that the sampler's noise is not the initial noise of another seed


def to_images(samples: Tensor) -> Tensor:
    """Float samples in −1 … 1 (clamped) to uint8 on the CPU, same shape.

    Raises:
        InputError: a sample has NaN or an infinity, which uint8 would show as black or white.
    """
    bad = len(samples) - int(samples.reshape(len(samples), -1).isfinite().all(1).sum())
    if bad:
        raise InputError(
            f"{bad} of {len(samples)} samples are not finite; expected finite numbers to make pictures of."
        )
    return samples.clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8).cpu()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One evaluation of the network on the way from noise to samples.

    Args:
        timestep: the training timestep of the evaluation, fractional.
        state: the network's input, x_t on the scale of :meth:`prunekit.schedule.Parameterization.levels_at`, shape
            (batch, channels, height, width).
        prediction: the network's output without the variances that it may predict, same shape.
        stepped: the sampler's next state, on the sampler's own scale, same shape; in the last evaluation these are the samples.
    """

    timestep: float
    state: Tensor
    prediction: Tensor
    stepped: Tensor


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws samples from a denoiser.

    Args:
        scheduler: a diffusers scheduler.
        steps: number of sampling steps.
        shape: shape of one sample, such as (channels, height, width), or (tokens, channels) of latents.
        classes: classes to sample with a class-conditional network; empty for a network without classes.
        conditions: of the samples by their arguments' paths, each of shape (rows, …); sample i has row i, and after the last row
            they begin again.
        empty: what stands for no condition, by path, without the first axis; needed for guidance.
        guidance_scale: weight s of classifier-free guidance, ŷ_∅ + s·(ŷ_c − ŷ_∅) (arXiv:2207.12598, in the form of
            arXiv:2205.11487, eq. 2); 1 for none.
        calling: how the network is called.
        timeline: the scheduler's time at every training timestep; its times are training timesteps if missing.

    Raises:
        InputError: the guidance scale is not finite, or is not 1 and there is no empty condition.
    """

    scheduler: Any
    steps: int
    shape: tuple[int, ...]
    classes: Sequence[int] = ()
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    empty: Mapping[str, Tensor] = field(default_factory=dict)
    guidance_scale: float = 1.0
    calling: Calling = field(default_factory=Calling)
    timeline: Timeline | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.guidance_scale):
            raise InputError(f"Got guidance_scale {self.guidance_scale}; expected a finite number.")
        if self.guidance_scale != 1 and not self.empty:
            raise InputError(
                f"Got guidance_scale {self.guidance_scale:g} and no empty condition; expected one, or a scale of 1."
            )

    def for_latents(self) -> "Sampler":
        """The same sampler without clamping, since latents exceed the range of pictures."""
        return self.unclamped()

    @property
    def clamps(self) -> bool:
        """Whether predictions of the clean sample are clamped, to −1 … 1 or by thresholding."""
        return clamps(self.scheduler)

    def unclamped(self) -> "Sampler":
        """The same sampler without clamping predictions of the clean sample."""
        return replace(self, scheduler=unclamped(self.scheduler)) if self.clamps else self

    def of_classes(self, classes: Sequence[int]) -> "Sampler":
        """The same sampler for these classes of a class-conditional network."""
        return replace(self, classes=tuple(classes))

    def with_conditions(
        self,
        conditions: Mapping[str, Tensor],
        empty: Mapping[str, Tensor] | None = None,
        guidance_scale: float = 1.0,
        calling: Calling | None = None,
    ) -> "Sampler":
        """The same sampler with these conditions; arguments as for :class:`Sampler`."""
        return replace(
            self,
            conditions=conditions,
            empty=empty or {},
            guidance_scale=guidance_scale,
            calling=calling or self.calling,
        )

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module,
        count: int,
        seed: int,
        batch_size: int = BATCH,
        report: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Sample ``count`` images.

        Args:
            model: network or experts; called as ``model(x, t)``.
            count: number of samples.
            seed: seed of the initial noise, the sampler's noise and the classes: equal seeds give equal noise for every model.
            batch_size: samples at a time; it changes neither the initial noise nor the sampler's noise.
            report: called with (samples done, count).

        Returns:
            Float samples, about −1 … 1, shape (count, channels, height, width), on the CPU.
        """
        noise, told = self.noise(count, seed), self.told(count, seed)
        done: list[Tensor] = []
        tell("sampling", 0, count * self.steps)
        with evaluation_mode(model):
            for part in noise.split(batch_size):
                first = sum(map(len, done))
                x, own = part, {name: rows[first : first + len(part)] for name, rows in told.items()}
                for number, evaluation in enumerate(self.trajectory(model, part, seed, first, own), start=1):
                    x = evaluation.stepped
                    each = first + len(part) * min(number, self.steps) / max(self.steps, number)
                    tell("sampling", round(each * self.steps), count * self.steps, f"{first} of {count} images")
                done.append(x.cpu())
                if report is not None:
                    report(first + len(part), count)
        return torch.cat(done)

    def noise(self, count: int, seed: int) -> Tensor:
        """The initial noise of ``count`` samples, unit variance, shape (count, channels, height, width), on the CPU."""
        return torch.randn((count, *self.shape), generator=Generator().manual_seed(seed))

    def labels(self, count: int, seed: int) -> Tensor | None:
        """The classes of ``count`` samples, drawn uniformly, int64, shape (count,); None for a network without classes."""
        if not self.classes:
            return None
        index = torch.randint(len(self.classes), (count,), generator=Generator().manual_seed(seed + _LABEL_SEED))
        return torch.tensor(self.classes)[index]

    def told(self, count: int, seed: int) -> dict[str, Tensor]:
        """The conditions of ``count`` samples, with their classes, by the arguments' paths; each of shape (count, …)."""
        rows = {name: values[torch.arange(count) % len(values)] for name, values in self.conditions.items()}
        labels = self.labels(count, seed)
        return rows if labels is None else {CLASSES: labels, **rows}

    def trajectory(
        self,
        model: nn.Module,
        noise: Tensor,
        seed: int,
        first: int = 0,
        conditions: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Evaluation]:
        """Every evaluation on the way from noise to samples, in order; several trajectories may be followed at once.

        Gradients and the model's mode are the caller's: samples are drawn in eval mode without gradients.

        Args:
            model: network or experts; called as ``model(x, t)``.
            noise: initial noise of unit variance, shape (batch, channels, height, width).
            seed: seed of the sampler's noise.
            first: index of the batch's first sample, so that a sample's noise does not depend on its batch.
            conditions: of the samples, by their arguments' paths, each of shape (batch, …).

        Raises:
            InputError: the network's predictions or the sampler's states are not finite; on a GPU this is noticed one evaluation
                later.
        """
        scheduler = copy.deepcopy(self.scheduler)  # it has a step counter
        set_timesteps(scheduler, self.steps, self.shape[0] if len(self.shape) == 2 else None)
        generators = [Generator().manual_seed(seed * 1_000_003 + _STEP_SEED + first + i) for i in range(len(noise))]
        device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), noise.device)
        told = {name: rows.to(device) for name, rows in (conditions or {}).items()}
        x = noise.to(device) * getattr(scheduler, "init_noise_sigma", 1.0)  # flow matching begins at the noise itself
        scaled = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
        watch, count = Watch[tuple[int, float]](), len(scheduler.timesteps)
        with in_streams(model, len(x) * (2 if self.is_guided else 1), self.calling.fixed) as evaluated:
            for number, t in enumerate(scheduler.timesteps, start=1):
                state, place = scaled(x, t), self._place(float(t))
                prediction = self._prediction(evaluated, state, t, told)
                x = _step(scheduler, scheduled_output(scheduler, prediction, x), t, x, generators)
                _check(watch.note((number, place), _not_finite(prediction, x)), count, len(x))
                yield Evaluation(place, state, mean_half(prediction, state), x)
        _check(watch.pending(), count, len(x))

    def _place(self, time: float) -> float:
        """The training timestep of a scheduler's time, fractional."""
        return time if self.timeline is None else float(self.timeline.place_of(np.array(time)))

    @property
    def is_guided(self) -> bool:
        """Whether the network is evaluated on the empty condition, too."""
        return self.guidance_scale != 1 and bool(self.empty)

    @property
    def passes(self) -> float:
        """Evaluations of the network for each sample and step of the scheduler."""
        return 2.0 if self.is_guided else 1.0

    def _prediction(self, model: nn.Module, state: Tensor, t: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """The network's prediction, guided if that is asked; both halves are evaluated in one batch."""
        if not told:
            return self.calling(model, state, t)
        every = t.to(state.device).expand(len(state))  # transformers want one for each sample
        if not self.is_guided:
            return self.calling(model, state, every, told)
        both = {name: torch.cat([self._without(name, rows), rows]) for name, rows in told.items()}
        plain, conditional = self.calling(model, torch.cat([state] * 2), torch.cat([every] * 2), both).chunk(2)
        return guided(plain, conditional, self.guidance_scale, state)

    def _without(self, name: str, rows: Tensor) -> Tensor:
        """The empty condition for every sample; a condition that has none stays."""
        return self.empty[name].to(rows).expand_as(rows) if name in self.empty else rows


def _not_finite(prediction: Tensor, stepped: Tensor) -> Tensor:
    """Number of samples of a batch with NaN or an infinity, shape (1,)."""
    whole = prediction.flatten(1).isfinite().all(1) & stepped.flatten(1).isfinite().all(1)
    return (~whole).sum().float().reshape(1)


def _check(seen: list[tuple[tuple[int, float], list[float]]], steps: int, batch: int) -> None:
    for (number, timestep), (bad,) in seen:
        if bad:
            raise InputError(
                f"{bad:.0f} of {batch} samples are not finite after evaluation {number} of {steps} (timestep {timestep:g}); "
                "expected a model that was trained to finite weights, in a precision that its activations fit."
            )


def clean_prediction(prediction: Tensor, state: Tensor, timestep: float, parameterization: Parameterization) -> Tensor:
    """Convert a prediction at x_t = a·x0 + b·ε to the clean image x0, same shape, not clamped.

    Args:
        prediction: the network's output, shape (batch, channels, height, width); or with twice the channels, if it predicts
            variances too, which are not used.
        state: x_t, shape (batch, channels, height, width), with a and b as :meth:`prunekit.schedule.Parameterization.levels_at`
            has them.
        timestep: t of the whole batch, whole or fractional.
        parameterization: noise schedule and prediction type.
    """
    signal, noise = parameterization.levels_at(timestep)
    return parameterization.clean(mean_half(prediction, state), state, signal, noise)


def make_sampler(name: str, steps: int, parameterization: Parameterization, shape: tuple[int, ...]) -> Sampler:
    """A sampler by short name or diffusers class name, see :data:`prunekit.sampling.SAMPLERS`.

    Raises:
        InputError: the sampler is unknown or cannot be used, see :func:`prunekit.sampling.make_scheduler`; or the schedule's noisy
            samples are not scaled as diffusers' samplers scale them.
    """
    schedule = parameterization.schedule
    if parameterization.timeline.counts_timesteps and not np.allclose(
        schedule.signal**2 + schedule.noise**2, 1, atol=1e-4
    ):
        raise InputError(
            "Samplers are for variance-preserving noise schedules (a² + b² = 1); a network that was trained on another scale "
            "would get inputs that it has never seen."
        )
    return Sampler(make_scheduler(name, parameterization), steps, shape, timeline=parameterization.timeline)


def ddim_step(
    state: Tensor, clean: Tensor, timestep: float, target: float, parameterization: Parameterization
) -> Tensor:
    """Step from x_t to a cleaner timestep without added noise (DDIM, arXiv:2010.02502, eq. 12 with σ = 0), same shape.

    The clean image is clamped as diffusers' DDIM does with the settings of the pipeline's scheduler: to −1 … 1 unless these differ.
    For flow matching and EDM it is a step of Euler's, which clamps nothing.

    Args:
        state: x_t, shape (batch, channels, height, width), on the scale of :meth:`prunekit.schedule.Parameterization.levels_at`.
        clean: the prediction of x0 at this timestep, same shape, not clamped.
        timestep: t of the whole batch.
        target: timestep to go to.
        parameterization: noise schedule and prediction type.
    """
    signal, noise = parameterization.levels_at(timestep)
    to_signal, to_noise = parameterization.levels_at(target)
    settings = parameterization.schedule.scheduler
    clamps = settings.get("clip_sample", True) and parameterization.timeline.counts_timesteps
    bound = float(settings.get("clip_sample_range", 1.0)) if clamps else math.inf
    return to_signal * clean.clamp(-bound, bound) + to_noise * (state - signal * clean) / noise


def _step(scheduler: Any, prediction: Tensor, t: Tensor, x: Tensor, generators: list[Generator]) -> Tensor:
    """One scheduler step; those that draw noise get the samples' generators, those that draw none do not take one."""
    own = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    try:
        stepped: Tensor = scheduler.step(prediction, t, x, return_dict=False, **own)[0]
    except (NotImplementedError, ValueError) as error:  # what the network predicts, or another of its settings
        raise InputError(
            f"{type(scheduler).__name__} cannot sample from this network: {error}; use another sampler."
        ) from error
    return stepped
