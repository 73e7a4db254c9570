"""Charts of noise and targets: SNR over the timesteps, what each timestep group gets, and the frontiers it was chosen from."""

import math

import numpy as np

from prunekit.allocation import Frontier
from prunekit.report.charts.lines import Plot, Series, draw_lines, keys_of, style_of
from prunekit.report.illustrations import Chart, Charts
from prunekit.report.run import RunResults
from prunekit.report.wording import number_text, short_ratio, timestep_text
from prunekit.schedule.diffusers import settings_text

__all__ = ["describe_frontiers", "describe_targets", "frontiers_chart", "targets_charts"]


def targets_charts(results: RunResults) -> Charts:
    """SNR over the timesteps, and the fraction of the base's MACs that each timestep group gets."""
    allocation = results.allocation
    low, high = allocation.feasible
    settings = settings_text(results.schedule.scheduler)
    caption = (
        f"Budget {short_ratio(allocation.budget)} by rule {allocation.rule}, with which {short_ratio(low)} to "
        f"{short_ratio(high)} is feasible here; the mean is over the {allocation.sampler_steps} steps of {allocation.sampler}"
        f"{f' {settings}' if settings else ''}."
    )
    return Charts((_snr(results), _shares(results, caption)))


def _snr(results: RunResults) -> Chart:
    snr_db, ends = results.schedule.snr_db, (0.0, float(results.allocation.num_timesteps))
    said = {
        group.start: f"t = {group.start}, the start of group {group.index}: {snr_db[group.start]:.1f} dB"
        for group in results.allocation.groups
    }
    series = [Series("SNR", np.arange(len(snr_db)), snr_db, said)]
    plot = Plot(
        f"SNR falls from {snr_db[0]:.1f} dB at t = 0 to {snr_db[-1]:.1f} dB at t = {len(snr_db) - 1}.",
        ("timestep t (0 = cleanest)", "SNR (dB)"),
        cuts=_cuts(results),
        ends=ends,
        height=280,
    )
    caption = "Upright lines are the borders of the timestep groups; group 0 is the cleanest."
    return Chart(caption, draw_lines(series, plot), title="Noise")


def _cuts(results: RunResults) -> tuple[tuple[float, str], ...]:
    return tuple((float(group.start), str(group.start)) for group in results.allocation.groups[1:])


def _shares(results: RunResults, caption: str) -> Chart:
    groups, base = results.allocation.groups, results.base.macs
    reached = [results.experts[g.index].macs / base if g.index in results.experts else math.nan for g in groups]
    series = [_steps(results, "target", [group.mac_ratio for group in groups], "s1")]
    if any(map(math.isfinite, reached)):
        series.append(_steps(results, "reached", reached, "s0"))
    mean = results.allocation.mean_mac_ratio
    plot = Plot(
        describe_targets(results),
        ("timestep t (0 = cleanest)", "fraction of the base's MACs"),
        cuts=_cuts(results),
        level=(mean, f"target, mean over the sampler's steps: {short_ratio(mean)}"),
        ends=(0.0, float(results.allocation.num_timesteps)),
        height=280,
    )
    return Chart(caption, draw_lines(series, plot), keys_of(series, plot), "Targets")


def _steps(results: RunResults, name: str, ratios: list[float], style: str) -> Series:
    """A line with one step for each timestep group, and a point in its middle."""
    x: list[float] = []
    y: list[float] = []
    said: dict[int, str] = {}
    for group, ratio in zip(results.allocation.groups, ratios, strict=True):
        where = f"group {group.index}, t {timestep_text(group.start, group.stop)}"
        said[len(x) + 1] = f"{where}: {name} {short_ratio(ratio)}" if math.isfinite(ratio) else ""
        x += [group.start, (group.start + group.stop) / 2, group.stop]
        y += [ratio] * 3
    kind, form = ("dashed", "diamond") if name == "reached" else ("line", "circle")
    return Series(name, x, y, said, style, form, kind)


def describe_targets(results: RunResults) -> str:
    """The targets in words."""
    parts = []
    for group in results.allocation.groups:
        text = f"group {group.index} (t {timestep_text(group.start, group.stop)}) target {short_ratio(group.mac_ratio)}"
        if group.index in results.experts:
            text += f", reached {short_ratio(results.experts[group.index].macs / results.base.macs)}"
        parts.append(text)
    return f"Fraction of the base's MACs: {'; '.join(parts)}."


def frontiers_chart(results: RunResults) -> Chart | None:
    """The searches' frontiers, one line for each timestep group, if the allocation was made from them."""
    allocation = results.allocation
    if not allocation.frontiers:
        return None
    series: list[Series] = []
    ratios, losses, said = list[float](), list[float](), dict[int, str]()  # of the targets
    for place, (target, frontier) in enumerate(zip(allocation.groups, allocation.frontiers, strict=True)):
        series.append(_frontier(place, target.index, frontier))
        loss = frontier.loss_at(target.mac_ratio)
        if loss is not None:
            told = f"{short_ratio(target.mac_ratio)} of the MACs, loss {number_text(loss)}"
            said[len(ratios)] = f"target of group {target.index}: {told}"
            ratios.append(target.mac_ratio)
            losses.append(loss)
    series.append(Series("target", ratios, losses, said, "ring", "circle", "none"))
    what = f"loss {allocation.when}"
    plot = Plot(describe_frontiers(results), ("fraction of the base's MACs", what), log=True, height=340)
    caption = "The best recorded points of each timestep group's search; rings mark the targets. "
    if allocation.recovered:
        sizes = len(allocation.frontiers[0].recoveries)
        caption += (
            f"The loss is what a short fine-tuning leaves of the search's own: {sizes} networks of each group were trained, and "
            "between their losses it is interpolated."
        )
    else:
        caption += "The loss is the search's own, before fine-tuning; between points it is interpolated."
    return Chart(caption, draw_lines(series, plot), keys_of(series), "Recorded frontiers")


def _frontier(place: int, group: int, frontier: Frontier) -> Series:
    """The recorded points of a timestep group."""
    style, form = style_of(place)
    ratios = np.array(frontier.macs) / frontier.base_macs
    said = {
        i: f"group {group}: loss {number_text(loss)} at {short_ratio(float(ratio))} of the MACs"
        for i, (ratio, loss) in enumerate(zip(ratios, frontier.loss, strict=True))
    }
    return Series(f"group {group}", ratios, frontier.loss, said, style, form)


def describe_frontiers(results: RunResults) -> str:
    """The frontiers in words."""
    allocation = results.allocation
    parts = [
        f"group {target.index}: {len(frontier.macs)} points from {short_ratio(frontier.macs[0] / frontier.base_macs)}, "
        f"target {short_ratio(target.mac_ratio)}"
        for target, frontier in zip(allocation.groups, allocation.frontiers, strict=True)
    ]
    return f"Loss falls as the fraction of the base's MACs rises. {'; '.join(parts)}."
