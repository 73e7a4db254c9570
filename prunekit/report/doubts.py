"""Decides whether a claim may rest on FID and KID: not with too few images, or with features that may not suit the pictures."""

import math
from collections.abc import Mapping
from typing import Any

from prunekit.frechet import LEAST_IMAGES_PER_FEATURE

__all__ = ["doubt_caption", "doubt_of", "doubt_sentence", "look_doubt", "metric_label"]

_FEATURES = 64  # of both shipped extractors, for manifests that do not record it
_KNOWN = {
    "digits-cnn": ("digits", 8),
    "fashion-cnn": ("fashion", 16),
}  # data and resolution, for manifests that do not record whether the extractor fits


def doubt_of(measured: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Why no claim may rest on FID and KID; empty if one may.

    Args:
        measured: the manifest's entry on them: ``features``, ``count`` and, in newer manifests, ``no_features`` and ``count_real``.
        data: ``source`` and ``resolution`` of the real images, for manifests that do not record whether the extractor knows them.
    """
    features = measured.get("features")
    if not features or not isinstance(features, Mapping):
        return str(measured.get("no_features") or "no feature extractor is recorded")
    least = LEAST_IMAGES_PER_FEATURE * round(_number(features.get("num_features")) or _FEATURES)
    for key, what in (("count", "generated"), ("count_real", "real")):
        count = _number(measured.get(key))
        if count is not None and count < least:
            return f"{count:g} {what} images are too few; with fewer than {least} it is mostly bias"
    return "" if features.get("own") or _fits(features, data) else _unknown(features)


def metric_label(metric: str, features: Mapping[str, Any] | None, count: Any) -> str:
    """The full name of FID or KID, with features and sample count, since the number means nothing without them."""
    return f"{metric} (features: {(features or {}).get('name', 'not named')}, n = {count})"


def doubt_caption(doubt: str) -> str:
    """A doubt as the end of a picture's caption; empty if there is none."""
    return f" No claim rests on it: {doubt}." if doubt else ""


def doubt_sentence(label: str, measured: Mapping[str, Any], doubt: str) -> str:
    """A doubt as a sentence that follows a claim; empty if there is none.

    Args:
        label: FID with its features and count.
        measured: see :func:`doubt_of`.
        doubt: the result of :func:`doubt_of`.
    """
    if not doubt:
        return ""
    if not measured.get("features"):
        return f"No FID was measured: {doubt.rstrip('.')}."
    return f"{label} is not part of this claim: {doubt}."


def look_doubt(manifest: Mapping[str, Any], look: Mapping[str, Any]) -> str:
    """:func:`doubt_of` for a look of a learning curve."""
    return doubt_of(look, (manifest.get("config") or {}).get("data") or {})


def _fits(features: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    fit = features.get("fit")
    if isinstance(fit, Mapping):
        distance, limit = _number(fit.get("distance")), _number(fit.get("limit"))
        return distance is not None and limit is not None and distance <= limit
    word, side = _KNOWN.get(str(features.get("name")), ("", 0))
    return bool(word) and word in str(data.get("source", "")).lower() and data.get("resolution") in (None, side)


def _number(value: Any) -> float | None:
    """A finite number of a manifest; None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _unknown(features: Mapping[str, Any]) -> str:
    return f"it is not known that {features.get('name', 'the extractor')} suits these pictures"
