"""A square map over two equal axes, as pixels, with boxes on its diagonal."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from prunekit.report.charts.layout import LINE, NARROW, Scale, tick_text
from prunekit.report.charts.marks import line, rect, svg, tag, text

__all__ = ["draw_map"]

_SIDE = 262.0


def draw_map(colours: NDArray[np.uint8], boxes: Sequence[tuple[float, float]], count: int, said: str) -> Markup:
    """Draw a map of values for each two timesteps.

    Args:
        colours: shape (side, side, 3).
        boxes: start and stop of each group.
        count: number of timesteps.
        said: the map in words.
    """
    left, top = 52.0, 1.6 * LINE
    file = io.BytesIO()
    Image.fromarray(colours).save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    x = Scale.around((0.0, float(count)), left, left + _SIDE, room=0.0, count=5)
    parts = [
        text(2, LINE / 2, "timestep b", class_="name"),
        tag(
            "image", x=left, y=top, width=_SIDE, height=_SIDE, href=f"data:image/png;base64,{data}",
            preserveAspectRatio="none", class_="pixels",
        ),
    ]  # fmt: skip
    for tick in x.ticks:
        at, down = x(tick), x(tick) - left + top
        parts += [line(left - 4, down, left, down, "axis"), text(left - 7, down, tick_text(tick), "end")]
        parts += [line(at, top + _SIDE, at, top + _SIDE + 4, "axis")]
        parts += [text(at, top + _SIDE + LINE, tick_text(tick), "middle")]
    for start, stop in boxes:
        side = x(stop) - x(start)
        parts.append(rect(x(start), x(start) - left + top, side, side, class_="box"))
    parts.append(text(left + _SIDE / 2, top + _SIDE + 2.2 * LINE, "timestep a (0 = cleanest)", "middle", class_="name"))
    return svg(NARROW, top + _SIDE + 2.9 * LINE, said, *parts, both=True)
