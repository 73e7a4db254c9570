"""Agreement of pictures with their captions: whether a classifier finds in each picture the class that its caption names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit._types import BoolArray
from prunekit.extractors import Extractor, OwnExtractor
from prunekit.features import FeatureExtractor

__all__ = ["CaptionJudge", "named_classes"]


def named_classes(captions: Sequence[str], classes: Sequence[str]) -> Tensor | None:
    """The class that each caption names; None unless every caption names exactly one.

    A name counts as a whole word, in upper or lower case, and with an s or es at its end. A hyphen is part of a word, so
    "a t-shirt" does not name a shirt.

    Args:
        captions: the captions.
        classes: the names.

    Returns:
        int64, shape (captions,): positions in ``classes``.

    Example:
        >>> named_classes(["a photo of a t-shirt", "two Shirts"], ["shirt", "t-shirt"])
        tensor([1, 0])
        >>> named_classes(["a cat"], ["shirt", "t-shirt"]) is None
        True
    """
    patterns = [re.compile(rf"(?<![\w-]){re.escape(name)}(?:e?s)?(?![\w-])", re.IGNORECASE) for name in classes]
    known: dict[str, list[int]] = {}
    for caption in set(captions):
        known[caption] = [place for place, pattern in enumerate(patterns) if pattern.search(caption)]
    if not captions or any(len(places) != 1 for places in known.values()):
        return None
    return torch.tensor([known[caption][0] for caption in captions])


@dataclass(frozen=True, eq=False)
class CaptionJudge:
    """A classifier that is asked whether pictures show the class that their captions name.

    Args:
        classifier: a network with the names of its classes.
    """

    classifier: FeatureExtractor

    @classmethod
    def of(cls, extractor: Extractor | None) -> "CaptionJudge | None":
        """The judge that a feature extractor makes; None if it is no classifier whose classes are known."""
        found = extractor.classifier if isinstance(extractor, OwnExtractor) else extractor
        return cls(found) if isinstance(found, FeatureExtractor) and found.classes else None

    def hits(self, images: Tensor, captions: Sequence[str]) -> BoolArray | None:
        """Whether each picture shows what its caption names.

        Args:
            images: uint8, shape (N, C, H, W).
            captions: N captions.

        Returns:
            Shape (N,); None if the captions do not name one of the classes each.
        """
        wanted = named_classes(captions, self.classifier.classes)
        if wanted is None:
            return None
        found: BoolArray = (self.classifier.predicted(images) == wanted).numpy()
        return found

    def subjects(self, captions: Sequence[str]) -> list[str] | None:
        """The name of the class that each caption names; None unless each names exactly one."""
        named = named_classes(captions, self.classifier.classes)
        return None if named is None else [self.classifier.classes[place] for place in named.tolist()]
