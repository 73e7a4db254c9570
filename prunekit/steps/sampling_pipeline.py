"""The pipeline through which encoded images are judged: it samples their captions, and decodes their latents as real pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit._names import split_source
from prunekit._progress import tell
from prunekit.data import ImageSplit
from prunekit.errors import InputError
from prunekit.pipelines import PipelineSampler, Subject, decoded
from prunekit.pipelines.own_arguments import NO_ARGUMENTS
from prunekit.recipe import AllocationOptions, EvaluationOptions
from prunekit.sampling import PIPELINE, to_images
from prunekit.steps.captioned_sampling import captioned_sampler, with_unit

__all__ = ["SamplingPipeline"]

_BATCH = 64
_MOST_REAL = 20_000  # decoded pictures that samples are compared with


@dataclass(frozen=True, eq=False)
class SamplingPipeline:
    """Samples of held-out captions through a pipeline, and the decoded training images.

    Args:
        sampler: runs the pipeline.
        images: encoded images.
        size: height and width of the pictures.
    """

    sampler: PipelineSampler
    images: ImageSplit
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        folder: Path | str,
        images: ImageSplit,
        steps: int,
        guidance_scale: float | None,
        scheduler: str = PIPELINE,
        prompts: Sequence[Subject] | None = None,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
    ) -> "SamplingPipeline":
        """Open a pipeline for encoded images.

        Args:
            folder: the pipeline's.
            images: encoded by it, or by one with the same VAE and text encoders.
            steps: number of sampling steps.
            guidance_scale: of classifier-free guidance; None for the pipeline's default.
            scheduler: as for :func:`prunekit.steps.captioned_sampling.captioned_sampler`.
            prompts: captions to sample; those of the held-out images if missing.
            arguments: of the pipeline's own call, in addition to those with which the images were encoded.

        Raises:
            InputError: the images are not encoded ones.
        """
        data = Path(split_source(images.source)[0]).expanduser()
        head = data / "encoded.json"
        if not head.is_file():
            raise InputError(
                f"{images.source} is no folder of encoded images; encode the pictures by `prunekit encode` to sample through a "
                "pipeline."
            )
        height, width = json.loads(head.read_text(encoding="utf-8"))["image_size"]
        captions: Sequence[Subject] = prompts or images.held_out.captions
        sampler = captioned_sampler(
            folder,
            captions,
            steps,
            guidance_scale,
            scheduler,
            (height, width),
            arguments={**images.train.arguments, **arguments},
        )
        return cls(sampler, images, (height, width))

    @classmethod
    def asked_for(
        cls, evaluation: EvaluationOptions, images: ImageSplit, allocation: AllocationOptions
    ) -> "SamplingPipeline":
        """Open the pipeline that a recipe's evaluation names.

        Raises:
            InputError: it names none, or see :meth:`of`.
        """
        if evaluation.pipeline is None:
            raise InputError("Got no pipeline through which samples are drawn; name one in the evaluation section.")
        return cls.of(
            evaluation.pipeline,
            images,
            allocation.steps,
            evaluation.guidance_scale,
            allocation.sampler,
            arguments=evaluation.pipeline_arguments,
        )

    @cached_property
    def real(self) -> Tensor:
        """Decoded training images, uint8, shape (N, C, height, width), evenly spread over at most 20,000."""
        latents = self.images.train.images
        rows = torch.linspace(0, len(latents) - 1, min(len(latents), _MOST_REAL)).round().long()
        found: list[Tensor] = []
        for part in rows.split(_BATCH):
            tell("decoding", sum(map(len, found)), len(rows))
            found.append(to_images(decoded(self.sampler.pipeline, latents[part].float(), self.size)))
        tell("decoding", len(rows), len(rows))
        return torch.cat(found)

    def held_out(self, count: int) -> Tensor:
        """The first decoded held-out images, uint8, shape (N, C, height, width): those whose captions are sampled."""
        latents = self.images.held_out.images[:count]
        parts = [to_images(decoded(self.sampler.pipeline, part.float(), self.size)) for part in latents.split(_BATCH)]
        return torch.cat(parts)

    def fit(self, *models: nn.Module) -> None:
        """Tell experts in which unit the pipeline tells the timestep, where they do not store it."""
        for model in models:
            with_unit(model, self.sampler)

    def prompts(self, count: int) -> list[str] | None:
        """The captions of the samples; None for classes."""
        subjects = [self.sampler.subject(row) for row in range(count)]
        return [str(subject) for subject in subjects] if all(isinstance(one, str) for one in subjects) else None
