"""Reads files of older versions: one function for each step, which makes of the older content what the next version writes."""

from collections.abc import Mapping

from prunekit.errors import FileFormatError
from prunekit.results.stage_files import StageRecord

__all__ = ["manifest_as_now", "records_of_state"]


def manifest_as_now(data: Mapping[str, object]) -> Mapping[str, object]:
    """A manifest with the forms of today; one that has them already is returned unchanged."""
    return _features_as_object(data)


def _features_as_object(data: Mapping[str, object]) -> Mapping[str, object]:
    """Comparisons of experts with baselines first had only the name of the feature extractor."""
    metrics = data.get("metrics")
    features = metrics.get("features") if isinstance(metrics, Mapping) else None
    if "evidence" not in data or not isinstance(metrics, Mapping) or not isinstance(features, str):
        return data
    return {**data, "metrics": {**metrics, "features": {"name": features}}}


def records_of_state(data: Mapping[str, object], what: str) -> dict[str, StageRecord]:
    """The records of all stages, which earlier versions wrote into one ``state.json``.

    Args:
        data: the file's content.
        what: its name in error messages.

    Raises:
        FileFormatError: it holds no stages.
    """
    stages = data.get("stages")
    if not isinstance(stages, dict):
        raise FileFormatError(f"{what} holds no stages; remove it to run every stage again.")
    mend = "remove it to run every stage again"
    return {name: StageRecord.of(record, f"Stage {name!s:.80} of {what}", mend) for name, record in stages.items()}
