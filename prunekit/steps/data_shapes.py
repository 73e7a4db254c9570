"""Costs at the shapes of encoded images: as many latents and tokens as a network will really be given."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from prunekit.checkpoint import Base, ModelSpec
from prunekit.checkpoint.callings import TIMES, sample_of
from prunekit.checkpoint.shaped_inputs import Form, Shaped, at_shapes, parse_shapes
from prunekit.conditions import flat
from prunekit.data import ImageData, ImageSplit, load_images
from prunekit.errors import InputError

__all__ = ["as_encoded", "at_shapes_of", "encoded_images", "shaped"]


def at_shapes_of(spec: ModelSpec, images: ImageData | None) -> ModelSpec:
    """The same network, whose costs are counted at the shapes of some encoded images.

    Args:
        spec: the network.
        images: encoded images; None, and images without conditions, leave it unchanged.
    """
    if images is None or spec.factory is not None or not (images.columns or images.fixed):
        return spec
    taken, known = spec.conditions(), flat(spec.example_inputs())
    columns = {name: values for name, values in images.columns.items() if taken.may_take(name)}
    fixed = {name: value for name, value in images.fixed.items() if taken.may_take(name) and name not in TIMES}
    told = {name: value for name, value in fixed.items() if isinstance(value, Tensor)}
    shapes = {
        sample_of(known): (1, *images.images.shape[1:]),
        **{name: (1, *values.shape[1:]) for name, values in columns.items()},
        **{name: tuple(value.shape) for name, value in told.items()},
    }
    constants = {name: value for name, value in fixed.items() if name not in told}
    alike = all(_shape(known.get(name)) == shape for name, shape in shapes.items())
    if alike and all(name in known and known[name] == value for name, value in constants.items()):
        return spec
    kinds = {name: _kind(value) for name, value in {**columns, **told}.items()}
    forms = {name: Form.of(name, shape, known.get(name), kinds.get(name, "float32")) for name, shape in shapes.items()}
    return spec.with_inputs(Shaped(spec, forms, constants))


def as_encoded(base: Base, images: ImageData | None) -> Base:
    """A base as the pipeline that encoded some images calls it: costs at their shapes, budgets over the pipeline's own steps.

    Args:
        base: the base.
        images: encoded images; None, and others, leave it unchanged.
    """
    if images is None:
        return base
    kind, spec = base.parameterization, at_shapes_of(base.spec, images)
    if images.steps and kind.schedule.scheduler:
        kind = replace(kind, schedule=replace(kind.schedule, scheduler={**kind.schedule.scheduler, **images.steps}))
    return replace(base, spec=spec, parameterization=kind)


def encoded_images(data: str) -> ImageSplit:
    """Encoded images.

    Args:
        data: their folder.

    Raises:
        InputError: the images are not encoded ones.
    """
    split = load_images(data)
    if not split.train.columns and not split.train.fixed:
        raise InputError(
            f"{data} has no conditions; expected the folder of encoded images that `prunekit encode` wrote."
        )
    return split


def shaped(spec: ModelSpec, data: str | None = None, shapes: Sequence[str] | None = None) -> ModelSpec:
    """The same network, whose costs are counted at the shapes of encoded images, or at stated ones.

    Args:
        spec: the network.
        data: folder of encoded images.
        shapes: texts such as ``encoder_hidden_states=77x768``, which replace those of the images.

    Raises:
        InputError: the images are not encoded ones, or a shape does not fit the network.
    """
    if data is not None:
        spec = at_shapes_of(spec, encoded_images(data).train)
    return at_shapes(spec, parse_shapes(shapes or ()))


def _kind(values: Tensor) -> str:
    """In which type a network is given a condition."""
    return "float32" if values.is_floating_point() else str(values.dtype).removeprefix("torch.")


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
