r"""Similarity of timesteps: they are alike if the optimal denoiser predicts alike (multi-stage framework, arXiv:2312.09181).

.. math:: S(a, b) = E\Big[\tfrac1n \sum_{pixels} 1\big(|\varepsilon^*(x_a; a) - \varepsilon^*(x_b; b)| \le \eta\big)\Big]

with the same image and noise at both timesteps. At the clean end ε* is the noise itself. The noisy end follows the published code:
ε* at t is compared with its value at the same noise if the posterior mean were the mean of all images.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from prunekit._json import JsonDict
from prunekit._progress import tell
from prunekit._types import FloatArray
from prunekit.choices import CutRule
from prunekit.errors import InputError
from prunekit.groups.cut_evidence import Evidence, Grouping
from prunekit.groups.methods import NODES, check_count, nodes_of
from prunekit.groups.optimal_denoiser import OptimalDenoiser
from prunekit.groups.partition import TimestepGroups
from prunekit.groups.segmentation import best_intervals, dissimilarity_costs, finely, partition_cost
from prunekit.schedule import NoiseSchedule

__all__ = ["ETA", "CutRule", "Similarity", "calibrated_alpha", "cut_by_matrix", "measure_similarity", "three_stages"]

ETA = 2 / 255
"""Difference of ε* up to which two timesteps agree on a pixel; the value of the published code."""
STAGES = 3


@dataclass(frozen=True, eq=False)
class Similarity:
    """Groups by the similarity of the optimal denoiser of images.

    Args:
        images: shape (count, …), uint8 or floats, see :class:`prunekit.groups.OptimalDenoiser`.
        eta: tolerance, in units of ε*.
        alpha: threshold of the three-stage rule; the paper does not give its value. None for :func:`calibrated_alpha`.
        rule: ``stages`` for the paper's rule, ``dynamic`` for the exact partition of least dissimilarity; None selects ``stages``
            for three groups, and ``dynamic`` for any other number.
        samples: number of pairs of image and noise, the same pairs at all timesteps.
        nodes: number of evenly spread timesteps to measure; S is interpolated linearly between them. Cuts can lie at every timestep
            (at every T/1000-th if T is above 1000).
        seed: seed of the pairs.
        memory: bytes, see :class:`prunekit.groups.OptimalDenoiser`.

    Raises:
        InputError: an option is out of its range or unknown, or alpha is given with rule ``dynamic``.
    """

    images: NDArray[np.uint8] | FloatArray
    eta: float = ETA
    alpha: float | None = None
    rule: CutRule | None = None
    samples: int = 64
    nodes: int = NODES
    seed: int = 0
    memory: int = field(default=256 * 2**20)
    name: ClassVar[str] = "similarity"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.eta) and self.eta > 0) or self.samples < 1 or self.nodes < 2 or self.seed < 0:
            raise InputError(
                f"Got eta {self.eta:g}, {self.samples} samples, {self.nodes} nodes and seed {self.seed}; "
                "expected eta above 0, at least 1 sample and 2 nodes, and a seed from 0 on."
            )
        if self.alpha is not None and not 0 < self.alpha <= 1:
            raise InputError(f"Got alpha {self.alpha:g}; expected a mean similarity above 0 and at most 1.")
        if self.rule not in (None, "stages", "dynamic"):
            raise InputError(f"Got rule {self.rule!r}; expected stages or dynamic.")
        if self.alpha is not None and self.rule == "dynamic":
            raise InputError("Got alpha with rule dynamic, which has no use for it; leave one of them out.")

    def __call__(self, schedule: NoiseSchedule, count: int) -> Grouping:
        """See the class."""
        check_count(schedule, count)
        self.check_rule(count)
        return self.cut(self.measure(schedule), schedule, count)

    def check_rule(self, count: int) -> None:
        """Refuse a number of groups that the rule does not make, before anything is measured.

        Raises:
            InputError: the rule or ``alpha`` always makes another number of groups.
        """
        if count != STAGES and (self.rule == "stages" or self.alpha is not None):
            raise InputError(
                f"Got {count} timestep groups with rule stages or alpha; expected {STAGES}, or rule dynamic."
            )

    def measure(self, schedule: NoiseSchedule) -> Evidence:
        """Measure the curves ``to_clean`` and ``to_noise`` and the map, without cutting."""
        denoiser = OptimalDenoiser(self.images, self.memory)
        return measure_similarity(denoiser, schedule, self.eta, self.samples, self.nodes, self.seed)

    def cut(self, evidence: Evidence, schedule: NoiseSchedule, count: int) -> Grouping:
        """Cut with evidence that was measured for this schedule.

        Raises:
            InputError: the evidence has no map of similarities to cut by.
        """
        if self.rule == "dynamic" or count != STAGES:
            return cut_by_matrix(evidence, schedule.num_timesteps, count, self.name)
        if evidence.matrix is None:
            raise InputError("Got evidence without a map of similarities; expected what Similarity.measure returns.")
        timesteps = schedule.num_timesteps
        to_clean, to_noise = (
            finely(evidence.curves[name], evidence.timesteps, timesteps) for name in ("to_clean", "to_noise")
        )
        alpha, chosen = self.alpha, "given"
        if alpha is None:
            costs = dissimilarity_costs(finely(evidence.matrix, evidence.timesteps, timesteps))
            alpha, chosen = calibrated_alpha(to_clean, to_noise, costs), "calibrated"
        cuts = three_stages(to_clean, to_noise, alpha)
        facts = {"rule": "stages", "alpha": alpha, "alpha_from": chosen}
        return _grouping(evidence, cuts, len(to_clean), timesteps, self.name, facts)


def measure_similarity(
    denoiser: OptimalDenoiser,
    schedule: NoiseSchedule,
    eta: float = ETA,
    samples: int = 64,
    nodes: int = NODES,
    seed: int = 0,
) -> Evidence:
    """S between all pairs of nodes, and to both ends.

    Pairs of image and noise are drawn once and shared by all timesteps. The images come from the denoiser; none is drawn twice
    unless there are too few. Costs 2·samples·nodes·images·pixels operations in float64 and samples·nodes·images exponentials.

    Returns:
        Curves ``to_clean`` and ``to_noise``, the matrix, and the options as facts.
    """
    random = np.random.default_rng(seed)
    clean = denoiser.take(random.choice(len(denoiser), samples, replace=samples > len(denoiser)))
    noise = random.standard_normal(clean.shape)
    timesteps = nodes_of(schedule.num_timesteps, nodes)
    sigma = schedule.sigma
    matrix, to_clean, to_noise = np.zeros((len(timesteps),) * 2), np.zeros(len(timesteps)), np.zeros(len(timesteps))
    done = 0
    tell("similarity", done, samples)
    for pairs, found in denoiser.noise_along(clean, noise, sigma[timesteps]):
        for answers, image, first in zip(found, clean[pairs], noise[pairs], strict=True):
            to_clean += _agreement(answers, first, eta)
            to_noise += _agreement(answers, first + (image - denoiser.mean_image) / sigma[timesteps, None], eta)
            for node, answer in enumerate(answers):
                matrix[node, node:] += _agreement(answers[node:], answer, eta)
            tell("similarity", done := done + 1, samples)
    matrix = np.triu(matrix) + np.triu(matrix, 1).T
    facts = {"eta": eta, "samples": samples, "seed": seed, "images": len(denoiser), "pixels": denoiser.pixels}
    return Evidence(
        timesteps, {"to_clean": to_clean / samples, "to_noise": to_noise / samples}, matrix / samples, facts
    )


def three_stages(to_clean: FloatArray, to_noise: FloatArray, alpha: float) -> tuple[int, int]:
    """The paper's cuts: t1 = max{τ : mean_{t<τ} S(t,0) ≥ α} and t2 = min{τ : mean_{t≥τ} S(t,T) ≥ α} (arXiv:2312.09181).

    Args:
        to_clean: S(t, 0), shape (n,).
        to_noise: S(t, T), shape (n,).
        alpha: least mean similarity of the two outer stages to their ends.

    Raises:
        InputError: an outer stage would be empty, or nothing would be left between them.
    """
    first, last = _stage_borders(to_clean, to_noise, alpha)
    if not 0 < first < last < len(to_clean):
        outer = f"[0, {first}) and [{last}, {len(to_clean)})"
        remedy = "lower it" if first == 0 or last == len(to_clean) else "raise it"
        raise InputError(
            f"Got alpha {alpha:g}, which makes the outer stages {outer}; expected two that are not empty with room between: "
            f"{remedy}, or leave it out to have it calibrated."
        )
    return first, last


def calibrated_alpha(to_clean: FloatArray, to_noise: FloatArray, costs: FloatArray) -> float:
    """The α, in thousandths, that gives the three stages of least inner dissimilarity; the largest if several tie.

    The paper does not publish its α, so this is this project's choice. It computes the paper's partition for every α and takes the
    best by the cost that is used for N groups, :func:`prunekit.groups.segmentation.dissimilarity_costs`.

    Args:
        to_clean: S(t, 0), shape (n,).
        to_noise: S(t, T), shape (n,).
        costs: cost of every interval, shape (n + 1, n + 1).

    Raises:
        InputError: no α leaves three stages.
    """
    best: tuple[float, float] | None = None
    for thousandth in range(1000, 0, -1):
        alpha = thousandth / 1000
        first, last = _stage_borders(to_clean, to_noise, alpha)
        if 0 < first < last < len(to_clean):
            cost = partition_cost(costs, (first, last))
            if best is None or cost < best[0] - 1e-9:
                best = (cost, alpha)
    if best is None:
        raise InputError(
            "No alpha leaves three stages of these timesteps, which are alike in their similarity to both ends; expected some that "
            "are not: use rule dynamic, or another eta."
        )
    return best[1]


def cut_by_matrix(evidence: Evidence, num_timesteps: int, count: int, name: str) -> Grouping:
    """The exact partition of least inner dissimilarity, by the evidence's matrix of similarities.

    Raises:
        InputError: there is no matrix, or fewer nodes than groups.
    """
    if evidence.matrix is None:
        raise InputError("Timestep groups of least dissimilarity need a matrix of similarities; the evidence has none.")
    costs = dissimilarity_costs(finely(evidence.matrix, evidence.timesteps, num_timesteps))
    cuts = best_intervals(costs, count)
    facts = {"rule": "dynamic", "cost": round(partition_cost(costs, cuts), 6)}
    return _grouping(evidence, cuts, len(costs) - 1, num_timesteps, name, facts)


def _grouping(
    evidence: Evidence, cuts: tuple[int, ...], nodes: int, num_timesteps: int, name: str, facts: JsonDict
) -> Grouping:
    """Convert cuts between nodes to cuts between timesteps, and add to the evidence how they were found."""
    edges = [-(-cut * num_timesteps // nodes) for cut in cuts]
    known = Evidence(evidence.timesteps, evidence.curves, evidence.matrix, {**evidence.facts, **facts})
    return Grouping(TimestepGroups.from_cuts(num_timesteps, edges, name), known)


def _stage_borders(to_clean: FloatArray, to_noise: FloatArray, alpha: float) -> tuple[int, int]:
    """t1 (0 if there is none) and t2 (n if there is none)."""
    lengths = np.arange(1, len(to_clean) + 1)
    from_clean = np.cumsum(to_clean) / lengths  # at τ − 1: mean over t < τ
    from_noise = (np.cumsum(to_noise[::-1]) / lengths)[::-1]  # at τ: mean over t ≥ τ
    enough, late = np.flatnonzero(from_clean >= alpha - 1e-12), np.flatnonzero(from_noise >= alpha - 1e-12)
    return (int(enough[-1]) + 1 if enough.size else 0), (int(late[0]) if late.size else len(to_noise))


def _agreement(answers: FloatArray, other: FloatArray, eta: float) -> FloatArray:
    """Share of pixels on which each answer agrees with another, shape (answers,)."""
    return np.asarray((np.abs(answers - other) <= eta).mean(axis=1))
