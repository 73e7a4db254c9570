"""The objective of a network on images: with the conditions that the network takes, in the way in which it is called."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.checkpoint import ModelSpec
from prunekit.choices import VarianceKind
from prunekit.conditions import Calling, prediction_of
from prunekit.data import ImageData
from prunekit.errors import InputError
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.schedule import Parameterization
from prunekit.training import (
    CLASSES,
    BoundedVariance,
    Columns,
    CountedObjective,
    DenoisingObjective,
    DistilledVariance,
    Tally,
    VarianceLoss,
)

__all__ = ["columns_for", "objective_for", "predicts_variance", "variance_loss"]


def objective_for(
    images: ImageData,
    spec: ModelSpec | None,
    parameterization: Parameterization,
    dropout: float = 0.0,
    tally: Tally | None = None,
    own_dropout: Mapping[str, float] | None = None,
    variance: VarianceLoss | None = None,
) -> DenoisingObjective:
    """The denoising objective of a network.

    Args:
        images: with conditions, where the network takes some.
        spec: the network; None for one that takes nothing but the images.
        parameterization: noise schedule, and what the network predicts.
        dropout: as for :func:`columns_for`.
        tally: counts the samples on which the objective is evaluated.
        own_dropout: as for :func:`columns_for`.
        variance: how a training keeps the variances that the network predicts.

    Raises:
        InputError: the images lack conditions that the network takes.
    """
    columns = None if spec is None else columns_for(images, spec, dropout, own_dropout)
    calling = replace(Calling() if spec is None else spec.calling(images.fixed), unit=images.time_unit)
    if tally is None:
        return DenoisingObjective(images.images, parameterization, columns, images.name, calling, variance)
    return CountedObjective(images.images, parameterization, columns, images.name, calling, variance, tally=tally)


def predicts_variance(spec: ModelSpec, model: nn.Module | None = None) -> bool:
    """Whether a network's output has twice the channels of its samples, for their variances.

    Args:
        spec: the network.
        model: its weights; run once on example inputs if the config does not state the channels. Without them, False in that case.
    """
    channels = spec.config.get("in_channels"), spec.config.get("out_channels")
    if spec.factory is None or model is None:
        return isinstance(channels[0], int) and channels[1] == 2 * channels[0]
    inputs = spec.example_inputs()
    samples = next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
    with torch.no_grad(), evaluation_mode(model):
        output = prediction_of(model(**inputs) if isinstance(inputs, dict) else model(*inputs))
    return output.numel() == 2 * samples.numel() and output.shape != samples.shape


def variance_loss(
    kind: VarianceKind,
    weight: float | None,
    parameterization: Parameterization,
    teacher: nn.Module | None = None,
) -> VarianceLoss | None:
    """How a training keeps the variances of a network that predicts some.

    Args:
        kind: ``distill`` from the teacher, by the variational bound (``vlb``), or not at all (``none``).
        weight: of that loss; None for the default of its kind.
        parameterization: noise schedule and prediction type.
        teacher: the unpruned network.

    Raises:
        InputError: there is no teacher for ``distill``, or the noise schedule has no bound.
    """
    own = {} if weight is None else {"weight": weight}
    if kind == "none":
        return None
    if kind == "vlb":
        return BoundedVariance(parameterization, **own)
    if teacher is None:
        raise InputError(
            "The model predicts variances, and `variance` distill keeps them by the base; give the base as the teacher, or "
            "`variance` vlb or none."
        )
    return DistilledVariance(teacher, **own)


def columns_for(
    images: ImageData, spec: ModelSpec, dropout: float = 0.0, own_dropout: Mapping[str, float] | None = None
) -> Columns | None:
    """The images' conditions for a network; None if it takes none.

    Args:
        images: images with their conditions, or with classes.
        spec: the network.
        dropout: share of the draws whose conditions are replaced by the empty ones; of a class-conditional network without these,
            its last class stands for "no class".
        own_dropout: for some conditions, the share of the draws in which that one alone is replaced too, by name.

    Raises:
        InputError: conditions are missing, classes are too high, or ``dropout`` is given for a network without conditions or one
            that drops classes by itself.
    """
    taken, own = spec.conditions(), dict(own_dropout or {})
    known = {name: values for name, values in images.columns.items() if taken.may_take(name)}
    missing = [name for name in taken.needed if name not in known and name not in images.fixed and name != CLASSES]
    if missing:
        raise InputError(
            f"{spec.class_name} takes {', '.join(missing)}, which {images.name} does not have; encode pictures with captions by "
            "`prunekit encode`, prune it by its weights alone (`criterion` magnitude, `proposer` oneshot, `repair` none), or give "
            "a loss of your own in Python."
        )
    if spec.num_classes is not None and CLASSES not in known:
        return _classes(images, spec, dropout, own)
    if own and not known:
        raise InputError(f"Got condition_dropout for {', '.join(own)} and a model without conditions; leave it out.")
    if dropout and not known:
        raise InputError(f"Got label_dropout {dropout:g} and a model without classes; leave it out.")
    _check_own_dropout(spec, dropout)
    return Columns(known, dropout, images.empty, own) if known else None


def _classes(images: ImageData, spec: ModelSpec, dropout: float, own: Mapping[str, float]) -> Columns:
    """The images' classes for a class-conditional network."""
    number = spec.num_classes or 0
    if images.labels is None:
        raise InputError(
            f"The model takes classes and the images of {images.name} came without; set labels: true under data, and give images "
            "with classes."
        )
    _check_own_dropout(spec, dropout or max(own.values(), default=0))
    highest, room = int(images.labels.max()), number - bool(dropout or own)
    if highest >= room:
        spare = f", and one more for {'label' if dropout else 'condition'}_dropout" if dropout or own else ""
        raise InputError(
            f"The images of {images.name} have classes up to {highest} and the model takes {number}; "
            f"expected room for {highest + 1}{spare}."
        )
    return Columns({CLASSES: images.labels}, dropout, {CLASSES: images.labels.new_tensor(number - 1)}, own)


def _check_own_dropout(spec: ModelSpec, dropout: float) -> None:
    if dropout and spec.class_name == "DiTTransformer2DModel":
        raise InputError(
            f"Got label_dropout {dropout:g} and a DiTTransformer2DModel, which leaves out a tenth of its classes by itself; "
            "leave label_dropout out."
        )
