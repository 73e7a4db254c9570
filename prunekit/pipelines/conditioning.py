"""Which of the things that a pipeline tells its denoiser are conditions, and which are the same for every sample."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit._json import JsonDict, JsonObject
from prunekit.conditions import flat
from prunekit.errors import InputError
from prunekit.pipelines.listening import Recording, Said, Subject, record
from prunekit.pipelines.loading import denoisers_of
from prunekit.pipelines.own_arguments import NO_ARGUMENTS
from prunekit.pipelines.signatures import takes
from prunekit.pipelines.stand_in import StandIn
from prunekit.sampling.schedulers import set_timesteps
from prunekit.schedule import TimeUnit
from prunekit.schedule.diffusers import is_flow

__all__ = ["Conditioning", "TimeUnit", "conditioning_of", "conditions_for", "guidance_off", "steps_given"]

_PROBES: tuple[tuple[Subject, ...], ...] = (("a", "a b c d e f g"), ("b", "a", "c d"))
_CLASSES: tuple[tuple[Subject, ...], ...] = ((0, 1), (1, 0, 2))
_GUIDED = 4.0
_STEPS = 4  # of the run that finds the unit of time
_ROUNDED = 0.005  # a timestep in bfloat16 differs by this share


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a pipeline tells its denoiser besides the noisy samples.

    Args:
        shapes: of every condition without its first axis, by the argument's path.
        fixed: arguments that are the same for every sample, by path.
        empty: the pipeline's own empty condition for guidance, one row without the first axis, for the conditions that it replaces.
        unit: how the timestep is told, and which sign the prediction has.
        sample: shape of one noisy sample, as the denoiser gets it.
        steps: what the pipeline gives its scheduler when it sets the steps, see :func:`steps_given`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    fixed: Mapping[str, object]
    empty: Mapping[str, Tensor]
    unit: TimeUnit
    sample: tuple[int, ...]
    steps: JsonDict = field(default_factory=dict)


def conditioning_of(
    pipeline: Any, size: tuple[int, int] | None = None, arguments: Mapping[str, object] = NO_ARGUMENTS
) -> Conditioning:
    """Find out what a pipeline tells its denoiser.

    Args:
        pipeline: of diffusers, with stand-ins for its denoisers; see :func:`prunekit.pipelines.open_pipeline`.
        size: height and width of the pictures; None for the pipeline's own.
        arguments: of the pipeline's own call, see :mod:`prunekit.pipelines.own_arguments`.

    Raises:
        InputError: the pipeline does not run, or tells something that is neither a row for each sample nor the same for all.
    """
    probes = _PROBES if "prompt" in takes(pipeline) else _CLASSES
    off = guidance_off(pipeline)
    with _answering_ones(pipeline):
        runs = [
            record(pipeline, probe, size, 1 if number else _STEPS, {**arguments, **off})
            for number, probe in enumerate(probes)
        ]
    told = [_first_call(run, len(probe), pipeline) for run, probe in zip(runs, probes, strict=True)]
    one, other = (flat(said.arguments) for said in told)
    shapes, fixed = _sorted_out(one, other, [len(probe) for probe in probes])
    sample = told[0].sample
    if not isinstance(sample, Tensor):
        raise InputError(
            f"The {type(pipeline).__name__} gives its samples as a {type(sample).__name__}; expected a tensor."
        )
    guided = record(pipeline, probes[0], size, 1, {**_guidance_on(pipeline), **arguments})
    steps = steps_given(pipeline.scheduler, runs[0].said, sample)
    plain = {name: value for name, value in one.items() if name in shapes and isinstance(value, Tensor)}
    return Conditioning(shapes, fixed, _empty(guided, plain), _unit(pipeline, runs[0]), tuple(sample.shape[1:]), steps)


def steps_given(scheduler: Any, said: Sequence[Said], sample: Tensor) -> JsonObject:
    """What a pipeline for flow matching gives its scheduler when it sets the steps, found by the steps that it takes.

    Args:
        scheduler: the pipeline's.
        said: a run's calls of the denoiser.
        sample: the noisy samples, as the denoiser gets them.

    Returns:
        ``_image_seq_len``, the number of tokens if samples are tokens; and ``_even_sigmas``, whether the pipeline gives the
        scheduler u from 1 to 1/steps in even steps. Empty for diffusion, or where neither explains the steps.
    """
    if not is_flow(type(scheduler).__name__, scheduler.config):
        return {}
    taken = list(dict.fromkeys(one.scheduled for one in said))
    tokens: JsonObject = {"_image_seq_len": int(sample.shape[1])} if sample.ndim == 3 else {}
    for even in (False, True):
        own = type(scheduler).from_config(scheduler.config)
        own.register_to_config(**tokens, _even_sigmas=even)
        set_timesteps(own, len(taken))
        if np.allclose(own.timesteps.double().numpy(), taken, rtol=1e-4):
            return {**tokens, "_even_sigmas": even}
    return {}


def conditions_for(
    pipeline: Any,
    subjects: Sequence[Subject],
    known: Conditioning,
    size: tuple[int, int] | None = None,
    arguments: Mapping[str, object] = NO_ARGUMENTS,
) -> dict[str, Tensor]:
    """The conditions of some captions or classes, one row each, by the argument's path.

    Raises:
        InputError: a condition has another shape than it had for other captions.
    """
    run = record(pipeline, subjects, size, 1, {**arguments, **guidance_off(pipeline)})
    found = flat(_first_call(run, len(subjects), pipeline).arguments)
    rows: dict[str, Tensor] = {}
    for name, shape in known.shapes.items():
        value = found.get(name)
        if not isinstance(value, Tensor) or tuple(value.shape) != (len(subjects), *shape):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"The pipeline tells {name} as {got} for {len(subjects)} captions; expected {(len(subjects), *shape)}."
            )
        rows[name] = value
    return rows


def guidance_off(pipeline: Any) -> dict[str, object]:
    """Arguments with which a pipeline evaluates its denoiser on the given conditions only.

    A denoiser that is told the strength of its guidance keeps the pipeline's default.
    """
    distilled = any(getattr(part.config, "guidance_embeds", False) for part in denoisers_of(pipeline).values())
    known = takes(pipeline)
    if "true_cfg_scale" in known:
        return {"true_cfg_scale": 1.0}
    return {"guidance_scale": 1.0} if "guidance_scale" in known and not distilled else {}


def _guidance_on(pipeline: Any) -> dict[str, object]:
    known = takes(pipeline)
    if "true_cfg_scale" in known:
        return {"true_cfg_scale": _GUIDED, "negative_prompt": ""}
    return {"guidance_scale": _GUIDED} if "guidance_scale" in known else {}


def _first_call(run: Recording, count: int, pipeline: Any) -> Said:
    """The first call of a run, which must be for as many samples as there are subjects."""
    said = run.said[0] if run.said else None
    if said is None or not isinstance(said.sample, Tensor) or len(said.sample) != count:
        got = "no call" if said is None else f"samples of shape {tuple(getattr(said.sample, 'shape', ()))}"
        raise InputError(
            f"The {type(pipeline).__name__} gave its denoiser {got} for {count} captions without guidance; expected {count} rows."
        )
    return said


def _sorted_out(
    one: Mapping[str, object], other: Mapping[str, object], sizes: Sequence[int]
) -> tuple[dict[str, tuple[int, ...]], dict[str, object]]:
    """Shapes of what has a row for each sample, and what is the same for all.

    Raises:
        InputError: an argument is neither.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    fixed: dict[str, object] = {}
    for name in {**one, **other}:
        a, b = one.get(name), other.get(name)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            first, second = tuple(a.shape), tuple(b.shape)
            if first == (sizes[0], *first[1:]) and second == (sizes[1], *first[1:]) and first:
                shapes[name] = first[1:]
                continue
            if first == second and torch.equal(a, b):
                fixed[name] = a
                continue
            raise InputError(
                f"The pipeline tells {name} in shape {first} for {sizes[0]} captions and {second} for {sizes[1]}; expected a "
                "row of one length for each, or the same for all."
            )
        if _holds_tensors(a) or _holds_tensors(b) or a != b:
            raise InputError(
                f"The pipeline tells {name} as a {type(a).__name__} that differs from caption to caption; expected a tensor with a "
                "row for each."
            )
        fixed[name] = a
    return shapes, fixed


def _holds_tensors(value: object) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(each, Tensor) or _holds_tensors(each) for each in value)


def _empty(guided: Recording, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The empty condition: what the denoiser is told in place of the captions, in the same call or in another of the same step."""
    count = len(next(iter(plain.values()))) if plain else 0
    rows: list[dict[str, Tensor]] = []
    for said in guided.said:
        if said.step == 0 and isinstance(said.sample, Tensor) and count:
            told = {name: value for name, value in flat(said.arguments).items() if isinstance(value, Tensor)}
            for start in range(0, len(said.sample), count):
                rows.append({name: told[name][start : start + count] for name in plain if name in told})
    others = [row for row in rows if any(not _alike(row[name], plain[name]) for name in row)]
    if not others:
        return {}
    return {name: value[0] for name, value in others[0].items() if not _alike(value, plain[name])}


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-3, atol=1e-5)


@contextmanager
def _answering_ones(pipeline: Any) -> Iterator[None]:
    """Within the block stand-ins predict ones, so that the sign of what the pipeline makes of them shows."""
    stand_ins = [network for network in denoisers_of(pipeline).values() if isinstance(network, StandIn)]
    for network in stand_ins:
        network.answer = 1.0
    try:
        yield
    finally:
        for network in stand_ins:
            network.answer = 0.0


def _sign(pipeline: Any, run: Recording) -> int:
    """The sign with which a pipeline gives its scheduler the denoiser's prediction; 1 where no stand-in answers."""
    heard = all(isinstance(network, StandIn) for network in denoisers_of(pipeline).values())
    negated = heard and run.given is not None and float(run.given.float().mean()) < 0
    return -1 if negated != bool(pipeline.scheduler.config.get("invert_sigmas")) else 1


def _unit(pipeline: Any, run: Recording) -> TimeUnit:
    """The unit of time by which what was told follows from the scheduler's timesteps.

    A scheduler with inverted sigmas counts toward the data; here timesteps count toward the noise.

    Raises:
        InputError: it does not follow in a straight line.
    """
    pairs = np.array(sorted({(one.scheduled, one.told) for one in run.said}))
    scheduled, told = pairs[:, 0], pairs[:, 1]
    config = pipeline.scheduler.config
    scheduled = config.num_train_timesteps - scheduled if config.get("invert_sigmas") else scheduled
    if len(pairs) < 2 or np.ptp(scheduled) == 0:
        raise InputError("The pipeline stepped over one timestep only; expected several.")
    scale = (told[-1] - told[0]) / (scheduled[-1] - scheduled[0])
    known = [TimeUnit(1.0), TimeUnit(1e-3), TimeUnit(-1e-3, 1.0), TimeUnit(-1.0, 1e3)]
    units = [*known, TimeUnit(float(scale), float(told[0] - scale * scheduled[0]))]
    for unit in units:
        error = np.abs(unit.scale * scheduled + unit.offset - told).max()
        if error <= _ROUNDED * max(np.abs(told).max(), 1e-12):
            return replace(unit, sign=_sign(pipeline, run))
    raise InputError(
        f"The pipeline tells its denoiser {told.round(3).tolist()} for the scheduler's timesteps {scheduled.round(3).tolist()}; "
        "expected the same in another unit."
    )
