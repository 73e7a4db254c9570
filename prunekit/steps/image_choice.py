"""Finds a network's images, checks that they fit, and prepares their classes."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit._json import JsonDict
from prunekit._missing import is_shipped
from prunekit._names import name_of
from prunekit.checkpoint import Base, ModelSpec
from prunekit.data import ImageData, ImageSplit, Resolution, as_resolution, load_images, noted_places, size_text
from prunekit.errors import InputError, PrunekitError
from prunekit.importance import WITHOUT_LOSS
from prunekit.search import MEASURING_NOTHING
from prunekit.slim import SlimModel
from prunekit.steps.objectives import columns_for, predicts_variance
from prunekit.training import CLASSES

if TYPE_CHECKING:
    from prunekit.recipe import DataOptions

__all__ = [
    "check_comparison",
    "check_images",
    "check_told_nothing",
    "image_size",
    "images_for",
    "images_of",
    "images_of_slim",
    "is_by_place",
    "needs_images",
    "said_of_images",
    "sampled_classes",
]


_log = logging.getLogger(__name__)


def images_of(base: Base, override: "DataOptions | None" = None, near: Path | str | None = None) -> ImageSplit:
    """The images that a base was trained on, or others, at the base's resolution unless one is given; see :func:`images_for`."""
    return images_for(base.data, base.spec, override, near)


def images_of_slim(
    slim: SlimModel, override: "DataOptions | None" = None, near: Path | str | None = None
) -> ImageSplit:
    """The images that a slim model's base was trained on, or others; see :func:`images_for`."""
    near = Path(near) if near is not None else None
    return images_for(slim.about.get("data", {}), slim.spec, override, near)


def images_for(
    data: JsonDict, spec: ModelSpec, override: "DataOptions | None", near: Path | str | None = None
) -> ImageSplit:
    """The images that ``data`` records, or others, checked against the architecture; with classes if the network takes them.

    Args:
        data: the record in a checkpoint or slim model.
        spec: the architecture.
        override: other images.
        near: the model's file or folder; a note next to it may say where the images are.

    Raises:
        InputError: no images are recorded, they are not found, the others have the name of the recorded ones and another content,
            or the architecture does not take them.
    """
    source = override.source if override else data.get("source")
    if source is None:
        raise InputError("The checkpoint does not say which images it was trained on; name some by `data`.")
    resolution = (override.resolution if override else None) or data.get("resolution") or image_size(spec)
    labels = spec.num_classes is not None
    if isinstance(resolution, list | tuple) and len(resolution) == 2:
        resolution = as_resolution((resolution[0], resolution[1]))
    if override or "sha256" not in data:
        images = load_images(str(source), resolution, labels=labels)
        _check_identity(images, data, resolution)
    else:
        images = _found_again(name_of(str(source)), str(data["sha256"]), resolution, labels, Path(near or os.curdir))
    check_images(images, spec)
    return images


def _check_identity(images: ImageSplit, data: JsonDict, resolution: Resolution | None) -> None:
    """Refuse images with the name of the recorded ones and another content; say where others are used on purpose.

    Raises:
        InputError: they are mistaken for the model's own images.
    """
    recorded, known = data.get("sha256"), data.get("source")
    if not isinstance(recorded, str) or not isinstance(known, str) or resolution != data.get("resolution"):
        return
    if images.sha256 == recorded:
        return
    if name_of(images.source) == name_of(known):
        raise InputError(
            f"{images.source} has other images (SHA-256 {images.sha256[:16]}…) than the {name_of(known)} that the model was "
            f"trained on ({recorded[:16]}…); give that one, or name others by another path, such as a link."
        )
    _log.info("The model was trained on other images, %s; %s is used.", name_of(known), images.source)


def image_size(spec: ModelSpec) -> int | tuple[int, int] | None:
    """Side of the square images that a network takes, or height and width; None if its config does not say."""
    size = spec.config.get("sample_size")
    if not isinstance(size, list | tuple):
        return size
    height, width = size
    return as_resolution((height, width))


def _found_again(name: str, sha256: str, resolution: Resolution | None, labels: bool, near: Path) -> ImageSplit:
    """Find images by their hash in the places where they may be.

    Raises:
        InputError: they are in none of these places.
    """
    others = []
    for place in noted_places(sha256, name, near):
        try:
            images = load_images(str(place), resolution, labels)
        except PrunekitError:  # something else has that name
            continue
        if images.sha256 == sha256:
            return images
        others.append(str(place))
    found = f" ({', '.join(others)} holds other ones)" if others else ""
    raise InputError(
        f"The model's images, {name} with SHA-256 {sha256[:16]}…, are not found near it{found}; name them by `data`."
    )


def needs_images(criterion: str, proposer: str = "oneshot", repair: str = "none") -> bool:
    """Whether scoring or pruning evaluates the network on images; magnitudes and one-shot widths do not."""
    return criterion not in WITHOUT_LOSS or proposer not in MEASURING_NOTHING or repair != "none"


def is_by_place(data: JsonDict) -> bool:
    """Whether a record of images has their path but no hash, as earlier versions wrote it."""
    return "source" in data and "sha256" not in data and not is_shipped(str(data["source"]))


def said_of_images(data: JsonDict, images: ImageSplit, override: "DataOptions | None") -> JsonDict:
    """The record of images for a model made from another one: the other's, with the hash added if it had none.

    Where the other has no record, the images that are given are those that the new model is made with.
    """
    return images.about() if not data or (override is None and is_by_place(data)) else data


def check_images(images: ImageSplit, spec: ModelSpec) -> None:
    """Refuse images that a network cannot take, or that differ in size from those that its costs are counted for.

    Raises:
        InputError: images and network differ in channels, size or classes. A network that predicts variances has twice as many
            output channels.
    """
    for part in (images.train, images.held_out):
        columns_for(part, spec)
    config = spec.config
    shape = images.train.images.shape
    channels = shape[-1] if len(shape) == 3 else shape[1]  # of tokens, the last axis
    for name, fitting in (("in_channels", (channels,)), ("out_channels", (channels, 2 * channels))):
        if (config.get(name) or channels) not in fitting:
            raise InputError(
                f"The images of {images.source} have {channels} channels and the model's {name} is {config[name]}; "
                "give images or a model of the same kind."
            )
    size = image_size(spec) or images.resolution
    if len(shape) == 4 and size != images.resolution:
        raise InputError(
            f"The images of {images.source} are {size_text(images.size)} and the model's sample_size is {size_text(size)}; "
            "give its size as the resolution, or images or a model of the same size."
        )


def check_comparison(images: ImageSplit, spec: ModelSpec, pipeline: str | None = None) -> None:
    """:func:`check_images` for comparisons, which take pictures without classes, and latents that a pipeline decodes.

    Args:
        images: the recipe's images.
        spec: the network.
        pipeline: folder of the pipeline that samples and decodes; None if the recipe names none, or the comparison takes none.

    Raises:
        InputError: the images are latents without a pipeline, or the network takes classes or predicts variances.
    """
    check_images(images, spec)
    if predicts_variance(spec):
        raise InputError(
            f"The model predicts variances too (out_channels {spec.config['out_channels']} for {spec.config['in_channels']}); "
            "recipes that compare are for models that do not."
        )
    if spec.num_classes is not None:
        raise InputError("The model takes classes; recipes that compare are for models without classes.")
    if images.train.latent and pipeline is None:
        raise InputError(
            "The images are latents; recipes that compare are for pictures, or, with an evidence section, for latents that "
            "evaluation.pipeline decodes."
        )


def check_told_nothing(spec: ModelSpec, what: str) -> None:
    """Refuse a network that does not run without conditions other than classes.

    Args:
        spec: the network.
        what: what to do in place of this, as the end of a sentence.

    Raises:
        InputError: it takes such conditions.
    """
    told = [name for name in spec.conditions().needed if name != CLASSES]
    if told:
        raise InputError(f"{spec.class_name} takes {', '.join(told)}, which nothing gives here; {what}.")


def sampled_classes(spec: ModelSpec, images: ImageData | None = None) -> tuple[int, ...]:
    """Classes to sample: the images' classes if they have some, otherwise all; empty if the network takes none."""
    if spec.num_classes is None:
        return ()
    if images is not None and images.labels is not None:
        return tuple(images.labels.unique().tolist())
    return tuple(range(spec.num_classes))
