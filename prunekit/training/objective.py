"""The denoising objective, as an object that any loop or importance search can call."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule

__all__ = ["PREDICTION_TYPES", "DenoisingObjective", "predict", "to_unit_range"]

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 in 0 … 255 to float32 in −1 … 1, same shape."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def predict(model: Callable[..., Any], noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Call a network in diffusers' manner or a plain one, and return its prediction tensor."""
    output = model(noisy, timesteps)
    if isinstance(output, Tensor):
        return output
    prediction: Tensor = output.sample if hasattr(output, "sample") else output[0]
    return prediction


@dataclass(frozen=True, eq=False)
class DenoisingObjective:
    """Mean squared error of the network's prediction at x_t = a_t·x0 + b_t·ε (DDPM, arXiv:2006.11239, eq. 14).

    Args:
        images: uint8 training images, shape (count, channels, height, width).
        schedule: a_t and b_t.
        prediction_type: ``epsilon``, ``sample`` (x0) or ``v_prediction`` (a·ε − b·x0, arXiv:2202.00512).
    """

    images: Tensor
    schedule: NoiseSchedule
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"Unknown prediction type {self.prediction_type!r}; expected one of {', '.join(PREDICTION_TYPES)}."
            )

    def fingerprint(self) -> str:
        """Hash of the images, the noise schedule and the prediction type, 64 hex digits."""
        digest = hashlib.sha256(f"{self.prediction_type} {tuple(self.images.shape)}".encode())
        for table in (self.images.cpu().contiguous().numpy(), self.schedule.signal, self.schedule.noise):
            digest.update(table.tobytes())
        return digest.hexdigest()

    def draw(self, timesteps: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Clean images (batch, C, H, W) in −1 … 1 and noise of the same shape, one for each timestep."""
        index = torch.randint(len(self.images), (len(timesteps),), generator=generator)
        clean = to_unit_range(self.images[index])
        return clean, torch.randn(clean.shape, generator=generator)

    def pair(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Network input x_t and its target, both (batch, C, H, W)."""
        shape = (-1, *([1] * (clean.ndim - 1)))
        signal, spread = (
            torch.from_numpy(table)[timesteps.cpu()].to(clean).reshape(shape)
            for table in (self.schedule.signal.copy(), self.schedule.noise.copy())
        )
        noisy = signal * clean + spread * noise
        if self.prediction_type == "epsilon":
            return noisy, noise
        return noisy, clean if self.prediction_type == "sample" else signal * noise - spread * clean

    def per_sample(self, model: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Loss of shape (batch,)."""
        noisy, target = self.pair(clean, noise, timesteps)
        return (predict(model, noisy, timesteps) - target).square().flatten(1).mean(1)

    def drawn_losses(self, model: nn.Module, drawn: tuple[Tensor, ...], timesteps: Tensor) -> Tensor:
        """Loss of shape (batch,) on what :meth:`draw` gave, computed where the model is."""
        clean, noise = drawn
        device = next(model.parameters()).device
        return self.per_sample(model, clean.to(device), noise.to(device), timesteps.to(device))

    def __call__(self, model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
        """Scalar mean loss on a fresh draw: the ``loss`` callable of the importance API.

        Args:
            model: the network.
            timesteps: shape (batch,), int64.
            generator: draws images and noise.
        """
        return self.drawn_losses(model, self.draw(timesteps, generator), timesteps).mean()
