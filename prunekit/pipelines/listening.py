"""What a pipeline tells its denoiser, found by running the pipeline's own call with a stand-in for the denoiser.

So conditions, fixed arguments, the empty condition of guidance and the unit of the timestep are the pipeline's, for every family
of pipelines, and no family is mentioned here.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit._messages import one_line
from prunekit.checkpoint.callings import TIMES
from prunekit.data import size_text
from prunekit.errors import InputError, PrunekitError
from prunekit.pipelines.loading import denoisers_of
from prunekit.pipelines.own_arguments import with_rows
from prunekit.pipelines.signatures import takes
from prunekit.pipelines.stand_in import StandIn, arguments_of, sample_name

__all__ = ["Recording", "Said", "Subject", "call_arguments", "followed", "record"]

Subject = str | int
"""What a picture shows: its caption, or for a class-conditional pipeline its class."""


@dataclass(frozen=True, eq=False)
class Said:
    """One call of a denoiser.

    Args:
        denoiser: the component's name.
        step: number of scheduler steps before it.
        scheduled: the scheduler's timestep.
        sample: the noisy samples as they were given.
        told: the timestep as the denoiser was told it.
        arguments: all others by name, without those that are None.
    """

    denoiser: str
    step: int
    scheduled: float
    sample: object
    told: float
    arguments: dict[str, object]


@dataclass(eq=False)
class Recording:
    """What went on while a pipeline ran.

    Args:
        said: the denoisers' calls, in order.
        steps: number of scheduler steps that were taken.
        stepped: what the last of them gave: latents in the pipeline's own layout.
        given: the prediction that the pipeline gave its scheduler at the first step.
        until: ends the run before the step of this number.
    """

    said: list[Said] = field(default_factory=list)
    steps: int = 0
    stepped: Tensor | None = None
    until: int | None = None
    given: Tensor | None = None


class _Enough(Exception):
    """Enough was heard."""


@contextmanager
def followed(pipeline: Any, until: int | None = None) -> Iterator[Recording]:
    """Within the block, note every call of a denoiser and every step of the scheduler.

    Args:
        pipeline: of diffusers; its denoisers are :class:`StandIn` or real ones.
        until: end the run by an exception, which the block swallows, after this many steps.
    """
    found, scheduler = Recording(until=until), pipeline.scheduler
    step = scheduler.step
    handles = [_listening(name, network, pipeline, found) for name, network in denoisers_of(pipeline).items()]

    @functools.wraps(step)  # pipelines look at the signature
    def noted(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if found.steps == 0:
            found.given = args[0] if args else kwargs["model_output"]
        found.steps += 1
        found.stepped = result[0]
        if until is not None and found.steps >= until:
            raise _Enough
        return result

    scheduler.step = noted
    try:
        yield found
    except _Enough:
        pass
    finally:
        del scheduler.step
        for handle in handles:
            handle()


def _listening(name: str, network: nn.Module, pipeline: Any, found: Recording) -> Callable[[], None]:
    """Hear a denoiser's calls; returns what ends it."""

    def note(told: dict[str, object], kind: nn.Module) -> None:
        sample, time = told.pop(sample_name(kind)), next((key for key in TIMES if key in told), None)
        if time is None:
            raise InputError(f"{type(kind).__name__} is told no timestep; expected an argument {', '.join(TIMES)}.")
        value = torch.as_tensor(told.pop(time)).flatten()
        scheduled = float(pipeline.scheduler.timesteps[found.steps])
        found.said.append(Said(name, found.steps, scheduled, sample, float(value[0]), told))

    if isinstance(network, StandIn):
        network.heard = functools.partial(note, kind=network.network)
        return functools.partial(setattr, network, "heard", None)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(arguments_of(module, args, kwargs), module)

    return network.register_forward_pre_hook(hook, with_kwargs=True).remove


def call_arguments(
    pipeline: Any, subjects: Sequence[Subject], size: tuple[int, int] | None, steps: int
) -> dict[str, object]:
    """Arguments of a pipeline's call that makes latents of one picture for each subject.

    Args:
        pipeline: of diffusers.
        subjects: captions, or classes for a class-conditional pipeline.
        size: height and width of the pictures; None for the pipeline's own.
        steps: number of sampling steps.

    Raises:
        InputError: the pipeline takes neither captions nor classes, or the subjects are of the other kind.
    """
    known = takes(pipeline)
    by_text = "prompt" in known
    if not by_text and "class_labels" not in known:
        raise InputError(
            f"A {type(pipeline).__name__} takes neither a prompt nor classes; give its pictures by `data`."
        )
    if any(isinstance(subject, str) != by_text for subject in subjects):
        wanted = "captions" if by_text else "classes, as whole numbers"
        raise InputError(f"Got {subjects[0]!r:.60} for a {type(pipeline).__name__}; expected {wanted}.")
    asked: dict[str, object] = {"num_inference_steps": steps, "output_type": "latent", "use_resolution_binning": False}
    asked |= {"num_frames": 1, "generator": [Generator().manual_seed(row) for row in range(len(subjects))]}
    asked |= {} if size is None else {"height": size[0], "width": size[1]}
    own = {name: value for name, value in asked.items() if name in known}
    if size is not None and "height" not in known:
        own.pop("width", None)
    return {"prompt" if by_text else "class_labels": list(subjects), **own}


def record(
    pipeline: Any,
    subjects: Sequence[Subject],
    size: tuple[int, int] | None = None,
    steps: int = 1,
    others: Mapping[str, object] = MappingProxyType({}),
    endless: bool = False,
) -> Recording:
    """Run a pipeline for a number of scheduler steps and note what its denoisers are told.

    Args:
        pipeline: of diffusers.
        subjects: captions or classes.
        size: height and width of the pictures.
        steps: number of sampling steps that are planned and taken.
        others: further arguments of the pipeline's call, see :func:`prunekit.pipelines.own_arguments.with_rows`.
        endless: let the pipeline run to its end, which decodes its latents.

    Raises:
        InputError: the pipeline does not run with these arguments.
    """
    arguments = {**call_arguments(pipeline, subjects, size, steps), **with_rows(others, len(subjects))}
    with followed(pipeline, None if endless else steps) as found, torch.no_grad():
        try:
            pipeline(**arguments)
        except (_Enough, PrunekitError):
            raise
        except Exception as error:  # pipelines check their arguments in many ways
            where = "" if size is None else f" at {size_text(size)}"
            raise InputError(
                f"The {type(pipeline).__name__} does not run{where} ({one_line(error).rstrip('.')}); expected one that diffusers "
                "itself can sample."
            ) from error
    return found
