"""Sample quality of several models over the seeds of the noise, with the error of each model's difference from the base."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from prunekit._types import BoolArray, FloatArray
from prunekit.agreement import CaptionJudge
from prunekit.clip_scores import ClipScorer
from prunekit.errors import InputError
from prunekit.evaluation import image_metrics, mean_and_standard_error
from prunekit.extractors import Choice, Extractor
from prunekit.frechet import FeatureStatistics, paired_error, sampling_error
from prunekit.results.estimate import Estimate, FidEstimate
from prunekit.results.expert_results import MetricRow
from prunekit.results.manifest_head import Clip, Features

__all__ = ["Distances", "Remembering"]

_MEASURES = ("fid", "kid", "precision", "recall")

_MOST_FEATURES = (
    512  # the bootstrap needs an eigenvalue decomposition for each draw, which takes minutes for wider features
)


class Remembering:
    """An extractor that computes the features of the real images and of the newest others only once.

    Args:
        extractor: the extractor.
        real: the real images.
    """

    def __init__(self, extractor: Extractor, real: Tensor) -> None:
        self._extractor, self._real = extractor, real
        self._of_real: Tensor | None = None
        self._newest: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, extractor: Extractor, real: Tensor) -> "Remembering":
        """The extractor, if it already remembers; otherwise one that does."""
        return extractor if isinstance(extractor, Remembering) else cls(extractor, real)

    def features(self, images: Tensor) -> Tensor:
        """See :class:`prunekit.extractors.Extractor`."""
        if images is self._real:
            if self._of_real is None:
                self._of_real = self._extractor.features(images)
            return self._of_real
        if self._newest is None or self._newest[0] is not images:
            self._newest = images, self._extractor.features(images)
        return self._newest[1]

    def describe(self) -> dict[str, object]:
        """See :class:`prunekit.extractors.Extractor`."""
        return self._extractor.describe()


class Distances:
    """Collects the images of all models, one seed after the other, and compares them with the real ones.

    All models sample from the same noise at a seed, so differences between them are paired. The error of the mean difference of FID
    and of the agreement is the greater of two estimates: the standard error over the seeds' differences, which is rough for two or
    three seeds, and one over images, which also works for one seed: the paired bootstrap for FID, the pairs' own for the agreement.

    Args:
        real: real images, uint8, shape (N, C, H, W).
        choice: the feature extractor; if it has none, the images are not compared with the real ones.
        scorer: the CLIP model for the CLIP score; None for no CLIP score.
        judge: the classifier for the agreement of pictures with their captions; None for no agreement.
    """

    def __init__(
        self, real: Tensor, choice: Choice, scorer: ClipScorer | None = None, judge: CaptionJudge | None = None
    ) -> None:
        self._real, self._choice, self._scorer, self._judge = real, choice, scorer, judge
        self._extractor = choice.extractor if choice.extractor is None else Remembering.of(choice.extractor, real)
        self._values: dict[str, dict[str, list[float]]] = {}
        self._features: dict[str, list[FloatArray]] = {}
        self._hits: dict[str, list[BoolArray]] = {}
        self._statistics: FeatureStatistics | None = None

    def add(self, model: str, images: Tensor, prompts: Sequence[str] | None = None) -> None:
        """Measure a model's images for its next seed.

        Args:
            model: its name.
            images: uint8, shape (n, C, H, W).
            prompts: the n prompts that the images were made from, for the CLIP score and the agreement.

        Raises:
            InputError: a CLIP score is wanted, and there are no prompts.
        """
        extractor, values = self._extractor, self._values.setdefault(model, {})
        if self._scorer is not None and prompts is None:
            raise InputError("The CLIP score needs prompts, and these images were made without; leave out clip.")
        if self._scorer is not None and prompts is not None:
            values.setdefault("clip_score", []).append(self._scorer.score(images, prompts))
        hits = None if self._judge is None or prompts is None else self._judge.hits(images, prompts)
        if hits is not None:
            values.setdefault("agreement", []).append(float(hits.mean()))
            self._hits.setdefault(model, []).append(hits)
        if extractor is None:
            return
        metrics = image_metrics(self._real, images, extractor)
        for measure in _MEASURES:
            values.setdefault(measure, []).append(getattr(metrics, measure))
        self._features.setdefault(model, []).append(extractor.features(images).numpy())

    def row(self, model: str, reference: str) -> MetricRow:
        """What was measured of a model, as a mean and for each seed, and the paired differences from the reference."""
        own, other = self._values.get(model), self._values.get(reference)
        if not own:
            return MetricRow(model=model, fid=None, kid=None)
        found = {measure: Estimate.over(np.array(values)) for measure, values in own.items()}
        row = MetricRow(model=model, by_seed=own).model_copy(update=found)
        if "fid" in found:
            row = row.model_copy(update={"fid": FidEstimate.joined(found["fid"])})
        if not other or model == reference:
            return row
        pairs = {measure: zip(values, other[measure], strict=True) for measure, values in own.items()}
        differences = {measure: Estimate.over(np.array([a - b for a, b in both])) for measure, both in pairs.items()}
        if fid := differences.get("fid"):
            differences["fid"] = self._paired_fid(model, reference, fid)
        if agreement := differences.get("agreement"):
            differences["agreement"] = self._paired_agreement(model, reference, agreement)
        return row.model_copy(update={f"{measure}_difference": value for measure, value in differences.items()})

    def sampling_error(self, model: str) -> float | None:
        """Standard error of a model's FID over the images of its newest seed; None if it is not known."""
        real, own = self._real_statistics(), self._features.get(model)
        return None if real is None or not own else sampling_error(real, own[-1])

    @property
    def clip(self) -> Clip | None:
        """The CLIP model; None if no CLIP score is wanted."""
        return None if self._scorer is None else Clip(name=self._scorer.name, sha256=self._scorer.sha256)

    @property
    def features(self) -> Features | None:
        """The extractor; None if no extractor knows the pictures."""
        described = self._choice.describe()
        if described is None:
            return None
        widths = {features.shape[1] for own in self._features.values() for features in own}
        return Features.of({"num_features": max(widths, default=None), **described}, "The extractor's description")

    @property
    def no_features(self) -> str | None:
        """The reason why nothing was measured; None if there is an extractor."""
        return self._choice.why_none if self._choice.extractor is None else None

    def _paired_fid(self, model: str, reference: str, over_seeds: Estimate) -> Estimate:
        """The mean difference of FID; its error is the greater one of that over the seeds and that of a bootstrap over images."""
        pairs, real = zip(self._features[model], self._features[reference], strict=True), self._real_statistics()
        if real is None:
            return over_seeds
        errors = [paired_error(real, one, other, seed=seed) for seed, (one, other) in enumerate(pairs)]
        return _over_images(over_seeds, errors)

    def _real_statistics(self) -> FeatureStatistics | None:
        """Those of the real images, for bootstraps; None if there is no extractor, or if it has too many features for them."""
        if self._statistics is None and self._extractor is not None:
            features = self._extractor.features(self._real).numpy()
            self._statistics = FeatureStatistics.of(features) if features.shape[1] <= _MOST_FEATURES else None
        return self._statistics

    def _paired_agreement(self, model: str, reference: str, over_seeds: Estimate) -> Estimate:
        """The mean difference of agreement; its error is the greater one of that over the seeds and the paired one over images."""
        pairs = zip(self._hits[model], self._hits[reference], strict=True)
        errors = [mean_and_standard_error(one.astype(np.float64) - other)[1] for one, other in pairs]
        known = [error for error in errors if error is not None]
        if len(known) < len(errors):
            return over_seeds
        return _over_images(over_seeds, known)


def _over_images(over_seeds: Estimate, errors: Sequence[float]) -> Estimate:
    """A mean over the seeds of the images' noise, with an error over the images of each seed if that is greater.

    The seeds say no more of the noise than the images do, so the error counts as one of many values.
    """
    return Estimate(mean=over_seeds.mean, se=max(float(np.hypot.reduce(errors)) / len(errors), over_seeds.se or 0.0))
