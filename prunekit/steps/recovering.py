"""Short fine-tunings of a timestep group's pruned networks, and what they recover of its loss."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from prunekit.allocation import Recovery
from prunekit.checkpoint import Base
from prunekit.data import ImageData
from prunekit.errors import InputError
from prunekit.graph import PruningPlan, attributes
from prunekit.groups import TimestepGroup
from prunekit.importance import Probe
from prunekit.ledger import LedgerRow, forwards, spent_on_training
from prunekit.recipe import FinetuneOptions, PruneOptions
from prunekit.schedule import Parameterization
from prunekit.slim import SlimModel
from prunekit.steps.bench import Bench
from prunekit.steps.finetuning import finetune_slim
from prunekit.steps.objectives import objective_for
from prunekit.steps.placing import placed
from prunekit.training import Reporter

__all__ = ["recover", "shortened", "whole_model"]


def shortened(options: FinetuneOptions, steps: int, seed: int | None = None) -> FinetuneOptions:
    """A fine-tuning of fewer steps, with a warm-up of at most a tenth of them.

    Args:
        options: the fine-tuning as a whole.
        steps: number of train steps.
        seed: of its draws; the fine-tuning's if missing.

    Raises:
        InputError: it trains from scratch, which a few steps say nothing of.
    """
    if options.from_scratch:
        raise InputError(
            "Got recoveries of a fine-tuning from scratch; expected one that starts from the pruned weights."
        )
    train = options.train
    warmup, seed = min(train.warmup_steps, steps // 10), train.seed if seed is None else seed
    return replace(options, train=replace(train, steps=steps, warmup_steps=warmup, seed=seed), share_steps=False)


def whole_model(bench: Bench, group: TimestepGroup) -> SlimModel:
    """The base itself as the slim model of a timestep group, from which nothing is removed.

    Args:
        bench: the base.
        group: the timestep group.
    """
    base, graph = bench.base, bench.graph
    plan = PruningPlan.from_widths(graph, graph.full_widths, {one.name: np.ones(one.size) for one in graph})
    about = {**base.about(), "provenance": {"base_sha256": base.sha256, "base_macs": bench.macs}}
    return SlimModel(
        base.model,
        base.spec,
        plan,
        attributes(base.model, graph, plan),
        group,
        base.schedule.num_timesteps,
        bench.macs,
        int(bench.cost.params(graph.full_widths)),
        about,
    )


def recover(
    slim: SlimModel,
    images: ImageData,
    options: FinetuneOptions,
    probed: PruneOptions,
    checkpoints: Path | str | None = None,
    report: Reporter | None = None,
    teacher: Bench | Base | None = None,
    teacher_macs: int = 0,
) -> tuple[Recovery, list[LedgerRow]]:
    """Train a pruned network for a short time, and measure its loss before and after on the draws that searches use.

    A network that the fine-tuning leaves alone, see :meth:`~prunekit.recipe.FinetuneOptions.leaves`, recovers nothing.

    Args:
        slim: the pruned network; it is not changed.
        images: the training images.
        options: the short fine-tuning, from :func:`shortened`.
        probed: number, batches and seed of the draws.
        checkpoints: folder for the training's checkpoints.
        report: is told the progress.
        teacher: as for :func:`~prunekit.steps.finetuning.finetune_slim`.
        teacher_macs: MACs of the teacher per sample, for the costs.

    Returns:
        The losses, and what measuring them cost.

    Raises:
        InputError: a loss is not a positive number, or the images do not fit the network.
    """
    stage = f"recovery, group {slim.group.index}"
    objective = objective_for(images, slim.spec, Parameterization.from_config(slim.about))
    probe = Probe(objective, slim.group, probed.samples, probed.batch_size, probed.seed)

    def loss(model: SlimModel) -> float:
        with placed(model.model):
            return probe.mean(model.model)

    before = loss(slim)
    if options.leaves(slim):
        return _checked(slim, before, before), [forwards(stage, "search", probed.samples, probed.samples * slim.macs)]
    tuned, result = finetune_slim(slim, images, options, checkpoints, report, teacher)
    looked = forwards(stage, "search", 2 * probed.samples, 2 * probed.samples * slim.macs)
    trained = spent_on_training(
        stage, result.samples, slim.macs, slim.params, options.train.batch_size, 0 if teacher is None else teacher_macs
    )
    return _checked(slim, before, loss(tuned)), [looked, *trained]


def _checked(slim: SlimModel, before: float, after: float) -> Recovery:
    """The recovery.

    Raises:
        InputError: a loss is not a positive number.
    """
    try:
        return Recovery(slim.macs, before, after)
    except ValueError as error:
        raise InputError(
            f"Got losses {before:g} and {after:g} before and after a short fine-tuning of timestep group {slim.group.index}; "
            "expected positive numbers: lower the learning rate, or allocate without recoveries."
        ) from error
