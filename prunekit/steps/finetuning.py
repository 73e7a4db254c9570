"""Fine-tunes a slim model on its own timesteps, with the base as its teacher if asked for, or trains it from scratch."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from prunekit.checkpoint import Base
from prunekit.data import ImageData
from prunekit.errors import InputError
from prunekit.graph.copying import copied
from prunekit.graph.surgery import are_gone
from prunekit.recipe import DistillationOptions, FinetuneOptions
from prunekit.schedule import Parameterization
from prunekit.slim import SlimModel
from prunekit.steps.bases import seeded_weights
from prunekit.steps.bench import Bench
from prunekit.steps.objectives import objective_for, predicts_variance, variance_loss
from prunekit.steps.placing import kept_in_place
from prunekit.training import (
    DenoisingObjective,
    Distillation,
    Reporter,
    TrainResult,
    VarianceLoss,
    feature_layers,
    group_timesteps,
    timestep_sampler,
    train,
)

__all__ = ["finetune_slim", "needs_teacher"]

_log = logging.getLogger(__name__)


def finetune_slim(
    slim: SlimModel,
    images: ImageData,
    options: FinetuneOptions,
    checkpoints: Path | str | None = None,
    report: Reporter | None = None,
    teacher: Bench | Base | None = None,
) -> tuple[SlimModel, TrainResult]:
    """Train a slim model on its own timesteps (and the overlap at the seams).

    Args:
        slim: the model to train; it is not changed.
        images: the training images.
        options: how to train.
        checkpoints: folder for the training's checkpoints.
        report: is told the progress.
        teacher: the base, if :func:`needs_teacher` says so; with its channel groups if the options ask for features. It is on the
            GPU during the training, and afterwards where it was.

    Raises:
        InputError: the teacher is missing, or is another base than the slim model's.
    """
    checkpoints = Path(checkpoints) if checkpoints is not None else None
    model = copied(slim.model)
    if options.from_scratch:
        _draw_weights(model, options.train.seed)
        slim = slim.with_weights(model, from_scratch=True)
    parameterization = Parameterization.from_config(slim.about)
    variance = _variance(slim, parameterization, options, teacher)
    denoising = objective_for(
        images,
        slim.spec,
        parameterization,
        options.train.label_dropout,
        own_dropout=options.train.condition_dropout,
        variance=variance,
    )
    objective = _taught(denoising, slim, options.distillation, teacher) if options.distillation else denoising
    within = group_timesteps(slim.group, slim.num_timesteps, options.overlap)
    sampler = timestep_sampler(options.train, parameterization, within)
    seed = options.train.seed * 1009 + slim.group.index  # groups must not share batches
    settings = replace(options.train_of(slim.group.index), seed=seed)
    taught_by = () if teacher is None else (_base_of(teacher).model,)
    with kept_in_place(*taught_by):
        result = train(model, objective, sampler, settings, checkpoints, report)
    return slim.with_weights(
        result.model, finetuned_steps=options.train.steps, finetune_seed=options.train.seed
    ), result


def needs_teacher(slim: SlimModel, options: FinetuneOptions) -> bool:
    """Whether the base takes part in a fine-tuning: as the teacher of predictions, or of the variances that a network predicts."""
    return options.distillation is not None or (
        options.variance == "distill" and predicts_variance(slim.spec, slim.model)
    )


def _variance(
    slim: SlimModel, parameterization: Parameterization, options: FinetuneOptions, teacher: Bench | Base | None
) -> VarianceLoss | None:
    """How the variances that a network predicts are kept; None for a network without."""
    if not predicts_variance(slim.spec, slim.model):
        return None
    base = _checked_base(slim, teacher) if options.variance == "distill" and teacher is not None else None
    return variance_loss(
        options.variance, options.variance_weight, parameterization, None if base is None else base.model
    )


def _base_of(teacher: Bench | Base) -> Base:
    return teacher.base if isinstance(teacher, Bench) else teacher


def _checked_base(slim: SlimModel, teacher: Bench | Base) -> Base:
    """The base that teaches.

    Raises:
        InputError: the slim model was pruned from another one.
    """
    base = _base_of(teacher)
    expected = slim.about.get("provenance", {}).get("base_sha256")
    if expected and base.sha256 and expected != base.sha256:
        raise InputError(
            f"The slim model was pruned from the base with SHA-256 {expected[:16]}… and the teacher's is {base.sha256[:16]}…; "
            "give its own base."
        )
    return base


def _draw_weights(model: nn.Module, seed: int) -> None:
    """Draw a network's weights again with each layer's own initialisation.

    Raises:
        InputError: it has parameters that belong to no layer with an initialisation.
    """
    with seeded_weights(seed):
        for name, module in model.named_modules():
            draw = getattr(module, "reset_parameters", None)
            if callable(draw):
                draw()
            elif any(True for _ in module.parameters(recurse=False)):
                kind = type(module).__name__
                raise InputError(
                    f"{name or 'The network'} ({kind}) does not say how to draw its weights, so it cannot be trained from scratch."
                )


def _taught(
    objective: DenoisingObjective, slim: SlimModel, options: DistillationOptions, teacher: Bench | Base | None
) -> Distillation:
    """The training objective with the base as the teacher.

    Raises:
        InputError: there is no base, or the slim model was pruned from another one.
    """
    if teacher is None:
        raise InputError("Distillation needs the base that the slim model was pruned from, as the teacher.")
    base = _checked_base(slim, teacher)
    features: dict[str, torch.Tensor | None] = {}
    if options.feature_weight and isinstance(teacher, Bench):
        kept = slim.plan.positions(teacher.graph)
        for name in feature_layers(base.model):
            if are_gone(name, slim.plan.stubs(teacher.graph)):
                continue
            stays = kept.get((name, "out"))
            features[name] = None if stays is None else torch.from_numpy(stays)
        if not features:
            _log.warning(
                "Group %d learns the teacher's predictions alone: the layers whose outputs it was to learn, too, went with removed "
                "branches.",
                slim.group.index,
            )
            options = replace(options, feature_weight=0.0)
    return Distillation(objective, base.model, options.weight, options.feature_weight, features, options.fade)
