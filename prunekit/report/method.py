"""Shows in pictures how experts were made: noise and targets, importance, widths."""

from pathlib import Path

from prunekit.report import figures
from prunekit.report.document import Block, Fold, Items, Picture
from prunekit.report.heatmap import Heatmap
from prunekit.report.rendering import drawn
from prunekit.report.run import RunResults
from prunekit.report.tables import width_table
from prunekit.report.wording import short_ratio
from prunekit.schedule.diffusers import settings_text

__all__ = ["frontiers_picture", "importance_blocks", "targets_picture", "width_blocks"]


def targets_picture(results: RunResults, folder: Path) -> Picture:
    """A picture of SNR over the timesteps, with the groups' targets below."""
    allocation = results.allocation
    low, high = allocation.feasible
    settings = settings_text(results.schedule.scheduler)
    caption = (
        f"Budget {short_ratio(allocation.budget)} by rule {allocation.rule}, with which {short_ratio(low)} to "
        f"{short_ratio(high)} is feasible here; the mean is over the {allocation.sampler_steps} steps of {allocation.sampler}"
        f"{f' {settings}' if settings else ''}. "
        "Lines mark the borders of the timestep groups; group 0 is the cleanest."
    )
    words = ("Noise and targets", figures.describe_snr_targets(results), caption)
    return drawn(lambda: figures.draw_snr_targets(results), folder / "snr_targets.png", words)


def frontiers_picture(results: RunResults, folder: Path) -> Picture | None:
    """A picture of the searches' frontiers, if the allocation was made from them."""
    if not results.allocation.frontiers:
        return None
    caption = (
        "The best recorded points of each timestep group's search; rings mark the targets. The loss is the search's own, before "
        "fine-tuning; between points it is interpolated."
    )
    words = ("Recorded frontiers and targets", figures.describe_frontiers(results), caption)
    return drawn(lambda: figures.draw_frontiers(results), folder / "frontiers.png", words)


def importance_blocks(results: RunResults, folder: Path) -> list[Block]:
    """Importance by timestep group and channel group, and the layers left whole; empty if importance was not kept."""
    if results.importance is None:
        return []
    heatmap = Heatmap.of(results.importance)
    words = ("Importance heatmap", heatmap.alt, heatmap.caption)
    blocks: list[Block] = [drawn(heatmap.draw, folder / "importance.png", words)]
    if heatmap.left_whole:
        summary = f"Channel groups left whole ({len(heatmap.left_whole)})"
        blocks.append(Fold(summary, (Items(tuple(heatmap.left_whole.items())),)))
    return blocks


def width_blocks(results: RunResults, folder: Path) -> list[Block]:
    """Widths before and after by timestep group, as a picture and as a table; empty if they were not kept."""
    names = figures.width_order(results)
    if not names:
        return []
    caption = "Channels of each channel group in network order: pale before pruning, solid after, with the number kept."
    words = ("Widths before and after", figures.describe_widths(results), caption)
    picture = drawn(lambda: figures.draw_widths(results), folder / "widths.png", words)
    return [picture, Fold("The same numbers as a table", (width_table(results.experts, names),))]
