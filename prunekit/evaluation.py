"""Metrics of a model: FID, KID, precision and recall of its samples with a named feature extractor, and its denoising losses."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Generator, Tensor, nn

from prunekit._json import JsonObject
from prunekit._progress import told
from prunekit._types import FloatArray
from prunekit.errors import InputError
from prunekit.extractors import Extractor
from prunekit.graph.forward_pass import device_of, eval_flags
from prunekit.graph.streams import in_streams
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.precision_recall import precision_recall
from prunekit.training import DenoisingObjective

__all__ = [
    "GroupLoss",
    "ImageMetrics",
    "group_losses",
    "image_metrics",
    "mean_and_standard_error",
    "paired_difference",
]


@dataclass(frozen=True)
class ImageMetrics:
    """What a set of generated images has in common with real ones; figures are comparable only for equal extractors and counts.

    Args:
        fid: Fréchet distance of the features (arXiv:1706.08500); lower = closer. It is biased upwards, more so for fewer images.
        kid: unbiased squared MMD with a cubic kernel, mean over subsets (arXiv:1801.01401); lower = closer. It may be negative.
        precision: fraction of generated images that lie among real ones; see :func:`prunekit.precision_recall.precision_recall`.
        recall: fraction of real images that lie among the generated ones.
        count_real: number of real images.
        count_fake: number of generated images.
        kid_subset_size: number of images that each of KID's subsets took from either set.
    """

    fid: float
    kid: float
    precision: float
    recall: float
    count_real: int
    count_fake: int
    kid_subset_size: int

    def to_json(self) -> JsonObject:
        """The fields by name."""
        return asdict(self)


class _Given(nn.Module):
    """Passes features through, so that each image is evaluated once for both metrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def image_metrics(
    real: Tensor,
    fake: Tensor,
    extractor: Extractor,
    *,
    kid_subset_size: int = 200,
    kid_subsets: int = 50,
    seed: int = 0,
) -> ImageMetrics:
    """FID, KID, precision and recall between two sets of images.

    Args:
        real: uint8, shape (count, channels, height, width).
        fake: uint8, shape (count, channels, height, width); its count may differ from the real images'.
        extractor: computes the features.
        kid_subset_size: images per subset of KID, reduced to the smaller count if needed; the result has the number used.
        kid_subsets: number of KID's random subsets.
        seed: seed of KID's subsets; the global generator is not changed.

    Raises:
        InputError: a set has fewer than two images, images have another type or shape or are not finite, subsets cannot be drawn,
            or distances are not finite.
    """
    for images, which in ((real, "real"), (fake, "generated")):
        _check_pictures(images, which)
    if min(len(real), len(fake)) < 2 or kid_subset_size < 2 or kid_subsets < 1:
        raise InputError(
            f"Got {len(real)} real and {len(fake)} generated images, and {kid_subsets} subsets of {kid_subset_size}; "
            "expected at least two of each, and at least one subset of two."
        )
    features = {True: extractor.features(real), False: extractor.features(fake)}
    subset_size = min(kid_subset_size, len(real), len(fake))
    given = _Given(features[True].shape[1])
    from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415 - takes seconds, as scipy.signal comes with it
    from torchmetrics.image.kid import KernelInceptionDistance  # noqa: PLC0415 - see above

    fid = FrechetInceptionDistance(feature=given)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")  # they are small
        kid = KernelInceptionDistance(feature=given, subsets=kid_subsets, subset_size=subset_size)
    for metric in (fid, kid):
        for is_real, values in features.items():
            metric.update(values, real=is_real)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from the global generator only
        torch.default_generator.manual_seed(seed)
        kid_mean, _ = kid.compute()
    distances = float(fid.compute()), float(kid_mean)
    if not all(map(math.isfinite, distances)):
        raise InputError(
            f"FID is {distances[0]} and KID {distances[1]}; expected finite numbers: take more images, or other features."
        )
    both = precision_recall(features[True], features[False])
    return ImageMetrics(*distances, *both, len(real), len(fake), subset_size)


def _check_pictures(images: Tensor, which: str) -> None:
    """Refuse images that are not finite, by name; the extractor refuses other types than uint8."""
    if images.is_floating_point():
        bad = len(images) - int(images.flatten(1).isfinite().all(1).sum())
        if bad:
            raise InputError(f"{bad} of {len(images)} {which} images are not finite; expected uint8 pictures.")


def mean_and_standard_error(values: Sequence[float] | FloatArray) -> tuple[float, float | None]:
    """Mean and standard error s/√n with s the sample standard deviation (denominator n − 1); None for one value.

    Raises:
        InputError: there are no values.

    Example:
        >>> mean_and_standard_error([1.0, 3.0]), mean_and_standard_error([2.0])
        ((2.0, 1.0), (2.0, None))
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise InputError(f"Got values of shape {array.shape}; expected a list of at least one number.")
    if len(array) == 1:
        return float(array[0]), None
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array)))


@dataclass(frozen=True, eq=False)
class GroupLoss:
    """Denoising loss of one model in one timestep group.

    Args:
        index: index of the timestep group.
        losses: loss of each sample, float64, shape (count,).
        draw: hash of the images, timesteps and noise; two losses are paired sample by sample if it is equal.
        bounds: term of the variational bound in bits per dimension of each sample, see
            :class:`prunekit.training.VariationalBound`, float64, shape (count,); None for a network without learned variances.
    """

    index: int
    losses: FloatArray
    draw: str
    bounds: FloatArray | None = None

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.losses)

    @property
    def mean(self) -> float:
        """Mean loss."""
        return mean_and_standard_error(self.losses)[0]

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean for independent samples; since timesteps are evenly spread, it is an upper estimate."""
        return mean_and_standard_error(self.losses)[1]

    @property
    def bound(self) -> "GroupLoss | None":
        """The terms of the variational bound as losses of their own; None for a network without learned variances."""
        return None if self.bounds is None else GroupLoss(self.index, self.bounds, self.draw)

    def to_json(self) -> JsonObject:
        """``index``, ``mean``, ``standard_error``, ``count`` and ``draw``, without the single losses."""
        return {
            "index": self.index,
            "mean": self.mean,
            "standard_error": self.standard_error,
            "count": self.count,
            "draw": self.draw,
        }


def group_losses(
    model: nn.Module,
    objective: DenoisingObjective,
    groups: TimestepGroups,
    *,
    batches: int,
    batch_size: int,
    seed: int,
) -> list[GroupLoss]:
    """Denoising loss in each timestep group, on images, timesteps and noise that are the same for every model.

    The timesteps are the midpoints of equal parts of the group; images and noise come from a generator seeded by
    (seed, group index).

    Args:
        model: the network; its train or eval mode is restored afterwards.
        objective: images and loss; the images should be ones that no training step has seen.
        groups: the timestep groups.
        batches: number of forward passes per group.
        batch_size: samples per forward pass; with ``batches`` and ``seed`` it decides the draw.
        seed: seed of the draws, not negative.

    Returns:
        One loss per group, in the groups' order.

    Raises:
        InputError: a count is below one, the seed negative, or a loss not finite; the message names the timestep group.
    """
    if batches < 1 or batch_size < 1 or seed < 0:
        raise InputError(
            f"Got {batches} batches of {batch_size} and seed {seed}; expected at least 1 of 1, and a seed of 0 or more."
        )
    device = device_of(model)
    losses = []
    with eval_flags(model), torch.no_grad(), in_streams(model, batch_size, objective.calling.fixed) as evaluated:
        for group in told("held-out losses", groups):
            losses.append(_group_loss(evaluated, device, objective, group, batches, batch_size, seed))
    return losses


def paired_difference(a: GroupLoss, b: GroupLoss) -> tuple[float, float]:
    """Mean and standard error of b − a, sample by sample; the error is much smaller than for two separate means.

    Raises:
        InputError: the two were not measured on the same draw, or on one sample only.
    """
    if a.draw != b.draw or a.count != b.count:
        raise InputError(
            f"The losses of timestep groups {a.index} and {b.index} were measured on different images, timesteps or noise; "
            "expected the same objective, groups, batches, batch size and seed for both."
        )
    mean, error = mean_and_standard_error(b.losses - a.losses)
    if error is None:
        raise InputError("A paired difference of one sample has no standard error; measure at least two.")
    return mean, error


def _group_loss(
    model: nn.Module,
    device: torch.device,
    objective: DenoisingObjective,
    group: TimestepGroup,
    batches: int,
    batch_size: int,
    seed: int,
) -> GroupLoss:
    generator = Generator().manual_seed(_group_seed(seed, group.index))
    digest = hashlib.sha256(objective.prediction_type.encode())
    losses, bounds = [], []
    for timesteps in _spread(group, batches * batch_size).split(batch_size):
        drawn = objective.draw(timesteps, generator)
        for tensor in (timesteps, *drawn):
            digest.update(tensor.contiguous().numpy().tobytes())
        clean, noise, *conditions = (tensor.to(device) for tensor in drawn)
        loss, bound = objective.measured(model, clean, noise, timesteps.to(device), *conditions)
        losses.append(loss.cpu().double().numpy())
        if bound is not None:
            bounds.append(bound.cpu().double().numpy())
    found = np.concatenate(losses)
    bad = len(found) - int(np.isfinite(found).sum())
    if bad:
        raise InputError(
            f"The denoising losses of {bad} of {len(found)} samples are not finite in timestep group {group.index} (timesteps "
            f"{group.start} to {group.stop - 1}); expected a model and images with finite numbers."
        )
    return GroupLoss(group.index, found, digest.hexdigest()[:16], np.concatenate(bounds) if bounds else None)


def _spread(group: TimestepGroup, count: int) -> Tensor:
    """Timesteps at the midpoints of ``count`` equal parts of the group, rising, int64, shape (count,)."""
    return group.start + (2 * torch.arange(count) + 1) * len(group) // (2 * count)


def _group_seed(seed: int, index: int) -> int:
    """A seed of 64 bits from the pair, so that neither neighbouring seeds nor neighbouring groups share their draws."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> np.uint64(1))
