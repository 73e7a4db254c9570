"""Pictures of how timesteps were cut: curves over the timesteps, and the map of similarities with the groups on it."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from prunekit._files import atomic_path
from prunekit._kinds import SOFTWARE
from prunekit._types import FloatArray, IntArray
from prunekit.groups import Grouping
from prunekit.report.charts.layout import tick_text
from prunekit.report.charts.lines import Plot, Series, draw_lines, keys_of, style_of
from prunekit.report.charts.maps import draw_map
from prunekit.report.figures import save_figure, scale_by_log, styled
from prunekit.report.illustrations import Chart, Charts, Ramp
from prunekit.report.wording import number_text

__all__ = ["describe_grouping", "draw_grouping", "grouping_charts", "grouping_png"]

_COLOURS = ("#1d5f9e", "#b4540a", "#4d7c3a", "#7a4fa0")
_CUT = "#333a42"
_PIXELS, _MARKED = 120, 12  # side of a page's map; points of a page's curve that say their figures
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
    right.set_title("similarity of timesteps a and b, groups boxed", loc="left", fontsize=9)
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


def grouping_charts(grouping: Grouping) -> Charts | None:
    """A page's charts of the reasons for the cuts; None if the grouping has no map of similarities."""
    evidence, groups = grouping.evidence, grouping.groups
    if evidence.matrix is None:
        return None
    at = evidence.timesteps
    series = []
    for place, (name, curve) in enumerate(evidence.curves.items()):
        label, (style, form) = _LABELS.get(name, name), style_of(place)
        said = {
            int(i): f"t = {at[i]}: {number_text(float(curve[i]), 3)}, {label}"
            for i in np.linspace(0, len(at) - 1, min(len(at), _MARKED)).round().astype(int)
        }
        series.append(Series(label, at, curve, said, style, form))
    cuts = tuple((float(cut), str(cut)) for cut in groups.cuts)
    unit = "share of pixels that agree" if "to_clean" in evidence.curves else ""
    alpha = evidence.facts.get("alpha")
    plot = Plot(
        describe_grouping(grouping),
        ("timestep t (0 = cleanest)", unit),
        log="gradient_norm" in evidence.curves,
        cuts=cuts,
        level=(float(alpha), "α, bound of the running means") if isinstance(alpha, int | float) else None,
        ends=(0.0, float(groups.num_timesteps)),
    )
    title = f"{len(groups)} groups by method {groups.method}"
    chart = Chart("Upright lines are the cuts.", draw_lines(series, plot), keys_of(series, plot), title)
    return Charts(
        (chart, _map_chart(grouping, evidence.matrix)) if series else (_map_chart(grouping, evidence.matrix),)
    )


def _map_chart(grouping: Grouping, matrix: FloatArray) -> Chart:
    """The map of similarities with the groups on it."""
    evidence, groups = grouping.evidence, grouping.groups
    edges = _edges(evidence.timesteps.astype(np.float64), groups.num_timesteps)
    middles = (np.arange(_PIXELS) + 0.5) * groups.num_timesteps / _PIXELS
    nodes = np.clip(np.searchsorted(edges, middles) - 1, 0, len(matrix) - 1)
    low = min(0.0, float(matrix.min()))
    colours = mpl.colormaps["viridis"]((matrix[np.ix_(nodes, nodes)] - low) / (1.0 - low), bytes=True)[..., :3]
    boxes = [(float(group.start), float(group.stop)) for group in groups]
    kind = _KINDS.get(groups.method, "similarity")
    said = f"Map of the {kind} of timesteps a and b, with {len(groups)} groups boxed on its diagonal."
    ramp = Ramp(tick_text(round(low, 2)), "1", tuple(to_hex(mpl.colormaps["viridis"](i / 11)) for i in range(12)))
    drawing = draw_map(colours, boxes, groups.num_timesteps, said)
    return Chart(f"Colour: {kind}.", (drawing,), title="Similarity of timesteps, groups boxed", ramp=ramp)


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
        axes.set_ylabel("norm of the gradient (log scale)")
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
