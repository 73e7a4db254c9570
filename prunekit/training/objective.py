"""The denoising objective, as an object that any training loop or importance criterion can call."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule, Parameterization, Parameterized

__all__ = [
    "Classes",
    "DenoisingObjective",
    "Objective",
    "check_finite_rows",
    "predict",
    "to_unit_range",
]

_ROWS = 4096  # images that are hashed together


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 in 0 … 255 to float32 in −1 … 1, same shape."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def check_finite_rows(images: Tensor, rows: Tensor, name: str) -> None:
    """Refuse floating-point images, such as latents, if some are not finite.

    Args:
        images: shape (count, channels, height, width).
        rows: their indices in the data set, shape (count,).
        name: name of the data set.

    Raises:
        InputError: an image contains NaN or an infinity; the message names the first.
    """
    if not images.is_floating_point() or not images.numel() or all(math.isfinite(v) for v in images.aminmax()):
        return
    bad = ~images.flatten(1).isfinite().all(1)
    raise InputError(
        f"{int(bad.sum())} of {len(images)} rows of {name} are not finite, row {int(rows[bad].min())} the first; expected finite "
        "numbers: write the array anew without them."
    )


def predict(model: Callable[..., Any], noisy: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
    """Call a diffusers network or a plain one, and return its prediction tensor.

    Args:
        model: called as ``model(x, t)``, or as ``model(x, t, class_labels=labels)`` if there are labels.
        noisy: x_t, shape (batch, channels, height, width).
        timesteps: shape (batch,), or () for one timestep for all samples.
        labels: classes, int64, shape (batch,).
    """
    output = model(noisy, timesteps) if labels is None else model(noisy, timesteps, class_labels=labels)
    if isinstance(output, Tensor):
        return output
    prediction: Tensor = output.sample if hasattr(output, "sample") else output[0]
    return prediction


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
        """Clean images and noise, both (batch, C, H, W), one for each timestep; with classes also the labels, (batch,)."""
        ...

    def per_sample(
        self, model: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Loss of shape (batch,)."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the loss, hex digits."""
        ...


@dataclass(frozen=True, eq=False)
class Classes:
    """The class of each image, and how often the class is withheld from the network.

    A network that was sometimes trained without classes can be guided during sampling (classifier-free guidance,
    arXiv:2207.12598).

    Args:
        labels: class of each image, int64, shape (count,).
        dropout: share of the draws in which the class is replaced.
        absent: the replacement: a class of the network that no image has.
    """

    labels: Tensor
    dropout: float = 0.0
    absent: int = 0

    def draw(self, index: Tensor, generator: Generator) -> Tensor:
        """Classes of the images that were drawn, shape (batch,)."""
        labels = self.labels[index]
        if not self.dropout:
            return labels
        return torch.where(torch.rand(len(index), generator=generator) < self.dropout, self.absent, labels)


@dataclass(frozen=True, eq=False)
class DenoisingObjective(Parameterized):
    """Mean squared error of the network's prediction at x_t = a_t·x0 + b_t·ε (DDPM, arXiv:2006.11239, eq. 14).

    Args:
        images: uint8 training images, shape (count, channels, height, width), or floating-point latents, used unchanged.
        parameterization: a_t and b_t, and what the network predicts.
        classes: classes of the images, for a class-conditional network.
        name: name of the images, for messages.
    """

    images: Tensor
    parameterization: Parameterization
    classes: Classes | None = None
    name: str = "the images"
    _tables: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.parameterization.check_trainable()

    def fingerprint(self) -> str:
        """Hash of the images with their classes, the noise schedule and the prediction type, 64 hex digits.

        Raises:
            InputError: an image is not finite. It is checked here because every training reads all images for the hash.
        """
        digest = hashlib.sha256(f"{self.prediction_type} {tuple(self.images.shape)}".encode())
        for number, part in enumerate(self.images.split(_ROWS)):  # a mapped file is never loaded into memory as a whole
            check_finite_rows(part, number * _ROWS + torch.arange(len(part)), self.name)
            digest.update(part.cpu().contiguous().numpy().tobytes())
        for table in (self.schedule.signal, self.schedule.noise):
            digest.update(table.tobytes())
        if self.classes is not None:
            digest.update(self.classes.labels.numpy().tobytes())
            digest.update(f"{self.classes.dropout} {self.classes.absent}".encode())
        return digest.hexdigest()

    def at(self, progress: float) -> "DenoisingObjective":
        """Returns itself: the objective is the same at any moment of a training."""
        return self

    def draw(self, timesteps: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        """Clean images (batch, C, H, W), scaled to −1 … 1 if they are pictures, and noise of the same shape, one for each timestep.

        With classes a third tensor holds the labels, shape (batch,).

        Raises:
            InputError: an image is not finite.
        """
        index = torch.randint(len(self.images), (len(timesteps),), generator=generator)
        images = self.images[index].contiguous()
        check_finite_rows(images, index, self.name)
        clean = images.to(torch.float32) if images.is_floating_point() else to_unit_range(images)
        drawn = clean, torch.randn(clean.shape, generator=generator)
        return drawn if self.classes is None else (*drawn, self.classes.draw(index, generator))

    def pair(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Network input x_t and its target, both (batch, C, H, W)."""
        shape = (-1, *([1] * (clean.ndim - 1)))
        signal, spread = (table[timesteps].to(clean).reshape(shape) for table in self._tables_on(timesteps.device))
        return signal * clean + spread * noise, self.parameterization.target(clean, noise, signal, spread)

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """a_t and b_t of all timesteps, shape (T,), float64, copied to a device once."""
        if device not in self._tables:
            tables = (
                torch.from_numpy(table.copy()).to(device) for table in (self.schedule.signal, self.schedule.noise)
            )
            self._tables[device] = (next(tables), next(tables))
        return self._tables[device]

    def per_sample(
        self, model: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Loss of shape (batch,)."""
        noisy, target = self.pair(clean, noise, timesteps)
        return (predict(model, noisy, timesteps, labels) - target).square().flatten(1).mean(1)

    def drawn_losses(self, model: nn.Module, drawn: tuple[Tensor, ...], timesteps: Tensor) -> Tensor:
        """Loss of shape (batch,) on the output of :meth:`draw`, computed on the model's device."""
        device = next(model.parameters()).device
        clean, noise, *labels = (tensor.to(device) for tensor in drawn)
        return self.per_sample(model, clean, noise, timesteps.to(device), *labels)

    def __call__(self, model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
        """Scalar mean loss on a fresh draw: the ``loss`` callable of the importance API.

        Args:
            model: the network.
            timesteps: shape (batch,), int64.
            generator: draws images and noise.
        """
        return self.drawn_losses(model, self.draw(timesteps, generator), timesteps).mean()
