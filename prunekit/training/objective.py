"""The denoising objective, as an object that any training loop or importance criterion can call."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from prunekit._files import json_hash
from prunekit.conditions import Calling
from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule, Parameterization, Parameterized, TimeUnit
from prunekit.training.columns import Columns, in_parts
from prunekit.training.learned_variance import Halves, VarianceLoss, VariationalBound, has_bound, split_output

__all__ = [
    "DenoisingObjective",
    "Objective",
    "check_finite_rows",
    "predict",
    "to_unit_range",
]


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 in 0 … 255 to float32 in −1 … 1, same shape."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def check_finite_rows(images: Tensor, rows: Tensor, name: str) -> None:
    """Refuse floating-point images, such as latents, if some are not finite.

    Args:
        images: shape (count, channels, height, width), or latents of shape (count, …).
        rows: their indices in the data set, shape (count,).
        name: name of the data set.

    Raises:
        InputError: an image contains NaN or an infinity in float32; the message names the first.
    """
    if not images.is_floating_point() or not images.numel():
        return
    images = images.float()  # in which they are used
    if all(math.isfinite(v) for v in images.aminmax()):
        return
    bad = ~images.flatten(1).isfinite().all(1)
    raise InputError(
        f"{int(bad.sum())} of {len(images)} rows of {name} are not finite, row {int(rows[bad].min())} the first; expected finite "
        "numbers: write the array anew without them."
    )


def predict(
    model: Callable[..., Any], noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Call a diffusers network or a plain one as ``model(x, t, **conditions)``, and return its prediction tensor.

    Args:
        model: the network.
        noisy: x_t, shape (batch, …).
        timesteps: shape (batch,), or () for one timestep for all samples.
        conditions: by the arguments' paths, see :mod:`prunekit.conditions`; each of shape (batch, …).
    """
    return Calling()(model, noisy, timesteps, conditions)


class Objective(Protocol):
    """A training objective: data and loss."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        ...

    def at(self, progress: float) -> "Objective":
        """The objective at a moment of the training; ``progress`` is the share that is done, 0 … 1."""
        ...

    def draw(self, timesteps: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        """Clean images and noise, both (batch, …), one for each timestep; then the conditions, each (batch, …)."""
        ...

    def per_sample(
        self, model: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, *conditions: Tensor
    ) -> Tensor:
        """Loss of shape (batch,)."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the loss, hex digits."""
        ...


@dataclass(frozen=True, eq=False)
class DenoisingObjective(Parameterized):
    """Mean squared error of the network's prediction at x_t = a_t·x0 + b_t·ε (DDPM, arXiv:2006.11239, eq. 14).

    Args:
        images: uint8 training images, shape (count, channels, height, width), or floating-point latents, used unchanged; latents
            may also be tokens (count, tokens, channels) or videos (count, channels, frames, height, width).
        parameterization: a_t and b_t, and what the network predicts.
        columns: conditions of the images, for a network that takes some.
        name: name of the images, for messages.
        calling: how the network is called.
        variance: how a training keeps the variances of a network that predicts them; without it, they are not part of the loss.
    """

    images: Tensor
    parameterization: Parameterization
    columns: Columns | None = None
    name: str = "the images"
    calling: Calling = field(default_factory=Calling)
    variance: VarianceLoss | None = None
    _tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def fingerprint(self) -> str:
        """Hash of the images with their conditions, the noise schedule and the prediction type, 64 hex digits.

        Raises:
            InputError: an image is not finite. It is checked here because every training reads all images for the hash.
        """
        digest = hashlib.sha256(f"{self.prediction_type} {tuple(self.images.shape)}".encode())
        for part, rows in in_parts(self.images):
            check_finite_rows(part, rows, self.name)
            digest.update(part.cpu().contiguous().numpy().tobytes())
        kind, unit = self.parameterization, self.calling.unit
        for table in kind.input_levels:
            digest.update(table.tobytes())
        if not kind.timeline.counts_timesteps or unit not in (None, TimeUnit()):
            digest.update((unit or TimeUnit()).told(kind.timeline.trained).tobytes())
        if self.columns is not None:
            self.columns.update(digest)
        if self.variance is not None:
            digest.update(json_hash(self.variance.described()).encode())
        return digest.hexdigest()

    def at(self, progress: float) -> "DenoisingObjective":
        """Returns itself: the objective is the same at any moment of a training."""
        return self

    def draw(self, timesteps: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        """Clean images (batch, …), scaled to −1 … 1 if they are pictures, and noise of the same shape, one for each timestep.

        The conditions follow, each of shape (batch, …), in the order of ``columns.names``.

        Raises:
            InputError: an image is not finite.
        """
        index = torch.randint(len(self.images), (len(timesteps),), generator=generator)
        images = self.images[index].contiguous()
        check_finite_rows(images, index, self.name)
        clean = images.to(torch.float32) if images.is_floating_point() else to_unit_range(images)
        drawn = clean, torch.randn(clean.shape, generator=generator)
        return drawn if self.columns is None else (*drawn, *self.columns.draw(index, generator))

    def pair(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Network input x_t and its target, both (batch, …)."""
        shape = (-1, *([1] * (clean.ndim - 1)))
        signal, spread = (table[timesteps].to(clean).reshape(shape) for table in self._tables_on(timesteps.device)[:2])
        return signal * clean + spread * noise, self.parameterization.target(clean, noise, signal, spread)

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Signal, noise and the scheduler's time of all timesteps, each of shape (T,), float64, copied to a device once."""
        if device not in self._tables:
            known = (*self.parameterization.input_levels, self.parameterization.timeline.trained)
            signal, noise, times = (torch.from_numpy(table.copy()).to(device) for table in known)
            self._tables[device] = signal, noise, times
        return self._tables[device]

    def _times(self, timesteps: Tensor) -> Tensor:
        """The scheduler's times of training timesteps, same shape: whole numbers where they are the timesteps themselves."""
        timeline = self.parameterization.timeline
        if timeline.counts_timesteps:
            return timesteps
        return self._tables_on(timesteps.device)[2][timesteps].float()

    def predict(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, *conditions: Tensor) -> Tensor:
        """The network's prediction, (batch, …), without the variances that it may predict; see :meth:`output`."""
        return self.output(model, noisy, timesteps, *conditions).mean

    def output(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, *conditions: Tensor) -> Halves:
        """What the network gives: the one place where a training or a measurement of losses calls a network.

        Args:
            model: the network.
            noisy: x_t, shape (batch, …).
            timesteps: shape (batch,).
            conditions: as :meth:`draw` gives them.

        Raises:
            InputError: the output has neither the samples' shape nor twice their channels.
        """
        names = () if self.columns is None else self.columns.names
        told = dict(zip(names, conditions, strict=True))
        return split_output(self.calling(model, noisy, self._times(timesteps), told), noisy)

    def per_sample(
        self, model: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, *conditions: Tensor
    ) -> Tensor:
        """Loss of shape (batch,)."""
        noisy, target = self.pair(clean, noise, timesteps)
        halves = self.output(model, noisy, timesteps, *conditions)
        loss = (halves.mean - target).square().flatten(1).mean(1)
        return self.with_variance(loss, halves, clean, noisy, timesteps, conditions)

    def with_variance(
        self,
        loss: Tensor,
        halves: Halves,
        clean: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        conditions: tuple[Tensor, ...],
        known: tuple[nn.Module, Halves] | None = None,
    ) -> Tensor:
        """Add the loss of the variances, if the network predicts some and a training is to keep them; shape (batch,).

        Args:
            loss: of the prediction, shape (batch,).
            halves: what the network gave.
            clean: x_0, shape (batch, …).
            noisy: x_t, same shape.
            timesteps: shape (batch,).
            conditions: as :meth:`draw` gives them.
            known: a network that was evaluated at the same inputs already, and what it gave.
        """
        if self.variance is None or halves.variance is None:
            return loss

        def evaluated(other: nn.Module) -> Halves:
            if known is not None and known[0] is other:
                return known[1]
            with torch.no_grad():
                return self.output(other.to(noisy.device).eval(), noisy, timesteps, *conditions)

        return loss + self.variance(halves, clean, noisy, timesteps, evaluated)

    def measured(
        self, model: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, *conditions: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Loss of the prediction, and the term of the variational bound in bits per dimension, both of shape (batch,).

        The second is None for a network without learned variances, and for noise schedules that do not preserve the variance.
        """
        noisy, target = self.pair(clean, noise, timesteps)
        halves = self.output(model, noisy, timesteps, *conditions)
        loss = (halves.mean - target).square().flatten(1).mean(1)
        if halves.variance is None or not has_bound(self.parameterization):
            return loss, None
        return loss, VariationalBound(self.parameterization).terms(halves, clean, noisy, timesteps)

    def drawn_losses(self, model: nn.Module, drawn: tuple[Tensor, ...], timesteps: Tensor) -> Tensor:
        """Loss of shape (batch,) on the output of :meth:`draw`, computed on the model's device."""
        device = next(model.parameters()).device
        clean, noise, *conditions = (tensor.to(device) for tensor in drawn)
        return self.per_sample(model, clean, noise, timesteps.to(device), *conditions)

    def __call__(self, model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
        """Scalar mean loss on a fresh draw: the ``loss`` callable of the importance API.

        Args:
            model: the network.
            timesteps: shape (batch,), int64.
            generator: draws images and noise.
        """
        return self.drawn_losses(model, self.draw(timesteps, generator), timesteps).mean()
