"""Cuts timesteps into groups by measurements on images or a network."""

from prunekit.checkpoint import Base
from prunekit.data import ImageData
from prunekit.errors import InputError
from prunekit.groups import METHODS, Explicit, GroupingMethod
from prunekit.importance import GradientSimilarity
from prunekit.recipe import GroupOptions
from prunekit.schedule import NoiseSchedule
from prunekit.steps.image_choice import classes_for
from prunekit.training import DenoisingObjective

__all__ = ["method_of", "spent_on_grouping"]


def method_of(options: GroupOptions, images: ImageData | None = None, base: Base | None = None) -> GroupingMethod:
    """The grouping method that the options name.

    Args:
        options: the method and its settings.
        images: needed for ``similarity`` and ``gradient``.
        base: needed for ``gradient``.

    Raises:
        InputError: the method needs images or a base that are not given.
    """
    if options.cuts is not None:
        return Explicit(options.cuts)
    if options.method in METHODS:
        return METHODS[options.method]
    if images is None:
        raise InputError(f"Grouping method {options.method} got no images; name some by `data`.")
    if options.method == "similarity":
        return options.similarity(images.images.numpy())  # latents are compared by their own values, like pixels
    if base is None:
        raise InputError("Grouping method gradient got no network; name one by `base`.")
    classes = classes_for(images, base.spec)
    objective = DenoisingObjective(images.images, base.parameterization, classes, images.name)
    return GradientSimilarity(base.model, objective, seed=options.seed, **options.looks)


def spent_on_grouping(method: GroupingMethod, schedule: NoiseSchedule) -> int:
    """Number of samples that the method passed through the network, forwards and backwards."""
    if not isinstance(method, GradientSimilarity):
        return 0
    return method.samples * len(method.bins(schedule.num_timesteps))
