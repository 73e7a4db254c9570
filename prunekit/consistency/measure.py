"""Samples two models in parallel from the same noise and compares them at every evaluation."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from prunekit._json import JsonObject
from prunekit._progress import tell
from prunekit.consistency.denoiser import Denoiser
from prunekit.consistency.likeness import Likeness, image_likeness, ssim_window, state_likeness
from prunekit.consistency.seams import Seam, SeamWatch
from prunekit.errors import InputError
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.sampling import Evaluation, Sampler, make_sampler, real_timesteps
from prunekit.schedule import Parameterization

__all__ = ["Consistency", "ConsistencyOptions", "StepLikeness", "measure_consistency"]

_SAME_LOG_SNR = 0.01  # tables in float32 differ by less; another schedule differs by more somewhere


@dataclass(frozen=True)
class ConsistencyOptions:
    """How two models are compared.

    Args:
        sampler: short name or diffusers class name, see :data:`prunekit.sampling.SAMPLERS`; its own noise is the same for both.
        steps: number of sampling steps.
        count: number of pairs.
        seed: seed of the initial noise.
        teacher_forced: also evaluate the second model on the first model's states, which costs 50 % more.
        batch_size: pairs at a time, at most twice as many in one batch; shuffled pairs are made within a batch.

    Raises:
        InputError: there are fewer than two pairs, or the seed is negative.
    """

    sampler: str = "ddim"
    steps: int = 50
    count: int = 64
    seed: int = 0
    teacher_forced: bool = True
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.count < 2 or self.batch_size < 2 or self.seed < 0:
            raise InputError(
                f"Got {self.count} pairs, batches of {self.batch_size} and seed {self.seed}; "
                "expected at least 2 pairs, which can be shuffled, batches of 2 and a seed of 0 or more."
            )


@dataclass(frozen=True, eq=False)
class StepLikeness:
    """One evaluation of both models.

    Args:
        timestep: the timestep of the evaluation.
        groups: for each model, the timestep group of the expert that was evaluated; None for a single network.
        same: predictions of the clean image of pairs that started from the same noise, each model on its own trajectory.
        shuffled: the same with the second model's predictions moved on by one pair: the baseline.
        state: the noisy states x_t that the predictions were made from.
        forced: predictions of both models on the FIRST model's states; None if not requested.
    """

    timestep: float
    groups: tuple[int | None, int | None]
    same: Likeness
    shuffled: Likeness
    state: Likeness
    forced: Likeness | None

    def to_json(self) -> JsonObject:
        """The fields by name, every measure with its mean and standard error."""
        return {
            "timestep": self.timestep,
            "groups": dict(zip("ab", self.groups, strict=True)),
            "same": self.same.to_json(),
            "shuffled": self.shuffled.to_json(),
            "state": self.state.to_json(),
            "forced": None if self.forced is None else self.forced.to_json(),
        }


@dataclass(frozen=True, eq=False)
class Consistency:
    """The similarity of two models.

    Args:
        options: the options of the measurement.
        shape: shape of one image, (channels, height, width).
        steps: one entry for each evaluation, noisiest first.
        same: likeness of the finished images that started from the same noise.
        shuffled: the same with shuffled pairs.
        seams: seams of both models that the sampler passes, noisiest first.
        images: finished images of both models, and those of the second model shuffled; floats in about −1 … 1, each of shape
            (count, channels, height, width), on the CPU.
    """

    options: ConsistencyOptions
    shape: tuple[int, int, int]
    steps: tuple[StepLikeness, ...]
    same: Likeness
    shuffled: Likeness
    seams: tuple[Seam, ...]
    images: tuple[Tensor, Tensor, Tensor]

    def to_json(self) -> JsonObject:
        """Settings and figures, without the images."""
        sigma, width = ssim_window(*self.shape[1:])
        return {
            "settings": {**asdict(self.options), "shape": list(self.shape)},
            "ssim": {"data_range": 1.0, "sigma": sigma, "window": width, "k1": 0.01, "k2": 0.03},
            "images": {"same": self.same.to_json(), "shuffled": self.shuffled.to_json()},
            "steps": [step.to_json() for step in self.steps],
            "seams": [seam.to_json() for seam in self.seams],
        }


@torch.no_grad()
def measure_consistency(
    a: Denoiser,
    b: Denoiser,
    shape: tuple[int, int, int],
    options: ConsistencyOptions | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Consistency:
    """Sample two models from the same noise and measure their similarity at every evaluation.

    Args:
        a: the first model; teacher forcing uses its states.
        b: the second model; its architecture and prediction type may differ, but not its noise schedule.
        shape: shape of one image, (channels, height, width).
        options: counts, sampler and seed.
        report: called with (evaluations done, all).

    Raises:
        InputError: the noise schedules differ, the images are too small for SSIM, or the sampler cannot be used.

    Example:
        >>> from prunekit.schedule import NoiseSchedule, Parameterization
        >>> net = torch.nn.Identity()  # takes all for noise
        >>> net.forward = lambda x, t: x
        >>> model = Denoiser(net, Parameterization(NoiseSchedule.linear(10)))
        >>> found = measure_consistency(model, model, (1, 8, 8), ConsistencyOptions(steps=2, count=4))
        >>> found.same.mean("correlation"), found.same.mean("mse"), [step.timestep for step in found.steps]
        (1.0, 0.0, [5.0, 0.0])
    """
    options = options or ConsistencyOptions()
    _check_schedules(a, b)
    ssim_window(*shape[1:])  # refuses images that are too small before anything is sampled
    kinds = [Parameterization(a.schedule, model.prediction_type) for model in (a, b)]
    samplers = [make_sampler(options.sampler, options.steps, kind, shape) for kind in kinds]
    timesteps = real_timesteps(options.sampler, options.steps, a.schedule).tolist()
    watches = (SeamWatch("a", a, b, timesteps), SeamWatch("b", b, a, timesteps))
    batches = samplers[0].noise(options.count, options.seed).tensor_split(max(1, options.count // options.batch_size))
    steps: list[list[StepLikeness]] = [[] for _ in timesteps]
    finished: list[tuple[Tensor, Tensor]] = []
    tell("comparing", 0, len(batches) * len(timesteps))
    with ExitStack() as stack:
        for model in (a.model, b.model):
            stack.enter_context(evaluation_mode(model))
        for batch in batches:
            first = sum(len(pair[0]) for pair in finished)
            for number, pair in enumerate(_side_by_side((a, b), samplers, batch, options.seed, first)):
                for watch, evaluation in zip(watches, pair, strict=True):
                    watch.look(number, evaluation)
                steps[number].append(_step(a, b, pair, options.teacher_forced))
                tell("comparing", len(finished) * len(timesteps) + number + 1, len(batches) * len(timesteps))
                if report is not None:
                    report(len(finished) * len(timesteps) + number + 1, len(batches) * len(timesteps))
            finished.append((pair[0].stepped.cpu(), pair[1].stepped.cpu()))
    likenesses = [(image_likeness(x, y), image_likeness(x, _shuffled(y))) for x, y in finished]
    same, shuffled = (Likeness.joined(parts) for parts in zip(*likenesses, strict=True))
    images = torch.cat([x for x, _ in finished]), torch.cat([y for _, y in finished])
    partners = torch.cat([_shuffled(y) for _, y in finished])
    seams = tuple(seam for watch in watches for seam in watch.seams())
    return Consistency(options, shape, tuple(map(_joined, steps)), same, shuffled, seams, (*images, partners))


def _side_by_side(
    models: tuple[Denoiser, Denoiser], samplers: list[Sampler], noise: Tensor, seed: int, first: int
) -> Iterator[tuple[Evaluation, Evaluation]]:
    """Both trajectories, evaluation by evaluation."""
    a, b = (sampler.trajectory(x.model, noise, seed, first) for x, sampler in zip(models, samplers, strict=True))
    return zip(a, b, strict=True)


def _step(a: Denoiser, b: Denoiser, pair: tuple[Evaluation, Evaluation], teacher_forced: bool) -> StepLikeness:
    """One evaluation of one batch."""
    at_a, at_b = pair
    t, clean = at_a.timestep, (a.clean_of(at_a), b.clean_of(at_b))
    return StepLikeness(
        t,
        (a.group_at(t), b.group_at(t)),
        image_likeness(*clean),
        image_likeness(clean[0], _shuffled(clean[1])),
        state_likeness(at_a.state, at_b.state),
        image_likeness(clean[0], b.clean(at_a.state, t)) if teacher_forced else None,
    )


def _joined(parts: list[StepLikeness]) -> StepLikeness:
    """The same evaluation of all batches."""
    one = parts[0]
    forced = [part.forced for part in parts if part.forced is not None]
    return StepLikeness(
        one.timestep,
        one.groups,
        Likeness.joined([part.same for part in parts]),
        Likeness.joined([part.shuffled for part in parts]),
        Likeness.joined([part.state for part in parts]),
        Likeness.joined(forced) if forced else None,
    )


def _shuffled(images: Tensor) -> Tensor:
    """Shift every image by one place: no pair keeps its partner, and the noise of neighbours is independent."""
    return images.roll(1, 0)


def _check_schedules(a: Denoiser, b: Denoiser) -> None:
    one, other = a.schedule, b.schedule
    if one.num_timesteps != other.num_timesteps:
        raise InputError(
            f"The models have noise schedules of {one.num_timesteps} and {other.num_timesteps} timesteps; expected the same."
        )
    apart = float(np.abs(one.log_snr - other.log_snr).max())
    if apart > _SAME_LOG_SNR:
        raise InputError(
            f"The models' noise schedules differ by up to {apart:.3g} in log SNR; expected the same schedule, "
            f"to {_SAME_LOG_SNR}, so that equal noise means equal states."
        )
