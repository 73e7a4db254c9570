"""The command that prunes: ``prune``."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit._json import read_json
from prunekit.allocation import Allocation
from prunekit.cli.choices import (
    BasePath,
    Criterion,
    CriterionOption,
    HeadMode,
    HeadOption,
    NormMode,
    NormOption,
    Proposer,
    Proxy,
    Repair,
    Samples,
    TargetOf,
    check_timesteps,
)
from prunekit.cli.console import chosen_allocation, data_options, emit, print_table, refuse_inputs
from prunekit.cli.constraining import (
    DeclareOption,
    HeadModeOf,
    KeepOption,
    LimitOption,
    NormModeOf,
    TieOption,
    WidthMultipleOption,
    constraints_of,
    said_of_multiples,
    width_multiples,
)
from prunekit.cli.interrupts import keeping
from prunekit.cli.options import ConfigOption, DataOption, InputsOption, Json, Resolution, Seed
from prunekit.cli.reading_options import with_reading_options
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.schedule import NoiseSchedule

if TYPE_CHECKING:
    from prunekit.checkpoint import Asked, Base
    from prunekit.data import ImageSplit
    from prunekit.search import SearchResult
    from prunekit.slim import SlimModel
    from prunekit.steps.bench import Bench

__all__ = ["COMMANDS"]

_log = logging.getLogger(__name__)


@with_reading_options
def prune(
    base: BasePath,
    config: ConfigOption = None,
    inputs: InputsOption = None,
    group: Annotated[
        int | None, typer.Option(help="Timestep group, 0 = cleanest (default: all groups of the allocation).")
    ] = None,
    allocation: Annotated[Path | None, typer.Option(help="Allocation file (default: ./allocation.json).")] = None,
    target: Annotated[
        float | None,
        typer.Option(help="Fraction of the base's MACs, parameters or latency, instead of the allocation's."),
    ] = None,
    target_of: Annotated[
        TargetOf, typer.Option(help="What the target limits. Latency is measured on this machine.")
    ] = TargetOf.macs,
    width_multiple: WidthMultipleOption = None,
    latency_table: Annotated[
        Path,
        typer.Option(
            help="File of layer times for --target-of latency. It is measured and written if it does not exist."
        ),
    ] = Path("latency.json"),
    criterion: CriterionOption = Criterion.taylor,
    proposer: Annotated[Proposer, typer.Option(help="How the search decides widths.")] = Proposer.greedy,
    proxy: Annotated[Proxy, typer.Option(help="How the search rates candidates.")] = Proxy.least_squares,
    repair: Annotated[
        Repair, typer.Option(help="Repair the layers that read pruned channels, in closed form, before fine-tuning.")
    ] = Repair.least_squares,
    floor: Annotated[float, typer.Option(help="Smallest share of every channel group that is kept.")] = 0.0,
    norm_mode: NormOption = NormMode.even,
    head_mode: HeadOption = HeadMode.whole,
    keep: KeepOption = None,
    tie: TieOption = None,
    limit: LimitOption = None,
    declare: DeclareOption = None,
    norm_mode_of: NormModeOf = None,
    head_mode_of: HeadModeOf = None,
    data: DataOption = None,
    resolution: Resolution = None,
    samples: Samples = 256,
    rounds: Annotated[int, typer.Option(help="Number of rounds in which the search approaches the target.")] = 12,
    trials: Annotated[int, typer.Option(help="Number of candidates that evolution and tpe try.")] = 64,
    study: Annotated[
        Path | None, typer.Option(help="Optuna journal that several processes share, for evolution and tpe.")
    ] = None,
    llm_endpoint: Annotated[
        str | None, typer.Option(help="OpenAI-compatible URL for llm, such as http://127.0.0.1:8000/v1.")
    ] = None,
    llm_model: Annotated[str | None, typer.Option(help="Name of the model at the endpoint.")] = None,
    llm_key_variable: Annotated[
        str | None, typer.Option(help="Environment variable that holds the endpoint's API key.")
    ] = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="Folder to write. Each slim model becomes group-N in it.")] = Path(
        "slim"
    ),
    json: Json = False,
    *,
    reading: "Asked | None",
) -> None:
    """Prune a base to each timestep group's target, by importance on the group's own timesteps."""
    from prunekit.data import note_place
    from prunekit.recipe import PruneOptions
    from prunekit.search import Endpoint, SearchOptions, ranks
    from prunekit.slim import save_slim
    from prunekit.steps.bases import open_base
    from prunekit.steps.bench import Bench, prune_group, score_groups
    from prunekit.steps.image_choice import needs_images

    ranks.join()
    rank, size = ranks.place()
    if target_of is TargetOf.latency and size > 1 and not latency_table.is_file():
        raise InputError(f"{latency_table} does not exist; have one process measure it before several ranks search.")
    if (llm_endpoint is None) != (llm_model is None):
        raise InputError("Expected --llm-endpoint and --llm-model together.")
    loaded = open_base(base, config, inputs, reading)
    plan = _wanted_targets(allocation, target, loaded.schedule)
    partition = plan.timestep_groups
    check_timesteps(partition, loaded.schedule, base)
    _note_other_steps(plan, loaded.schedule)
    wanted = list(partition) if group is None else [partition[group]]
    _check_outputs(
        [output / f"group-{one.index}" for one in wanted], [base, config, inputs, allocation, study, latency_table]
    )
    others = data_options(data, resolution)
    asked = others is not None or needs_images(criterion.value, proposer.value, repair.value)
    loaded, images = _with_images(loaded, others, base) if asked else (loaded, None)
    train = None if images is None else images.train
    search = SearchOptions(
        proposer=proposer.value,
        proxy=proxy.value,
        rounds=rounds,
        target_of=target_of.value,
        trials=trials,
        seed=seed,
        study=str(study) if study else None,
        llm=Endpoint(llm_endpoint, llm_model, llm_key_variable) if llm_endpoint and llm_model else None,
    )
    options = PruneOptions(
        criterion=criterion.value,
        norm_mode=norm_mode.value,
        head_mode=head_mode.value,
        constraints=constraints_of(keep, tie, limit, declare, norm_mode_of, head_mode_of),
        samples=samples,
        seed=seed,
        search=search,
        width_multiples=width_multiples(width_multiple),
        latency_table=str(latency_table),
        floor=floor,
        repair=repair.value,
    )
    bench = Bench.of(loaded, options.norm_mode, options.head_mode, options.constraints)
    targets = plan.for_model(bench.macs)
    journals = {one.index: output / f"search-{one.index}.jsonl" for one in wanted}
    facts: list[dict[str, Any]] = []
    with keeping(lambda: _kept([*journals.values(), *([latency_table] if target_of is TargetOf.latency else [])])):
        if target_of is TargetOf.latency:
            bench = bench.timed(latency_table)
        scores = score_groups(bench, train, wanted, options)
        for one in wanted:
            macs = targets.groups[one.index].target_macs or 0
            slim, result = prune_group(bench, train, scores, one, macs, options, journals[one.index])
            if rank == 0:
                save_slim(slim, output / f"group-{one.index}")
                if images is not None and loaded.data.get("sha256") == images.sha256:
                    note_place(images, output.parent)
            facts.append(_fact(one.index, slim, result, bench, target_of, output))
    if rank > 0:
        return
    if json:
        emit(True, facts[0] if group is not None else {"groups": facts})
    else:
        _show_pruned(f"Pruned from {bench.macs:,} MACs ({criterion.value}, {proposer.value})", facts)
        if bench.latency is not None:
            print(_accuracy(bench.latency.table))


def _note_other_steps(plan: Allocation, schedule: NoiseSchedule) -> None:
    from prunekit.steps.budgets import planned_otherwise

    if said := planned_otherwise(plan, schedule):
        _log.info(said)


def _with_images(base: "Base", options: Any, source: str) -> tuple["Base", "ImageSplit"]:
    """The images to use, and the base with its record of them updated."""
    from prunekit.steps.image_choice import images_of, said_of_images

    images = images_of(base, options, source)
    return replace(base, data=said_of_images(base.data, images, options)), images


def _kept(files: list[Path]) -> str | None:
    """What an interrupted search leaves behind."""
    there = [str(path) for path in files if path.is_file()]
    return f"what was measured is kept in {', '.join(there)}" if there else None


def _fact(
    index: int, slim: "SlimModel", result: "SearchResult", bench: "Bench", target_of: TargetOf, output: Path
) -> dict[str, Any]:
    """What came of a timestep group's search, JSON-able."""
    base_macs = bench.macs
    return {
        "group": index,
        "output": str(output / f"group-{index}"),
        "base_macs": base_macs,
        "target_macs": result.target if target_of is TargetOf.macs else None,
        "macs": slim.macs,
        "mac_ratio": slim.macs / base_macs,
        "params": slim.params,
        "target_of": target_of.value,
        "target": result.target,
        "spent": result.spent,
        "missed": result.missed / result.base,
        "base": result.base,
        "measured_candidates": len(result.measured),
        "nothing_to_prune": result.nothing_to_prune,
        "multiples": result.multiples.to_json(),
    }


def _accuracy(table: Any) -> str:
    """How well the table of layer times predicts measured networks."""
    machine = "{processor} ({device}, threads: {threads}, torch {torch})".format_map(table.machine)
    worst = max((abs(check.error) for check in table.checks), default=None)
    checked = (
        "unchecked"
        if worst is None
        else f"off by {table.error:.1%} in the median of random plans, {worst:.1%} at worst"
    )
    return f"Latency is for batches of {table.batch_size} on {machine}; its prediction is {checked}."


def _check_outputs(folders: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Refuse outputs that would replace what is no slim model, or what the command reads.

    Raises:
        InputError: one would.
    """
    from prunekit._files import check_folder
    from prunekit.slim import FOLDER

    for folder in folders:
        check_folder(folder, FOLDER)
        refuse_inputs(folder, inputs, inside=True)


def _wanted_targets(path: Path | None, target: float | None, schedule: NoiseSchedule) -> Allocation:
    """The allocation, or one with the same ``target`` for every group of the allocation or groups that stand here.

    Raises:
        InputError: the target is no fraction.
        MissingFileError: there is neither an allocation nor a target.
    """
    from prunekit.steps.budgets import cut_groups, plan_budget

    if target is None:
        chosen = chosen_allocation(path)
        return Allocation.from_json(read_json(chosen), chosen)
    if not 0 < target <= 1:
        raise InputError(f"Got --target {target:g}; expected a fraction of the base's MACs, above 0 and at most 1.")
    standing = path or next((p for p in (Path("allocation.json"), Path("groups.json")) if p.is_file()), None)
    groups = TimestepGroups.from_json(read_json(standing), standing) if standing else cut_groups(schedule)
    steps = min(50, schedule.num_timesteps)
    return plan_budget(groups, schedule, target, rule="uniform", steps=steps, floor=min(target, 0.1))


def _show_pruned(title: str, facts: list[dict[str, Any]]) -> None:
    unit = {"macs": "MACs", "params": "parameters", "latency": "ns"}[facts[0]["target_of"]]
    header = ["group", f"target {unit}", "MACs", "ratio", "parameters", "missed", "written to"]
    rows = [
        [
            str(f["group"]),
            f"{f['target']:,}",
            f"{f['macs']:,}",
            f"{f['mac_ratio']:.4f}",
            f"{f['params']:,}",
            f"{f['missed']:.3%}",
            f["output"],
        ]
        for f in facts
    ]
    print_table(title, header, rows)
    if (said := said_of_multiples(facts)) is not None:
        print(said)
    if facts[0]["nothing_to_prune"] is not None:
        print(f"Nothing of this network can be pruned; its layers stay whole, {facts[0]['nothing_to_prune']}.")


COMMANDS = (prune,)
