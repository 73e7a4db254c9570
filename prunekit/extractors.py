"""Choice of a feature extractor that suits the pictures: with an unsuitable extractor, FID is meaningless.

A shipped extractor is used only if the features of the pictures are near those of its training pictures: the Fréchet distance is at
most :data:`LIMIT`. Its held-out accuracy shows that it distinguishes classes. ``auto`` takes it only for grey pictures of the size
that it was trained on; if it is named, larger squares and grey pictures stored as RGB are resized and made grey first. Inception-v3
and extractors from a user's file are taken as they are.
``recipes/make_features.py`` records the training statistics and the distances for other pictures.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from prunekit import features as shipped
from prunekit._files import atomic_path
from prunekit._messages import did_you_mean
from prunekit.checkpoint.tensors import safetensors_shapes
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.features import SHIPPED, FeatureExtractor, load_features, read_features
from prunekit.frechet import LEAST_IMAGES_PER_FEATURE, FeatureStatistics, frechet_distance
from prunekit.inception import INCEPTION, is_inception, load_inception
from prunekit.results.formats import FEATURE_STATISTICS

__all__ = [
    "FILES",
    "LEAST_ACCURACY",
    "LIMIT",
    "Choice",
    "Extractor",
    "OwnExtractor",
    "choose_extractor",
    "distance_to_training",
    "is_file",
    "load_statistics",
    "misfit",
    "named_extractor",
    "read_extractor",
    "save_statistics",
]

LIMIT = 2.5
"""Greatest Fréchet distance from the training pictures. Of 50 draws of 320 pictures of the same kind the farthest has 1.6.
Of others, the nearest that were measured are Fashion-MNIST at half its brightness with 3.3 and with noise of 40 with 7.3. Mirrored
pictures have 12 and more, other data sets 39 and more, noise 51 and more. Digits with noise of 40 have 2.3."""
LEAST_ACCURACY = 0.8
"""Smallest held-out accuracy of an extractor; below it, the extractor does not distinguish its own classes."""

_LOOKED_AT = 4096  # number of pictures compared with the training pictures; more change the distance by less than 0.1
_CHUNK = 1024
_TINT = 1.0  # mean deviation of grey pictures' channels, in levels of 255: decoded latents of grey pictures have 0.4
_OWN = (
    "name Inception's weights by `inception_weights` (in a recipe, evaluation: {features: FILE}), or pass an extractor of your own "
    "in Python (Setting(extractor=OwnExtractor(…)))"
)
FILES = (".safetensors", ".pth", ".pt")
"""Suffixes of files that :func:`read_extractor` reads."""


class Extractor(Protocol):
    """The interface that FID and KID need."""

    def features(self, images: Tensor) -> Tensor:
        """Features of shape (N, features), float64 on the CPU, of uint8 images (N, C, H, W)."""

    def describe(self) -> dict[str, object]:
        """JSON that accompanies every figure, with at least a ``name``."""


@dataclass(frozen=True, eq=False)
class OwnExtractor:
    """A user's own extractor. Its fit to the pictures is not checked, and reports name it.

    Args:
        name: for reports.
        function: takes uint8 images (N, C, H, W) and returns features (N, features); it gets at most 1,024 images at a time.
        sha256: hash of its weights' file, if there is one.
        classifier: the same network with the names of its classes, if it is a classifier whose classes are known.

    Example:
        >>> own = OwnExtractor("pixels", lambda images: images.flatten(1).float())
        >>> own.features(torch.zeros(3, 1, 4, 4, dtype=torch.uint8)).shape
        torch.Size([3, 16])
    """

    name: str
    function: Callable[[Tensor], Tensor]
    sha256: str | None = None
    classifier: FeatureExtractor | None = None

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features of shape (N, features), float64 on the CPU.

        Raises:
            InputError: the function does not return one row for each image.
        """
        rows = [self.function(part) for part in images.split(_CHUNK)]
        if any(row.ndim != 2 or len(row) != len(part) for row, part in zip(rows, images.split(_CHUNK), strict=True)):
            raise InputError(
                f"The extractor {self.name} returned features of shape {tuple(rows[0].shape)}; expected (images, features)."
            )
        return torch.cat([row.cpu().double() for row in rows])

    def describe(self) -> dict[str, object]:
        """``name``, the hash of its file if there is one, and that it is the user's own."""
        about = {"name": self.name, "own": True}
        return about if self.sha256 is None else {**about, "sha256": self.sha256}


@dataclass(frozen=True, eq=False)
class Choice:
    """The extractor for some pictures.

    Args:
        extractor: the extractor; None if none suits the pictures.
        why_none: reason why there is none, and what to do about it; empty if there is one.
        fit: the measured distance and its limit; None for a user's own extractor.
    """

    extractor: Extractor | None
    why_none: str = ""
    fit: Mapping[str, object] | None = None

    def describe(self) -> dict[str, object] | None:
        """The manifest's entry: the extractor's description and how well it fits; None if there is none."""
        if self.extractor is None:
            return None
        return self.extractor.describe() | ({"fit": dict(self.fit)} if self.fit is not None else {})


def is_file(name: str) -> bool:
    """Whether the name of an extractor is that of a file."""
    return name.lower().endswith(FILES)


def read_extractor(path: Path | str) -> Extractor:
    """An extractor from a user's file: Inception-v3, or a network that :func:`prunekit.features.save_features` wrote.

    Raises:
        MissingFileError: there is no such file; the message says where to get Inception's.
        FileFormatError: it is broken, or holds neither.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".safetensors" and path.is_file() and not is_inception(safetensors_shapes(path)):
        own = read_features(path)
        return OwnExtractor(own.name, own.net, own.sha256, own if own.classes else None)
    return load_inception(path)


def named_extractor(name: str) -> Extractor:
    """The extractor of a name: one of :data:`prunekit.features.SHIPPED`, ``inception-v3`` from torch's cache, or a file.

    Raises:
        InputError: there is none of that name.
        MissingFileError: there is no such file; the message says where to get it.
        FileFormatError: it is broken, or holds another network.
    """
    if is_file(name):
        return read_extractor(name)
    known = (*SHIPPED, INCEPTION)
    if name not in known:
        raise InputError(
            f"Unknown feature extractor {name!r}{did_you_mean(name, known)}; expected one of {', '.join(known)}, or a file "
            f"ending in {' or '.join(FILES)}."
        )
    return load_inception() if name == INCEPTION else load_features(name)


def choose_extractor(images: Tensor, name: str = "auto") -> Choice:
    """The extractor that suits the given pictures.

    Args:
        images: real pictures, uint8, shape (N, C, H, W).
        name: ``auto`` for the first shipped one that fits, or a name as for :func:`named_extractor`.

    Returns:
        The choice; with ``auto``, it has no extractor if none fits.

    Raises:
        InputError: the named shipped extractor does not fit, or there is none of that name.
        MissingFileError: the named file does not exist.
        FileFormatError: the named file is broken, or holds another network.
    """
    if name not in ("auto", *SHIPPED):
        return Choice(named_extractor(name))
    reasons = []
    for each in SHIPPED:
        if name not in ("auto", each):
            continue
        extractor = load_features(each)
        reason, distance = misfit(extractor, images, resized=name != "auto")
        if not reason:
            return Choice(extractor, fit={"distance": distance, "limit": LIMIT, "count": min(len(images), _LOOKED_AT)})
        reasons.append(f"{each}: {reason}")
    if name != "auto":
        raise InputError(
            f"The feature extractor {name} does not know these pictures, so FID on it would mean nothing ({reasons[0]}); leave "
            f"features at auto for a run without FID, or {_OWN}."
        )
    why = f"no shipped feature extractor knows these pictures ({'; '.join(reasons)}). To get one, {_OWN}."
    return Choice(None, why)


def misfit(extractor: FeatureExtractor, images: Tensor, resized: bool = False) -> tuple[str, float | None]:
    """Why a shipped extractor does not suit the pictures (empty if it does), and their distance if it was measured.

    Args:
        extractor: a shipped one.
        images: real pictures, uint8, shape (N, C, H, W).
        resized: whether larger squares, and grey pictures stored as RGB, may suit it.
    """
    mode = {1: "grey", 3: "RGB"}.get(images.shape[1], f"of {images.shape[1]} channels")
    side, least = extractor.resolution, LEAST_IMAGES_PER_FEATURE * extractor.net.num_features
    height, width = images.shape[2:]
    alike = height == width >= side and _is_grey(images) if resized else images.shape[1:] == (1, side, side)
    if not alike:
        return f"it was trained on grey {side}×{side} pictures and these are {mode} {height}×{width}", None
    if extractor.accuracy < LEAST_ACCURACY:
        return f"it tells only {100 * extractor.accuracy:.0f} % of its held-out pictures apart", None
    if len(images) < least:
        return (
            f"there are {len(images)} real pictures and at least {least} are needed to tell whether it knows them",
            None,
        )
    distance = distance_to_training(extractor, images)
    if not distance <= LIMIT:
        far = f"the Fréchet distance from its training pictures is {distance:.3g}"
        return f"{far}, and at most {LIMIT:g} is allowed", distance
    return "", distance


def _is_grey(images: Tensor) -> bool:
    """Whether pictures have one channel, or three that are equal but for what a codec of colour pictures adds to grey ones."""
    if images.shape[1] not in (1, 3):
        return False
    levels = images.to(torch.float32)
    return bool((levels - levels.mean(1, keepdim=True)).abs().mean() <= _TINT)


def distance_to_training(extractor: FeatureExtractor, images: Tensor) -> float:
    """Fréchet distance of pictures from a shipped extractor's training pictures, on at most 4,096 of them, evenly spread.

    Raises:
        MissingFileError: the installation lacks the recorded statistics.
        FileFormatError: they are damaged, or of another version of the extractor.
    """
    chosen = torch.linspace(0, len(images) - 1, min(len(images), _LOOKED_AT)).round().long()
    features = extractor.features(images[chosen])
    return frechet_distance(load_statistics(extractor), FeatureStatistics.of(features.numpy()))


def save_statistics(
    extractor: FeatureExtractor, images: Tensor, distances: Mapping[str, float], path: Path | str
) -> None:
    """Write the statistics of an extractor's training pictures, atomically.

    Args:
        extractor: a trained one.
        images: the pictures it was trained on.
        distances: distances of other pictures, for the record.
        path: the file to write.
    """
    path = Path(path)
    found = FeatureStatistics.of(extractor.features(images).numpy())
    about = {
        "format": FEATURE_STATISTICS,
        "extractor_sha256": extractor.sha256,
        "count": found.count,
        "limit": LIMIT,
        "distances": dict(distances),
    }
    tensors = {
        "mean": torch.from_numpy(found.mean).float(),
        "covariance": torch.from_numpy(found.covariance).float(),
    }
    with atomic_path(path) as part:
        part.write_bytes(safetensors_bytes(tensors, metadata={"prunekit": json.dumps(about, sort_keys=True)}))


def load_statistics(extractor: FeatureExtractor) -> FeatureStatistics:
    """The recorded statistics of a shipped extractor's training pictures.

    Raises:
        MissingFileError: the installation lacks the file.
        FileFormatError: it is damaged, or of another version of the extractor.
    """
    path = statistics_path(shipped._ASSETS, extractor.name)
    if not path.is_file():
        raise MissingFileError(
            f"The statistics {path} do not exist; expected a file that ships with prunekit: install it again, or make the file "
            "with recipes/make_features.py."
        )
    try:
        with safe_open(path, framework="pt") as handle:
            about = json.loads((handle.metadata() or {}).get("prunekit", "{}"))
            mean, covariance = (handle.get_tensor(key).double().numpy() for key in ("mean", "covariance"))
        sha256, count = about["extractor_sha256"], int(about["count"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise FileFormatError(f"{path} holds no feature statistics ({error}); install prunekit again.") from error
    number = extractor.net.num_features
    whole = bool(np.isfinite(mean).all() and np.isfinite(covariance).all())
    if sha256 != extractor.sha256 or mean.shape != (number,) or covariance.shape != (number, number) or not whole:
        raise FileFormatError(
            f"{path} belongs to another version of {extractor.name}; install prunekit again, or make both files with "
            "recipes/make_features.py."
        )
    return FeatureStatistics(mean, covariance, count)


def statistics_path(folder: Path, name: str) -> Path:
    """The file of a shipped extractor's training statistics."""
    return folder / f"features-{name}-statistics.safetensors"
