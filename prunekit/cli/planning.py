"""The command ``allocate``, which divides a budget. It imports torch only if it is given a base."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from prunekit._files import write_json
from prunekit._json import JsonObject, read_json
from prunekit._kinds import FileKind, has_format
from prunekit._missing import check_base
from prunekit.allocation import check_leaves_cleanest
from prunekit.choices import AllocationRule, ExpertsKind, ScheduleName
from prunekit.cli.allocation_tables import judged, show_allocation, show_comparison
from prunekit.cli.console import emit, refuse_existing, tell
from prunekit.cli.interrupts import writing
from prunekit.cli.next_steps import after_allocate, suggest
from prunekit.cli.planned_from import PlannedNetwork, Recorded
from prunekit.cli.shared_options import ConfigOption, Exists, InputsOption, Json, Overwrite
from prunekit.errors import InputError
from prunekit.groups import Grouping, TimestepGroups
from prunekit.results.formats import ALLOCATION, GROUPS
from prunekit.schedule import NoiseSchedule
from prunekit.steps.budgets import cut_groups, plan_budget, side_by_side, specialist_groups

__all__ = ["COMMANDS"]

_log = logging.getLogger(__name__)


def allocate(
    budget: Annotated[float, typer.Option(help="Mean fraction of the base's MACs over the sampler's steps, e.g. 0.8.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="The network to prune. No group's target is then below what it can be pruned to, and targets are shown in MACs "
            "(default: none, and prune checks the targets).",
        ),
        Exists(check_base),
    ] = None,
    config: ConfigOption = None,
    inputs: InputsOption = None,
    rule: Annotated[
        AllocationRule,
        typer.Option(
            help="How groups share the budget. auto: the cleaner groups stay whole and the noisy ones pay; linear: as in the "
            "paper; snr: as auto, but the noisiest groups may get less; uniform: all the same; measured: by --journals."
        ),
    ] = "auto",
    groups: Annotated[
        Path | None,
        typer.Option("--groups-file", help="Groups file (default: ./groups.json if it exists)."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--groups", help="Use this number of uniform groups instead of a file (default: 5 if there is no file)."
        ),
    ] = None,
    experts: Annotated[
        ExpertsKind,
        typer.Option(
            help="all: the groups share the budget by the rule; noisy: the base serves the cleaner timesteps and one pruned "
            "specialist the noisiest, and the border follows from the budget."
        ),
    ] = "all",
    data: Annotated[
        str | None,
        typer.Option(
            help="With --base: encoded images, at whose shapes its MACs are counted (default: shapes that the config states)."
        ),
    ] = None,
    sampler: Annotated[
        str,
        typer.Option(
            help="ddim, ddpm, heun, …, the class name of a diffusers scheduler, or pipeline (the base's own)."
        ),
    ] = "ddim",
    steps: Annotated[int, typer.Option("--num-inference-steps", help="Sampling steps.")] = 50,
    floor: Annotated[
        float | None,
        typer.Option(
            help="Smallest ratio that the rules auto, snr and uniform may give (default: for auto 5/8 of the budget's square, "
            "for the others 0.1)."
        ),
    ] = None,
    journals: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the journals of searches, such as slim. The rule measured needs them; the rules are compared "
            "(default: none)."
        ),
    ] = None,
    recoveries: Annotated[
        Path | None,
        typer.Option(
            help="recoveries.json of the same groups and base, by which the losses of the journals are corrected (default: none, "
            "losses before fine-tuning)."
        ),
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            help="sensitivity.json of the same groups and sampler. With it the rule measured weighs each group's loss by what the "
            "sampler makes of an error in it (default: none, by the number of its steps)."
        ),
    ] = None,
    noise_schedule: Annotated[
        ScheduleName | None,
        typer.Option(
            "--noise-schedule",
            help="Noise schedule of the model (default: the base's, else the groups file's, else linear).",
        ),
    ] = None,
    num_timesteps: Annotated[
        int | None,
        typer.Option(
            "--num-timesteps",
            help="Number of training timesteps T (default: the base's, else the groups file's, else 1000).",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="File to write. An earlier allocation is replaced.")] = Path(
        "allocation.json"
    ),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Give each timestep group a MAC target, so that the mean over the sampler's steps is the budget.

    With --journals the targets of rules auto, linear, snr and measured are shown side by side, with the loss that the journals
    record at each: before fine-tuning, or with --recoveries after a short one.
    """
    searched = [] if journals is None else journals.glob("*.jsonl")
    named = [groups, base, config, inputs, data, recoveries, sensitivity, *searched]
    refuse_existing(output, overwrite, FileKind("allocation", has_format(ALLOCATION)), named)
    recorded = Recorded(journals, recoveries, sensitivity)
    if base is None and (config or inputs or data):
        alone = "config" if config else "inputs" if inputs else "data"
        raise InputError(f"Got --{alone} without --base; expected both.")
    asked = {"kind": noise_schedule, "num_timesteps": num_timesteps}
    network = None if base is None else PlannedNetwork.of(base, config, inputs, data, asked)
    partition, schedule = _partition(groups, count, asked, None if network is None else network.schedule)
    if experts == "noisy":
        if count is not None or groups is not None:
            raise InputError(
                "Got --experts noisy with groups of timesteps; expected one of the two, since it makes groups of its own."
            )
        check_leaves_cleanest(rule)
        partition = specialist_groups(schedule, budget, sampler, steps)
    if base is not None and network is not None:
        network.check(partition, base)
    frontiers = recorded.frontiers(partition, network)
    allocation = plan_budget(
        partition,
        schedule,
        budget,
        rule=rule,
        sampler=sampler,
        steps=steps,
        floor=floor,
        network_floor=0.0 if network is None else network.floor,
        frontiers=frontiers,
        sensitivity=recorded.weights(network, schedule),
    )
    if network is not None:
        allocation = allocation.for_model(network.macs)
    compared = side_by_side(allocation, schedule, steps, floor) if frontiers else {}
    written = allocation.to_json()
    if compared:
        written["comparison"] = {name: None if one is None else judged(one) for name, one in compared.items()}
    with writing(output):
        write_json(output, written)
    if json:
        emit(True, written)
    else:
        show_allocation(allocation)
        if compared:
            show_comparison(allocation, compared)
        tell(f"Written to {output}")
        suggest(after_allocate(base, output, config, data))


def _partition(
    path: Path | None, count: int | None, options: Mapping[str, str | int | None], own: NoiseSchedule | None
) -> tuple[TimestepGroups, NoiseSchedule]:
    """Groups and noise schedule from a file, or uniform groups; options must not contradict the file.

    Args:
        path: the groups file that was named.
        count: the number of uniform groups that was asked for.
        options: of the noise schedule.
        own: the base's noise schedule; None without a base.
    """
    if path is not None and count is not None:
        raise InputError("Got both --groups and --groups-file; expected one of them.")
    asked: JsonObject = {key: value for key, value in options.items() if value is not None}
    found = path or (Path("groups.json") if count is None and Path("groups.json").is_file() else None)
    if found is None:
        schedule = own or NoiseSchedule.from_config({"kind": "linear", "num_timesteps": 1000} | asked)
        return cut_groups(schedule, 5 if count is None else count), schedule
    data: JsonObject = read_json(found, GROUPS)
    partition = Grouping.from_json(data, found).groups
    cut_for: JsonObject = {"num_timesteps": partition.num_timesteps}
    if "noise_schedule" not in data:
        if own is not None:
            return partition, own
        schedule = NoiseSchedule.from_config({"kind": "linear"} | cut_for | asked)
        return partition, schedule
    schedule = NoiseSchedule.from_config(data["noise_schedule"])
    cut_for["kind"] = schedule.to_config()["kind"]
    if not asked.items() <= cut_for.items():
        raise InputError(
            f"{found} was cut for a {cut_for['kind']} noise schedule of {partition.num_timesteps} timesteps, and the flags "
            f"say {', '.join(str(value) for value in asked.values())}; leave the flags out, or cut again with `prunekit groups`."
        )
    if own is not None and own.num_timesteps == schedule.num_timesteps and not own.is_close(schedule):
        _log.warning("%s was cut for another noise schedule than the base's; the targets follow the base's SNR.", found)
        return partition, own
    return partition, schedule


COMMANDS = (allocate,)
