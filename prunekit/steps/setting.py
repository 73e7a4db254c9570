"""The settings with which all models of a run are measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from prunekit.agreement import CaptionJudge
from prunekit.checkpoint import ModelSpec
from prunekit.clip_scores import ClipScorer, load_clip
from prunekit.data import ImageSplit
from prunekit.errors import InputError
from prunekit.extractors import Choice, Extractor, choose_extractor
from prunekit.groups import TimestepGroups
from prunekit.recipe import AllocationOptions, EvaluationOptions
from prunekit.sampling import Sampler, make_sampler
from prunekit.schedule import Parameterization, Parameterized
from prunekit.steps.distances import Distances, Remembering
from prunekit.steps.image_choice import sampled_classes

if TYPE_CHECKING:  # they import diffusers, which takes seconds
    from prunekit.pipelines import PipelineSampler
    from prunekit.steps.sampling_pipeline import SamplingPipeline

__all__ = ["Setting"]


@dataclass(frozen=True, eq=False)
class Setting(Parameterized):
    """The settings with which all models are measured.

    Args:
        images: real images; losses use the held-out ones, FID and KID the training ones.
        groups: the timestep groups.
        parameterization: the noise schedule, and what the models predict.
        allocation: names the sampler and its steps.
        options: counts and seeds.
        spec: the architecture, for networks that may take classes.
        extractor: the caller's own extractor, in place of the one that the options name.
        prompts: takes a count and a seed and returns the prompts of the images that the sampler makes; None if there are none.
        pipeline: draws and decodes the samples, for encoded images.
    """

    images: ImageSplit
    groups: TimestepGroups
    parameterization: Parameterization
    allocation: AllocationOptions
    options: EvaluationOptions
    spec: ModelSpec | None = None
    extractor: Extractor | None = None
    prompts: Callable[[int, int], Sequence[str]] | None = None
    pipeline: "SamplingPipeline | None" = None

    @cached_property
    def scorer(self) -> ClipScorer | None:
        """The CLIP model that the options name, if they name one."""
        return None if self.options.clip is None else load_clip(self.options.clip)

    @cached_property
    def choice(self) -> Choice:
        """The extractor for FID and KID, or the reason why there is none; see :func:`prunekit.extractors.choose_extractor`."""
        found = self._chosen
        return (
            found if found.extractor is None else replace(found, extractor=Remembering.of(found.extractor, self.real))
        )

    @cached_property
    def _chosen(self) -> Choice:
        return (
            Choice(self.extractor) if self.extractor is not None else choose_extractor(self.real, self.options.features)
        )

    @cached_property
    def judge(self) -> CaptionJudge | None:
        """The classifier that compares images with their captions, if the extractor is one."""
        return CaptionJudge.of(self._chosen.extractor)

    @property
    def distances(self) -> Distances:
        """A collector of the models' images, without any yet."""
        return Distances(self.real, self.choice, self.scorer, self.judge)

    @cached_property
    def agreement_real(self) -> float | None:
        """Agreement of the held-out images with their captions; None if the captions do not name classes of the extractor."""
        prompts = None if self.pipeline is None else self.pipeline.prompts(self.options.samples)
        if self.pipeline is None or self.judge is None or prompts is None:
            return None
        images = self.pipeline.held_out(len(prompts))
        hits = self.judge.hits(images, prompts[: len(images)])
        return None if hits is None else float(hits.mean())

    @cached_property
    def real(self) -> Tensor:
        """The pictures with which samples are compared, uint8, shape (N, C, H, W); of encoded images the decoded ones."""
        return self.images.train.images if self.pipeline is None else self.pipeline.real

    def captions(self) -> dict[str, list[str]]:
        """Captions of the kept images, and the classes that they name, by the keys of results; without what is not known."""
        captions = self.asked(self.options.grid, self.options.seeds[0])
        if captions is None:
            return {}
        subjects = None if self.judge is None else self.judge.subjects(captions)
        return {"captions": list(captions)} | ({} if subjects is None else {"subjects": subjects})

    @property
    def sampler(self) -> "Sampler | PipelineSampler":
        """The sampler; it draws the training images' classes if the network takes classes."""
        if self.pipeline is not None:
            return self.pipeline.sampler
        channels, height, width = self.images.train.images.shape[1:]
        allocation, shape = self.allocation, (channels, height, width)
        sampler = make_sampler(allocation.sampler, allocation.steps, self.parameterization, shape)
        return sampler.of_classes(sampled_classes(self.spec, self.images.train)) if self.spec else sampler

    def sampler_at(self, scale: float) -> "PipelineSampler":
        """The sampler at another scale of guidance.

        Raises:
            InputError: samples are not drawn through a pipeline.
        """
        if self.pipeline is None:
            raise InputError(
                "Got a guidance scale without a pipeline; name the pipeline through which samples are drawn."
            )
        return self.pipeline.sampler.guided_by(scale)

    @property
    def passes(self) -> float:
        """Passes of one image through the network at each evaluation, over all scales of guidance: two where it is guided."""
        others = self.options.other_guidance_scales
        return self.sampler.passes + sum(self.sampler_at(scale).passes for scale in others)

    def asked(self, count: int, seed: int) -> Sequence[str] | None:
        """The prompts of samples, if they have some."""
        if self.prompts is not None:
            return self.prompts(count, seed)
        return None if self.pipeline is None else self.pipeline.prompts(count)
