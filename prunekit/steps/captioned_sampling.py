"""Samplers of pipelines with captions or classes, for a pipeline's own denoiser and for models that were made from it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prunekit import nets
from prunekit.errors import InputError
from prunekit.pipelines import (
    PipelineSampler,
    Subject,
    conditioning_of,
    denoisers_of,
    is_pipeline,
    open_pipeline,
    takes,
)
from prunekit.pipelines.own_arguments import NO_ARGUMENTS
from prunekit.sampling import PIPELINE, SAMPLERS, without_unused_variances
from prunekit.steps.placing import compute_device

__all__ = ["captioned_sampler", "needs_pipeline", "own_denoiser", "with_unit"]


def needs_pipeline(model: str) -> bool:
    """Whether a folder is that of a pipeline which takes captions, so that it can only be sampled through the pipeline itself."""
    import diffusers  # noqa: PLC0415 - takes seconds, and only pipelines need it

    from prunekit.pipelines.loading import check_index  # noqa: PLC0415 - as above

    if not is_pipeline(model):
        return False
    kind = getattr(diffusers, str(check_index(Path(model))["_class_name"]))
    return "prompt" in takes(kind)


def captioned_sampler(
    folder: Path | str,
    subjects: Sequence[Subject],
    steps: int,
    guidance_scale: float | None = None,
    scheduler: str = PIPELINE,
    size: tuple[int, int] | None = None,
    own: bool = False,
    arguments: Mapping[str, object] = NO_ARGUMENTS,
) -> PipelineSampler:
    """A sampler that runs a pipeline, on the GPU if there is one.

    Args:
        folder: the pipeline.
        subjects: captions or classes.
        steps: number of sampling steps.
        guidance_scale: of classifier-free guidance; None for the pipeline's default.
        scheduler: ``pipeline`` for its own, or another by a short name or a class of diffusers, made from its own's config.
        size: height and width of the pictures; None for the pipeline's own.
        own: read the weights of the pipeline's own denoiser too.
        arguments: of the pipeline's own call.

    Raises:
        InputError: the scheduler is unknown or does not take the pipeline's settings.
    """
    pipeline = open_pipeline(folder, stand_in=not own)
    if scheduler != PIPELINE:
        pipeline.scheduler = _scheduler(scheduler, pipeline)
    return PipelineSampler(pipeline.to(compute_device()), steps, subjects, guidance_scale, size, arguments=arguments)


def own_denoiser(sampler: PipelineSampler) -> Any:
    """The pipeline's own network.

    Raises:
        InputError: the pipeline has several denoisers of its own.
    """
    found = list(denoisers_of(sampler.pipeline).values())
    if len(found) > 1:
        raise InputError(
            f"A {type(sampler.pipeline).__name__} has {len(found)} denoisers; expected a pipeline with one."
        )
    return found[0]


def with_unit(model: nn.Module, sampler: PipelineSampler) -> nn.Module:
    """Experts that know in which unit a pipeline tells the timestep; any other model unchanged.

    Args:
        model: to be the pipeline's denoiser.
        sampler: runs the pipeline.
    """
    if isinstance(model, nets.TimestepExperts) and "time_unit" not in model.about:
        model.with_time_unit(conditioning_of(sampler.pipeline, sampler.size, sampler.arguments).unit)
    return model


def _scheduler(name: str, pipeline: Any) -> Any:
    import diffusers  # noqa: PLC0415 - see above

    kind: Any = getattr(diffusers, SAMPLERS.get(name, name), None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        raise InputError(
            f"Unknown sampler {name!r:.60}; expected {PIPELINE}, {', '.join(SAMPLERS)}, or a class of diffusers."
        )
    own = type(pipeline.scheduler)
    if kind is not own and kind not in getattr(pipeline.scheduler, "compatibles", ()):
        raise InputError(
            f"{kind.__name__} does not take the settings of the pipeline's {own.__name__}; expected {PIPELINE} or one that does."
        )
    return kind.from_config(without_unused_variances(kind, pipeline.scheduler.config))
