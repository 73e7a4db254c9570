"""The stages between files: each takes what the one before gives, and can be called alone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit._files import write_json
from prunekit._json import read_json
from prunekit._leftovers import restore_within
from prunekit.checkpoint import Asked, Base, ModelSpec, load_base, read_inputs
from prunekit.checkpoint.finite import first_not_finite
from prunekit.cost import CostModel, LatencyModel, LatencyTable, verify
from prunekit.data import ImageData, ImageSplit
from prunekit.errors import GraphError, InputError
from prunekit.graph import ChannelGraph, Constraints, HeadMode, NormMode, attributes, trace
from prunekit.graph.running import Inputs
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.importance import ImportanceMap, Loss, Probe, Scores, importance, no_loss
from prunekit.nets import save_experts
from prunekit.pipeline.images import check_images, classes_for, images_for, images_of, images_of_slim
from prunekit.pipeline.placing import placed
from prunekit.recipe import BaseOptions, PruneOptions
from prunekit.search import Measure, SearchResult, in_units, repair, search
from prunekit.slim import SlimModel, load_slim
from prunekit.training import (
    CountedObjective,
    DenoisingObjective,
    Reporter,
    Tally,
    TrainResult,
    timestep_sampler,
    train,
)

__all__ = [
    "EMBEDDED",
    "Bench",
    "assemble",
    "check_images",
    "complete_spec",
    "images_for",
    "images_of",
    "images_of_slim",
    "open_base",
    "prune_group",
    "score_groups",
    "search_and_repair",
    "seeded_weights",
    "train_base",
]

EMBEDDED = "embedded:"


def open_base(
    source: str, config: Path | str | None = None, inputs: Path | str | None = None, asked: Asked | None = None
) -> Base:
    """A base by path, or one that is shipped: ``embedded:digits``.

    Args:
        source: file, folder, id on the Hugging Face Hub, or name of an embedded base.
        config: JSON of the architecture, for a bare state dict.
        inputs: JSON of a forward pass's arguments, see :mod:`prunekit.checkpoint.inputs`; derived from the config if missing.
        asked: which weights, and what the base was trained for, in place of what its files say.
    """
    own = {} if asked is None else vars(asked)
    if not source.startswith(EMBEDDED):
        return load_base(source, config, inputs=None if inputs is None else read_inputs(inputs), **own)
    name = source.removeprefix(EMBEDDED)
    asset = files("prunekit") / "assets" / f"{name}-base.safetensors"
    if not name.isalnum() or not asset.is_file():
        raise InputError(f"There is no embedded base {name!r}; expected embedded:digits, or a path.")
    with as_file(asset) as path:
        return load_base(path, **own)


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Networks that are built within the block have first weights of this seed."""
    with torch.random.fork_rng(devices=[]):  # modules initialise themselves from the global generator only
        torch.default_generator.manual_seed(seed)
        yield


def complete_spec(options: BaseOptions) -> ModelSpec:
    """The network to train, with the arguments that the options leave to the class.

    Raises:
        FileFormatError: it is larger than any that can be trained.
    """
    options.spec().check_size()
    with torch.device("meta"):
        return ModelSpec.of(options.spec().build())


def train_base(
    options: BaseOptions, data: ImageSplit, checkpoints: Path | str | None = None, report: Reporter | None = None
) -> tuple[Base, TrainResult]:
    """Train a base from scratch; its first weights come from the train options' seed.

    Raises:
        InputError: the network does not take the images.
        FileFormatError: it is larger than any that can be trained.
    """
    checkpoints = Path(checkpoints) if checkpoints is not None else None
    options.spec().check_size()
    with seeded_weights(options.train.seed):
        model = options.spec().build()
    spec = ModelSpec.of(model)  # with the arguments that the options leave to the class
    check_images(data, spec)
    schedule, kind = options.schedule, options.prediction_type or "epsilon"
    classes = classes_for(data.train, spec, options.train.label_dropout)
    objective = DenoisingObjective(data.train.images, schedule, kind, classes, data.train.name)
    sampler = timestep_sampler(options.train, schedule, kind)
    result = train(model, objective, sampler, options.train, checkpoints, report)
    trained = {name: getattr(options.train, name) for name in ("steps", "batch_size", "seed")}
    provenance = {**trained, "data_sha256": data.train.sha256}
    return Base(result.model, spec, schedule, kind, data.about(), provenance), result


@dataclass(frozen=True, eq=False)
class Bench:
    """A base with its channel groups and cost model, and layer times where needed: what scoring and pruning work on."""

    base: Base
    graph: ChannelGraph
    cost: CostModel
    macs: int
    latency: LatencyModel | None = None

    @classmethod
    def of(
        cls,
        base: Base,
        norm_mode: NormMode = "even",
        head_mode: HeadMode = "whole",
        constraints: Constraints | None = None,
    ) -> "Bench":
        """Trace and count, once; arguments as for :func:`prunekit.graph.trace`."""
        inputs = base.spec.example_inputs()
        graph = trace(base.model, inputs, norm_mode, head_mode, constraints=constraints)
        cost = CostModel.of(base.model, graph, inputs)
        return cls(base, graph, cost, int(cost.macs(graph.full_widths)))

    def timed(self, path: Path | str) -> "Bench":
        """The same with the table of layer times of a file; it is measured on this machine and written where there is none.

        Raises:
            FileFormatError: the file is no table of layer times.
            InputError: the table was measured for another network or norm mode.
        """
        path = Path(path)
        if path.is_file():
            return self.with_times(path)
        table = LatencyTable.of(self.base.model, self.graph, self.cost, self.base.spec.example_inputs())
        write_json(path, table.to_json())
        return replace(self, latency=table.bind(self.graph, self.cost))

    def with_times(self, path: Path | str) -> "Bench":
        """The same with the table of layer times of a file, which is only read.

        Raises:
            MissingFileError: there is no such file.
            FileFormatError: the file is no table of layer times.
            InputError: the table was measured for another network or norm mode.
        """
        path = Path(path)
        table = LatencyTable.from_json(read_json(path), path)
        return replace(self, latency=table.bind(self.graph, self.cost))


def score_groups(
    bench: Bench,
    images: ImageData | None,
    groups: Iterable[TimestepGroup],
    options: PruneOptions,
    tally: Tally | None = None,
) -> ImportanceMap:
    """Importance of every channel group for the given timestep groups; ``tally`` counts the samples that it takes.

    Without images, a criterion that evaluates the loss is refused.
    """
    base = bench.base
    objective: CountedObjective | None = None
    if images is not None:
        classes = classes_for(images, base.spec)
        objective = CountedObjective(
            images.images, base.schedule, base.prediction_type, classes, images.name, tally=tally or Tally()
        )
    with placed(base.model):
        return importance(
            base.model,
            base.spec.example_inputs(),
            objective,
            groups,
            by=options.criterion,
            samples=options.samples,
            batch_size=options.batch_size,
            seed=options.seed,
            graph=bench.graph,
            num_timesteps=base.schedule.num_timesteps,
        )


def prune_group(
    bench: Bench,
    images: ImageData | None,
    scores: ImportanceMap,
    group: TimestepGroup,
    target: float | int,
    options: PruneOptions,
    journal: Path | str | None = None,
) -> tuple[SlimModel, SearchResult]:
    """Search a plan for one timestep group, apply it, and check the result against the counter.

    Args:
        bench: the base.
        images: what the probe draws from; None where neither the proposer nor the repair evaluates the network.
        scores: importance for the timestep group at least.
        group: the timestep group.
        target: MACs, or a fraction of the base's in (0, 1]. Where the search's target is of parameters or latency, the same
            fraction of the base's is meant.
        options: how to search.
        journal: file of the search's memory bank, from which it goes on if it was killed.

    Raises:
        BudgetError: the target is below what the network can be pruned to.
        GraphError: the pruned network does not run, costs something else than predicted, or has weights that are not finite.
        MissingFileError: there is no table of layer times for a target of latency; :meth:`Bench.timed` makes one.
    """
    base, of = bench.base, options.search.target_of
    objective: Loss = no_loss
    if images is not None:
        classes = classes_for(images, base.spec)
        objective = DenoisingObjective(images.images, base.schedule, base.prediction_type, classes, images.name)
    if of == "latency" and bench.latency is None and options.latency_table is not None:
        bench = bench.with_times(Path(options.latency_table))  # a recipe may name it, so it is not written here
    full = int(Measure.by_name(of, bench.cost, bench.latency).of(bench.graph.full_widths))
    macs = in_units(target, bench.macs, "MACs")
    model, result = search_and_repair(
        base.model,
        base.spec.example_inputs(),
        bench.graph,
        bench.cost,
        objective,
        scores.of(group.index),
        group,
        macs if of == "macs" else macs * full // bench.macs,
        options,
        bench.latency,
        journal,
    )
    about = {**base.about(), "provenance": _provenance(bench, result, options)}
    sizes = attributes(base.model, bench.graph, result.plan)
    slim = SlimModel(
        model, base.spec, result.plan, sizes, group, base.schedule.num_timesteps, result.macs, result.params, about
    )
    return slim, result


def search_and_repair(
    model: nn.Module,
    inputs: Inputs,
    graph: ChannelGraph,
    cost: CostModel,
    loss: Loss,
    scores: Scores,
    group: TimestepGroup,
    target: float | int,
    options: PruneOptions,
    latency: LatencyModel | None = None,
    journal: Path | str | None = None,
) -> tuple[nn.Module, SearchResult]:
    """Search a plan for one timestep group, apply it, repair what it cut, and check the result against the counter.

    Args:
        model: the full network, which is not changed.
        inputs: arguments of one forward pass at batch 1.
        graph: its channel groups.
        cost: their cost model.
        loss: as for :class:`prunekit.importance.Probe`.
        scores: importance of every channel for the timestep group.
        group: the timestep group.
        target: in the unit of the search's target, or a fraction of the base's in (0, 1].
        options: how to search and repair.
        latency: needed for a target of latency.
        journal: file of the search's memory bank, from which it goes on if it was killed.

    Returns:
        The pruned network on the CPU, and how it was found.

    Raises:
        BudgetError: the target is below what the network can be pruned to.
        GraphError: the pruned network does not run, costs something else than predicted, or has weights that are not finite.
    """
    probe = Probe(loss, group, options.samples, options.batch_size, options.seed)
    restricted = graph.with_floor(options.floor)
    if options.multiples is not None:
        restricted = restricted.with_multiples(options.multiples)
    with placed(model):
        result = search(model, restricted, cost, scores, probe, target, options.search, latency, journal)
        pruned = repair(model, graph, result.plan, probe, options.repair).cpu()
    if (found := first_not_finite(pruned)) is not None:
        raise GraphError(
            f"After the repair of timestep group {group.index} {found}; expected finite weights: prune it with --repair none."
        )
    verify(model, pruned, graph, result.plan, cost, inputs)
    return pruned, result


def _provenance(bench: Bench, result: SearchResult, options: PruneOptions) -> dict[str, Any]:
    """Where a pruned network comes from, and what was asked of it."""
    of = options.search.target_of
    provenance: dict[str, Any] = {
        "base_sha256": bench.base.sha256,
        "base_macs": bench.macs,
        "criterion": options.criterion,
        "proposer": options.search.proposer,
        "proxy": options.search.proxy,
        "repair": options.repair,
        "seed": options.seed,
        "target_of": of,
        "target": result.target,
        "spent": result.spent,
        "base": result.base,
    }
    if "base_model" in bench.base.provenance:
        provenance["base_model"] = bench.base.provenance["base_model"]
    if of == "macs":
        provenance["target_macs"] = result.target
    if options.multiples:
        provenance["width_multiples"] = {str(side): multiple for side, multiple in options.multiples.items()}
    if result.multiples.largest > 1:
        provenance["multiples"] = result.multiples.to_json()
    if options.constraints:
        provenance["constraints"] = options.constraints.to_json()
    if of == "latency" and bench.latency is not None:
        provenance["latency_machine"] = dict(bench.latency.table.machine)
    return provenance


def assemble(folder: Path | str, output: Path | str, count: int | None = None) -> TimestepGroups:
    """Put the slim models of a folder (``group-0`` …) together into an experts folder.

    Args:
        folder: holds the slim models' folders.
        output: experts folder to write.
        count: take ``group-0`` … ``group-<count − 1>``; all that are there when absent.

    Raises:
        InputError: they do not cover all timesteps, or were not made for the same noise schedule and prediction type.
    """
    folder = Path(folder)
    output = Path(output)
    restore_within(folder)
    found = sorted(path for path in folder.glob("group-*") if path.is_dir()) if folder.is_dir() else []
    if count is not None:
        found = [folder / f"group-{index}" for index in range(count)]
    if not found:
        raise InputError(f"{folder} has no folders group-0, group-1, …; prune first with `prunekit prune base.pt`.")
    slims = sorted((load_slim(path) for path in found), key=lambda slim: slim.group.index)
    try:
        groups = TimestepGroups(slims[0].num_timesteps, tuple(slim.group for slim in slims))
    except InputError as error:
        raise InputError(f"The slim models in {folder} do not cover the timesteps: {error}") from error
    for slim in slims:
        if any(slim.about.get(key) != slims[0].about.get(key) for key in ("noise_schedule", "prediction_type")):
            raise InputError(
                f"The slim models of groups 0 and {slim.group.index} in {folder} have different noise schedules or prediction "
                "types; expected all of them to be pruned from one base."
            )
    save_experts(slims, groups, output)
    return groups
