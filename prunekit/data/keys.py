"""Which arrays of a file are images and classes: by the keys of known layouts, otherwise as the user says, and never by order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit._messages import did_you_mean
from prunekit.errors import InputError

__all__ = ["Chosen", "choose", "key_of_classes", "several_arrays"]

_ADM = {
    "arr_0",
    "arr_1",
    "mu",
    "sigma",
    "mu_s",
    "sigma_s",
}  # samples and reference batches of improved- and guided-diffusion
_TESTED = (  # training images and classes, held-out images and classes; others that are not read
    (("x_train", "y_train", "x_test", "y_test"), ()),  # Keras
    (("train_images", "train_labels", "val_images", "val_labels"), ("test_images", "test_labels")),  # MedMNIST
)
_CLASSES_OF = {
    "x_train": "y_train",
    "x_test": "y_test",
    "train_images": "train_labels",
    "val_images": "val_labels",
    "test_images": "test_labels",
    "arr_0": "arr_1",
}


@dataclass(frozen=True)
class Chosen:
    """Keys of the arrays to read.

    Args:
        images: the key of the images.
        labels: the key of their classes, if the file has some.
        held_out: the keys of held-out images and their classes, if the file has a part for them.
        unsure: whether the classes are recognised by nothing but the keys, so that their shape has to be checked.
    """

    images: str
    labels: str | None = None
    held_out: tuple[str, str | None] | None = None
    unsure: bool = False

    def note(self) -> str:
        """What is read, in words; empty if there is no doubt."""
        if self.held_out is not None:
            return f"{self.images} is trained on and {self.held_out[0]} is held out"
        return f"{self.images} has the images and {self.labels} the classes" if self.unsure else ""


def choose(names: Sequence[str], path: Path, key: str | None = None) -> Chosen:
    """The arrays to read among those of a file.

    Args:
        names: keys of all arrays.
        path: the file, for messages.
        key: what the user wrote after ``::``: the key of the images, and after a comma that of their classes.

    Raises:
        InputError: the file has no such key; or several arrays in no known layout, and the user names none.
    """
    there = set(names)
    if key is not None:
        images, _, labels = (part.strip() for part in key.partition(","))
        for name in (images, labels) if labels else (images,):
            if name not in there:
                raise InputError(
                    f"{path} has no array {name!r}{did_you_mean(name, names)}; expected one of {_listed(names)}."
                )
        own = labels or next((name for name in (key_of_classes(images), "labels") if name in there), None)
        return Chosen(images, own)
    for (images, labels, other, other_labels), more in _TESTED:
        if images in there and there <= {images, labels, other, other_labels, *more}:
            held_out = (other, _if(other_labels, there)) if other in there else None
            return Chosen(images, _if(labels, there), held_out)
    if "arr_0" in there and there <= _ADM:
        return Chosen("arr_0", _if("arr_1", there), unsure="arr_1" in there)
    others = [name for name in names if name != "labels"]
    if len(others) == 1:
        return Chosen(others[0], _if("labels", there))
    raise several_arrays(path, names)


def key_of_classes(images: str) -> str:
    """The key where the classes of images under this key are expected."""
    return _CLASSES_OF.get(images, "labels")


def several_arrays(path: Path, names: Sequence[str]) -> InputError:
    """The error for a file of several arrays in no known layout."""
    first = next((name for name in names if name != "labels"), "KEY")
    return InputError(
        f"{path} has the arrays {_listed(names)}; expected one array of images, or a known layout: name the key of the images "
        f"after the file, as {path.name}::{first}, and that of their classes after a comma."
    )


def _if(name: str, there: set[str]) -> str | None:
    return name if name in there else None


def _listed(names: Sequence[str]) -> str:
    shown = [name[:40] for name in names[:8]]
    return f"{', '.join(shown)}{', …' if len(names) > len(shown) else ''}"
