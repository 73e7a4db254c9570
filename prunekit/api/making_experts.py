"""The whole job in one call: makes a drop-in denoiser from a pipeline and images."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit._json import JsonDict
from prunekit.allocation import check_leaves_cleanest
from prunekit.checkpoint import Asked, Base, ModelSpec
from prunekit.checkpoint.asked import Task
from prunekit.checkpoint.scheduler import prediction_under
from prunekit.choices import ExpertsKind
from prunekit.data import ImageData, ImageSplit, as_images
from prunekit.errors import InputError
from prunekit.graph.copying import copied
from prunekit.groups import TimestepGroups, make_groups
from prunekit.nets import TimestepExperts
from prunekit.nets.sharing import shared, shared_networks
from prunekit.recipe import FinetuneOptions, PruneOptions, section_of
from prunekit.schedule import NoiseSchedule
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.budgets import plan_budget, specialist_groups
from prunekit.steps.data_shapes import as_encoded
from prunekit.steps.finetuning import finetune_slim
from prunekit.steps.image_choice import check_images, image_size
from prunekit.steps.reach import Reach

__all__ = ["make_experts"]

_log = logging.getLogger(__name__)
_PARTS = ("unet", "transformer")


def make_experts(
    pipeline_or_model: object,
    images: Path | str | ImageSplit | ImageData | Tensor | NDArray[np.uint8],
    *,
    budget: float = 0.8,
    groups: int | TimestepGroups = 5,
    experts: ExpertsKind = "all",
    rule: str = "auto",
    pruning: PruneOptions | JsonDict | None = None,
    finetuning: FinetuneOptions | JsonDict | None = None,
    noise_schedule: NoiseSchedule | None = None,
    prediction_type: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> TimestepExperts:
    """Prune and fine-tune one network for each timestep group, and put them together as a drop-in denoiser.

    It runs in memory and cannot be resumed; ``prunekit run`` does the same job with files, from which it resumes.

    Args:
        pipeline_or_model: a diffusers pipeline, a denoiser of diffusers, a :class:`prunekit.Base`, or the path or Hub id of one.
            It is not changed.
        images: the training images of the model: a path as for :func:`prunekit.load_images`, or uint8 of shape
            (count, channels, height, width); floating-point numbers are latents, or pictures in −1 … 1.
        budget: mean fraction of the base's MACs over the sampler's steps, in (0, 1].
        groups: the number of timestep groups, or the groups themselves.
        experts: ``noisy`` makes two groups of its own: the base serves the cleaner timesteps and one pruned specialist the
            noisiest; the border follows from the budget.
        rule: how the budget is divided among the groups, see :func:`prunekit.allocate`.
        pruning: how to score, search and repair: options, or a mapping with the keys of a recipe's ``prune`` section.
        finetuning: how to fine-tune, likewise with the keys of ``finetune``; the default is short.
        noise_schedule: replaces that of the pipeline or base. A model alone has none; the default is then the usual one of the
            prediction type over 1,000 timesteps, linear for ``epsilon``.
        prediction_type: replaces that of the pipeline or base; the default for a model alone is ``epsilon``.
        progress: called with one line about each step.

    Returns:
        The experts; ``experts.save(folder)`` writes them, and ``pipeline.unet = experts`` samples with them.

    Raises:
        BudgetError: the network cannot be pruned to the budget.
        GraphError: the network cannot be traced.
        InputError: an argument is invalid, or the network does not take the images.
    """
    say = progress or _log.info
    base = _base_of(pipeline_or_model, noise_schedule, prediction_type)
    split = as_images(images, image_size(base.spec), labels=base.spec.num_classes is not None)
    check_images(split, base.spec)
    base = as_encoded(base, split.train)
    has_specialist = experts == "noisy"
    if has_specialist:
        check_leaves_cleanest(rule)
    partition = specialist_groups(base.schedule, budget) if has_specialist else _partition(groups, base.schedule)
    pruning, finetuning = section_of(PruneOptions, pruning), section_of(FinetuneOptions, finetuning)
    plan_budget(partition, base.schedule, budget, rule=rule)  # refuses a budget before the network is followed
    say("following the network")
    bench = Bench.of(base, pruning.norm_mode, pruning.head_mode, pruning.constraints, pruning.shrink)
    reach = Reach.of(bench, pruning)
    allocation = plan_budget(partition, base.schedule, budget, rule=rule, network_floor=reach.floor).for_model(
        bench.macs
    )
    reach.check(
        {each.index: each.target_macs or 0 for each in allocation.groups}, "give a higher budget or another rule"
    )
    say("scoring channels")
    scores = score_groups(bench, split.train, partition, pruning)
    slims = []
    for group, wanted in zip(partition, allocation.groups, strict=True):
        target = int(wanted.target_macs or 0)
        name = f"timestep group {group.index} of {len(partition)}"
        whole = target >= bench.macs
        say(f"{name} keeps the whole network" if whole else f"pruning {name} to {wanted.mac_ratio:.3f} of the MACs")
        slim, _ = prune_group(bench, split.train, scores, group, target, pruning)
        if finetuning.leaves(slim) or (has_specialist and slim.is_whole):
            slims.append(slim)
            continue
        say(f"fine-tuning {name}")
        slims.append(finetune_slim(slim, split.train, finetuning, teacher=bench)[0])
    experts = TimestepExperts(partition, shared(slims, shared_networks(slims)))
    experts.eval()
    return experts


def _partition(groups: int | TimestepGroups, schedule: NoiseSchedule) -> TimestepGroups:
    if isinstance(groups, TimestepGroups):
        return groups
    if isinstance(groups, int):
        return make_groups(schedule, count=groups)
    raise InputError(
        f"Got a {type(groups).__name__} as groups; expected a number, or TimestepGroups that cover all timesteps, such as "
        "make_groups(schedule, count=5)."
    )


def _base_of(source: Any, noise_schedule: NoiseSchedule | None, prediction_type: str | None) -> Base:
    """The network with its noise schedule and prediction type. A network object is copied, since the caller keeps using it."""
    asked = Asked(None, noise_schedule, prediction_type)
    if isinstance(source, str | Path):
        return open_base(str(source), asked=asked)
    if isinstance(source, Base):
        own, notes = asked.completed(Task(source.schedule, source.prediction_type), "the base")
        return replace(source, model=_own(source.model), parameterization=own, notes=(*source.notes, *notes))
    parts = [name for name in _PARTS if isinstance(getattr(source, name, None), nn.Module)]
    if len(parts) != 1 and not isinstance(source, nn.Module):
        raise InputError(
            f"Got a {type(source).__name__}; expected a diffusers pipeline with a unet or a transformer, a denoiser of diffusers, "
            "or the path of one."
        )
    model = getattr(source, parts[0]) if parts else source
    scheduler = getattr(source, "scheduler", None)
    schedule, kind = noise_schedule, prediction_type
    if scheduler is not None:
        schedule = schedule or NoiseSchedule.from_diffusers(scheduler)
        kind = kind or prediction_under(type(scheduler).__name__, dict(scheduler.config))
    spec, (parameterization, _) = ModelSpec.of(model), asked.completed(Task(schedule, kind), type(model).__name__)
    if scheduler is None and not asked.says_task:
        _log.warning(
            "%s comes without a scheduler: taken to predict %s with the %s noise schedule; say otherwise by noise_schedule= and "
            "prediction_type=.",
            type(model).__name__,
            parameterization.prediction_type,
            parameterization.schedule.to_config()["kind"] if noise_schedule is None else "given",
        )
    return Base(_own(model), spec, parameterization)


def _own(model: nn.Module) -> nn.Module:
    """A copy of the caller's network that can be trained."""
    return copied(model).cpu().float().eval().requires_grad_(True)
