"""Pictures of the targets and the widths. They are drawn without pyplot, so that no figure outlives its function."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from prunekit.report.run import RunResults
from prunekit.report.wording import ratio_text, short_ratio, timestep_text
from prunekit.results.expert_results import Expert

__all__ = [
    "column_width",
    "describe_frontiers",
    "describe_snr_targets",
    "describe_widths",
    "draw_frontiers",
    "draw_snr_targets",
    "draw_widths",
    "save_figure",
    "scale_by_log",
    "short_name",
    "styled",
    "width_order",
]

DOTS_PER_INCH = 192  # twice CSS's 96, so that a picture is sharp at its natural size on dense screens
_INK = "#333a42"
_FAINT = "#c9ced4"
_TARGET = "#b4540a"
_REACHED = "#1d5f9e"
_LONGEST_NAME = 40
_WORD_WIDTH = 0.08  # share of the axis that "group 0" takes up
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.usetex": False,
    "text.parse_math": False,  # a layer's name may have a dollar sign
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#8a929b",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "white",  # the page shows every picture on a white card, in light and in dark
    "hatch.linewidth": 0.6,
    "hatch.color": "#8c8c8c",
}
_PARTS = {
    "down_blocks": "down",
    "up_blocks": "up",
    "mid_block": "mid",
    "resnets": "res",
    "attentions": "attn",
    "transformer_blocks": "block",
    "downsamplers": "downsample",
    "upsamplers": "upsample",
    "input_blocks": "in",
    "output_blocks": "out",
    "middle_block": "mid",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw and save inside this block; at its end matplotlib's settings are restored."""
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are typed as one long literal
        yield


def save_figure(figure: Figure, path: Path, software: str | None = None) -> None:
    """Write a PNG that depends only on the figure and on ``software``, which is stored in its metadata."""
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH, metadata={"Software": software})


def scale_by_log(axes: Axes) -> None:
    """Use a logarithmic y axis with plain numbers, since powers would need mathematical text.

    Over less than a decade the ticks are those of a linear scale, since at most one of 1, 2 and 5 may be visible.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high < 5 * low
    axes.yaxis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def column_width(columns: int) -> float:
    """Width in inches of a picture with one upright label per column; bounded, since Agg draws 65,536 pixels at most."""
    return min(max(7.5, 2.4 + 0.32 * columns), 200.0)


def short_name(name: str) -> str:
    """A channel group's name for an axis.

    Example:
        >>> short_name("down_blocks.0.resnets.1.conv1")
        'down 0 · res 1 · conv1'
    """
    words: list[str] = []
    for part in name.split("."):
        if part.isdigit() and words:
            words[-1] += f" {part}"
        else:
            words.append(_PARTS.get(part, part))
    text = " · ".join(words)
    half = _LONGEST_NAME // 2
    return text if len(text) <= _LONGEST_NAME else f"{text[:half]}…{text[-half:]}"


def draw_snr_targets(results: RunResults) -> Figure:
    """Draw SNR over the timesteps, and below it the fraction of the base's MACs that each timestep group gets."""
    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    groups = results.allocation.groups
    _bands(above, results)
    above.plot(results.schedule.snr_db, color=_REACHED, linewidth=1.8)
    above.axhline(0, color=_FAINT, linewidth=0.8, zorder=0)
    above.set_ylabel("SNR (dB)")
    _name_groups(above, results)
    _bands(below, results)
    edges = np.array([groups[0].start, *(group.stop for group in groups)])
    below.stairs(
        [group.mac_ratio for group in groups], edges, baseline=None, color=_TARGET, linewidth=2.2, label="target"
    )
    reached = [
        results.experts[g.index].macs / results.base.macs if g.index in results.experts else np.nan for g in groups
    ]
    if np.isfinite(reached).any():
        below.stairs(
            reached, edges, baseline=None, color=_REACHED, linewidth=1.6, linestyle=(0, (4, 2)), label="reached"
        )
    below.axhline(
        results.allocation.mean_mac_ratio,
        color=_INK,
        linewidth=0.8,
        linestyle=":",
        label="target, mean over the sampler's steps",
    )
    below.set_ylim(0, 1.08)
    below.set_xlim(edges[0], edges[-1])
    below.set_ylabel("fraction of the base's MACs")
    below.set_xlabel("timestep t (0 = cleanest)")
    below.legend(loc="lower left", frameon=False, fontsize=8, ncols=3)
    return figure


def describe_snr_targets(results: RunResults) -> str:
    """The picture from :func:`draw_snr_targets` in words."""
    snr_db, groups = results.schedule.snr_db, results.allocation.groups
    parts = []
    for group in groups:
        text = f"group {group.index} (t {timestep_text(group.start, group.stop)}) target {short_ratio(group.mac_ratio)}"
        if group.index in results.experts:
            text += f", reached {short_ratio(results.experts[group.index].macs / results.base.macs)}"
        parts.append(text)
    return (
        f"SNR falls from {snr_db[0]:.1f} dB at t = 0 to {snr_db[-1]:.1f} dB at t = {len(snr_db) - 1}. "
        f"Fraction of the base's MACs: {'; '.join(parts)}."
    )


def draw_frontiers(results: RunResults) -> Figure:
    """Draw loss against the fraction of the base's MACs, with one curve per timestep group and the group's target on it."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    axes = figure.subplots()
    targets = results.allocation.groups
    for number, (target, frontier) in enumerate(zip(targets, results.allocation.frontiers, strict=True)):
        colour = mpl.colormaps["viridis"](0.9 * number / max(len(targets) - 1, 1))
        ratios = np.array(frontier.macs) / frontier.base_macs
        axes.plot(ratios, frontier.loss, marker=".", linewidth=1.2, color=colour, label=f"group {target.index}")
        loss = frontier.loss_at(target.mac_ratio)
        if loss is not None:
            axes.plot(target.mac_ratio, loss, "o", markersize=8, markerfacecolor="none", color=_TARGET)
    if all(min(frontier.loss) > 0 for frontier in results.allocation.frontiers):
        scale_by_log(axes)
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("fraction of the base's MACs")
    axes.set_ylabel("loss before fine-tuning")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return figure


def describe_frontiers(results: RunResults) -> str:
    """The picture from :func:`draw_frontiers` in words."""
    allocation = results.allocation
    parts = [
        f"group {target.index}: {len(frontier.macs)} points from {short_ratio(frontier.macs[0] / frontier.base_macs)}, "
        f"target {short_ratio(target.mac_ratio)}"
        for target, frontier in zip(allocation.groups, allocation.frontiers, strict=True)
    ]
    return f"Loss falls as the fraction of the base's MACs rises. {'; '.join(parts)}."


def _bands(axes: Axes, results: RunResults) -> None:
    """Shade every other timestep group lightly, and draw a line at each border."""
    for group in results.allocation.groups:
        if group.index % 2:
            axes.axvspan(group.start, group.stop, color="#f3f5f7", zorder=-1)
        if group.index:
            axes.axvline(group.start, color=_FAINT, linewidth=0.8, zorder=0)


def _name_groups(axes: Axes, results: RunResults) -> None:
    """Write each timestep group's number above its range if the range is wide enough."""
    allocation = results.allocation
    for group in allocation.groups:
        part = (group.stop - group.start) / allocation.num_timesteps
        text = f"group {group.index}" if part > _WORD_WIDTH else str(group.index) if part > _WORD_WIDTH / 5 else ""
        middle = ((group.start + group.stop) / 2, 1.0)
        axes.annotate(text, middle, xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)


def width_order(results: RunResults) -> list[str]:
    """Channel groups that occur in an expert, in network order as far as the run records it."""
    known = results.importance.channel_groups if results.importance else []
    named = {name: None for expert in results.experts.values() for name in expert.changes}
    first = [group.name for group in known if group.name in named]
    return first + [name for name in named if name not in set(first)]


def draw_widths(results: RunResults) -> Figure:
    """Draw one row per timestep group with the width of each channel group: the base's pale, the expert's in colour."""
    names = width_order(results)
    experts = [results.experts[index] for index in sorted(results.experts)]
    targets = {group.index: group for group in results.allocation.groups}
    figure = Figure(figsize=(column_width(len(names)), 2.2 + 0.95 * len(experts)), layout="constrained")
    rows = figure.subplots(len(experts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, expert in zip(rows, experts, strict=True):
        _width_bars(axes, names, expert.changes)
        target = targets[expert.group]
        where = timestep_text(target.start, target.stop)
        label = f"group {expert.group}\nt {where}\n{ratio_text(expert.macs / results.base.macs)} of MACs"
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8, labelpad=8)
    rows[-1].set_xticks(range(len(names)), [short_name(name) for name in names], rotation=90, fontsize=8)
    rows[-1].set_xlim(-0.6, len(names) - 0.4)
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    return figure


def _width_bars(axes: Axes, names: list[str], widths: Mapping[str, tuple[int, int]]) -> None:
    pairs = [widths.get(name, (0, 0)) for name in names]
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    axes.bar(range(len(names)), before, width=0.8, color=_FAINT, label="channels before")
    axes.bar(range(len(names)), after, width=0.8, color=_REACHED, label="channels after (number: after)")
    for position, (name, pair) in enumerate(zip(names, pairs, strict=True)):
        text = str(pair[1]) if name in widths else "?"
        axes.text(position, max(pair), text, ha="center", va="bottom", fontsize=6.5)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.2)


def describe_widths(results: RunResults) -> str:
    """The widths in words; the numbers are in the table below the picture."""
    parts = [
        f"group {index} keeps {_kept(results.experts[index]):.0%} of its prunable channels"
        for index in sorted(results.experts)
        if results.experts[index].widths
    ]
    return f"Widths of {len(width_order(results))} channel groups before and after pruning: {'; '.join(parts)}."


def _kept(expert: Expert) -> float:
    before = sum(pair[0] for pair in expert.changes.values())
    return sum(pair[1] for pair in expert.changes.values()) / before if before else 1.0
