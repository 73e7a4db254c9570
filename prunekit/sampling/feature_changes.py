"""Changes of samples in the features of an extractor."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from prunekit.extractors import Extractor, OwnExtractor
from prunekit.sampling.disturbances import Measure
from prunekit.sampling.drawing import to_images

__all__ = ["features_of"]


@runtime_checkable
class _Unrounded(Protocol):
    """An extractor that takes levels between whole ones."""

    def of_levels(self, levels: Tensor) -> Tensor:
        """Features of shape (N, features), float64 on the CPU, of levels 0 … 255, float, shape (N, C, H, W)."""


def features_of(extractor: Extractor) -> Measure:
    """Squared distance of samples in an extractor's features, a sum over the features, as FID has it.

    Samples are clamped to −1 … 1, as they are in pictures. They are not rounded to 256 levels where the extractor can do without: a
    change of less than a level would be lost or enlarged. A user's own function gets rounded pictures.

    Args:
        extractor: its features are compared.
    """
    if isinstance(extractor, OwnExtractor) and extractor.classifier is not None:
        extractor = extractor.classifier
    own = extractor

    def values(samples: Tensor) -> Tensor:
        pictures = to_images(samples)  # refuses samples that are not finite
        return (
            own.of_levels(samples.clamp(-1, 1).add(1).mul(127.5))
            if isinstance(own, _Unrounded)
            else own.features(pictures)
        )

    return Measure("features", values, summed=True)
