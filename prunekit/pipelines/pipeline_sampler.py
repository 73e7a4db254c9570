"""Samples through a pipeline itself, so that guidance, scheduler and decoding are its own; only its denoiser is replaced."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from prunekit._messages import one_line
from prunekit._progress import tell
from prunekit.errors import InputError, PrunekitError
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.pipelines.listening import Subject, call_arguments, followed, record
from prunekit.pipelines.loading import denoisers_of
from prunekit.pipelines.own_arguments import check_own_arguments, with_rows
from prunekit.pipelines.signatures import takes
from prunekit.sampling.clamping import clamps, unclamped

__all__ = ["PipelineSampler", "with_denoiser"]


@contextmanager
def with_denoiser(pipeline: Any, model: nn.Module) -> Iterator[Any]:
    """Within the block, the pipeline with another denoiser, in place of both where it has two."""
    own = denoisers_of(pipeline)
    for name in own:
        setattr(pipeline, name, model)
    try:
        yield pipeline
    finally:
        for name, network in own.items():
            setattr(pipeline, name, network)


@dataclass(frozen=True, eq=False)
class PipelineSampler:
    """Draws pictures or latents by running a pipeline on captions or classes.

    Args:
        pipeline: of diffusers; its own denoiser is not used.
        steps: number of sampling steps.
        subjects: captions or classes; sample i is of subject i modulo their number.
        guidance_scale: of classifier-free guidance; None for the pipeline's default.
        size: height and width of the pictures; None for the pipeline's own.
        decoded: whether the pipeline decodes its latents to pictures.
        arguments: of the pipeline's own call, see :mod:`prunekit.pipelines.own_arguments`.

    Raises:
        InputError: there are no captions, or the pipeline does not take an argument or a guidance scale.
    """

    pipeline: Any
    steps: int
    subjects: Sequence[Subject]
    guidance_scale: float | None = None
    size: tuple[int, int] | None = None
    decoded: bool = True
    arguments: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_own_arguments(self.pipeline, self.arguments)
        if not self.subjects:
            raise InputError("Got no captions to sample; expected at least one.")
        if self.guidance_scale is not None and "guidance_scale" not in takes(self.pipeline):
            raise InputError(f"A {type(self.pipeline).__name__} takes no guidance scale; leave it out.")

    @cached_property
    def passes(self) -> float:
        """Evaluations of the denoiser for each sample and step of the scheduler: two with guidance, as a run tells."""
        others = {**self.arguments, **self._guidance}
        heard = record(self.pipeline, self.subjects[:1], self.size, self.steps, others)
        rows = [len(said.sample) for said in heard.said if isinstance(said.sample, Tensor)]
        return sum(rows) / heard.steps

    @property
    def _guidance(self) -> dict[str, object]:
        return {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}

    @property
    def clamps(self) -> bool:
        """Whether the pipeline's scheduler clamps predictions of the clean sample."""
        return clamps(self.pipeline.scheduler)

    def unclamped(self) -> "PipelineSampler":
        """The same sampler, whose scheduler does not clamp predictions of the clean sample; the pipeline itself stays as it is."""
        if not self.clamps:
            return self
        pipeline = copy.copy(self.pipeline)
        pipeline.scheduler = unclamped(self.pipeline.scheduler)
        return replace(self, pipeline=pipeline)

    def for_latents(self) -> "PipelineSampler":
        """The same sampler, which leaves the latents as they are."""
        return replace(self, decoded=False)

    def guided_by(self, scale: float | None) -> "PipelineSampler":
        """The same sampler at another scale of guidance; None for the pipeline's default."""
        return replace(self, guidance_scale=scale)

    def subject(self, row: int) -> Subject:
        """What sample number ``row`` shows."""
        return self.subjects[row % len(self.subjects)]

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module,
        count: int,
        seed: int,
        batch_size: int = 64,
        report: Callable[[int, int], None] | None = None,
        first: int = 0,
    ) -> Tensor:
        """Sample ``count`` pictures. Afterwards the model has the mode that it had.

        Args:
            model: the denoiser: a network, or experts.
            count: number of samples.
            seed: seed of the noise: equal seeds give every model equal noise, whatever the batch size.
            batch_size: samples at a time.
            report: called with (samples done, count).
            first: number of the first sample: its noise and subject are those of this sample of a longer call.

        Returns:
            Pictures in −1 … 1, shape (count, channels, height, width), or latents in the denoiser's layout, on the CPU.

        Raises:
            InputError: the pipeline does not run.
        """
        done: list[Tensor] = []
        tell("sampling", 0, count)
        with evaluation_mode(model), with_denoiser(self.pipeline, model):
            for start in range(0, count, batch_size):
                stop = min(start + batch_size, count)
                done.append(self._batch(range(first + start, first + stop), seed).float().cpu())
                tell("sampling", stop, count, f"{stop} of {count} images")
                if report is not None:
                    report(stop, count)
        return torch.cat(done)

    def _batch(self, rows: range, seed: int) -> Tensor:
        subjects = [self.subject(row) for row in rows]
        arguments = call_arguments(self.pipeline, subjects, self.size, self.steps)
        generators = [Generator().manual_seed(seed * 1_000_003 + row + 1) for row in rows]
        arguments |= {"generator": generators, **with_rows(self.arguments, len(rows)), **self._guidance}
        if not self.decoded:
            return self._latents(arguments)[: len(rows)]  # some keep those of the empty condition beside them
        arguments |= {"output_type": "np"} if "output_type" in takes(self.pipeline) else {}
        result = self._ran(arguments)
        pictures = np.asarray(result.images if hasattr(result, "images") else result.frames)
        if pictures.ndim == 5:  # a video of one frame
            pictures = pictures[:, 0]
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).mul(2).sub(1)

    def _latents(self, arguments: dict[str, object]) -> Tensor:
        """The last step's latents, before they are decoded."""
        with followed(self.pipeline) as found:
            self._ran(arguments)
        if found.stepped is None:
            raise InputError(f"The {type(self.pipeline).__name__} took no step of its scheduler.")
        return found.stepped

    def _ran(self, arguments: dict[str, object]) -> Any:
        try:
            return self.pipeline(**arguments)
        except PrunekitError:
            raise
        except Exception as error:  # pipelines check their arguments in many ways
            raise InputError(
                f"The {type(self.pipeline).__name__} does not run ({one_line(error).rstrip('.')}); expected one that diffusers "
                "itself can sample."
            ) from error
