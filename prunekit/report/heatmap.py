"""The importance heatmap: timestep groups by channel groups, and by residual branches. What cannot be removed is marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from prunekit._files import atomic_path
from prunekit._json import JsonDict
from prunekit._kinds import SOFTWARE
from prunekit._types import FloatArray
from prunekit.errors import FileFormatError
from prunekit.report.charts.layout import tick_text
from prunekit.report.figures import column_width, save_figure, short_name, styled
from prunekit.report.wording import timestep_text
from prunekit.results.planning_files import ImportanceFile

__all__ = ["Heatmap", "draw_panels", "heatmap_png", "panels_of"]

_SMALLEST = 1e-4  # share of the row's maximum below which all values have the same colour
_APART = 0.5  # columns of space before groups without a place in the network's order
_ROWS_FOR_WORDS = 4  # with fewer rows, "not removable" does not fit into a column
_HATCHED: dict[str, Any] = {"facecolor": "#dcdcdc", "edgecolor": "#8c8c8c", "hatch": "////", "linewidth": 0.0}


@dataclass(frozen=True)
class Heatmap:
    """Mean score per channel of every channel group, or the score of every residual branch; compared within a row.

    Args:
        criterion: the importance criterion.
        rows: label of each timestep group, cleanest first.
        names: channel groups in network order, then those left whole without a place in this order; or branches.
        left_whole: channel group or layer → the reason why it cannot be pruned.
        values: shape (timestep groups, channel groups); NaN where nothing was measured. With scale ``log`` the mean score
            divided by the row's largest, in (0, 1]; with ``rank`` the rank in the row from 0 (lowest) to 1 (highest).
        scale: ``log``, or ``rank`` if a mean score is not positive.
        without_place: number of channel groups, at the end, without a place in the network order.
        of_branches: whether the columns are residual branches.
    """

    criterion: str
    rows: tuple[str, ...]
    names: tuple[str, ...]
    left_whole: Mapping[str, str]
    values: FloatArray
    scale: Literal["log", "rank"]
    without_place: int = 0
    of_branches: bool = False

    @classmethod
    def of(cls, importance: ImportanceFile | JsonDict, *, of_branches: bool = False) -> "Heatmap":
        """Take the content of ``importance.json``, as JSON or as read before.

        Args:
            importance: the content.
            of_branches: take its residual branches, and not its channel groups.

        Raises:
            FileFormatError: a key is missing, or the scores do not fit the groups.
        """
        found = ImportanceFile.of(importance, "The importance map", "make it again with `prunekit importance`")
        branches, left_whole = found.branches or {}, found.left_whole
        columns = [i for i, group in enumerate(found.channel_groups) if (group.name in branches) == of_branches]
        names = [found.channel_groups[i].name for i in columns]
        rows = [f"group {g.index}  ·  t {timestep_text(g.start, g.stop)}" for g in found.timestep_groups]
        try:
            means = np.array([[_mean(row[i]) for i in columns] for row in found.scores], dtype=np.float64).reshape(
                len(rows), len(names)
            )
        except (IndexError, ValueError) as error:
            raise FileFormatError(
                f"The importance scores cannot be read ({error}); make them again with `prunekit importance`."
            ) from error
        if not means.size:
            raise FileFormatError("The importance scores are empty; make them again with `prunekit importance`.")
        means[:, [name in left_whole for name in names]] = np.nan
        elsewhere = [name for name in left_whole if name not in names and name not in branches and not of_branches]
        means = np.hstack([means, np.full((len(rows), len(elsewhere)), np.nan)])
        scale: Literal["log", "rank"] = "log" if (means[np.isfinite(means)] > 0).all() else "rank"
        values = np.array([_normalised(row, scale) for row in means]).reshape(means.shape)
        return cls(
            found.criterion, tuple(rows), (*names, *elsewhere), left_whole, values, scale, len(elsewhere), of_branches
        )

    @property
    def score_text(self) -> str:
        """What a value says something of."""
        return "score" if self.of_branches else "mean score per channel"

    @property
    def scale_text(self) -> str:
        """The meaning of the colours."""
        if self.scale == "log":
            return f"{self.score_text}, divided by the row's maximum (log scale)"
        return f"rank of the {self.score_text} within the row (0 lowest, 1 highest)"

    @property
    def caption(self) -> str:
        """How to read the picture."""
        reason = "" if self.scale == "log" else " Ranks, because some scores are not positive."
        fixed = " Grey cells with a stroke: not removable." if np.isnan(self.values).any() else ""
        fixed += " At the end: groups left whole that have no place in that order." if self.without_place else ""
        what = "residual branches, which are removed as a whole," if self.of_branches else "channel groups"
        return (
            f"Importance by criterion {self.criterion}; higher means keep. Timestep groups by {what} in network order; "
            f"group 0 is the cleanest. Colour: {self.scale_text}.{reason} Colours compare within a timestep group only.{fixed}"
        )

    @property
    def ends(self) -> tuple[str, str]:
        """The lowest and the highest value that have a colour of their own, in words."""
        if self.scale == "rank":
            return "lowest rank", "highest"
        low = tick_text(float(f"{self._norm().vmin:.2g}"))
        return f"{'below ' if self._clipped() else ''}{low} of the highest", "highest"

    def level(self, value: float) -> float:
        """Place of a value on the scale of colours, from 0 to 1."""
        return float(np.clip(self._norm()(value), 0.0, 1.0))

    @property
    def alt(self) -> str:
        """The picture in words: the most and the least important channel group of each row."""
        parts = []
        for label, row in zip(self.rows, self.values, strict=True):
            if np.isfinite(row).any():
                high, low = self.names[int(np.nanargmax(row))], self.names[int(np.nanargmin(row))]
                parts.append(f"{' '.join(label.split())}: highest {high}, lowest {low}")
        fixed = int(np.isnan(self.values).all(axis=0).sum())
        what = "residual branches" if self.of_branches else "channel groups"
        return (
            f"Heatmap of importance over {len(self.rows)} timestep groups and {len(self.names)} {what}, "
            f"{fixed} of them not removable. {'; '.join(parts)}."
        )

    def draw_on(self, figure: Figure, axes: Axes) -> None:
        """Draw the heatmap into axes of a figure."""
        height, width = self.values.shape
        placed = width - self.without_place
        places = np.array([column + _APART * (column >= placed) for column in range(width)], dtype=np.float64)
        mesh = axes.pcolormesh(
            np.arange(placed + 1) - 0.5,
            np.arange(height + 1) - 0.5,
            np.ma.masked_invalid(self.values[:, :placed]),
            cmap="viridis",
            norm=self._norm(),
            edgecolors="white",
            linewidth=0.8,
        )
        self._hatch(axes, places)
        axes.set_xlim(-0.5, places[-1] + 0.5)
        axes.set_ylim(height - 0.5, -0.5)
        axes.set_xticks(places, [short_name(name) for name in self.names], rotation=90, fontsize=8)
        axes.set_yticks(range(height), self.rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        what = " of residual branches" if self.of_branches else ""
        axes.set_title(f"Importance{what} ({self.criterion}), higher = keep", loc="left", fontsize=10)
        self._colorbar(figure, axes, mesh)

    def _colorbar(self, figure: Figure, axes: Axes, mesh: QuadMesh) -> None:
        log = self.scale == "log"
        bar = figure.colorbar(
            mesh, ax=axes, pad=0.01, fraction=0.04, extend="min" if log and self._clipped() else "neither"
        )
        bar.set_label("score / row's maximum, log scale" if log else "rank in the row", fontsize=8)
        bar.outline.set_visible(False)
        if log:
            bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            bar.ax.yaxis.set_minor_locator(NullLocator())
            bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.tick_params(labelsize=8)

    def _norm(self) -> Normalize:
        if self.scale == "rank":
            return Normalize(0.0, 1.0)
        measured = self.values[np.isfinite(self.values)]
        low = float(measured.min()) if measured.size else 0.1
        return LogNorm(min(max(low, _SMALLEST), 0.5), 1.0)

    def _clipped(self) -> bool:
        return bool((self.values[np.isfinite(self.values)] < _SMALLEST).any())

    def _hatch(self, axes: Axes, places: FloatArray) -> None:
        """Hatch cells that cannot be removed; whole columns also say so in words."""
        height = len(self.rows)
        missing = np.isnan(self.values)
        whole = missing.all(axis=0)
        for column in np.flatnonzero(whole):
            axes.add_patch(Rectangle((places[column] - 0.46, -0.46), 0.92, height - 0.08, **_HATCHED))
            if height >= _ROWS_FOR_WORDS:
                box = {"facecolor": "#f4f4f4", "edgecolor": "none", "pad": 1.5}
                middle = (float(places[column]), height / 2 - 0.5)
                axes.text(*middle, "not removable", rotation=90, ha="center", va="center", fontsize=7, bbox=box)
        for row, column in zip(*np.nonzero(missing & ~whole), strict=True):
            axes.add_patch(Rectangle((places[column] - 0.46, row - 0.46), 0.92, 0.92, **_HATCHED))
        if missing.any():
            patch = Patch(label="not removable", **_HATCHED)
            axes.legend(
                handles=[patch], loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.3, frameon=False, fontsize=8
            )


def heatmap_png(importance: ImportanceFile | JsonDict, path: Path | str) -> None:
    """Draw the content of ``importance.json`` as a picture.

    Args:
        importance: the content of ``importance.json``.
        path: where the PNG goes; written atomically.

    Raises:
        FileFormatError: the scores cannot be read.
    """
    path = Path(path)
    panels = panels_of(importance)
    with atomic_path(path) as part, styled():
        save_figure(draw_panels(panels), part, SOFTWARE)


def panels_of(importance: ImportanceFile | JsonDict) -> list[Heatmap]:
    """The heatmaps of an importance map: of its channel groups and of its residual branches, as far as they can be removed.

    Raises:
        FileFormatError: the scores cannot be read.
    """
    known = ImportanceFile.of(importance, "The importance map", "make it again with `prunekit importance`")
    if not known.branches:
        return [Heatmap.of(known)]
    branches = Heatmap.of(known, of_branches=True)
    if len(known.branches) == len(known.channel_groups):
        return [branches]
    channels = Heatmap.of(known)
    return [channels, branches] if np.isfinite(channels.values).any() else [branches]


def draw_panels(panels: Sequence[Heatmap]) -> Figure:
    """Heatmaps of the same timestep groups, one below the other."""
    heights = [2.6 + 0.36 * len(panel.rows) for panel in panels]
    width = max(column_width(len(panel.names)) for panel in panels)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(len(panels), squeeze=False)[:, 0], strict=True):
        panel.draw_on(figure, axes)
    return figure


def _mean(scores: list[float] | None) -> float:
    """Mean over the channels; NaN if there are no scores."""
    return float(np.mean(np.asarray(scores, dtype=np.float64))) if scores else float("nan")


def _normalised(row: FloatArray, scale: Literal["log", "rank"]) -> FloatArray:
    """Normalise one row by its own values; NaN stays NaN."""
    measured = row[np.isfinite(row)]
    values = np.full_like(row, np.nan)
    if not measured.size:
        return values
    if scale == "log":
        return np.asarray(row / measured.max())
    below = (measured[None, :] < measured[:, None]).sum(axis=1)
    equal = (measured[None, :] == measured[:, None]).sum(axis=1) - 1
    values[np.isfinite(row)] = (below + equal / 2) / max(len(measured) - 1, 1)
    return values
