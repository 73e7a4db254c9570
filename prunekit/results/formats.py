"""The name and version of every file format, each stated once, and the kinds of work in ledgers.

A name has a version after the slash. Readers accept the newest version, and older ones through :mod:`prunekit.results.versions`.
"""

from typing import Literal

__all__ = [
    "ALLOCATION",
    "BASE",
    "CONSISTENCY",
    "ENCODED",
    "ENCODING",
    "EVALUATION",
    "EXPERTS",
    "FEATURES",
    "FEATURE_STATISTICS",
    "GROUPS",
    "IMAGES",
    "IMPORTANCE",
    "JOB",
    "LATENCY",
    "MANIFEST",
    "SEARCH",
    "SENSITIVITY",
    "SLIM",
    "STAGE",
    "STAGE_WITHOUT_HASHES",
    "STATE",
    "WorkKind",
]

ALLOCATION = "prunekit-allocation/1"
"""``allocation.json``."""
BASE = "prunekit-base/1"
"""``base.pt``, and the metadata of ``base.safetensors``."""
CONSISTENCY = "prunekit-consistency/1"
"""``consistency.json``."""
ENCODED = "prunekit-encoded/1"
"""``encoded.json`` of a folder of encoded images."""
ENCODING = "prunekit-encoding/1"
"""``encoding.json`` of a folder of encoded images that is not finished."""
EVALUATION = "prunekit-evaluation/1"
"""``evaluation.json``."""
EXPERTS = "prunekit-experts/1"
"""``experts.json`` of an experts folder."""
FEATURES = "prunekit-features/1"
"""The metadata of a feature extractor's weights."""
FEATURE_STATISTICS = "prunekit-feature-statistics/1"
"""The metadata of the features of an extractor's own images."""
GROUPS = "prunekit-groups/1"
"""``groups.json``."""
IMAGES = "prunekit-images/1"
"""The note in a run's folder that says where its images are."""
IMPORTANCE = "prunekit-importance/1"
"""``importance.json`` and the arrays of ``importance.npz``."""
JOB = "prunekit-job/1"
"""The note about a job that was submitted to a cluster."""
LATENCY = "prunekit-latency/1"
"""``latency.json``."""
MANIFEST = "prunekit-manifest/1"
"""``manifest.json`` of a run of any kind."""
RECOVERIES = "prunekit-recoveries/1"
"""``recoveries.json``."""
SEARCH = "prunekit-search/1"
"""The header of a search's journal."""
SENSITIVITY = "prunekit-sensitivity/1"
"""``sensitivity.json``."""
SLIM = "prunekit-slim/1"
"""``config.json`` of a slim model."""
STAGE = "prunekit-stage/2"
"""The record of a finished stage."""
STAGE_WITHOUT_HASHES = "prunekit-stage/1"
"""The record of a finished stage of a version that recorded no hashes."""
STATE = "prunekit-state/1"
"""``state.json``, in which an earlier version recorded all stages."""

WorkKind = Literal["training", "teacher", "grouping", "importance", "search", "ema", "evaluation", "sampling"]
"""A kind of work that costs MACs."""
