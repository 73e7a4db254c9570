"""The JSON in folders of encoded images: latents and conditions that a pipeline made of pictures and captions."""

from typing import Annotated, Literal

from prunekit._json import Bounded, Many, Named, Pair, Positive, Whole
from prunekit.results.formats import ENCODED, ENCODING
from prunekit.results.model import Free, Is, JsonValue, Model, NotNull

__all__ = ["ArrayForm", "EncodedFile", "EncodingFile", "FixedValue"]

_MAX_DIMENSIONS = 8


class ArrayForm(Model):
    """An array's shape and type.

    Args:
        shape: of the array; of an array with a row for each image, the shape of one row.
        dtype: of its numbers.
    """

    shape: Annotated[list[Annotated[int, Bounded(ge=1)]], Bounded(max_length=_MAX_DIMENSIONS)]
    dtype: Literal["float16", "float32", "float64", "int64", "int32", "uint8", "bool", "complex64"]


class FixedValue(Model):
    """An argument that is the same for every image: either a value or an array, which is a file in the folder `fixed`.

    Args:
        constant: a value that is no tensor; null if there is an array or the value is None.
        array: shape and type of the array.
    """

    constant: JsonValue = None
    array: Annotated[ArrayForm | None, NotNull()] = None


class _Head(Model):
    """What belongs to all rows.

    Args:
        pipeline: classes of the pipeline and its components, with hashes of their weights.
        image_size: height and width of the pictures.
        latents: rows of the latents.
        columns: rows of each condition, by the argument's path.
        fixed: arguments that are the same for every image, by path.
        empty: conditions with an empty one, which replaces the caption's for guidance.
        time_unit: how the network is told a timestep of the scheduler.
        arguments: of the pipeline's own call, as the user gave them.
        steps: what the pipeline gives its scheduler when it sets the steps.
        captions: hash of the captions of all images, in order.
        train: number of images to train on.
        held_out: number of images that are held out.
    """

    pipeline: Free
    image_size: Pair[Positive]
    latents: ArrayForm
    columns: Named[ArrayForm]
    fixed: Named[FixedValue]
    empty: Many[str]
    time_unit: Annotated[Free | None, NotNull()] = None
    arguments: Annotated[Free | None, NotNull()] = None
    steps: Annotated[Free | None, NotNull()] = None
    captions: str
    train: Positive
    held_out: Positive


class EncodedFile(_Head):
    """Images that a pipeline encoded, `encoded.json`; their arrays are files beside it.

    Args:
        format: name and version of the format.
        sha256: hash of all latents and conditions.
    """

    format: Annotated[str, Is(ENCODED)]
    sha256: str


class EncodingFile(_Head):
    """An encoding that is not finished, `encoding.json`.

    Args:
        format: name and version of the format.
        done: number of rows that are on the disk, for `train` and `held-out`.
        hashes: of the rows that are on the disk, by part and array, so that damage is noticed on resuming.
    """

    format: Annotated[str, Is(ENCODING)]
    done: Named[Whole]
    hashes: Annotated[Named[Named[str]] | None, NotNull()] = None
