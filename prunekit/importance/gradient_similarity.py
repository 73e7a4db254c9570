"""Timestep groups by the similarity of the loss gradients: timesteps belong together if training on one helps another."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import nn

from prunekit._progress import told
from prunekit._types import FloatArray
from prunekit.errors import InputError
from prunekit.groups import Evidence, Grouping, TimestepGroup, Uniform, cut_by_matrix
from prunekit.importance.gradients import mean_gradients
from prunekit.importance.probe import Loss, Probe
from prunekit.schedule import NoiseSchedule

__all__ = ["GradientSimilarity"]


@dataclass(frozen=True, eq=False)
class GradientSimilarity:
    """Groups of least dissimilarity by the cosine of the gradients of a network's loss (task affinity as in ANT, arXiv:2306.00354).

    The timesteps are cut into bins of equal length. A bin's gradient is the gradient of the mean loss over its draws, for all
    floating-point parameters, in float64. All bins use the same seed, so a loss that draws alike at every timestep sees the same
    images and noise in all bins. Bins, common draws and the partition by :func:`prunekit.groups.cut_by_matrix` are this project's
    choice.

    Args:
        model: any network; it is not changed.
        loss: see :data:`prunekit.importance.Loss`.
        samples: number of draws per bin; with half as many, five groups of a small base are random (reports/groups/grouping.md).
        nodes: number of bins, at most one per timestep.
        batch_size: number of draws per backward pass, see :class:`prunekit.importance.Probe`.
        seed: seed of the draws and of the buckets.
        coordinates: number of values kept of every gradient. If there are more parameters, each is added to one of this many
            buckets with a sign, both random (feature hashing, arXiv:0902.2206): inner products stay right on average, a cosine
            has an error of about 1/√coordinates, and the memory is at most 8·nodes·coordinates bytes.

    Raises:
        InputError: an option is out of its range.
    """

    model: nn.Module
    loss: Loss
    samples: int = 512
    nodes: int = 32
    batch_size: int = 64
    seed: int = 0
    coordinates: int = 2**20
    name: ClassVar[str] = "gradient"

    def __post_init__(self) -> None:
        if min(self.samples, self.batch_size, self.coordinates) < 1 or self.nodes < 2 or self.seed < 0:
            raise InputError(
                f"Got {self.samples} samples in batches of {self.batch_size}, {self.nodes} nodes, {self.coordinates} coordinates "
                f"and seed {self.seed}; expected at least 1, 1, 2 and 1 of them, and a seed from 0 on."
            )

    def __call__(self, schedule: NoiseSchedule, count: int) -> Grouping:
        """Measure the similarities and cut the timesteps.

        Raises:
            InputError: there are fewer timesteps than groups, or a gradient is zero or not finite.
        """
        Uniform()(schedule, count)  # refuses an impossible count before anything is measured
        return cut_by_matrix(self.measure(schedule.num_timesteps), schedule.num_timesteps, count, self.name)

    def bins(self, num_timesteps: int) -> list[tuple[int, int]]:
        """The ranges of timesteps, one gradient each."""
        bins = min(self.nodes, num_timesteps)
        edges = [-(-i * num_timesteps // bins) for i in range(bins + 1)]
        return list(itertools.pairwise(edges))

    def measure(self, num_timesteps: int) -> Evidence:
        """Curve ``gradient_norm`` and the matrix of cosines, at the middles of the bins.

        Raises:
            InputError: the network has no parameters, or a gradient is zero or not finite.
        """
        bins = self.bins(num_timesteps)
        parameters = sum(parameter.numel() for parameter in self.model.parameters() if parameter.is_floating_point())
        if not parameters:
            raise InputError(
                "The network has no floating-point parameters; expected some whose gradients can be compared."
            )
        gradients = np.stack([self._gradient(start, stop) for start, stop in told("gradients", bins)])
        norms = np.linalg.norm(gradients, axis=1)
        if not np.isfinite(norms).all() or not norms.all():
            bad = bins[int(np.argmin(np.where(np.isfinite(norms), norms, 0)))]
            raise InputError(
                f"The gradient of the loss is zero or not finite for timesteps {bad[0]} … {bad[1] - 1}; expected one that points "
                "somewhere: check the loss, or draw more samples."
            )
        gradients /= norms[:, None]
        cosines = np.clip(gradients @ gradients.T, -1.0, 1.0)
        np.fill_diagonal(cosines, 1.0)
        facts = {
            "samples": self.samples,
            "seed": self.seed,
            "parameters": parameters,
            "coordinates": gradients.shape[1],
        }
        middles = np.array([(start + stop - 1) // 2 for start, stop in bins], dtype=np.int64)
        return Evidence(middles, {"gradient_norm": norms}, (cosines + cosines.T) / 2, facts)

    def _gradient(self, start: int, stop: int) -> FloatArray:
        """Gradient of the mean loss on timesteps ``start`` … ``stop − 1``, complete or hashed, shape (coordinates,)."""
        bin_ = TimestepGroup(0, start, stop)  # the index seeds the draws: the same for every bin
        gradients, _ = mean_gradients(self.model, Probe(self.loss, bin_, self.samples, self.batch_size, self.seed))
        parts = [gradient.flatten().cpu().numpy() for gradient in gradients.values()]
        if sum(len(part) for part in parts) <= self.coordinates:
            return np.asarray(np.concatenate(parts), dtype=np.float64)
        random = np.random.default_rng(self.seed)  # the same buckets and signs for every bin
        sketch = np.zeros(self.coordinates)
        for part in parts:
            buckets = random.integers(self.coordinates, size=len(part))
            signs = random.integers(2, size=len(part), dtype=np.int8) * 2 - 1
            sketch += np.bincount(buckets, weights=part * signs, minlength=self.coordinates)
        return sketch
