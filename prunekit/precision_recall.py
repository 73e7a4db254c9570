"""Improved precision and recall of generated pictures (arXiv:1904.06991)."""

import torch
from torch import Tensor

from prunekit.errors import InputError

__all__ = ["NEIGHBOURS", "precision_recall"]

NEIGHBOURS = 3
"""Neighbours that decide the radius around each picture; the paper's choice (section 3)."""

_CHUNK = 1024  # pictures whose distances are in memory at a time


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Precision and recall from features, each 0 … 1 and higher = better.

    Around each picture of a set lies a ball whose radius is the distance to its k-th nearest neighbour in the set (eq. 1).
    Precision is the fraction of generated pictures in any ball of the real ones (eq. 2); recall is the fraction of real pictures in
    any ball of the generated ones. The paper takes as many pictures of both sets. If one set is larger, evenly spaced ones of it
    are taken.

    Args:
        real: features of real pictures, shape (count, features).
        fake: features of generated pictures, shape (count, features).
        neighbours: k; fewer where there are not as many neighbours.

    Raises:
        InputError: the features do not fit together, a set has fewer than two, or k is below 1.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> precision_recall(corners, torch.tensor([[0.5, 0.5], [9.0, 9.0]]), neighbours=1)
        (0.5, 1.0)
    """
    if (
        real.ndim != 2
        or fake.ndim != 2
        or real.shape[1] != fake.shape[1]
        or min(len(real), len(fake)) < 2
        or neighbours < 1
    ):
        raise InputError(
            f"Got features of shapes {tuple(real.shape)} and {tuple(fake.shape)} and {neighbours} neighbours; expected "
            "(count, features) of at least two pictures each, and at least one neighbour."
        )
    count = min(len(real), len(fake))
    real, fake = _spread(real, count), _spread(fake, count)
    return _covered(fake, real, neighbours), _covered(real, fake, neighbours)


def _spread(features: Tensor, count: int) -> Tensor:
    """Evenly spaced rows."""
    return features[torch.linspace(0, len(features) - 1, count).round().long()]


def _covered(points: Tensor, centres: Tensor, neighbours: int) -> float:
    """The fraction of points in any ball around the centres (arXiv:1904.06991, eq. 1)."""
    nearest = min(neighbours, len(centres) - 1) + 1  # a centre is its own nearest
    radii = torch.cat([torch.cdist(part, centres).kthvalue(nearest).values for part in centres.split(_CHUNK)])
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(_CHUNK)]
    return float(torch.cat(inside).double().mean())
