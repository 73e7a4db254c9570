"""The flow of a run, from the base to the evaluation, with the numbers of each stage."""

from collections.abc import Callable, Iterable

from prunekit.ledger import BASE_TRAINING
from prunekit.report.document import Flow, Step
from prunekit.report.run import RunResults
from prunekit.report.wording import count_text, estimate_text, mean_losses, number_text, short_ratio, si_text

__all__ = ["flow_of"]

_PLANNING = ("sensitivity", "frontier", "recovery")  # stages whose costs are those of the allocation


def flow_of(results: RunResults) -> Flow:
    """The run's stages in order; missing stages are left out."""
    steps = (
        Step("Base", _base(results)),
        Step("Timestep groups", _groups(results)),
        Step("Allocation", _allocation(results)),
        Step("Importance", _importance(results)),
        Step("Search", _search(results)),
        Step("Fine-tuning", _tuning(results)),
        Step("Experts", _experts(results)),
        Step("Evaluation", _evaluation(results)),
    )
    return Flow(tuple(step for step in steps if step.figures))


def _base(results: RunResults) -> tuple[str, ...]:
    base, resolution = results.base, (results.base.data or {}).get("resolution")
    sides = resolution if isinstance(resolution, list) else [resolution] * 2
    size = (f"images of {'×'.join(map(str, sides))} pixels",) if resolution else ()
    return (f"{si_text(base.macs)} MACs per evaluation", f"{count_text(base.params)} parameters", *size)


def _groups(results: RunResults) -> tuple[str, ...]:
    groups = results.allocation.groups
    settings = results.manifest.settings
    method = settings.groups.method if settings.groups else None
    cuts = ", ".join(str(group.start) for group in groups[1:])
    count = f"{len(groups)} by method {method}" if method else f"{len(groups)} groups"
    return (
        count,
        f"cut at {cuts}" if cuts else "not cut",
        f"of {count_text(results.allocation.num_timesteps)} timesteps",
    )


def _allocation(results: RunResults) -> tuple[str, ...]:
    allocation = results.allocation
    return (
        f"budget {short_ratio(allocation.budget)}, rule {allocation.rule}",
        f"MACs to keep, cleanest first: {_ratios(group.mac_ratio for group in allocation.groups)}",
        *_spent(results, lambda _, stage: stage.startswith(_PLANNING)),
    )


def _importance(results: RunResults) -> tuple[str, ...]:
    found = results.importance
    if found is None:
        return ()
    branches = len(found.branches or ())
    groups = f"{len(found.channel_groups) - branches} channel groups"
    groups += f", {branches} residual branches" if branches else ""
    return (f"criterion {found.criterion}", groups, *_spent(results, _scored))


def _search(results: RunResults) -> tuple[str, ...]:
    if not results.experts:
        return ()
    reached = _ratios(results.experts[index].macs / results.base.macs for index in sorted(results.experts))
    prune = results.manifest.settings.prune
    proposer = prune.search.proposer if prune and prune.search else None
    said = (f"proposer {proposer}",) if proposer else ()
    removed = [len(results.experts[index].removed or ()) for index in sorted(results.experts)]
    branches = (f"branches removed: {', '.join(map(str, removed))}",) if any(removed) else ()
    return (*said, f"MACs kept: {reached}", *branches, *_spent(results, _searched))


def _scored(kind: str, stage: str) -> bool:
    return kind == "importance" and not stage.startswith(_PLANNING)


def _searched(kind: str, stage: str) -> bool:
    return kind == "search" and not stage.startswith(_PLANNING)


def _tuning(results: RunResults) -> tuple[str, ...]:
    def tuned(kind: str, stage: str) -> bool:
        return kind in ("training", "teacher") and stage != BASE_TRAINING and not stage.startswith(_PLANNING)

    tune = results.manifest.settings.finetune
    steps = tune.train.steps if tune and tune.train else None
    shared = ", shared by the sensitivity" if tune and tune.share_steps else ""
    said = (f"{count_text(steps)} steps for {_tuned_groups(results)}{shared}",) if steps else ()
    spent = _spent(results, tuned)
    return (*said, *spent) if spent else ()


def _tuned_groups(results: RunResults) -> str:
    """Which timestep groups were trained, as the ledger records it."""
    experts = results.experts.values()
    stages = {row.stage for row in results.ledger if row.kind == "training"}
    tuned = {one.group for one in experts if f"fine-tuning, group {one.group}" in stages}
    if not tuned or len(tuned) == len(experts):
        return "each group"
    if tuned != {one.group for one in experts if one.macs < results.base.macs}:
        return f"each of {len(tuned)} groups" if len(tuned) > 1 else "one group"
    return f"each of the {len(tuned)} pruned groups" if len(tuned) > 1 else "the one pruned group"


def _experts(results: RunResults) -> tuple[str, ...]:
    assembled = results.assembled
    if assembled is None:
        return ()
    kept = f"{short_ratio(assembled.mean_mac_ratio)} of the base's MACs per sampling step"
    return ("one denoiser", kept, f"{count_text(assembled.params)} parameters in all")


def _evaluation(results: RunResults) -> tuple[str, ...]:
    said, losses, metrics = [], mean_losses(results), results.metrics
    row, base = (metrics.judged, metrics.row("base")) if metrics else (None, None)
    if metrics and row and base and row.fid is not None:
        said.append(f"{metrics.label('FID')} {estimate_text(row.fid)}, base {estimate_text(base.fid)}")
    if losses["expert"] is not None and losses["base"] is not None:
        said.append(f"mean loss {number_text(losses['expert'])}, base {number_text(losses['base'])}")
    return tuple(said)


def _ratios(values: Iterable[float]) -> str:
    return ", ".join(short_ratio(value) for value in values)


def _spent(results: RunResults, counted: Callable[[str, str], bool]) -> tuple[str, ...]:
    """MACs of the selected rows of the ledger; empty if there are none."""
    macs = sum(row.macs for row in results.ledger if counted(row.kind, row.stage))
    return (f"{si_text(macs)} MACs spent",) if macs else ()
