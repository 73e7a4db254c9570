"""Tables of allocations on the command line."""

from collections.abc import Mapping

from prunekit.allocation import Allocation
from prunekit.cli.console import print_table, tell

__all__ = ["judged", "show_allocation", "show_comparison"]


def show_allocation(allocation: Allocation) -> None:
    """Print an allocation as a table, with the feasible range."""
    rows = [
        [
            str(g.index),
            f"{g.start}–{g.stop - 1}",
            f"{g.snr_db:.1f}",
            f"{100 * g.share:.1f} %",
            f"{g.mac_ratio:.4f}",
            "—" if g.target_macs is None else f"{g.target_macs:,}",
        ]
        for g in allocation.groups
    ]
    known = allocation.base_macs is not None
    title = (
        f"Budget {allocation.budget:g}, rule {allocation.rule}, "
        f"{allocation.sampler_steps} evaluations of {allocation.sampler}"
    )
    header = ["group", "timesteps", "SNR dB", "steps", "ratio", "target MACs"]
    print_table(title, header if known else header[:-1], rows if known else [row[:-1] for row in rows])
    low, high = allocation.feasible
    mean = f"Mean over the steps: {allocation.mean_mac_ratio:.6f}"
    if allocation.base_macs is not None:
        mean += f", {round(allocation.mean_mac_ratio * allocation.base_macs):,} of {allocation.base_macs:,} MACs"
    tell(f"{mean}.")
    if allocation.mean_mac_ratio < allocation.budget - 1e-6:
        tell("Every group has the target with its least loss, so the rest of the budget is not spent.")
    floor = "" if allocation.network_floor is None else f" The network's floor is {allocation.network_floor:.4g}."
    if allocation.rule == "measured" and allocation.sensitivity is not None:
        tell(f"Losses are weighed by the sensitivity, measured in {allocation.sensitivity.measured_in}.")
        if allocation.sensitivity.not_linear:
            tell(allocation.sensitivity.describe_linearity())
    tell(f"Feasible budgets with this rule: {low:.4g} … {high:.4g}.{floor}")


def show_comparison(allocation: Allocation, compared: Mapping[str, Allocation | None]) -> None:
    """Print the MAC ratios of several rules side by side, and the losses on the frontiers at these ratios."""

    def row(label: list[str], values: list[float | None]) -> list[str]:
        return label + ["—" if value is None else f"{value:.4f}" for value in values]

    made = list(compared.values())
    rows = [
        row(
            [str(g.index), f"{g.snr_db:.1f}", f"{100 * g.share:.1f} %"],
            [None if one is None else one.groups[g.index].mac_ratio for one in made],
        )
        for g in allocation.groups
    ]
    rows.append(row(["mean", "", ""], [None if one is None else one.mean_mac_ratio for one in made]))
    rows.append(row(["loss", "", ""], [None if one is None else one.expected_loss() for one in made]))
    rows.append(row(["recorded loss", "", ""], [None if one is None else one.expected_loss(True) for one in made]))
    if allocation.sensitivity is not None:
        rows.append(row(["change", "", ""], [None if one is None else one.expected_change() for one in made]))
    print_table(f"MAC ratios by rule at budget {allocation.budget:g}", ["group", "SNR dB", "steps", *compared], rows)
    if allocation.sensitivity is not None:
        tell(
            f"Change: expected mean square change of the sample in {allocation.sensitivity.measured_in}, from these losses."
        )
    tell(
        f"Loss: mean over the sampler's steps {allocation.when}, linear between recorded points; recorded: at the best point "
        "within each target. A dash: the rule or the record does not reach so far."
    )


def judged(allocation: Allocation) -> dict[str, object]:
    """Each group's ratio by a rule, and the loss on its frontier at this ratio, JSON-able."""
    return {
        "mac_ratios": [group.mac_ratio for group in allocation.groups],
        "mean_mac_ratio": allocation.mean_mac_ratio,
        "loss": allocation.expected_loss(),
        "recorded_loss": allocation.expected_loss(recorded_only=True),
        **({} if allocation.sensitivity is None else {"change": allocation.expected_change()}),
    }
