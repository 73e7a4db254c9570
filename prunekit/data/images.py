"""Images of one size with their classes, in memory or mapped from a file, split into training and held-out images."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from prunekit._files import json_hash
from prunekit._json import JsonDict
from prunekit._missing import is_shipped
from prunekit._names import name_of
from prunekit.data.sizes import Size
from prunekit.errors import FileFormatError
from prunekit.schedule import TimeUnit
from prunekit.training.columns import in_parts, update_with
from prunekit.training.objective import check_finite_rows

__all__ = ["ImageData", "ImageSplit"]


@dataclass(frozen=True)
class ImageData:
    """Images of one size.

    Args:
        images: uint8 pictures, or latents in floating point; shape (count, channels, height, width), of latents also (count,
            channels, frames, height, width) or (count, tokens, channels).
        name: where they came from, for records.
        labels: class of each image, int64, shape (count,); None if classes were not requested.
        columns: conditions of each image by their arguments' paths, each of shape (count, …).
        empty: what stands for no condition, by name: a row without the first axis.
        fixed: arguments of the network that are the same for every image, by their paths.
        time_unit: in which the pipeline that encoded the images tells its network the timestep; None if it is not known.
        arguments: of the call of the pipeline that encoded the images, as the user gave them.
        steps: what that pipeline gives its scheduler when it sets the steps.
        captions: caption or class of each image; empty if there are none.
    """

    images: Tensor
    name: str
    labels: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    empty: Mapping[str, Tensor] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    time_unit: TimeUnit | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    steps: JsonDict = field(default_factory=dict)
    captions: Sequence[str | int] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def latent(self) -> bool:
        """Whether these are a codec's latents, not pictures."""
        return self.images.is_floating_point()

    @cached_property
    def sha256(self) -> str:
        """Hash of shape and pixels, and of the classes and conditions if there are any."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for part in self.chunks():
            digest.update(part.numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        fixed = {name: value for name, value in self.fixed.items() if isinstance(value, Tensor)}
        for kind, tensors in (("column", self.columns), ("empty", self.empty), ("fixed", fixed)):
            for name, values in tensors.items():
                digest.update(f"{kind} {name} {tuple(values.shape)} {values.dtype}".encode())
                update_with(digest, values)
        return digest.hexdigest()

    def chunks(self) -> Iterator[Tensor]:
        """The images, some megabytes at a time, contiguous.

        Raises:
            InputError: latents that are not finite.
        """
        for part, rows in in_parts(self.images):
            check_finite_rows(part, rows, self.name)
            yield part.contiguous()

    def first(self, count: int | None) -> "ImageData":
        """The first ``count`` images (all when None)."""
        if count is None:
            return self
        labels = None if self.labels is None else self.labels[:count]
        columns = {name: values[:count] for name, values in self.columns.items()}
        return replace(self, images=self.images[:count], labels=labels, columns=columns, captions=self.captions[:count])

    def rows(self, index: Tensor, name: str) -> "ImageData":
        """Copies of some images, in memory, with all that belongs to them.

        Args:
            index: int64, shape (rows,).
            name: of these images, for records.
        """
        return replace(
            self,
            images=self.images[index].contiguous(),
            name=name,
            labels=None if self.labels is None else self.labels[index],
            columns={own: values[index] for own, values in self.columns.items()},
            captions=[self.captions[row] for row in index.tolist()] if self.captions else (),
        )


@dataclass(frozen=True)
class ImageSplit:
    """Training images and images that no training step has seen.

    Args:
        train: images to train on.
        held_out: the others, of the same size.
        source: where they came from, as the user named it.
        resolution: side of square images, otherwise height and width.
        report: a sentence about what was read, converted and skipped; empty where there is nothing to say.
        recorded: the hash that the images' own file states; empty if none does.
    """

    train: ImageData
    held_out: ImageData
    source: str
    resolution: int | Size
    report: str = ""
    recorded: str = ""

    @property
    def size(self) -> Size:
        """Height and width."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def is_file(self) -> bool:
        """Whether the images come from a file or folder, not from a package."""
        return not is_shipped(self.source)

    @property
    def sha256(self) -> str:
        """Hash of both parts; it identifies the images wherever they are stored.

        Raises:
            FileFormatError: it is not the recorded one.
        """
        found = json_hash([self.train.sha256, self.held_out.sha256])
        if self.recorded not in ("", found):
            raise FileFormatError(
                f"{self.source} holds other numbers (SHA-256 {found[:16]}…) than it says ({self.recorded[:16]}…); copy it again, "
                "or encode the pictures again."
            )
        return found

    def about(self) -> dict[str, str | int | list[int]]:
        """JSON that identifies the images: ``source`` (a name, not a path), ``resolution``, and any unusual properties.

        For images of a file or folder it includes their ``sha256``, so that they can be found again.
        """
        side = self.resolution if isinstance(self.resolution, int) else list(self.resolution)
        about: dict[str, str | int | list[int]] = {"source": name_of(self.source), "resolution": side}
        if self.is_file:
            about["sha256"] = self.sha256
        if self.train.labels is not None:
            about["labels"] = True
        if self.train.latent:
            about["kind"] = "latents"
        return about
