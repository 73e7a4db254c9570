"""Pictures as a pipeline's latents: its own VAE, scaled and laid out as its denoiser gets them.

How a pipeline scales its latents is written in its call and not in its config. So the way from the VAE to the denoiser that is used
here is checked against the pipeline's own way back: what it gives its VAE to decode must become the latents that it decoded.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from prunekit.errors import InputError
from prunekit.pipelines.conditioning import guidance_off
from prunekit.pipelines.listening import Subject, record
from prunekit.pipelines.loading import denoisers_of
from prunekit.pipelines.own_arguments import NO_ARGUMENTS
from prunekit.pipelines.signatures import takes
from prunekit.training import to_unit_range

__all__ = ["check_latents", "decoded", "default_size", "encoded", "has_vae"]

_TOLERANCE = 1e-3


def has_vae(pipeline: Any) -> bool:
    """Whether a pipeline makes its pictures from latents; otherwise its samples are pictures in −1 … 1."""
    return getattr(pipeline, "vae", None) is not None


def default_size(pipeline: Any) -> tuple[int, int] | None:
    """Height and width of the pictures that a pipeline makes by itself; None if it does not say."""
    factor = getattr(pipeline, "vae_scale_factor", None) or (1 if not has_vae(pipeline) else None)
    config: Any = next(iter(denoisers_of(pipeline).values())).config
    side = getattr(pipeline, "default_sample_size", None) or config.get("sample_size")
    if factor is None or side is None:
        return None
    height, width = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    return int(height * factor), int(width * factor)


@torch.no_grad()
def encoded(pipeline: Any, pictures: Tensor, generators: Sequence[Generator] | None = None) -> Tensor:
    """The latents of pictures, as the pipeline's denoiser gets them.

    Args:
        pipeline: of diffusers.
        pictures: uint8, shape (batch, channels, height, width); a grey one is repeated where the VAE wants colour.
        generators: one for each picture, draw the latents from the VAE's distribution; their mode is taken without them.

    Returns:
        Shape (batch, …) in the denoiser's layout: images, videos of one frame, or rows of tokens.

    Raises:
        InputError: the pictures have other channels than the VAE takes.
    """
    clean = to_unit_range(pictures)
    if not has_vae(pipeline):
        return clean
    vae = pipeline.vae
    weight = next(vae.parameters())
    channels = int(vae.config.get("in_channels") or 3)
    if clean.shape[1] != channels:
        if clean.shape[1] != 1:
            raise InputError(f"The pictures have {clean.shape[1]} channels and the pipeline's VAE takes {channels}.")
        clean = clean.expand(-1, channels, -1, -1)
    clean = clean.to(weight.device, weight.dtype)
    output = vae.encode(clean[:, :, None] if _of_videos(vae) else clean)
    if hasattr(output, "latent_dist"):
        found = output.latent_dist.mode() if generators is None else output.latent_dist.sample(list(generators))
    else:
        found = output.latent
    return _laid_out(pipeline, _scaled(vae, found))


@torch.no_grad()
def decoded(pipeline: Any, latents: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures of latents: the way back of :func:`encoded`.

    Args:
        pipeline: of diffusers.
        latents: as the pipeline's denoiser gets them, shape (batch, …).
        size: height and width of the pictures.

    Returns:
        Pictures in about −1 … 1, float32, shape (batch, channels, height, width), on the CPU.
    """
    if not has_vae(pipeline):
        return latents.float().cpu()
    vae = pipeline.vae
    weight = next(vae.parameters())
    unpack = getattr(pipeline, "_unpack_latents", None)
    own = latents.to(weight.device, weight.dtype)
    images = own if unpack is None else unpack(own, *size, pipeline.vae_scale_factor)
    if _of_videos(vae) and images.ndim == 4:
        images = images[:, :, None]
    pictures: Tensor = vae.decode(_unscaled(vae, images), return_dict=False)[0]
    return (pictures[:, :, 0] if pictures.ndim == 5 else pictures).float().cpu()


def check_latents(
    pipeline: Any,
    subjects: tuple[Subject, ...],
    size: tuple[int, int] | None,
    arguments: Mapping[str, object] = NO_ARGUMENTS,
) -> None:
    """Refuse a pipeline whose latents are scaled or laid out in a way that :func:`encoded` does not follow.

    Args:
        pipeline: of diffusers, with stand-ins for its denoisers.
        subjects: two captions or classes.
        size: height and width of the pictures.
        arguments: of the pipeline's own call.

    Raises:
        InputError: what the pipeline gives its VAE does not become the latents that it decoded.
    """
    if not has_vae(pipeline):
        return
    asked: dict[str, object] = {"output_type": "np"} if "output_type" in takes(pipeline) else {}
    others = {**arguments, **guidance_off(pipeline), **asked}
    with _decoding(pipeline.vae) as given:
        run = record(pipeline, subjects, size, 2, others, endless=True)
    name = type(pipeline).__name__
    if not given or run.stepped is None:
        raise InputError(f"The {name} does not decode its latents by its VAE's decode; its pictures cannot be encoded.")
    made = _laid_out(pipeline, _scaled(pipeline.vae, given[0]))
    wanted = run.stepped
    if made.shape != wanted.shape or not torch.allclose(made.float(), wanted.float(), rtol=_TOLERANCE, atol=_TOLERANCE):
        raise InputError(
            f"The {name} scales its latents in a way of its own (shape {tuple(wanted.shape)}, here {tuple(made.shape)}); encode "
            "the pictures yourself, and give an array of latents."
        )


def _of_videos(vae: Any) -> bool:
    """Whether a VAE takes videos (batch, channels, frames, height, width)."""
    return any(isinstance(layer, torch.nn.Conv3d) for layer in vae.modules())


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents of a VAE on the scale of the denoiser: less their mean, over their spread."""
    mean, spread = _mean_and_spread(vae, latents)
    return (latents - mean) / spread


def _unscaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents on the scale of the VAE; undoes :func:`_scaled`."""
    mean, spread = _mean_and_spread(vae, latents)
    return latents * spread + mean


def _mean_and_spread(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """By which a VAE's latents are shifted and divided, each of a shape that broadcasts."""
    config = vae.config
    mean, spread = config.get("latents_mean"), config.get("latents_std")
    factor = config.get("scaling_factor") or 1.0
    if mean is None or spread is None:
        return latents.new_tensor(config.get("shift_factor") or 0.0), latents.new_tensor(1 / factor)

    def per_channel(values: Any) -> Tensor:
        return torch.as_tensor(values).to(latents).reshape(1, -1, *[1] * (latents.ndim - 2))

    return per_channel(mean), per_channel(spread) / factor


def _laid_out(pipeline: Any, latents: Tensor) -> Tensor:
    """Latents in the layout of the pipeline's denoiser: some cut pictures into rows of tokens."""
    pack = getattr(pipeline, "_pack_latents", None)
    if pack is None:
        return latents
    images = latents.squeeze(2) if latents.ndim == 5 else latents
    packed: Tensor = pack(images, *images.shape)
    return packed


@contextmanager
def _decoding(vae: Any) -> Iterator[list[Tensor]]:
    """Within the block, note what a VAE is given to decode."""
    given: list[Tensor] = []
    decode = vae.decode

    def noted(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(latents.detach().clone())
        return decode(latents, *args, **kwargs)

    vae.decode = noted
    try:
        yield given
    finally:
        del vae.decode
