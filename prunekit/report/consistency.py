"""Pictures of how similar two models are: pairs of images from the same noise, and the measures over the timesteps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from prunekit._files import atomic_path
from prunekit._json import JsonDict
from prunekit.report.figures import save_figure, scale_by_log, styled
from prunekit.results.consistency_results import ConsistencyFile, Summary

__all__ = ["curves_png", "describe_consistency", "draw_curves", "draw_pairs", "pairs_png"]

Images = NDArray[np.uint8]

_CELL = 0.95  # width of one image in inches
_SHOWN = 8
_LONGEST_NAME = 56
_FEW = 12  # with fewer points than this, each is marked
_WIDE = 100.0  # with a larger range than this, only decades are numbered
_FAINT = "#c9ced4"
_CURVES = {  # key → label, colour, line
    "same": ("same noise, each model on its own trajectory", "#1d5f9e", "-"),
    "forced": ("both asked about A's states", "#4d7c3a", (0, (4, 2))),
    "state": ("noisy states x_t", "#7a4fa0", (0, (1, 2))),
    "shuffled": ("shuffled pairs", "#b4540a", "-"),
}
_NAMES = {name for name, _, _ in _CURVES.values()}
_MEASURES = {"ssim": "SSIM", "correlation": "correlation of the pixels", "mse": "mean squared difference"}


def draw_pairs(a: Images, b: Images, shuffled: Images, names: Sequence[str]) -> Figure:
    """One row for each pair: A, B from the same noise, their difference; then another B, and A's difference from it.

    Args:
        a: uint8, shape (count, height, width, 1 or 3); the first eight are shown.
        b: images of the other model from the same noise, in the same form.
        shuffled: the other model's images, shifted by one pair.
        names: names of both models.
    """
    count = min(_SHOWN, len(a))
    height, width = a.shape[1:3]
    columns = {
        "A": a,
        "B, same noise": b,
        "|A − B|": _difference(a, b),
        "B, shuffled": shuffled,
        "|A − B shuffled|": _difference(a, shuffled),
    }
    size = (len(columns) * _CELL * width / max(height, width) + 0.9, count * _CELL * height / max(height, width) + 0.8)
    close = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=size, layout=close)
    grid = figure.subplots(count, len(columns), squeeze=False)
    for column, (title, images) in enumerate(columns.items()):
        grid[0, column].set_title(title, fontsize=8)
        for row in range(count):
            _show(grid[row, column], images[row])
    told = (f"{letter} = {_short(name)}" for letter, name in zip("AB", names, strict=True))
    figure.suptitle("\n".join(told), fontsize=9)
    return figure


def pairs_png(a: Images, b: Images, shuffled: Images, names: Sequence[str], path: Path | str) -> None:
    """Draw the pairs, see :func:`draw_pairs`; written atomically."""
    with atomic_path(Path(path)) as part, styled():
        save_figure(draw_pairs(a, b, shuffled, names), part)


def draw_curves(data: ConsistencyFile | JsonDict) -> Figure:
    """Every measure over the timesteps as mean and two standard errors, with the seams as lines.

    Args:
        data: content of a ``consistency.json``, as JSON or as read before.
    """
    found = ConsistencyFile.of(data, "The comparison")
    steps, seams = found.steps, sorted({seam.timestep for seam in found.seams})
    timesteps = np.array([step.timestep for step in steps])
    figure = Figure(figsize=(11.0, 3.9), layout="constrained")
    for axes, (measure, label) in zip(figure.subplots(1, len(_MEASURES)), _MEASURES.items(), strict=True):
        for cut in seams:
            axes.axvline(cut, color=_FAINT, linewidth=0.8, zorder=0)
        for key, (name, colour, line) in _CURVES.items():
            if measure == "mse" and key == "state":
                continue  # it has another scale
            values = [getattr(getattr(step, key), measure, None) for step in steps]
            if any(value is not None for value in values):
                _curve(axes, timesteps, values, {"label": name, "color": colour, "linestyle": line})
        is_log = measure == "mse" and _by_decades(axes)
        axes.set_title(f"{label} (log scale)" if is_log else label, loc="left", fontsize=9)
        axes.set_xlabel("timestep t (0 = cleanest)")
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def curves_png(data: ConsistencyFile | JsonDict, path: Path | str) -> None:
    """Draw the curves, see :func:`draw_curves`; written atomically."""
    with atomic_path(Path(path)) as part, styled():
        save_figure(draw_curves(data), part)


def describe_consistency(data: ConsistencyFile | JsonDict) -> str:
    """The results for the final images, in words."""
    found = ConsistencyFile.of(data, "The comparison")
    same, shuffled, settings = found.images["same"], found.images["shuffled"], found.settings
    return (
        f"{settings.count} pairs, {settings.steps} steps of {settings.sampler}: finished images from the same noise have "
        f"SSIM {_estimate(same.ssim)} and pixel correlation {_estimate(same.correlation)}; shuffled pairs have "
        f"{_estimate(shuffled.ssim)} and {_estimate(shuffled.correlation)}."
    )


def _estimate(found: Summary | None) -> str:
    return "undefined" if found is None or found.mean is None else f"{found.mean:.3f} ± {found.se or 0:.3f}"


def _curve(axes: Axes, timesteps: NDArray[np.float64], values: Sequence[Summary | None], look: JsonDict) -> None:
    """Draw the mean with a band of two standard errors, and gaps where it is undefined."""
    mean, error = (np.array([_known(value, key) for value in values], dtype=np.float64) for key in ("mean", "se"))
    axes.plot(timesteps, mean, linewidth=1.6, marker="." if len(mean) < _FEW else None, **look)
    # A logarithmic axis needs positive values.
    low = np.where(mean > 0, np.maximum(mean - 2 * error, 1e-30), mean - 2 * error)
    axes.fill_between(timesteps, low, mean + 2 * error, color=look["color"], alpha=0.15, linewidth=0)


def _known(value: Summary | None, key: str) -> float:
    found: float | None = None if value is None else getattr(value, key)
    return np.nan if found is None else found


def _short(name: str) -> str:
    """A model's name; only the end of a long path."""
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _by_decades(axes: Axes) -> bool:
    """Use a logarithmic axis from the smallest mean on; False if a mean is zero. Bands may reach below the axis."""
    means = np.concatenate([np.asarray(line.get_ydata()) for line in axes.lines if line.get_label() in _NAMES])
    if not (means[~np.isnan(means)] > 0).all():
        return False
    scale_by_log(axes)
    low, high = np.nanmin(means), np.nanmax(means)
    axes.set_ylim(low / 2, high * 2)
    if high / low > _WIDE:
        axes.yaxis.set_major_locator(LogLocator())
    return True


def _difference(a: Images, b: Images) -> Images:
    return np.abs(a.astype(np.int16) - b.astype(np.int16)).astype(np.uint8)


def _show(axes: Axes, image: Images) -> None:
    """One image, every pixel a square."""
    grey = image.shape[-1] == 1
    axes.imshow(
        image[..., 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255, interpolation="nearest"
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
