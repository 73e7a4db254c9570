"""Commands that plan: ``groups`` and ``allocate``. They answer without importing torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from prunekit._files import read_json, write_json
from prunekit.allocation import Allocation, read_frontiers
from prunekit.cli.console import data_options, emit, print_table
from prunekit.cli.options import ConfigOption, DataOption, Json, Resolution, Seed
from prunekit.errors import InputError
from prunekit.groups import METHODS, Grouping, TimestepGroups
from prunekit.pipeline.planning import cut_groups, cut_with_evidence, plan_budget, side_by_side
from prunekit.schedule import NoiseSchedule

__all__ = ["COMMANDS"]


class Schedule(StrEnum):
    """Noise schedules that can be named on the command line."""

    linear = "linear"
    scaled_linear = "scaled_linear"
    cosine = "cosine"
    sigmoid = "sigmoid"
    edm = "edm"
    rectified_flow = "rectified_flow"


class Method(StrEnum):
    """Grouping methods."""

    uniform = "uniform"
    snr = "snr"
    similarity = "similarity"
    gradient = "gradient"


class CutRule(StrEnum):
    """Ways in which method similarity cuts."""

    stages = "stages"
    dynamic = "dynamic"


class Rule(StrEnum):
    """Allocation rules."""

    linear = "linear"
    snr = "snr"
    uniform = "uniform"
    measured = "measured"


ScheduleOption = Annotated[
    Schedule | None,
    typer.Option("--noise-schedule", help="Noise schedule that the model was trained with; the base's, else linear."),
]
TimestepsOption = Annotated[
    int | None, typer.Option("--num-timesteps", help="Training timesteps T; the base's, else 1000.")
]
_NEEDED = {
    "--base": "the network whose gradients are compared, such as base.pt",
    "--data": "the images to look at, such as digits, or the --base that was trained on them",
}
CutsOption = Annotated[str | None, typer.Option("--cuts", help="Explicit borders instead, e.g. 250,600.")]


def groups(
    count: Annotated[int, typer.Option("--groups", "--num-groups", help="Number of timestep groups.")] = 5,
    method: Annotated[
        Method, typer.Option(help="How to cut; similarity looks at images, gradient at a base.")
    ] = Method.uniform,
    cuts: CutsOption = None,
    noise_schedule: ScheduleOption = None,
    num_timesteps: TimestepsOption = None,
    data: DataOption = None,
    resolution: Resolution = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="For gradient: a base checkpoint; its images and noise schedule are used."),
    ] = None,
    config: ConfigOption = None,
    eta: Annotated[
        float | None,
        typer.Option(help="For similarity: difference of noise up to which pixels agree; 2/255 if absent."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="For similarity in three groups: least mean similarity; calibrated if absent.")
    ] = None,
    rule: Annotated[
        CutRule | None, typer.Option(help="For similarity: stages for three groups, dynamic for any number.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Pairs of image and noise; for gradient, draws per bin of timesteps.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Timesteps that are measured, or bins.")] = None,
    memory: Annotated[int | None, typer.Option(help="MiB that similarity may take beside the images; 256.")] = None,
    seed: Seed = 0,
    output: Annotated[
        Path, typer.Option(help="File to write; a picture of what was measured goes beside it as .png.")
    ] = Path("groups.json"),
    json: Json = False,
) -> None:
    """Cut the timesteps into groups and write groups.json. Group 0 is the cleanest."""
    kind = None if noise_schedule is None else noise_schedule.value
    asked = _given(kind=kind, num_timesteps=num_timesteps)
    looks = _given(eta=eta, alpha=alpha, rule=rule, samples=samples, nodes=nodes, memory_mib=memory)
    if cuts is not None or method.value in METHODS:
        named = [*looks, *_given(data=data, resolution=resolution, base=base, config=config)]
        if named:
            instead = "--cuts" if cuts is not None else f"--method {method.value}"
            raise InputError(
                f"Got {', '.join(named)} with {instead}, which looks at the noise schedule alone; "
                "expected --method similarity or gradient beside it."
            )
        schedule = NoiseSchedule.from_config({"kind": "linear", "num_timesteps": 1000} | asked)
        made = cut_with_evidence(schedule, count, method.value, _cuts(cuts))
    else:
        source = _Source(data, resolution, base, config)
        schedule, made = _measured(
            source, {"method": method.value, "count": count, "seed": seed, **looks}, asked, output
        )
    _show_groups(made, schedule, output, json)


@dataclass(frozen=True)
class _Source:
    """What method similarity or gradient looks at."""

    data: str | None
    resolution: int | None
    base: str | None
    config: Path | None


def _measured(
    source: _Source, chosen: dict[str, Any], asked: dict[str, Any], output: Path
) -> tuple[NoiseSchedule, Grouping]:
    """Groups by what images or a base show; refuses what cannot be written before it measures."""
    from prunekit.data import load_images
    from prunekit.pipeline.grouping import method_of
    from prunekit.pipeline.stages import images_of, open_base
    from prunekit.recipe import GroupOptions

    if output.is_dir() or output.suffix == ".png":
        raise InputError(
            f"Got --output {output}; expected the name of a file to write, a picture goes beside it as .png."
        )
    options = GroupOptions(**chosen)
    if source.base is None:
        if options.method == "gradient" or source.data is None:
            needed = "--base" if options.method == "gradient" else "--data"
            raise InputError(f"Got --method {options.method} without {needed}; expected {_NEEDED[needed]}.")
        if source.config is not None:
            raise InputError("Got --config without --base; expected both, for a bare state dict.")
        schedule = NoiseSchedule.from_config({"kind": "linear", "num_timesteps": 1000} | asked)
        method = method_of(options, load_images(source.data, source.resolution).train)
        return schedule, method(schedule, options.count)
    if asked:
        raise InputError(
            f"Got {', '.join(asked)} with --base, which has a noise schedule of its own; leave one of them out."
        )
    base = open_base(source.base, source.config)
    images = images_of(base, data_options(source.data, source.resolution))
    return base.schedule, method_of(options, images.train, base)(base.schedule, options.count)


def _show_groups(made: Grouping, schedule: NoiseSchedule, output: Path, json: bool) -> None:
    """Write groups and picture, and print them."""
    data = {**made.to_json(), "noise_schedule": schedule.to_config()}
    write_json(output, data)
    written = str(output)
    if made.evidence.matrix is not None:
        from prunekit.report import grouping_png

        picture = output.with_suffix(".png")
        grouping_png(made, picture)
        written += f", {picture}"
    if json:
        emit(True, data)
        return
    snr_db, sigma = schedule.snr_db, schedule.sigma
    rows = [
        [
            str(g.index),
            f"{g.start}–{g.stop - 1}",
            str(len(g)),
            f"{snr_db[g.start]:.1f} … {snr_db[g.stop - 1]:.1f}",
            f"{sigma[g.start]:.4g} … {sigma[g.stop - 1]:.4g}",
        ]
        for g in made.groups
    ]
    title = f"{len(made.groups)} timestep groups ({made.groups.method})"
    print_table(title, ["group", "timesteps", "count", "SNR dB", "sigma"], rows)
    facts = made.evidence.facts
    if "alpha" in facts:
        print(f"Three stages with alpha {facts['alpha']:g} ({facts['alpha_from']}) and eta {facts['eta']:.4g}.")
    print(f"Cuts: {', '.join(map(str, made.groups.cuts)) or 'none'}. Written to {written}")


def allocate(
    budget: Annotated[float, typer.Option(help="Mean fraction of the base's MACs over the sampler's steps, e.g. 0.8.")],
    rule: Annotated[Rule, typer.Option(help="How targets follow difficulty, or what was measured.")] = Rule.linear,
    groups: Annotated[
        Path | None,
        typer.Option("--groups-file", help="groups.json to use; the one that stands here when there is one."),
    ] = None,
    count: Annotated[int | None, typer.Option("--groups", help="Number of uniform groups, instead of a file.")] = None,
    sampler: Annotated[str, typer.Option(help="ddim, ddpm, heun, … or a diffusers scheduler's class name.")] = "ddim",
    steps: Annotated[int, typer.Option("--num-inference-steps", help="Sampling steps.")] = 50,
    floor: Annotated[float, typer.Option(help="Smallest ratio that rules snr and uniform give.")] = 0.1,
    journals: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the searches' journals, such as slim: what rule measured decides by; compares the rules."
        ),
    ] = None,
    noise_schedule: Annotated[
        Schedule | None,
        typer.Option("--noise-schedule", help="Noise schedule of the model; that of the groups file, else linear."),
    ] = None,
    num_timesteps: Annotated[
        int | None, typer.Option("--num-timesteps", help="Training timesteps T; those of the groups file, else 1000.")
    ] = None,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("allocation.json"),
    json: Json = False,
) -> None:
    """Give each timestep group a MAC target whose mean over the sampler's real steps is the budget.

    With --journals the targets of rules linear, snr and measured are shown side by side, with the loss that the journals record
    at each, before fine-tuning.
    """
    partition, schedule = _partition(groups, count, noise_schedule, num_timesteps)
    frontiers = () if journals is None else read_frontiers(journals, len(partition))
    allocation = plan_budget(
        partition, schedule, budget, rule=rule.value, sampler=sampler, steps=steps, floor=floor, frontiers=frontiers
    )
    compared = side_by_side(allocation, schedule, steps, floor) if frontiers else {}
    data = allocation.to_json()
    if compared:
        data["comparison"] = {name: None if one is None else _judged(one) for name, one in compared.items()}
    write_json(output, data)
    if json:
        emit(True, data)
    else:
        show_allocation(allocation)
        if compared:
            show_comparison(allocation, compared)
        print(f"Written to {output}")


def show_allocation(allocation: Allocation) -> None:
    """Print an allocation as a table with its feasible range."""
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
    """Print the MAC ratios of several rules side by side, and the losses that the frontiers show there."""

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


def _judged(allocation: Allocation) -> dict[str, Any]:
    """What a rule gives each group, and the losses that the frontiers show there."""
    return {
        "mac_ratios": [group.mac_ratio for group in allocation.groups],
        "mean_mac_ratio": allocation.mean_mac_ratio,
        "loss": allocation.expected_loss(),
        "recorded_loss": allocation.expected_loss(recorded_only=True),
    }


def _partition(
    path: Path | None, count: int | None, kind: Schedule | None, num_timesteps: int | None
) -> tuple[TimestepGroups, NoiseSchedule]:
    """Groups from a file, with the noise schedule that it names, or uniform ones; flags may not contradict the file."""
    if path is not None and count is not None:
        raise InputError("Got both --groups and --groups-file; expected one of them.")
    asked = {"kind": None if kind is None else kind.value, "num_timesteps": num_timesteps}
    asked = {key: value for key, value in asked.items() if value is not None}
    found = path or (Path("groups.json") if count is None and Path("groups.json").is_file() else None)
    if found is None:
        schedule = NoiseSchedule.from_config({"kind": "linear", "num_timesteps": 1000} | asked)
        return cut_groups(schedule, 5 if count is None else count), schedule
    data: dict[str, Any] = read_json(found, "prunekit-groups/1")
    partition = Grouping.from_json(data).groups
    cut_for: dict[str, Any] = {"num_timesteps": partition.num_timesteps}
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


def _given(**options: Any) -> dict[str, Any]:
    """Options that are not absent."""
    return {name: value for name, value in options.items() if value is not None}


def _cuts(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"Got --cuts {text!r}; expected rising integers with commas between, e.g. 250,600.") from error


COMMANDS = (groups, allocate)
