r"""Measures how a sampler carries an error of the prediction, made in one timestep group, into the sample.

The sampler draws samples from fixed noise. It then draws them again, once for each timestep group, with white noise added to every
prediction that is made in the group. The amplification of group g is

.. math:: A_g = \frac{\mathrm{mean}\,|x_g - x|^2}{\mathrm{mean}\,|e|^2},

with x the undisturbed sample, x_g the disturbed one, and e the noise that is added to one prediction. Where the sampler is linear
in errors and these are independent, :math:`\sum_g A_g L_g` is the expected mean square change of the sample if the predictions in
group g are wrong by a mean square of :math:`L_g`. Definition: this project's; docs/allocation.md says what it is used for, and what
has been compared.

No sampler needs to know about it: :class:`Disturbed` stands in for the denoiser, in a :class:`prunekit.sampling.Sampler` as in a
pipeline of diffusers.
"""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor, nn

from prunekit import nets  # experts import diffusers once they are asked for
from prunekit._progress import as_part
from prunekit._types import FloatArray
from prunekit.allocation.sensitivity import GroupSensitivity
from prunekit.conditions import prediction_of
from prunekit.errors import InputError
from prunekit.groups import TimestepGroup
from prunekit.nets.call_forms import CallForm
from prunekit.nets.drop_in import Router
from prunekit.sampling.drawing import Sampler
from prunekit.schedule import TimeUnit
from prunekit.training import split_output

__all__ = [
    "Disturbance",
    "Disturbed",
    "Draws",
    "Measure",
    "SensitivityOptions",
    "elements",
    "router_of",
    "sensitivities",
]

_NOISE_SEED = 0x5E45  # added to the samples' seed, so that the added noise is not that of the samples
_CHECKED = 2.0  # times the size: the noise with which linearity is checked


class Draws(Protocol):
    """A sampler: :class:`prunekit.sampling.Sampler`, or one that runs a pipeline."""

    @property
    def passes(self) -> float:
        """Evaluations of the network for each sample and evaluation of the sampler: two with guidance."""

    def __call__(self, model: nn.Module, count: int, seed: int, batch_size: int = ...) -> Tensor:
        """Samples of shape (count, …), on the CPU."""


@dataclass(frozen=True)
class SensitivityOptions:
    """How a sensitivity is measured.

    Args:
        count: number of samples.
        seed: of the samples and of the added noise.
        size: of the added noise, relative to the root mean square of each sample's prediction.
        check: measure with noise of twice the size, too, which shows whether changes are proportional to errors.
        batch_size: samples at a time.
        clamped: leave the scheduler its clamping of the clean sample, if it has one. In the noisiest timesteps a small
            error of the prediction is a large one of the clean sample, so that clamping makes the amplification depend on the
            error's size.

    Raises:
        InputError: a number is out of its range.
    """

    count: int = 32
    seed: int = 0
    size: float = 0.002
    check: bool = True
    batch_size: int = 64
    clamped: bool = False

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch_size < 1:
            raise InputError(f"Got {self.count} samples, {self.batch_size} at a time; expected at least 1 of each.")
        if not 0 < self.size <= 1:
            raise InputError(f"Got noise of size {self.size:g}; expected more than 0 and at most 1.")

    @property
    def checked_size(self) -> float | None:
        """Size of the noise with which linearity is checked; None if it is not."""
        return _CHECKED * self.size if self.check else None


@dataclass(frozen=True)
class Measure:
    """Where a change of the sample is measured.

    Args:
        name: ``pixels``, ``latents`` or ``features``.
        of: the values that are compared, of samples of shape (count, …); of shape (count, values).
        summed: whether the squares are summed over the values, and not averaged.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    summed: bool = False

    def change(self, samples: Tensor, disturbed: Tensor) -> FloatArray:
        """Square change of every sample, float64, shape (count,)."""
        squares = (self.of(disturbed).double() - self.of(samples).double()).square()
        found: FloatArray = (squares.sum(1) if self.summed else squares.mean(1)).cpu().numpy()
        return found


def elements(name: str) -> Measure:
    """Changes of the samples themselves, averaged over their elements.

    Args:
        name: ``pixels`` or ``latents``.
    """
    return Measure(name, lambda samples: samples.flatten(1))


class Disturbance(NamedTuple):
    """White noise for the predictions of one timestep group.

    Args:
        group: index of the timestep group; None for no noise.
        size: relative to the root mean square of each sample's prediction.
        seed: of the noise; equal seeds give every group the same noise at the same evaluation.
    """

    group: int | None
    size: float
    seed: int


class Disturbed(nn.Module):
    """A denoiser whose predictions have noise in one timestep group; it is called as the denoiser is, and answers for it.

    The noise is white, and has for every sample the given size relative to its prediction. Noise is drawn for every evaluation and
    used for those in the group, so the same evaluation gets the same noise whatever the group is. Where guidance evaluates the
    network with and without the condition, both get noise of their own. Predicted variances are left as they are.

    Args:
        network: the denoiser: a network or experts.
        router: tells a timestep's group.
        noise: the noise.
    """

    evaluates_alone = True  # noise is drawn in the order of the evaluations

    def __init__(self, network: nn.Module, router: Router, noise: Disturbance) -> None:
        super().__init__()
        self.network = network
        self._router, self._noise = router, noise
        self._generator = Generator().manual_seed(noise.seed + _NOISE_SEED)
        self._form = _form_of(network)
        self.rows: Counter[int] = Counter()
        self._squares: list[float] = []  # a list, since modules in eval mode get their attributes back

    def __getattr__(self, name: str) -> Any:
        """What the denoiser has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    @property
    def error(self) -> float:
        """Mean square of the noise that one prediction has had, per element; 0 if none had any."""
        rows = 0 if self._noise.group is None else self.rows[self._noise.group]
        return sum(self._squares) / rows if rows else 0.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the denoiser returns, with noise in the prediction of samples whose timestep is in the group.

        Args:
            args: of the denoiser.
            kwargs: of the denoiser.

        Raises:
            InputError: the denoiser does not take or return its samples as one tensor.
        """
        output = self.network(*args, **kwargs)
        bound = self._form.bound(args, kwargs)
        sample, prediction = bound[self._form.sample], prediction_of(output)
        if not isinstance(sample, Tensor) or not isinstance(prediction, Tensor):
            raise InputError(
                f"{type(self.network).__name__} takes or returns its samples as a list; expected a network of one tensor."
            )
        noise = torch.randn(prediction.shape, generator=self._generator)
        chosen = torch.zeros(len(prediction), dtype=torch.bool)
        for index, rows in self._router.routes(bound[self._form.timestep], len(prediction)):  # type: ignore[arg-type]
            self.rows[index] += len(prediction) if rows is None else len(rows)
            if index == self._noise.group:
                chosen[slice(None) if rows is None else rows] = True
        if not chosen.any():
            return output
        return _replaced(output, prediction + self._added(noise.to(prediction.device), prediction, sample, chosen))

    def _added(self, noise: Tensor, prediction: Tensor, sample: Tensor, chosen: Tensor) -> Tensor:
        """The noise of the chosen rows, scaled to their predictions, in the prediction's precision."""
        mean, added = _mean_of(prediction.detach(), sample).float(), torch.zeros_like(noise)
        scale = self._noise.size * mean.flatten(1).square().mean(1).sqrt() * chosen.to(mean.device)
        part = _mean_of(added, sample)  # a view
        part.copy_(_mean_of(noise, sample) * scale.reshape(-1, *[1] * (part.ndim - 1)))
        self._squares.append(float(part.double().flatten(1).square().mean(1).sum()))
        return added.to(prediction.dtype)


def router_of(sampler: Sampler, router: Router) -> Router:
    """The router for a sampler, which tells the network the scheduler's timesteps unless its calling has another unit.

    Args:
        sampler: draws the samples.
        router: with the groups.
    """
    return Router(router.groups, sampler.calling.unit or TimeUnit(), sampler.timeline)


def sensitivities(
    draw: Draws,
    model: nn.Module,
    router: Router,
    measure: Measure,
    options: SensitivityOptions,
) -> tuple[GroupSensitivity, ...]:
    """Measure every timestep group's amplification; groups without evaluations have 0.

    Args:
        draw: the sampler.
        model: the denoiser: a network or experts.
        router: has the groups, and the unit in which the sampler tells the timestep.
        measure: where changes of the sample are measured.
        options: number of samples, and size of the noise.

    Returns:
        One for each timestep group, cleanest first.

    Raises:
        InputError: the samples are not finite; see also :class:`Disturbed`.

    Example:
        A network that always predicts 1, in two groups with one of the two steps each:

        >>> from prunekit.groups import make_groups
        >>> from prunekit.sampling import make_sampler
        >>> from prunekit.schedule import NoiseSchedule, Parameterization
        >>> class Constant(nn.Module):
        ...     def forward(self, x, t):
        ...         return torch.ones_like(x)
        >>> kind = Parameterization(NoiseSchedule.linear(10), "epsilon")
        >>> sampler = make_sampler("ddim", 2, kind, (1, 4, 4)).for_latents()
        >>> router = Router(make_groups(kind.schedule, count=2), TimeUnit())
        >>> found = sensitivities(sampler, Constant(), router, elements("pixels"), SensitivityOptions(count=4))
        >>> [group.evaluations for group in found], found[0].amplification < found[1].amplification
        ([1, 1], True)
    """
    sizes = [size for size in (options.size, options.checked_size) if size is not None]
    total = 1 + len(sizes) * len(router.groups)

    def drawn(number: int, disturbance: Disturbance) -> tuple[Disturbed, Tensor]:
        noisy = Disturbed(model, router, disturbance)
        with as_part("sensitivity", number, total):
            return noisy, draw(noisy, options.count, options.seed, options.batch_size)

    plain, samples = drawn(0, Disturbance(None, 0.0, options.seed))
    found = []
    for group in router.groups:
        evaluations, runs = round(plain.rows[group.index] / (options.count * draw.passes)), []
        for place, size in enumerate(sizes if evaluations else ()):
            noisy, disturbed = drawn(1 + len(sizes) * group.index + place, Disturbance(group.index, size, options.seed))
            runs.append((noisy.error, measure.change(samples, disturbed)))
        found.append(_joined(group, evaluations, runs))
    return tuple(found)


def _joined(group: TimestepGroup, evaluations: int, runs: list[tuple[float, FloatArray]]) -> GroupSensitivity:
    """One group's sensitivity from the errors and changes of its runs, of which the second checks the linearity."""
    place = (group.index, group.start, group.stop, evaluations)
    if not runs:
        return GroupSensitivity(*place, 0.0, 0.0)
    error, change = runs[0]
    if not error > 0:
        raise InputError(
            f"The predictions in timestep group {group.index} are 0, and so is noise of their size; expected a trained network."
        )
    amplification = float(change.mean()) / error
    se = float(change.std(ddof=1) / np.sqrt(len(change))) / error if len(change) > 1 else None
    checked = [float(other.mean()) / its for its, other in runs[1:]]
    linearity = checked[0] / amplification if checked and amplification > 0 else None
    return GroupSensitivity(*place, error, amplification, se, linearity)


def _form_of(network: nn.Module) -> CallForm:
    """How a network is called; experts as each of them."""
    if isinstance(network, nets.TimestepExperts):
        return CallForm.of(type(network.expert(len(network.groups) - 1)))  # where sampling begins
    return CallForm.of(type(network))


def _mean_of(output: Tensor, sample: Tensor) -> Tensor:
    """The part of an output without predicted variances, a view; all of it where samples have other channels, as in inpainting."""
    try:
        return split_output(output, sample).mean
    except InputError:
        return output


def _replaced(output: Any, prediction: Tensor) -> Any:
    """What a denoiser returned, with another prediction."""
    if isinstance(output, Tensor):
        return prediction
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: prediction})
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    changed = copy.copy(output)
    changed.sample = prediction  # diffusers' outputs set the entry of that name, too
    return changed
