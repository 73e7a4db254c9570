"""Shows how experts were made: importance and widths, as cells of timestep groups by channel groups."""

import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.colors import to_hex

from prunekit.report.charts.cells import Cell, Sheet, draw_cells
from prunekit.report.charts.layout import NARROW, WIDE
from prunekit.report.charts.marks import Key
from prunekit.report.document import Block, Fold, Items
from prunekit.report.figures import short_name
from prunekit.report.heatmap import Heatmap, panels_of
from prunekit.report.illustrations import Chart, Ramp
from prunekit.report.run import RunResults
from prunekit.report.tables import width_table
from prunekit.report.wording import number_text, ratio_text, timestep_text
from prunekit.results.expert_results import Expert

__all__ = ["describe_widths", "importance_blocks", "importance_chart", "width_blocks", "width_order"]

_RAMP = 12  # colours shown between both ends
_DARKEST = 0.06  # of the colour map, so that the lowest value differs from a dark page


def importance_chart(heatmap: Heatmap) -> Chart:
    """Importance by timestep group and channel group or branch; on a phone with a row for each of these."""
    columns = [short_name(name) for name in heatmap.names]
    cells = [
        [_importance_cell(heatmap, row, column) for column in range(len(heatmap.names))]
        for row in range(len(heatmap.rows))
    ]
    rows = [" ".join(label.replace("·", " ").split()) for label in heatmap.rows]
    gap = len(heatmap.names) - heatmap.without_place if heatmap.without_place else 0
    sheet = Sheet(heatmap.alt, rows, columns, cells, gap=gap)
    turned = Sheet(heatmap.alt, [str(i) for i in range(len(rows))], columns, cells).turned("timestep group")
    fixed = any(math.isnan(value) for value in heatmap.values.flat)
    keys = (Key("not removable, so neither robust nor important", "fixed", "box"),) if fixed else ()
    colours = tuple(_colour(i / (_RAMP - 1)) for i in range(_RAMP))
    ramp = Ramp(*heatmap.ends, colours)
    return Chart(heatmap.caption, (draw_cells(sheet, WIDE), draw_cells(turned, NARROW)), keys, ramp=ramp)


def _importance_cell(heatmap: Heatmap, row: int, column: int) -> Cell:
    value = float(heatmap.values[row, column])
    where = f"{' '.join(heatmap.rows[row].split())}, {heatmap.names[column]}"
    if math.isnan(value):
        return Cell(f"{where}: not removable", "fixed")
    return Cell(f"{where}: {number_text(value, 3)}", colour=_colour(heatmap.level(value)))


def _colour(level: float) -> str:
    return to_hex(mpl.colormaps["viridis"](_DARKEST + (1 - _DARKEST) * level))


def importance_blocks(results: RunResults) -> list[Block]:
    """Importance of channel groups and of residual branches, and the layers left whole; empty if importance was not kept."""
    if results.importance is None:
        return []
    blocks: list[Block] = [importance_chart(panel) for panel in panels_of(results.importance)]
    branches = results.importance.branches or {}
    if branches:
        held = tuple((short_name(name), ", ".join(own.layers)) for name, own in branches.items())
        blocks.append(Fold(f"Layers of the residual branches ({len(held)})", (Items(held),)))
    left_whole = results.importance.left_whole
    if left_whole:
        blocks.append(Fold(f"Channel groups left whole ({len(left_whole)})", (Items(tuple(left_whole.items())),)))
    return blocks


def width_order(results: RunResults) -> list[str]:
    """Channel groups that occur in an expert, in network order as far as the run records it."""
    known = results.importance.channel_groups if results.importance else []
    named = {name: None for expert in results.experts.values() for name in expert.changes}
    first = [group.name for group in known if group.name in named]
    return first + [name for name in named if name not in set(first)]


def width_blocks(results: RunResults) -> list[Block]:
    """Widths before and after by timestep group, as a chart and as a table; empty if they were not kept."""
    names = width_order(results)
    if not names:
        return []
    experts = [results.experts[index] for index in sorted(results.experts)]
    targets = {group.index: group for group in results.allocation.groups}
    rows = [f"group {e.group} t {timestep_text(targets[e.group].start, targets[e.group].stop)}" for e in experts]
    cells = [[_width_cell(expert, name) for name in names] for expert in experts]
    said, columns = describe_widths(results), [short_name(name) for name in names]
    sheet = Sheet(said, rows, columns, cells)
    turned = Sheet(said, [str(expert.group) for expert in experts], columns, cells).turned("timestep group")
    kept = ", ".join(f"{e.group}: {ratio_text(e.macs / results.base.macs)}" for e in experts)
    caption = (
        "The filled part of a cell is the part of the channels that is kept; the number counts them, where there is room. Channel "
        f"groups are in network order. MACs kept by timestep group: {kept}."
    )
    if any(expert.removed for expert in experts):
        caption += " Channels at 0 are gone with a residual branch."
    keys = (Key("kept", "kept", "box"), Key("removed", "rest", "box"))
    chart = Chart(caption, (draw_cells(sheet, WIDE), draw_cells(turned, NARROW)), keys)
    return [
        chart,
        *_branch_blocks(results, rows),
        Fold("The same numbers as a table", (width_table(results.experts, names),)),
    ]


def _branch_blocks(results: RunResults, rows: Sequence[str]) -> list[Block]:
    """Which residual branches are removed, by timestep group; empty if none is.

    Args:
        results: of the run.
        rows: names of the timestep groups that have experts.
    """
    experts = [results.experts[index] for index in sorted(results.experts)]
    removed = {name: None for expert in experts for name in expert.removed or ()}
    if not removed:
        return []
    known = (results.importance.branches or {}) if results.importance else {}
    names = list(dict.fromkeys([*known, *removed]))
    cells = [[_branch_cell(expert, name) for name in names] for expert in experts]
    said = f"Residual branches of {len(experts)} experts: " + "; ".join(
        f"group {expert.group} is without {', '.join(map(short_name, expert.removed or ())) or 'none'}"
        for expert in experts
    )
    columns = [short_name(name) for name in names]
    sheet = Sheet(f"{said}.", rows, columns, cells)
    turned = Sheet(f"{said}.", [str(expert.group) for expert in experts], columns, cells).turned("timestep group")
    count = ", ".join(str(len(expert.removed or ())) for expert in experts)
    caption = f"Residual branches that are kept and removed, in network order. Removed, cleanest group first: {count}."
    keys = (Key("kept", "kept", "box"), Key("removed", "rest", "box"))
    return [Chart(caption, (draw_cells(sheet, WIDE), draw_cells(turned, NARROW)), keys)]


def _branch_cell(expert: Expert, name: str) -> Cell:
    gone = name in (expert.removed or ())
    return Cell(
        f"group {expert.group}, {short_name(name)}: {'removed' if gone else 'kept'}", "rest" if gone else "kept"
    )


def _width_cell(expert: Expert, name: str) -> Cell:
    where = f"group {expert.group}, {name}"
    if name not in expert.changes:
        return Cell(f"{where}: not recorded", "rest", "?")
    before, after = expert.changes[name]
    return Cell(f"{where}: {after} of {before} channels", "kept", str(after), share=after / before if before else 1.0)


def describe_widths(results: RunResults) -> str:
    """The widths in words; the numbers are in the table below the chart."""
    parts = [
        f"group {index} keeps {_kept(results.experts[index]):.0%} of its prunable channels"
        for index in sorted(results.experts)
        if results.experts[index].widths
    ]
    return f"Widths of {len(width_order(results))} channel groups before and after pruning: {'; '.join(parts)}."


def _kept(expert: Expert) -> float:
    before = sum(pair[0] for pair in expert.changes.values())
    return sum(pair[1] for pair in expert.changes.values()) / before if before else 1.0
