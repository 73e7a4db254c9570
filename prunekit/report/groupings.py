"""Pictures of how timesteps were cut: curves over the timesteps, and the map of similarities with the groups on it."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from prunekit._files import atomic_path
from prunekit._kinds import SOFTWARE
from prunekit._types import FloatArray, IntArray
from prunekit.groups import Grouping
from prunekit.report.document import Picture
from prunekit.report.figures import save_figure, scale_by_log, styled
from prunekit.report.rendering import drawn

__all__ = ["describe_grouping", "draw_grouping", "grouping_picture", "grouping_png"]

_COLOURS = ("#1d5f9e", "#b4540a", "#4d7c3a", "#7a4fa0")
_CUT = "#333a42"
_ROOM = 0.07  # share of the axis that a timestep's number takes up
_LABELS = {
    "to_clean": "S(t, 0): like the clean end",
    "to_noise": "S(t, T): like the noisy end",
    "snr_db": "SNR (dB)",
    "fraction": "t / T",
    "gradient_norm": "norm of the mean gradient",
}
_KINDS = {"similarity": "share of pixels that agree", "gradient": "cosine of the gradients"}


def draw_grouping(grouping: Grouping) -> Figure:
    """Draw the curves with the cuts and, if there is one, the map of similarities at their side."""
    evidence, matrix = grouping.evidence, grouping.evidence.matrix
    figure = Figure(figsize=(10.0 if matrix is not None else 6.0, 4.3), layout="constrained")
    left = figure.add_subplot(1, 2 if matrix is not None else 1, 1)
    _curves(left, grouping)
    if matrix is None:
        return figure
    right = figure.add_subplot(1, 2, 2)
    edges = _edges(evidence.timesteps.astype(np.float64), grouping.groups.num_timesteps)
    low = min(0.0, float(matrix.min()))
    mesh = right.pcolormesh(edges, edges, matrix, cmap="viridis", vmin=low, vmax=1.0, rasterized=True)
    for group in grouping.groups:
        box = Rectangle(
            (group.start, group.start), len(group), len(group), fill=False, edgecolor="white", linewidth=1.6
        )
        right.add_patch(box)
    right.set_aspect("equal")
    right.set_xlim(0, grouping.groups.num_timesteps)
    right.set_ylim(grouping.groups.num_timesteps, 0)
    right.set_xlabel("timestep a (0 = cleanest)")
    right.set_ylabel("timestep b")
    right.set_title("S(a, b), groups boxed", loc="left", fontsize=9)
    bar = figure.colorbar(mesh, ax=right, fraction=0.046, pad=0.02)
    bar.set_label(_KINDS.get(grouping.groups.method, "similarity"), fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    return figure


def describe_grouping(grouping: Grouping) -> str:
    """The picture from :func:`draw_grouping` in words."""
    groups, facts = grouping.groups, grouping.evidence.facts
    ranges = ", ".join(f"{group.start}–{group.stop - 1}" for group in groups)
    text = f"{len(groups)} timestep groups by method {groups.method}: {ranges}."
    if "alpha" in facts:
        text += f" Three stages with α = {facts['alpha']:g}."
    matrix, at = grouping.evidence.matrix, grouping.evidence.timesteps
    if matrix is not None:
        within = [f"{_within(matrix, at, group.start, group.stop):.2f}" for group in groups]
        text += f" Mean similarity within the groups: {', '.join(within)}."
    return text


def grouping_png(grouping: Grouping, path: Path | str) -> None:
    """Draw a grouping.

    Args:
        grouping: the groups and the values they were cut by.
        path: where the PNG goes; written atomically.
    """
    path = Path(path)
    with atomic_path(path) as part, styled():
        save_figure(draw_grouping(grouping), part, SOFTWARE)


def grouping_picture(grouping: Grouping, path: Path) -> Picture | None:
    """A page's picture of the reasons for the cuts; None if the grouping has no map of similarities."""
    if grouping.evidence.matrix is None:
        return None
    caption = f"Timesteps were cut by method {grouping.groups.method}: its curves over the timesteps, and the map of similarities."
    words = ("Where timesteps are cut, and why", describe_grouping(grouping), caption)
    return drawn(lambda: draw_grouping(grouping), path, words)


def _curves(axes: Axes, grouping: Grouping) -> None:
    evidence, groups = grouping.evidence, grouping.groups
    for group in groups:
        if group.index % 2:
            axes.axvspan(group.start, group.stop, color="#f0f2f5", zorder=-1)
    _mark_cuts(axes, grouping)
    for (name, curve), colour in zip(evidence.curves.items(), _COLOURS, strict=False):
        axes.plot(evidence.timesteps, curve, color=colour, linewidth=1.8, label=_LABELS.get(name, name))
    if "alpha" in evidence.facts:
        label = "α, bound of the running means"
        axes.axhline(evidence.facts["alpha"], color="#8a929b", linewidth=0.9, linestyle=":", label=label)
    if "gradient_norm" in evidence.curves:
        scale_by_log(axes)
    if "to_clean" in evidence.curves:
        axes.set_ylim(0, 1.03)
        axes.set_ylabel("share of pixels that agree")
    axes.set_xlim(0, groups.num_timesteps)
    axes.set_xlabel("timestep t (0 = cleanest)")
    if evidence.curves:
        axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.13), frameon=False, fontsize=8)


def _mark_cuts(axes: Axes, grouping: Grouping) -> None:
    """Draw a line at each cut, with its timestep if there is room."""
    room, written = grouping.groups.num_timesteps * _ROOM, -np.inf
    for cut in grouping.groups.cuts:
        axes.axvline(cut, color=_CUT, linewidth=0.9, linestyle=(0, (4, 2)))
        if cut - written >= room:
            place = (cut, 1.0)
            axes.annotate(str(cut), place, xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
            written = cut


def _within(matrix: FloatArray, at: IntArray, start: int, stop: int) -> float:
    """Mean similarity of the nodes in a group; if there is none, the value of the nearest node."""
    inside = np.flatnonzero((at >= start) & (at < stop))
    if not inside.size:
        inside = np.array([np.abs(at - (start + stop - 1) / 2).argmin()])
    return float(matrix[np.ix_(inside, inside)].mean())


def _edges(at: FloatArray, num_timesteps: int) -> FloatArray:
    """Borders of the nodes' cells: half-way between nodes, and at the ends of the timesteps."""
    return np.concatenate([[0.0], (at[1:] + at[:-1]) / 2 + 0.5, [float(num_timesteps)]])
