"""FID and KID of several models over the seeds of the noise, with the error of each model's difference from the base."""

from typing import Any

import numpy as np
from torch import Tensor

from prunekit._types import FloatArray
from prunekit.evaluation import image_metrics, mean_and_standard_error
from prunekit.extractors import Choice
from prunekit.frechet import FeatureStatistics, paired_error

__all__ = ["Distances"]

_MOST_FEATURES = (
    512  # the bootstrap needs an eigenvalue decomposition for each draw, which takes minutes for wider features
)


class Distances:
    """Collects the images of all models, one seed after the other, and compares them with the real ones.

    All models sample from the same noise at a seed, so differences between them are paired. The error of FID's mean difference is
    the greater of two estimates: the standard error over the seeds' differences, which is rough for two or three seeds,
    and the paired bootstrap over images, which also works for one seed.

    Args:
        real: real images, uint8, shape (N, C, H, W).
        choice: the feature extractor; if it has none, nothing is measured.
    """

    def __init__(self, real: Tensor, choice: Choice) -> None:
        self._real, self._choice = real, choice
        self._values: dict[str, dict[str, list[float]]] = {}
        self._features: dict[str, list[FloatArray]] = {}
        self._statistics: FeatureStatistics | None = None

    def add(self, model: str, images: Tensor) -> None:
        """Measure a model's images for its next seed, uint8, shape (n, C, H, W)."""
        extractor = self._choice.extractor
        if extractor is None:
            return
        metrics = image_metrics(self._real, images, extractor)
        values = self._values.setdefault(model, {"fid": [], "kid": []})
        values["fid"].append(metrics.fid)
        values["kid"].append(metrics.kid)
        self._features.setdefault(model, []).append(extractor.features(images).numpy())

    def row(self, model: str, reference: str) -> dict[str, Any]:
        """``fid`` and ``kid`` of a model, as a mean and for each seed, and their paired differences from the reference."""
        own, other = self._values.get(model), self._values.get(reference)
        if own is None:
            return {"fid": None, "kid": None}
        row: dict[str, Any] = {measure: _estimate(values) for measure, values in own.items()}
        row["by_seed"] = own
        if other is None or model == reference:
            return row
        for measure, values in own.items():
            row[f"{measure}_difference"] = _estimate([a - b for a, b in zip(values, other[measure], strict=True)])
        row["fid_difference"]["se"] = self._error(model, reference, row["fid_difference"]["se"])
        return row

    def describe(self) -> dict[str, Any]:
        """``features`` describes the extractor; ``no_features`` says why nothing was measured."""
        described = self._choice.describe()
        if described is None:
            return {"features": None, "no_features": self._choice.why_none}
        widths = {features.shape[1] for own in self._features.values() for features in own}
        return {"features": {"num_features": max(widths, default=None), **described}}

    def _error(self, model: str, reference: str, over_seeds: float | None) -> float | None:
        """Error of the mean difference of FID: the greater of the two estimates."""
        pairs = list(zip(self._features[model], self._features[reference], strict=True))
        extractor = self._choice.extractor
        if extractor is None or pairs[0][0].shape[1] > _MOST_FEATURES:
            return over_seeds
        if self._statistics is None:
            self._statistics = FeatureStatistics.of(extractor.features(self._real).numpy())
        errors = [paired_error(self._statistics, one, other, seed=seed) for seed, (one, other) in enumerate(pairs)]
        return max(float(np.hypot.reduce(errors)) / len(errors), over_seeds or 0.0)


def _estimate(values: list[float]) -> dict[str, float | None]:
    mean, error = mean_and_standard_error(values)
    return {"mean": mean, "se": error}
