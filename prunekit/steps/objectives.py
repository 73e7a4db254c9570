"""The objective of a network on images: with the conditions that the network takes, in the way in which it is called."""

from collections.abc import Mapping
from dataclasses import replace

from prunekit.checkpoint import ModelSpec
from prunekit.conditions import Calling
from prunekit.data import ImageData
from prunekit.errors import InputError
from prunekit.schedule import Parameterization
from prunekit.training import CLASSES, Columns, CountedObjective, DenoisingObjective, Tally

__all__ = ["columns_for", "objective_for"]


def objective_for(
    images: ImageData,
    spec: ModelSpec | None,
    parameterization: Parameterization,
    dropout: float = 0.0,
    tally: Tally | None = None,
    own_dropout: Mapping[str, float] | None = None,
) -> DenoisingObjective:
    """The denoising objective of a network.

    Args:
        images: with conditions, where the network takes some.
        spec: the network; None for one that takes nothing but the images.
        parameterization: noise schedule, and what the network predicts.
        dropout: as for :func:`columns_for`.
        tally: counts the samples on which the objective is evaluated.
        own_dropout: as for :func:`columns_for`.

    Raises:
        InputError: the images lack conditions that the network takes.
    """
    columns = None if spec is None else columns_for(images, spec, dropout, own_dropout)
    calling = replace(Calling() if spec is None else spec.calling(images.fixed), unit=images.time_unit)
    if tally is None:
        return DenoisingObjective(images.images, parameterization, columns, images.name, calling)
    return CountedObjective(images.images, parameterization, columns, images.name, calling, tally=tally)


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
