"""Decides whether a claim may rest on FID and KID: not with too few images, or with features that may not suit the pictures."""

import math
from collections.abc import Mapping
from typing import Protocol

from prunekit.frechet import LEAST_IMAGES_PER_FEATURE
from prunekit.results.manifest_head import Features
from prunekit.results.model import Free

__all__ = ["Stated", "doubt_caption", "doubt_of", "doubt_sentence"]

_FEATURES = 64  # of both shipped extractors, for manifests that do not record it
_KNOWN = {
    "digits-cnn": ("digits", 8),
    "fashion-cnn": ("fashion", 16),
}  # data and resolution, for manifests that do not record whether the extractor fits


class Stated(Protocol):
    """The facts of a measurement that decide whether a claim may rest on FID and KID."""

    @property
    def features(self) -> Features | None:
        """The feature extractor."""

    @property
    def no_features(self) -> str | None:
        """The reason why there is none."""

    @property
    def count(self) -> int:
        """Number of generated images."""

    @property
    def count_real(self) -> int | None:
        """Number of real images, in newer manifests."""


def doubt_of(measured: Stated, data: Free) -> str:
    """Why no claim may rest on FID and KID; empty if one may.

    Args:
        measured: how they were measured.
        data: ``source`` and ``resolution`` of the real images, for manifests that do not record whether the extractor knows them.
    """
    features = measured.features
    if features is None:
        return measured.no_features or "no feature extractor is recorded"
    least = LEAST_IMAGES_PER_FEATURE * round(_number(features.num_features) or _FEATURES)
    for count, what in ((measured.count, "generated"), (measured.count_real, "real")):
        if count is not None and count < least:
            return f"{count:g} {what} images are too few; with fewer than {least} it is mostly bias"
    return "" if features.own or _fits(features, data) else _unknown(features)


def doubt_caption(doubt: str) -> str:
    """A doubt as the end of a picture's caption; empty if there is none."""
    return f" No claim rests on it: {doubt}." if doubt else ""


def doubt_sentence(label: str, measured: Stated, doubt: str) -> str:
    """A doubt as a sentence that follows a claim; empty if there is none.

    Args:
        label: FID with its features and count.
        measured: see :func:`doubt_of`.
        doubt: the result of :func:`doubt_of`.
    """
    if not doubt:
        return ""
    if measured.features is None:
        return f"No FID was measured: {doubt.rstrip('.')}."
    return f"{label} is not part of this claim: {doubt}."


def _fits(features: Features, data: Free) -> bool:
    fit = features.fit
    if isinstance(fit, Mapping):
        distance, limit = _number(fit.get("distance")), _number(fit.get("limit"))
        return distance is not None and limit is not None and distance <= limit
    word, side = _KNOWN.get(features.name or "", ("", 0))
    return bool(word) and word in str(data.get("source", "")).lower() and data.get("resolution") in (None, side)


def _number(value: object) -> float | None:
    """A finite number of a manifest; None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _unknown(features: Features) -> str:
    return f"it is not known that {features.name or 'the extractor'} suits these pictures"
