"""Style and files of pictures that matplotlib draws. They are drawn without pyplot, so that no figure outlives its function."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

__all__ = ["column_width", "save_figure", "save_png", "scale_by_log", "short_name", "styled"]

DOTS_PER_INCH = 192  # twice CSS's 96, so that a picture is sharp at its natural size on dense screens
_INK = "#333a42"
_LONGEST_NAME = 40
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
    "figure.facecolor": "white",
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


def save_png(draw: Callable[[], Figure], path: Path) -> None:
    """Draw a figure into a PNG."""
    with styled():
        save_figure(draw(), path)


def scale_by_log(axes: Axes) -> None:
    """Use a logarithmic y axis with plain numbers, since powers would need mathematical text.

    Over less than a decade the ticks are those of a linear scale, since at most one of 1, 2 and 5 may be visible.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1.0, 2.0, 5.0) if high > 50 * low else (1.0, 2.0, 3.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(MaxNLocator(5) if high < 5 * low else LogLocator(subs=steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def column_width(columns: int) -> float:
    """Width in inches of a picture with one upright label per column; bounded, since Agg draws 65,536 pixels at most."""
    return min(max(7.5, 2.4 + 0.32 * columns), 200.0)


def short_name(name: str) -> str:
    """The name of a channel group or a residual branch for an axis.

    Example:
        >>> short_name("down_blocks.0.resnets.1.conv1")
        'down 0 · res 1 · conv1'
    """
    words: list[str] = []
    for part in name.removeprefix("branch:").split("."):
        if part.isdigit() and words:
            words[-1] += f" {part}"
        else:
            words.append(_PARTS.get(part, part))
    text = " · ".join(words)
    half = _LONGEST_NAME // 2
    return text if len(text) <= _LONGEST_NAME else f"{text[:half]}…{text[-half:]}"
