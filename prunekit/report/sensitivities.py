"""How the sampler carries an error of each timestep group into the sample: a picture, and a page's chart and table."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from prunekit._files import atomic_path
from prunekit._kinds import SOFTWARE
from prunekit.allocation import Sensitivity
from prunekit.report.charts.lines import Plot, Series, draw_lines
from prunekit.report.document import Words
from prunekit.report.figures import save_figure, scale_by_log, styled
from prunekit.report.illustrations import Chart
from prunekit.report.run import RunResults
from prunekit.report.table import Column, Row, Table
from prunekit.report.wording import number_text, timestep_text

__all__ = [
    "describe_sensitivity",
    "draw_sensitivity",
    "sensitivity_blocks",
    "sensitivity_png",
    "sensitivity_table",
]

_BAR, _INK, _DOUBT = "#1d5f9e", "#333a42", "#b4540a"
_UNITS = {
    "pixels": "mean square change of a pixel",
    "latents": "mean square change of a latent's element",
    "features": "squared distance in features",
}


def draw_sensitivity(found: Sensitivity) -> Figure:
    """Draw a bar for each timestep group on a logarithmic axis, with its standard error.

    Groups whose changes are not proportional to errors are drawn in another colour.
    """
    figure = Figure(figsize=(max(4.5, 1.8 + 0.8 * len(found.groups)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    measured = [group for group in found.groups if group.amplification > 0]
    if measured:
        values = np.array([group.amplification for group in measured])
        below, above = _whiskers(values, np.array([group.se or 0.0 for group in measured]))
        colours = [_BAR if group.is_linear else _DOUBT for group in measured]
        floor = float((values - below).min()) / 2
        places = [group.index for group in measured]
        axes.bar(places, values - floor, bottom=floor, width=0.66, color=colours)
        axes.errorbar(places, values, yerr=[below, above], fmt="none", ecolor=_INK, elinewidth=1.2, capsize=3)
        axes.set_ylim(floor, 1.6 * float((values + above).max()))
        scale_by_log(axes)
    for group in found.groups:
        if group.amplification <= 0:
            what = "no steps" if group.evaluations == 0 else "0"
            axes.text(group.index, 0.02, what, transform=axes.get_xaxis_transform(), ha="center", fontsize=8)
    axes.set_xlim(-0.6, len(found.groups) - 0.4)
    axes.set_xticks(
        range(len(found.groups)),
        [f"{group.index}\n{timestep_text(group.start, group.stop)}" for group in found.groups],
        fontsize=8,
    )
    axes.set_xlabel("timestep group and its timesteps (0 = cleanest)")
    axes.set_ylabel(f"{_UNITS[found.measured_in]}\nfor an error of mean square 1 (log scale)", fontsize=8)
    doubt = "; orange: not proportional to the error" if found.not_linear else ""
    axes.set_title(f"{found.sampler}, {found.steps} steps, noise of size {found.size:g}{doubt}", loc="left", fontsize=8)
    return figure


def _whiskers(values: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the error bars below and above; none goes below a tenth of its bar, since the axis has no 0."""
    return np.minimum(errors, 0.9 * values), errors


def sensitivity_png(found: Sensitivity, path: Path | str) -> None:
    """Draw a sensitivity.

    Args:
        found: the sensitivity.
        path: where the PNG goes; written atomically.
    """
    with atomic_path(Path(path)) as part, styled():
        save_figure(draw_sensitivity(found), part, SOFTWARE)


def describe_sensitivity(found: Sensitivity) -> str:
    """The picture from :func:`draw_sensitivity` in words."""
    parts = [
        f"group {group.index} {number_text(group.amplification, 3)}"
        f"{'' if group.se is None or not group.evaluations else f' ± {number_text(group.se, 2)}'}"
        for group in found.groups
    ]
    return (
        f"Change of the sample in {found.measured_in} for an error of mean square 1 in each prediction: {', '.join(parts)}. "
        f"{found.describe_linearity()}"
    )


def sensitivity_table(results: RunResults) -> Table | None:
    """Every timestep group's amplification with its standard error, evaluations and check of linearity; None if not measured."""
    found = results.allocation.sensitivity
    if found is None:
        return None
    rows = tuple(
        {
            "group": group.index,
            "first_timestep": group.start,
            "last_timestep": group.stop - 1,
            "evaluations": group.evaluations,
            "amplification": group.amplification,
            "standard_error": group.se,
            "linearity": group.linearity,
        }
        for group in found.groups
    )

    def number(key: str, digits: int = 3) -> Column:
        heading = {"amplification": "amplification", "standard_error": "±", "linearity": "at the other size, ratio"}[
            key
        ]
        return Column(heading, key, lambda row: number_text(row[key], digits))

    def range_of(row: Row) -> str:
        return timestep_text(row["first_timestep"], row["last_timestep"] + 1)

    columns = (
        Column("group", "group", lambda row: str(row["group"])),
        Column("timesteps", "", range_of),
        Column("evaluations", "evaluations", lambda row: str(row["evaluations"])),
        number("amplification"),
        number("standard_error", 2),
        number("linearity"),
    )
    return Table("sensitivity", f"Sensitivity of the sampler, measured in {found.measured_in}", rows, columns)


def sensitivity_blocks(results: RunResults, table: Table | None) -> list[Words | Chart | Table]:
    """A page's sentence on how rule ``measured`` weighed the losses, with chart and table; empty if it did not by sensitivity."""
    found = results.allocation.sensitivity
    if found is None:
        return []
    clamping = ", and clamped as in sampling" if found.clamped else ""
    said = (
        "The allocation weighed each timestep group's loss by its amplification: the change of the sample, in "
        f"{found.measured_in}, for an error of mean square 1 in every prediction of the group. It was measured on "
        f"{found.count} samples of {found.steps} steps of {found.sampler}, with noise of size {found.size:g}{clamping}. "
        f"{found.describe_linearity()}"
    )
    blocks = [Words(said), _chart(found) if found.weights.any() else None, table]
    return [block for block in blocks if block is not None]


def _chart(found: Sensitivity) -> Chart:
    """The amplification over the timesteps, a step for each group."""
    x: list[float] = []
    y: list[float] = []
    said: dict[int, str] = {}
    for group in found.groups:
        value = group.amplification if group.amplification > 0 else float("nan")
        where = f"group {group.index}, t {timestep_text(group.start, group.stop)}"
        if group.amplification > 0:
            error = "" if group.se is None else f" ± {number_text(group.se, 2)}"
            said[len(x) + 1] = f"{where}: {number_text(group.amplification, 3)}{error}"
        x += [group.start, (group.start + group.stop) / 2, group.stop]
        y += [value] * 3
    plot = Plot(
        describe_sensitivity(found),
        ("timestep t (0 = cleanest)", _UNITS[found.measured_in]),
        log=True,
        cuts=tuple((float(group.start), str(group.start)) for group in found.groups[1:]),
        ends=(0.0, float(found.num_timesteps)),
        height=280,
    )
    caption = (
        f"{_UNITS[found.measured_in].capitalize()} for an error of mean square 1 in every prediction of the group."
    )
    return Chart(caption, draw_lines([Series("amplification", x, y, said)], plot), title="Sensitivity of the sampler")
