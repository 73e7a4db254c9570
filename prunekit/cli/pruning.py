"""The command ``prune``."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit._json import JsonObject, read_json
from prunekit.choices import TargetOf
from prunekit.cli.console import chosen_allocation, data_options, emit, print_table, refuse_inputs, tell
from prunekit.cli.constraining import Constraining, said_of_multiples, width_multiples
from prunekit.cli.interrupts import keeping, written
from prunekit.cli.next_steps import after_prune, suggest
from prunekit.cli.pruning_choices import BasePath, check_timesteps
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.search_choices import LanguageModel, Searching
from prunekit.cli.shared_options import ConfigOption, DataOption, InputsOption, Json, Resolution
from prunekit.errors import InputError
from prunekit.steps.standing import command, slims_in

if TYPE_CHECKING:
    from prunekit.allocation import Allocation, Sensitivity
    from prunekit.checkpoint import Base
    from prunekit.data import ImageSplit
    from prunekit.groups import TimestepGroup
    from prunekit.recipe import PruneOptions
    from prunekit.schedule import NoiseSchedule
    from prunekit.search import SearchResult
    from prunekit.slim import SlimModel
    from prunekit.steps.bench import Bench
    from prunekit.steps.reach import Reach

__all__ = ["COMMANDS"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Goal:
    """What is pruned, and how far."""

    group: Annotated[
        list[int] | None,
        typer.Option(
            help="Timestep group, 0 = cleanest. May be repeated (default: all groups of the allocation).",
        ),
    ] = None
    allocation: Annotated[Path | None, typer.Option(help="Allocation file (default: ./allocation.json).")] = None
    target: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the base's MACs, parameters or latency, instead of the allocation's (default: the allocation's)."
        ),
    ] = None
    target_of: Annotated[
        TargetOf, typer.Option(help="What the target limits. Latency is predicted from layer times, of any machine.")
    ] = "macs"
    latency_table: Annotated[
        Path,
        typer.Option(
            help="File of layer times for --target-of latency, as `prunekit latency` writes it on any machine. It is measured "
            "on this one's processor and written if it does not exist."
        ),
    ] = Path("latency.json")
    latency_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples in a batch for which latency counts (default: the file's; 16 if it is measured).", min=1
        ),
    ] = None


def prune(
    base: BasePath,
    goal: Goal,
    searching: Searching,
    constraining: Constraining,
    language_model: LanguageModel,
    reading: ReadingOptions,
    config: ConfigOption = None,
    inputs: InputsOption = None,
    data: DataOption = None,
    resolution: Resolution = None,
    output: Annotated[Path, typer.Option(help="Folder to write. Each slim model becomes group-N in it.")] = Path(
        "slim"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace slim models that were fine-tuned. Others are replaced anyway.")
    ] = False,
    json: Json = False,
) -> None:
    """Prune a base to each timestep group's target, by importance on the group's own timesteps."""
    from prunekit.search import check_available, ranks
    from prunekit.steps.bases import open_base
    from prunekit.steps.bench import Bench
    from prunekit.steps.image_choice import needs_images
    from prunekit.steps.reach import Reach

    ranks.join()
    rank, size = ranks.place()
    table, timed = goal.latency_table, goal.target_of == "latency"
    if timed and size > 1 and not table.is_file():
        raise InputError(f"{table} does not exist; have one process measure it before several ranks search.")
    options = _options(goal, searching, constraining, language_model)
    check_available(options.search.proposer)
    loaded = open_base(base, config, inputs, reading.asked)
    encoded = data if data and (Path(data) / "encoded.json").is_file() else None  # allocate takes no other images
    typed: JsonObject = {"base": base, "config": config, "inputs": inputs, "data": encoded}
    plan = _wanted_targets(goal.allocation, goal.target, loaded.schedule, typed)
    partition = plan.timestep_groups
    check_timesteps(partition, loaded.schedule, base)
    _note_other_steps(plan, loaded.schedule)
    wanted = [partition[index] for index in goal.group] if goal.group else list(partition)
    known = searching.weighed_by(plan, loaded.model, loaded.schedule)
    read = [base, config, inputs, goal.allocation, searching.sensitivity, searching.study, table]
    _check_outputs([output / f"group-{one.index}" for one in wanted], read, overwrite)
    others = data_options(data, resolution)
    asked = others is not None or needs_images(options.criterion, options.search.proposer, options.repair)
    loaded, images = _with_images(loaded, others, base) if asked else (loaded, None)
    bench = Bench.of(loaded, options.norm_mode, options.head_mode, options.constraints, options.shrink)
    targets = plan.for_model(bench.macs)
    jobs = [_Job(one, targets.groups[one.index].target_macs or 0, output) for one in wanted]
    with keeping(lambda: _kept([*(job.journal for job in jobs), *([table] if timed else [])])):
        bench = bench.timed(table, goal.latency_batch_size) if timed else bench
        _check_reach(Reach.of(bench, options), jobs, plan, goal, base)
        facts = _pruned(jobs, bench, images, options, known, goal.target_of)
    written(*(job.slim for job in jobs))
    if rank > 0:
        return
    if json:
        emit(True, facts[0] if goal.group and len(goal.group) == 1 else {"groups": facts})
    else:
        _show_pruned(f"Pruned from {bench.macs:,} MACs ({options.criterion}, {options.search.proposer})", facts)
        if bench.latency is not None:
            tell(bench.latency.table.describe())
        told = {"target": goal.target, "config": config, "data": data}
        suggest(after_prune(base, output, goal.allocation, partition, **told))


def _check_reach(reach: "Reach", jobs: Iterable["_Job"], plan: "Allocation", goal: Goal, base: str) -> None:
    """Refuse targets that the network cannot be pruned to, before the first search.

    Raises:
        BudgetError: there are some.
    """
    if goal.target is not None:
        mend = f"give a --target of at least {reach.shown}"
    else:
        again = command("allocate", budget=f"{plan.budget:g}", base=base, output=goal.allocation)
        mend = (
            f"allocate with what the network can be pruned to, by `{again}`, or with a budget of {reach.shown} … 1, another rule "
            "or other groups"
        )
    reach.check({job.group.index: job.macs for job in jobs}, mend)


def _options(
    goal: Goal, searching: Searching, constraining: Constraining, language_model: LanguageModel
) -> "PruneOptions":
    """What was typed, as a recipe says it."""
    from prunekit.recipe import PruneOptions
    from prunekit.search import SearchOptions

    search = SearchOptions(
        proposer=searching.proposer,
        proxy=searching.proxy,
        rounds=searching.rounds,
        target_of=goal.target_of,
        trials=searching.trials,
        negligible=searching.negligible,
        seed=searching.seed,
        study=str(searching.study) if searching.study else None,
        llm=language_model.endpoint,
    )
    return PruneOptions(
        criterion=searching.criterion,
        norm_mode=constraining.norm_mode,
        head_mode=constraining.head_mode,
        constraints=constraining.constraints,
        samples=searching.samples,
        seed=searching.seed,
        search=search,
        width_multiples=width_multiples(constraining.width_multiple),
        latency_table=str(goal.latency_table),
        latency_batch_size=goal.latency_batch_size,
        floor=searching.floor,
        shrink=searching.shrink,
        repair=searching.repair,
    )


@dataclass(frozen=True)
class _Job:
    """One timestep group to prune.

    Args:
        group: the timestep group.
        macs: its target.
        output: folder of all slim models.
    """

    group: "TimestepGroup"
    macs: int
    output: Path

    @property
    def journal(self) -> Path:
        """File of the search's memory."""
        return self.output / f"search-{self.group.index}.jsonl"

    @property
    def slim(self) -> Path:
        """Folder of its slim model."""
        return self.output / f"group-{self.group.index}"


def _pruned(
    jobs: Iterable[_Job],
    bench: "Bench",
    images: "ImageSplit | None",
    options: "PruneOptions",
    sensitivity: "Sensitivity | None",
    target_of: TargetOf,
) -> list[dict[str, object]]:
    """Score, search, prune and write each timestep group; gives back the facts of each."""
    from prunekit.data import note_place
    from prunekit.search import ranks
    from prunekit.slim import save_slim
    from prunekit.steps.bench import prune_group, score_groups, slack_of

    jobs, train = list(jobs), None if images is None else images.train
    scores = score_groups(bench, train, [job.group for job in jobs], options)
    slack = slack_of(bench, train, sensitivity, options)
    facts = []
    for job in jobs:
        own = slack[job.group.index] if slack else 1.0
        slim, result = prune_group(bench, train, scores, job.group, job.macs, options, job.journal, own)
        if ranks.place()[0] == 0:
            save_slim(slim, job.slim)
            if images is not None and bench.base.data.get("sha256") == images.sha256:
                note_place(images, job.output.parent)
        facts.append(_fact(job.group.index, slim, result, bench, target_of, job.output))
    return facts


def _note_other_steps(plan: "Allocation", schedule: "NoiseSchedule") -> None:
    from prunekit.steps.budgets import planned_otherwise

    if said := planned_otherwise(plan, schedule):
        _log.info(said)


def _with_images(base: "Base", options: Any, source: str) -> tuple["Base", "ImageSplit"]:
    """The base with an updated record of its images, and the images."""
    from prunekit.steps.data_shapes import as_encoded
    from prunekit.steps.image_choice import images_of, said_of_images

    images = images_of(base, options, source)
    return replace(as_encoded(base, images.train), data=said_of_images(base.data, images, options)), images


def _kept(files: list[Path]) -> str | None:
    """A sentence about what is kept after an interrupted search."""
    there = [str(path) for path in files if path.is_file()]
    return f"what was measured is kept in {', '.join(there)}" if there else None


def _fact(
    index: int, slim: "SlimModel", result: "SearchResult", bench: "Bench", target_of: TargetOf, output: Path
) -> dict[str, object]:
    """The result of a timestep group's search, JSON-able."""
    base_macs = bench.macs
    return {
        "group": index,
        "output": str(output / f"group-{index}"),
        "base_macs": base_macs,
        "target_macs": result.target if target_of == "macs" else None,
        "macs": slim.macs,
        "mac_ratio": slim.macs / base_macs,
        "params": slim.params,
        "removed_branches": list(slim.plan.removed),
        "target_of": target_of,
        "target": result.target,
        "spent": result.spent,
        "missed": result.missed / result.base,
        "base": result.base,
        "measured_candidates": len(result.measured),
        "nothing_to_prune": result.nothing_to_prune,
        "multiples": result.multiples.to_json(),
        "latency": None if bench.latency is None else bench.latency.table.about(),
    }


def _check_outputs(folders: Sequence[Path], inputs: Iterable[str | Path | None], overwrite: bool) -> None:
    """Refuse outputs that would replace an input, or anything but a slim model; and, without permission, a fine-tuned one.

    Raises:
        InputError: an output would.
    """
    from prunekit._files import check_folder
    from prunekit.slim import FOLDER, check_not_needed

    for folder in folders:
        check_folder(folder, FOLDER)
        check_not_needed(folder)
        refuse_inputs(folder, inputs, inside=True)
    for one in [] if overwrite else slims_in(folders[0].parent):
        if one.tuned and one.folder in folders:
            raise InputError(
                f"{one.folder} was fine-tuned for {one.tuned} steps, which pruning would lose; give another --output, or "
                "--overwrite to replace it."
            )


def _wanted_targets(
    path: Path | None, target: float | None, schedule: "NoiseSchedule", typed: JsonObject
) -> "Allocation":
    """The given allocation; with a ``target``, an allocation with this target for every group.

    Args:
        path: the allocation file that was named.
        target: the target that was typed in place of an allocation.
        schedule: the base's noise schedule.
        typed: options that an allocation would take, too.

    Raises:
        InputError: the target is not a fraction.
        MissingFileError: there is neither an allocation nor a target.
    """
    from prunekit.allocation import Allocation
    from prunekit.groups import TimestepGroups
    from prunekit.steps.budgets import cut_groups, plan_budget

    if target is None:
        chosen = chosen_allocation(path, **typed)
        return Allocation.from_json(read_json(chosen), chosen)
    if not 0 < target <= 1:
        raise InputError(f"Got --target {target:g}; expected a fraction of the base's MACs, above 0 and at most 1.")
    files = [path] if path else [file for file in (Path("allocation.json"), Path("groups.json")) if file.is_file()]
    found = [TimestepGroups.from_json(read_json(file), file) for file in files]
    times = [file.stat().st_mtime_ns for file in files]
    if len({groups.cuts for groups in found}) > 1 and times[1] > times[0]:
        raise InputError(
            "groups.json is newer than allocation.json and has other timestep groups; allocate again with `prunekit allocate`, or "
            "name the file by --allocation."
        )
    groups = found[0] if found else cut_groups(schedule)
    steps = min(50, schedule.num_timesteps)
    return plan_budget(groups, schedule, target, rule="uniform", steps=steps, floor=min(target, 0.1))


def _show_pruned(title: str, facts: list[JsonObject]) -> None:
    from prunekit.graph.branch import said_of_branches

    unit = {"macs": "MACs", "params": "params", "latency": "ns"}[facts[0]["target_of"]]
    header = ["group", f"target {unit}", "MACs", "ratio", "parameters", "missed", "written to"]
    where = {str(Path(f["output"]).parent) for f in facts}
    rows = [
        [
            str(f["group"]),
            f"{f['target']:,}",
            f"{f['macs']:,}",
            f"{f['mac_ratio']:.4f}",
            f"{f['params']:,}",
            f"{f['missed']:.3%}",
            Path(f["output"]).name,
        ]
        for f in facts
    ]
    title = f"{title}, written to {', '.join(sorted(where))}"
    header[-1] = "folder"
    print_table(title, header, rows)
    for fact in facts:
        if removed := fact["removed_branches"]:
            names = ", ".join(name.removeprefix("branch:") for name in removed)
            tell(f"Group {fact['group']}: {said_of_branches(removed)}: {names}.")
    if (said := said_of_multiples(facts)) is not None:
        tell(said)
    if facts[0]["nothing_to_prune"] is not None:
        tell(f"Nothing of this network can be pruned; its layers stay whole, {facts[0]['nothing_to_prune']}.")


COMMANDS = (prune,)
