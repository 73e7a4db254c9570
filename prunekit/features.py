"""Small feature extractors for FID and KID on small images, shipped with the package.

Inception's features were trained on photographs of 299×299 pixels and say little about an 8×8 digit. The extractors here are
classifiers of the same kind of images as those that are evaluated. Figures are comparable only if they were computed with the same
file, so every figure is stored together with :meth:`FeatureExtractor.describe`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NotRequired

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Generator, Tensor, nn
from torch.nn import functional
from typing_extensions import TypedDict

from prunekit._containers import check_safetensors
from prunekit._files import atomic_path, sha256_file
from prunekit._json import Positive, Ratio, checked, parse_json
from prunekit._messages import did_you_mean
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.results.formats import FEATURES

__all__ = [
    "SHIPPED",
    "FeatureExtractor",
    "FeatureNet",
    "FeatureTraining",
    "load_features",
    "read_features",
    "save_features",
    "train_features",
]

SHIPPED = ("digits-cnn", "fashion-cnn")
"""Names that :func:`load_features` takes; ``recipes/make_features.py`` makes their files."""

_CLASSES = {
    "digits-cnn": tuple("0123456789"),
    "fashion-cnn": (
        "t-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
}
"""The classes of the shipped extractors, in the order of their scores."""


class _AboutForm(TypedDict):
    name: str
    accuracy: Ratio
    resolution: Positive
    num_features: Positive
    num_classes: Positive
    width: Positive
    classes: NotRequired[list[str]]


_ASSETS = Path(__file__).with_name("assets")
_SIZES = ("resolution", "num_features", "num_classes", "width")
_CHUNK = 1024  # images per forward: bounds memory, not the result


class FeatureNet(nn.Module):
    """Three convolutions, 2×2 average pooling and a linear layer give the features; a linear head on them gives class scores.

    Features are shifted and scaled by constants that give the training images mean 0 and, averaged over features, variance 1: KID's
    cubic kernel (x·y/d + 1)³ needs features of that size. All share one scale, so that a nearly constant feature stays unimportant.
    There are no normalisation layers and no dropout, so an image's features depend neither on its batch nor on train or eval mode.

    Args:
        resolution: side in pixels to which every image is resized, 4 … 4096.
        num_features: width of the feature vector.
        num_classes: number of class scores.
        width: channels of the first convolution; the others have twice as many.

    Raises:
        InputError: one of the sizes is impossible.

    Example:
        >>> net = FeatureNet(resolution=8)
        >>> net(torch.zeros(5, 3, 32, 32, dtype=torch.uint8)).shape, net.num_features
        (torch.Size([5, 64]), 64)
    """

    def __init__(self, resolution: int, num_features: int = 64, num_classes: int = 10, width: int = 24) -> None:
        super().__init__()
        if not 4 <= resolution <= 4096 or num_features < 1 or num_classes < 2 or width < 1:
            raise InputError(
                f"Got resolution {resolution}, {num_features} features, {num_classes} classes and width {width}; "
                "expected 4 … 4096, and at least 1, 2 and 1."
            )
        self.resolution = resolution
        self.num_features = num_features
        self.num_classes = num_classes
        self.width = width
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, num_features),
            nn.GELU(),
        )
        self.head = nn.Linear(num_features, num_classes)
        self.centre: Tensor
        self.spread: Tensor
        self.register_buffer("centre", torch.zeros(num_features))
        self.register_buffer("spread", torch.ones(()))

    def prepare(self, images: Tensor) -> Tensor:
        """Convert images to the network's input: grey, resized (bilinear, antialiased), −1 … 1.

        Args:
            images: uint8, shape (N, C, H, W), of any size; one that is not square is stretched to a square.

        Returns:
            float32, shape (N, 1, resolution, resolution).

        Raises:
            InputError: the images are of another type or shape.
        """
        _check_images(images)
        return self._prepared(images.to(torch.float32))

    def of_levels(self, levels: Tensor) -> Tensor:
        """Features of shape (N, num_features), float32, of levels 0 … 255 that are not rounded, float, shape (N, C, H, W)."""
        features: Tensor = (self.body(self._prepared(levels.to(torch.float32))) - self.centre) / self.spread
        return features

    def _prepared(self, levels: Tensor) -> Tensor:
        grey = levels.mean(1, keepdim=True)
        side = (self.resolution, self.resolution)
        if grey.shape[-2:] != side:
            grey = functional.interpolate(grey, side, mode="bilinear", align_corners=False, antialias=True)
        return grey / 127.5 - 1.0

    def forward(self, images: Tensor) -> Tensor:
        """Features of shape (N, num_features), float32, of uint8 images (N, C, H, W)."""
        features: Tensor = (self.body(self.prepare(images)) - self.centre) / self.spread
        return features

    def logits(self, images: Tensor) -> Tensor:
        """Class scores of shape (N, num_classes), float32, of uint8 images (N, C, H, W)."""
        scores: Tensor = self.head(self.body(self.prepare(images)))
        return scores

    @torch.no_grad()
    def standardise(self, images: Tensor) -> None:
        """Set the features' shift and scale from uint8 images (N, C, H, W)."""
        raw = torch.cat([self.body(self.prepare(part)) for part in images.split(_CHUNK)]).double()
        self.centre.copy_(raw.mean(0))
        self.spread.copy_(raw.var(0, correction=0).mean().sqrt().clamp(min=1e-6))

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Fraction of uint8 images (N, C, H, W) for which the label, shape (N,), has the highest score."""
        _check_labels(images, labels)
        hits = [
            (self.logits(part).argmax(1) == truth).sum()
            for part, truth in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True)
        ]
        return int(torch.stack(hits).sum()) / len(images)


@dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A trained network with the facts that accompany its figures.

    Args:
        name: e.g. ``digits-cnn``.
        net: the network; torchmetrics takes it as a custom extractor.
        accuracy: accuracy on images that it was not trained on, 0 … 1.
        sha256: hash of the file that it was read from.
        resolution: side in pixels to which it resizes images.
        classes: names of its classes in the order of their scores; empty if they are not known.
    """

    name: str
    net: FeatureNet
    accuracy: float
    sha256: str
    resolution: int
    classes: tuple[str, ...] = ()

    def describe(self) -> dict[str, object]:
        """JSON that accompanies every figure: ``name``, ``sha256``, ``accuracy``, ``resolution``, ``num_features``."""
        about = {"name": self.name, "sha256": self.sha256, "accuracy": self.accuracy}
        return {**about, "resolution": self.resolution, "num_features": self.net.num_features}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features of shape (N, num_features), float64 on the CPU, of uint8 images (N, C, H, W), computed in chunks."""
        device = next(self.net.parameters()).device
        return torch.cat([self.net(part.to(device)).cpu().double() for part in images.split(_CHUNK)])

    @torch.no_grad()
    def of_levels(self, levels: Tensor) -> Tensor:
        """Features of shape (N, num_features), float64 on the CPU, of levels 0 … 255 that are not rounded, shape (N, C, H, W)."""
        device = next(self.net.parameters()).device
        return torch.cat([self.net.of_levels(part.to(device)).cpu().double() for part in levels.split(_CHUNK)])

    @torch.no_grad()
    def predicted(self, images: Tensor) -> Tensor:
        """The class with the highest score, int64, shape (N,), on the CPU, of uint8 images (N, C, H, W)."""
        device = next(self.net.parameters()).device
        return torch.cat([self.net.logits(part.to(device)).argmax(1).cpu() for part in images.split(_CHUNK)])


@dataclass(frozen=True)
class FeatureTraining:
    """How a feature network is trained; the defaults are the shipped digits network's.

    Args:
        resolution, num_features, width: see :class:`FeatureNet`.
        epochs: passes over the images.
        batch_size: images per step; an epoch's incomplete last batch is left out.
        learning_rate: AdamW's initial learning rate, which falls to zero along half a cosine.
        weight_decay: AdamW's weight decay.
        seed: seed of the initial weights and of the order of the images.

    Raises:
        InputError: a number is too small, or a rate is not positive.
    """

    resolution: int = 8
    num_features: int = 64
    width: int = 24
    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        rates = 0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf
        if self.epochs < 1 or self.batch_size < 1 or not rates:
            raise InputError(
                f"Got {self.epochs} epochs, batch size {self.batch_size}, learning rate {self.learning_rate} and "
                f"weight decay {self.weight_decay}; expected at least 1 and 1, a positive rate and no negative decay."
            )


def train_features(images: Tensor, labels: Tensor, training: FeatureTraining) -> FeatureNet:
    """Train a classifier by cross-entropy; equal arguments give equal weights, and the global generator is not changed.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,), classes from 0; the number of classes is the highest label plus one.
        training: see :class:`FeatureTraining`.

    Returns:
        The network after the last step, in eval mode.

    Raises:
        InputError: images and labels do not fit together.
    """
    _check_labels(images, labels)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw their initial weights from the global generator only
        torch.default_generator.manual_seed(training.seed)
        net = FeatureNet(training.resolution, training.num_features, int(labels.max()) + 1, training.width)
    generator = Generator().manual_seed(training.seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    batch = min(training.batch_size, len(images))
    steps = training.epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for _ in range(training.epochs):
        order = torch.randperm(len(images), generator=generator)
        for index in order[: len(order) // batch * batch].split(batch):
            loss = functional.cross_entropy(net.logits(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.standardise(images)
    return net.eval()


def save_features(
    net: FeatureNet,
    path: Path | str,
    name: str,
    accuracy: float,
    training: FeatureTraining,
    classes: Sequence[str] = (),
) -> None:
    """Write a network with its metadata as a safetensors file, atomically; equal arguments give equal bytes.

    Args:
        net: a trained network.
        path: the file to write.
        name: see :class:`FeatureExtractor`.
        accuracy: accuracy on images that it was not trained on, 0 … 1.
        training: how it was trained, for the record.
        classes: names of its classes in the order of their scores, with which captions of generated pictures are compared.

    Raises:
        InputError: there are names for more or fewer classes than it has.
    """
    path = Path(path)
    if classes and len(classes) != net.num_classes:
        raise InputError(f"Got names of {len(classes)} classes for {net.num_classes}; expected one for each.")
    sizes = {key: getattr(net, key) for key in _SIZES}
    about = {"format": FEATURES, "name": name, **sizes, "accuracy": accuracy, "training": asdict(training)}
    about |= {"classes": list(classes)} if classes else {}
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    with atomic_path(path) as part:
        part.write_bytes(safetensors_bytes(state, metadata={"prunekit": json.dumps(about, sort_keys=True)}))


def load_features(name: str) -> FeatureExtractor:
    """A feature extractor that ships with the package.

    Args:
        name: one of :data:`SHIPPED`.

    Raises:
        InputError: there is none of that name.
        MissingFileError: the installation lacks its file.
        FileFormatError: the file is damaged.
    """
    if name not in SHIPPED:
        raise InputError(
            f"Unknown feature extractor {name!r}{did_you_mean(name, SHIPPED)}; expected one of {', '.join(SHIPPED)}."
        )
    return replace(read_features(_ASSETS / f"features-{name}.safetensors"), classes=_CLASSES[name])


def read_features(path: Path | str) -> FeatureExtractor:
    """Read a file that :func:`save_features` wrote, without running code from it or touching the global generator.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it is broken or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            f"The feature extractor {path} does not exist; expected a file that ships with prunekit: install it again, "
            "or make the file with recipes/make_features.py."
        )
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as handle:
            about = parse_json((handle.metadata() or {}).get("prunekit", "{}").encode(), "its header")
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - no mapping, has keys() only
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise _broken(path, f"no readable safetensors file ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FEATURES:
        raise _broken(path, f"without the header of format {FEATURES!r}")
    try:
        known = checked(_AboutForm, about, "its header", "install it again")
        sizes = {"resolution": known["resolution"], "num_features": known["num_features"]}
        sizes |= {"num_classes": known["num_classes"], "width": known["width"]}
        name, accuracy = known["name"], known["accuracy"]
        with torch.device("meta"):  # saves memory and random numbers for weights that are replaced at once
            net = FeatureNet(**sizes)
        net.load_state_dict(state, assign=True)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _broken(
            path, f"a file whose header and tensors disagree ({str(error).splitlines()[-1].strip()})"
        ) from error
    whole = all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in state.values())
    if not whole or not 0 <= accuracy <= 1:
        raise _broken(path, f"a file with accuracy {accuracy} or with tensors that are not finite float32")
    classes = tuple(known.get("classes", ()))
    if classes and len(classes) != net.num_classes:
        raise _broken(path, f"a file with names of {len(classes)} classes for {net.num_classes}")
    net = net.eval().requires_grad_(False)
    return FeatureExtractor(name, net, accuracy, sha256_file(path), net.resolution, classes)


def _broken(path: Path, what: str) -> FileFormatError:
    return FileFormatError(
        f"The feature extractor {path} is {what}; expected one written by prunekit: install it again, "
        "or make the file with recipes/make_features.py."
    )


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise InputError(
            f"Got images of {images.dtype} and shape {tuple(images.shape)}; "
            "expected uint8 (count, channels, height, width) in 0 … 255."
        )


def _check_labels(images: Tensor, labels: Tensor) -> None:
    _check_images(images)
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or len(labels) == 0 or int(labels.min()) < 0:
        raise InputError(
            f"Got labels of {labels.dtype} and shape {tuple(labels.shape)} for {len(images)} images; "
            "expected one int64 label, 0 or more, for each of at least one image."
        )
