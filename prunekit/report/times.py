"""Sentences about time: what one image took, and what experts that were planned for a time take by prediction."""

from prunekit.cost import prediction_error
from prunekit.report.document import Tile
from prunekit.report.run import RunResults
from prunekit.report.wording import number_text, short_ratio

__all__ = ["predicted_time_sentence", "time_sentence", "time_tile"]

_MUCH_SLOWER = 0.05  # of the base's time, beyond the fraction of its MACs


def time_tile(part: float, batch: int | None, alone: float | None = None) -> Tile:
    """The time per image as a fraction of the base's.

    Args:
        part: the fraction, for images that are sampled together.
        batch: how many these are; None if that is not known.
        alone: the fraction for a single image; None if it was not measured.
    """
    together = f" per image, {batch:,} at a time" if batch else " for an image"
    single = f"; {alone:.2f} for one image alone" if alone is not None else ""
    return Tile(f"{part:.2f}", f"of the base's time{together}{single}")


def time_sentence(results: RunResults) -> str:
    """Time per image compared with the base's, since fewer MACs do not always take less time. Empty if not measured."""
    metrics = results.metrics
    base, row = (metrics.row("base"), metrics.judged) if metrics else (None, None)
    if base is None or row is None or not base.seconds_per_image or row.seconds_per_image is None:
        return ""
    manifest = results.manifest
    where = f" on {manifest.device}" if manifest.device else ""
    if manifest.threads:
        where += f" with {manifest.threads} thread{'s' if manifest.threads != 1 else ''}"
    part = row.seconds_per_image / base.seconds_per_image
    batch = f" in a batch of {metrics.batch_size}" if metrics and metrics.batch_size else ""
    alone = (
        f"; an image alone {number_text(row.seconds_alone, 3)} s against {number_text(base.seconds_alone, 3)} s: "
        f"{short_ratio(row.seconds_alone / base.seconds_alone)}"
        if row.seconds_alone and base.seconds_alone
        else ""
    )
    said = (
        f"One image{batch} took {number_text(row.seconds_per_image, 3)} s against the base's "
        f"{number_text(base.seconds_per_image, 3)} s{where}: {short_ratio(part)} of the time{alone}."
    )
    if row.mac_ratio is None or part <= row.mac_ratio + _MUCH_SLOWER:
        return said
    return (
        f"{said} That saves less time than MACs. Widths in multiples of 8 or more (prune: width_multiples) or a target of measured "
        "time (search: target_of: latency) turn more of the saved MACs into time."
    )


def predicted_time_sentence(results: RunResults) -> str:
    """What experts that were planned for a time take by prediction, and how far predictions are off. Empty without such experts."""
    times = [expert.time for expert in results.experts.values() if expert.time is not None]
    if not times:
        return ""
    first, parts = times[0], [time.predicted / time.base for time in times if time.base]
    machine = first.machine.get("processor", "an unnamed machine")
    return (
        f"The experts were planned to take {short_ratio(min(parts))} to {short_ratio(max(parts))} of the base's time for batches "
        f"of {first.batch_size} in {first.dtype}{', compiled,' if first.compiled else ''} on {machine}. The prediction is "
        f"{prediction_error(first.error, first.worst_error)}."
    )
