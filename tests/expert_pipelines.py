"""Tiny pipelines with experts in place of their denoiser, and calls that make pictures with them."""

import copy
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tiny_pipelines import SIDE, tiny_pipeline
from torch import Tensor

from prunekit.checkpoint import ModelSpec
from prunekit.cost import count_macs
from prunekit.graph import ChannelGraph, PruningPlan, apply, attributes, trace
from prunekit.groups import TimestepGroups
from prunekit.nets import TimestepExperts
from prunekit.schedule import NoiseSchedule, TimeUnit
from prunekit.slim import SlimModel

GROUPS = TimestepGroups.from_cuts(1000, [300, 700])
UNITS = {"flux": TimeUnit(0.001)}
FLOWS = ("sd3", "flux", "sana", "wan")
_ABOUT = {"noise_schedule": NoiseSchedule.linear(1000).to_config(), "prediction_type": "epsilon"}


def part_of(pipeline: Any) -> str:
    """Name of a pipeline's denoiser."""
    return "unet" if hasattr(pipeline, "unet") else "transformer"


def denoiser_of(pipeline: Any) -> Any:
    return getattr(pipeline, part_of(pipeline))


def about(name: str) -> dict[str, Any]:
    return {**_ABOUT, "time_unit": UNITS.get(name, TimeUnit()).to_config()}


def full_experts(network: Any, name: str, groups: TimestepGroups = GROUPS) -> TimestepExperts:
    """An expert of the base's widths and weights for each timestep group."""
    spec, params = ModelSpec.of(network), sum(one.numel() for one in network.parameters())
    macs = count_macs(network, spec.example_inputs()).macs
    slims = [
        SlimModel(copy.deepcopy(network), spec, PruningPlan({}, "whole"), {}, group, 1000, macs, params, about(name))
        for group in groups
    ]
    return TimestepExperts(groups, slims).eval()


_graphs: dict[str, ChannelGraph] = {}


def slim_experts(network: Any, name: str, groups: TimestepGroups = GROUPS) -> TimestepExperts:
    """Experts that are narrower than the base, each in other channels."""
    spec = ModelSpec.of(network)
    inputs = spec.example_inputs()
    known = json.dumps(spec.to_json(), sort_keys=True)
    if known not in _graphs:
        _graphs[known] = trace(network, inputs)
    graph, slims = _graphs[known], []
    for group in groups:
        kept = {}
        for channels in graph:
            left = channels.size - channels.step * (1 + group.index % 2)
            if left >= max(1, channels.least) and channels.is_legal(left):
                generator = torch.Generator().manual_seed(group.index)
                scores = torch.rand(channels.size, generator=generator, dtype=torch.float64).numpy()
                kept[channels.name] = tuple(int(one) for one in channels.select(scores, left))
        plan = PruningPlan(kept, graph.fingerprint)
        model = apply(network, graph, plan)
        params = sum(one.numel() for one in model.parameters())
        sizes = attributes(network, graph, plan)
        macs = count_macs(model, inputs).macs
        slims.append(SlimModel(model, spec, plan, sizes, group, 1000, macs, params, about(name)))
    return TimestepExperts(groups, slims).eval()


def with_experts(pipeline: Any, name: str, make: Callable[..., TimestepExperts] = full_experts) -> TimestepExperts:
    """Put experts into a pipeline, and give them back."""
    experts = make(denoiser_of(pipeline), name)
    pipeline.register_modules(**{part_of(pipeline): experts})
    return experts


def pair(name: str, folder: Path) -> tuple[Any, Any, TimestepExperts]:
    """The same tiny pipeline twice, the second one with full-width experts."""
    base, other = tiny_pipeline(name, folder), tiny_pipeline(name, folder)
    return base, other, with_experts(other, name)


_OPTIONS: dict[str, dict[str, Any]] = {
    "dit": {"class_labels": [1, 2]},
    "wan": {"prompt": "a cat", "height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16},
    "pixart": {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 16},
    "sana": {
        "use_resolution_binning": False,
        "clean_caption": False,
        "max_sequence_length": 16,
        "complex_human_instruction": None,
    },
    "sd3": {"max_sequence_length": 16},
    "flux": {"max_sequence_length": 16},
}


def pictures(pipeline: Any, name: str, **options: Any) -> Tensor:
    """What a pipeline makes in four steps, always from the same noise; samplers that draw noise draw the same."""
    told = {"prompt": ["a cat", "dog"], "height": SIDE, "width": SIDE} if name not in ("dit", "wan") else {}
    told |= {"num_inference_steps": 4, "output_type": "np", **_OPTIONS.get(name, {}), **options}
    known = inspect.signature(pipeline.__call__).parameters
    told = {key: value for key, value in told.items() if key in known}
    torch.manual_seed(3)
    found = pipeline(**told, generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(found.images if hasattr(found, "images") else found.frames)


def assert_alike(found: Tensor, expected: Tensor) -> None:
    """Pictures of the same weights, of which one copy lies where a file was mapped: kernels may add up in another order there."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@contextmanager
def routes(experts: TimestepExperts) -> Iterator[list[tuple[int, float]]]:
    """Notes which expert answers, and what it is told."""
    taken: list[tuple[int, float]] = []

    def note(index: int, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = experts._form.bound(args, {key: one for key, one in kwargs.items() if key != "return_dict"})
        taken.append((index, float(torch.as_tensor(bound[experts._form.timestep]).flatten()[0])))

    hooks = [
        expert.register_forward_pre_hook(functools.partial(note, index), with_kwargs=True)
        for index, expert in enumerate(experts.experts)
    ]
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


def first_call(pipeline: Any, name: str) -> dict[str, Any]:
    """The arguments of the first call of a pipeline's denoiser, by name, with two samples or more."""
    from prunekit.nets.call_forms import CallForm

    class Enough(Exception):
        pass

    network, said = denoiser_of(pipeline), []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        said.append((args, kwargs))
        raise Enough

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        pictures(pipeline, name)
    except Enough:
        pass
    finally:
        hook.remove()
    args, kwargs = said[0]
    form = CallForm.of(type(network))
    bound = form.bound(args, {key: one for key, one in kwargs.items() if key != "return_dict"})
    sample: Any = bound[form.sample]
    if len(sample) == 1:
        bound = {
            key: torch.cat([one, one]) if isinstance(one, Tensor) and one.ndim and len(one) == 1 else one
            for key, one in bound.items()
        }
    return bound
