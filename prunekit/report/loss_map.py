"""The map of losses: the change of the held-out loss from the base, by model and timestep group."""

from collections.abc import Sequence

from prunekit.report.charts.cells import Cell, Sheet, draw_cells
from prunekit.report.charts.layout import NARROW, WIDE
from prunekit.report.charts.marks import Key
from prunekit.report.illustrations import Chart
from prunekit.report.run import RunResults
from prunekit.report.wording import estimate_text, timestep_text
from prunekit.results.estimate import Estimate

__all__ = ["loss_map", "losses_chart"]

_LEAST = 0.08  # of the colour, for the smallest change


def loss_map(names: Sequence[str], ranges: Sequence[str], changes: Sequence[Sequence[Estimate | None]]) -> Chart:
    """A chart with a row for each model and a column for each timestep group.

    Args:
        names: names of the models.
        ranges: the timestep groups, in words.
        changes: changes from the base in percent, row by row; None if not measured.
    """
    widest = max((abs(each.mean) for row in changes for each in row if each is not None), default=0.0) or 1.0
    cells = [
        [_cell(name, where, each, widest) for where, each in zip(ranges, row, strict=True)]
        for name, row in zip(names, changes, strict=True)
    ]
    told = "; ".join(
        f"{name}: {', '.join(estimate_text(each) for each in row)}" for name, row in zip(names, changes, strict=True)
    )
    said = f"Change of the held-out loss from the base in percent, cleanest timesteps first. {told}."
    wide = draw_cells(Sheet(said, names, ranges, cells, "timesteps (0 = cleanest)"), WIDE)
    narrow = draw_cells(Sheet(said, names, ranges, cells, "timesteps (0 = cleanest)", above=True), NARROW)
    keys = (Key("lower loss than the base", "better", "box"), Key("higher", "worse", "box"))
    return Chart("Change from the base in percent; below zero is better.", (wide, narrow), keys)


def _cell(name: str, where: str, change: Estimate | None, widest: float) -> Cell:
    if change is None:
        return Cell(f"{name}, {where}: not measured", "rest", "–")
    text = f"{change.mean:+.1f}".replace("-", "−")
    text = "0.0" if text in ("+0.0", "−0.0") else text
    strength = _LEAST + (1 - _LEAST) * abs(change.mean) / widest
    said = f"{name}, {where}: {estimate_text(change)} %"
    return Cell(said, "better" if change.mean < 0 else "worse", text, strength)


def losses_chart(results: RunResults) -> Chart | None:
    """The map of a run's experts, and of the pruned models before fine-tuning; None if nothing can be compared."""
    losses = {loss.group: loss for loss in results.losses}
    groups = [group for group in results.allocation.groups if group.index in losses]
    rows: dict[str, list[Estimate | None]] = {"pruned, before fine-tuning": [], "experts": []}
    for group in groups:
        loss = losses[group.index]
        for name, one, error in (
            ("pruned, before fine-tuning", loss.pruned, None),
            ("experts", loss.expert, loss.difference.se if loss.difference else None),
        ):
            known = one is not None and loss.base is not None and loss.base.mean > 0
            rows[name].append(
                Estimate(
                    mean=100 * (one.mean / loss.base.mean - 1),
                    se=None if error is None else 100 * error / loss.base.mean,
                )
                if known and one is not None and loss.base is not None
                else None
            )
    shown = {name: row for name, row in rows.items() if any(each is not None for each in row)}
    if not shown:
        return None
    ranges = [f"t {timestep_text(group.start, group.stop)}" for group in groups]
    return loss_map(list(shown), ranges, list(shown.values()))
