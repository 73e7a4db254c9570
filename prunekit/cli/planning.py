"""The command ``allocate``, which divides a budget. It does not import torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from prunekit._files import write_json
from prunekit._json import JsonObject, read_json
from prunekit._kinds import FileKind, has_format
from prunekit.allocation import Allocation, read_frontiers
from prunekit.choices import AllocationRule, ScheduleName
from prunekit.cli.console import emit, print_table, refuse_existing
from prunekit.cli.interrupts import writing
from prunekit.cli.shared_options import Json, Overwrite
from prunekit.errors import InputError
from prunekit.groups import Grouping, TimestepGroups
from prunekit.results.formats import ALLOCATION, GROUPS
from prunekit.schedule import NoiseSchedule
from prunekit.steps.budgets import cut_groups, plan_budget, side_by_side

__all__ = ["COMMANDS"]


def allocate(
    budget: Annotated[float, typer.Option(help="Mean fraction of the base's MACs over the sampler's steps, e.g. 0.8.")],
    rule: Annotated[
        AllocationRule, typer.Option(help="How groups share the budget: by difficulty, or by measurements.")
    ] = "linear",
    groups: Annotated[
        Path | None,
        typer.Option("--groups-file", help="Groups file (default: ./groups.json if it exists)."),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--groups", help="Use this number of uniform groups instead of a file.")
    ] = None,
    sampler: Annotated[
        str, typer.Option(help="ddim, ddpm, heun, …, or the class name of a diffusers scheduler.")
    ] = "ddim",
    steps: Annotated[int, typer.Option("--num-inference-steps", help="Sampling steps.")] = 50,
    floor: Annotated[float, typer.Option(help="Smallest ratio that the rules snr and uniform may give.")] = 0.1,
    journals: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the journals of searches, such as slim. The rule measured needs them; the rules are compared."
        ),
    ] = None,
    noise_schedule: Annotated[
        ScheduleName | None,
        typer.Option("--noise-schedule", help="Noise schedule of the model (default: the groups file's, else linear)."),
    ] = None,
    num_timesteps: Annotated[
        int | None,
        typer.Option("--num-timesteps", help="Number of training timesteps T (default: the groups file's, else 1000)."),
    ] = None,
    output: Annotated[Path, typer.Option(help="File to write. An earlier allocation is replaced.")] = Path(
        "allocation.json"
    ),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Give each timestep group a MAC target, so that the mean over the sampler's steps is the budget.

    With --journals the targets of rules linear, snr and measured are shown side by side, with the loss that the journals record
    at each, before fine-tuning.
    """
    refuse_existing(output, overwrite, FileKind("allocation", has_format(ALLOCATION)), [groups])
    partition, schedule = _partition(groups, count, noise_schedule, num_timesteps)
    frontiers = () if journals is None else read_frontiers(journals, len(partition))
    allocation = plan_budget(
        partition, schedule, budget, rule=rule, sampler=sampler, steps=steps, floor=floor, frontiers=frontiers
    )
    compared = side_by_side(allocation, schedule, steps, floor) if frontiers else {}
    data = allocation.to_json()
    if compared:
        data["comparison"] = {name: None if one is None else _judged(one) for name, one in compared.items()}
    with writing(output):
        write_json(output, data)
    if json:
        emit(True, data)
    else:
        show_allocation(allocation)
        if compared:
            show_comparison(allocation, compared)
        print(f"Written to {output}")


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
    title = (
        f"Budget {allocation.budget:g} of the base's MACs, rule {allocation.rule}, "
        f"{allocation.sampler_steps} evaluations of {allocation.sampler}"
    )
    print_table(title, ["group", "timesteps", "SNR dB", "share of steps", "MAC ratio", "target MACs"], rows)
    low, high = allocation.feasible
    print(
        f"Mean over the steps: {allocation.mean_mac_ratio:.6f}. Feasible budgets with this rule: {low:.4g} … {high:.4g}."
    )


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
    print_table(
        f"MAC ratios by rule at budget {allocation.budget:g}", ["group", "SNR dB", "share of steps", *compared], rows
    )
    print(
        "Loss: mean over the sampler's steps before fine-tuning, linear between recorded points; recorded: at the best point "
        "within each target. A dash: the rule or the record does not reach so far."
    )


def _judged(allocation: Allocation) -> dict[str, object]:
    """Each group's ratio by a rule, and the loss on its frontier at this ratio."""
    return {
        "mac_ratios": [group.mac_ratio for group in allocation.groups],
        "mean_mac_ratio": allocation.mean_mac_ratio,
        "loss": allocation.expected_loss(),
        "recorded_loss": allocation.expected_loss(recorded_only=True),
    }


def _partition(
    path: Path | None, count: int | None, kind: ScheduleName | None, num_timesteps: int | None
) -> tuple[TimestepGroups, NoiseSchedule]:
    """Groups and noise schedule from a file, or uniform groups; options must not contradict the file."""
    if path is not None and count is not None:
        raise InputError("Got both --groups and --groups-file; expected one of them.")
    asked = {"kind": kind, "num_timesteps": num_timesteps}
    asked = {key: value for key, value in asked.items() if value is not None}
    found = path or (Path("groups.json") if count is None and Path("groups.json").is_file() else None)
    if found is None:
        schedule = NoiseSchedule.from_config({"kind": "linear", "num_timesteps": 1000} | asked)
        return cut_groups(schedule, 5 if count is None else count), schedule
    data: JsonObject = read_json(found, GROUPS)
    partition = Grouping.from_json(data, found).groups
    cut_for: JsonObject = {"num_timesteps": partition.num_timesteps}
    if "noise_schedule" not in data:
        schedule = NoiseSchedule.from_config({"kind": "linear"} | cut_for | asked)
        return partition, schedule
    schedule = NoiseSchedule.from_config(data["noise_schedule"])
    cut_for["kind"] = schedule.to_config()["kind"]
    if not asked.items() <= cut_for.items():
        raise InputError(
            f"{found} was cut for a {cut_for['kind']} noise schedule of {partition.num_timesteps} timesteps, and the flags "
            f"say {', '.join(str(value) for value in asked.values())}; leave the flags out, or cut again with `prunekit groups`."
        )
    return partition, schedule


COMMANDS = (allocate,)
