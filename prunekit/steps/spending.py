"""Costs of a run's stages, as rows of the ledger, and of the base's training."""

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files

import numpy as np

from prunekit._json import read_json
from prunekit._missing import EMBEDDED
from prunekit.checkpoint import Base
from prunekit.ledger import BASE_TRAINING, LedgerRow, both_ways, forwards
from prunekit.recipe import PruneOptions
from prunekit.results.expert_results import BaseManifest
from prunekit.results.manifest_head import BaseTraining
from prunekit.search import SearchResult, proxy_samples
from prunekit.slim import SlimModel
from prunekit.steps.bases import trained_samples
from prunekit.steps.budgets import evaluations
from prunekit.steps.sample_quality import loss_draws
from prunekit.steps.setting import Setting

__all__ = ["base_training", "spent_on_looks", "spent_on_losses", "spent_on_sampling", "spent_on_search"]

_REPAIRING = ("bias", "least-squares", "repaired-recovery")


def base_training(checkpoint: str | None, base: Base, macs: int, ledger: Sequence[LedgerRow]) -> BaseTraining | None:
    """Samples and MACs of the base's training, and where these figures come from; None if they were not recorded.

    Args:
        checkpoint: the base that the recipe names; None if the run trained it.
        base: the base.
        macs: the base's MACs per sample.
        ledger: the run's ledger.
    """
    known, source = [row for row in ledger if row.stage == BASE_TRAINING and row.kind == "training"], "this run"
    if not known and checkpoint is not None and checkpoint.startswith(EMBEDDED):
        name = checkpoint.removeprefix(EMBEDDED)
        with as_file(files("prunekit") / "assets" / f"{name}-base.json") as path:
            shipped = BaseManifest.of(read_json(path), str(path))
        rows = list(map(LedgerRow.from_json, shipped.ledger or ()))
        known, source = [row for row in rows if row.stage == BASE_TRAINING and row.kind == "training"], "its own run"
    samples = trained_samples(base.provenance)
    if not known and samples is not None:
        known, source = [both_ways(BASE_TRAINING, "training", samples, macs)], "the checkpoint's provenance"
    if not known:
        return None
    return BaseTraining(samples=known[0].samples, macs=known[0].macs, known_from=source)


def spent_on_search(
    stage: str, options: PruneOptions, result: SearchResult, slim: SlimModel, full_macs: int, weighed: int = 0
) -> list[LedgerRow]:
    """Passes of a search's measurements, of the data that repairs are fitted to, and of the losses of ``weighed`` timestep groups.

    Every candidate costs its own MACs for each draw that it was measured on. For each number of draws, the proxy's repair passes
    the first batch through the full network, as the final repair does; that one also passes it through the pruned network.
    """
    forward = backward = samples = 0
    for entry in result.measured:
        draws = int(entry.get("draws", options.samples))
        ahead, back = proxy_samples(options.search.proxy, draws, min(options.batch_size, draws))
        samples, forward, backward = samples + ahead, forward + ahead * entry["macs"], backward + back * entry["macs"]
    repairs = options.search.proxy in _REPAIRING
    levels = {int(entry.get("draws", options.samples)) for entry in result.measured if repairs}
    first = min(options.batch_size, options.samples)
    fitted = sum(min(options.batch_size, draws) for draws in levels) + first * (options.repair != "none")
    mended = options.repair != "none" and not slim.is_whole
    whole = fitted + weighed * options.samples
    forward += whole * full_macs + first * mended * slim.macs
    samples += whole + first * mended
    return [LedgerRow(stage, "search", samples, forward + 2 * backward, forward)]


def spent_on_losses(stage: str, setting: Setting, models: Sequence[Sequence[int]]) -> LedgerRow:
    """Passes of held-out losses on every timestep group; ``models`` gives the MACs of each model on each group."""
    batches, batch_size = loss_draws(setting.options)
    each = batches * batch_size
    return forwards(stage, "evaluation", each * sum(map(len, models)), each * sum(map(sum, models)))


def spent_on_sampling(stage: str, setting: Setting, mean_macs: Mapping[str, float]) -> LedgerRow:
    """Passes of sampling images at all scales of guidance, from each model's mean MACs per evaluation."""
    allocation, options = setting.allocation, setting.options
    steps = len(evaluations(setting.schedule, allocation.sampler, allocation.steps))
    each = round(options.samples * len(options.seeds) * steps * setting.passes)
    return forwards(stage, "sampling", each * len(mean_macs), round(each * sum(mean_macs.values())))


def spent_on_looks(
    stage: str, setting: Setting, stage_macs: Sequence[int], mean_macs: float, looks: int
) -> list[LedgerRow]:
    """Passes of the measurements during a training: losses on all timesteps and on every stage, and images.

    Args:
        stage: the run's stage.
        setting: has the network's stages as groups.
        stage_macs: MACs of every stage, or of the one network for all stages.
        mean_macs: mean MACs of an evaluation while sampling.
        looks: the number of measurements.
    """
    batches, batch_size = loss_draws(setting.options)
    each, timesteps = batches * batch_size, setting.schedule.num_timesteps
    own = np.resize(np.array(stage_macs, dtype=np.int64), len(setting.groups))
    middles = (2 * np.arange(each) + 1) * timesteps // (2 * each)  # where losses on all timesteps are measured
    macs = int(own[setting.groups.index_of(middles)].sum()) + each * int(own.sum())
    losses = forwards(stage, "evaluation", each * (1 + len(setting.groups)), macs)
    images = spent_on_sampling(stage, setting, {"network": mean_macs})
    return [forwards(stage, row.kind, looks * row.samples, looks * row.macs) for row in (losses, images)]
