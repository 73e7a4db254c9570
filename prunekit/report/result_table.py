"""The first table of a run's page: the quality and all costs of the base and the experts, and its most important numbers."""

from dataclasses import dataclass, replace
from typing import Any

from prunekit.ledger import making_macs
from prunekit.report.document import Tile
from prunekit.report.run import RunResults
from prunekit.report.table import Column, Row, Table, estimate, flat, named, ratio
from prunekit.report.times import time_tile
from prunekit.report.wording import ABSENT, error_note, estimate_text, mean_losses, number_text, short_ratio, si_text
from prunekit.results.expert_results import MetricRow

__all__ = ["result_table", "result_tiles"]


@dataclass(frozen=True)
class _Costs:
    """What a model takes, as far as the run recorded it; ``spent`` are the MACs of making it, with ``base_spent`` of the base."""

    macs: float | None = None
    mac_ratio: float | None = None
    stored: int | None = None
    spent: int | None = None
    base_spent: int | None = None


def result_table(results: RunResults) -> Table | None:
    """One row for the base, the experts and each further model; columns without a value are left out.

    None if there are neither experts nor metrics.
    """
    metrics = results.metrics
    models = [row.model for row in metrics.rows] if metrics else ["base", "experts"] if results.assembled else []
    if not models:
        return None
    losses = mean_losses(results)
    rows = tuple(
        _row(model, metrics.row(model) if metrics else None, _costs(results, model), losses.get(_LOSS.get(model, "")))
        for model in models
    )
    batch = f", {metrics.batch_size} at a time" if metrics and metrics.batch_size else ""
    label = metrics.label("FID") if metrics else "FID"
    columns = (
        named("Model", "model"),
        estimate(label, "fid"),
        estimate(f"{label}, paired difference from the base", "fid_difference"),
        Column("Held-out loss", "loss", lambda row: number_text(row["loss"])),
        ratio("MACs, of the base's", "mac_ratio"),
        replace(_large("MACs per step", "macs"), spare=True),
        Column("Seconds per image, alone", "seconds_alone", lambda row: number_text(row["seconds_alone"], 3)),
        Column(f"Seconds per image{batch}", "seconds", lambda row: number_text(row["seconds"], 3)),
        _large("Parameters stored", "stored"),
        _large("Parameters resident", "resident"),
        Column("MACs spent to make it", "spent", _spent_text),
    )
    strong = frozenset(
        place for place, model in enumerate(models) if metrics and metrics.judged and model == metrics.judged.model
    )
    return Table("result", _caption(results), rows, columns, _note(results), strong=strong)


_LOSS = {"base": "base", "experts": "expert"}  # model → name of its mean loss


def _caption(results: RunResults) -> str:
    metrics = results.metrics
    if metrics is None:
        return "The base and the experts; lower is better"
    steps = f"{metrics.steps} {metrics.sampler} steps" if metrics.steps else metrics.sampler
    return f"{metrics.count:,} images of each model, {steps}; lower is better"


def _note(results: RunResults) -> str:
    metrics, notes = results.metrics, []
    if metrics is not None:
        notes.append(error_note(results) if metrics.features else f"No FID or KID: {metrics.no_features}")
    notes.append(
        "MACs per step are of one image, averaged over the sampler's steps. MACs to make the experts include the base's."
    )
    return " ".join(filter(None, notes))


def _large(heading: str, key: str) -> Column:
    return Column(heading, key, lambda row: ABSENT if row[key] is None else si_text(row[key]))


def _row(model: str, metric: MetricRow | None, costs: _Costs, loss: float | None) -> dict[str, Any]:
    return {
        "model": model,
        **flat(fid=metric.fid if metric else None, fid_difference=metric.fid_difference if metric else None),
        "loss": loss,
        "macs": metric.mean_macs if metric else costs.macs,
        "mac_ratio": metric.mac_ratio if metric else costs.mac_ratio,
        "seconds_alone": metric.seconds_alone if metric else None,
        "seconds": metric.seconds_per_image if metric else None,
        "stored": metric.params if metric and metric.params is not None else costs.stored,
        "resident": metric.params_resident if metric else None,
        "spent": costs.spent,
        "base_spent": costs.base_spent,
    }


def _spent_text(row: Row) -> str:
    """MACs of making a model; those of the base are a part of an expert's, if they are known."""
    spent, base = row["spent"], row["base_spent"]
    if spent is None:
        return ABSENT
    if base is None:
        return si_text(spent) if row["model"] == "base" else f"{si_text(spent)} and the base's"
    return f"{si_text(spent)} ({short_ratio(spent / base)}×)"


def _costs(results: RunResults, model: str) -> _Costs:
    base, assembled = results.base, results.assembled
    trained, made = making_macs(results.ledger)
    trained = trained or (int(base.training.macs) if base.training else 0)
    if model == "base":
        return _Costs(base.macs, 1.0, base.params, trained or None)
    if model == "experts" and assembled is not None:
        whole = trained + made if made else None
        return _Costs(
            assembled.mean_macs,
            assembled.mean_mac_ratio,
            assembled.params,
            whole,
            trained or None,
        )
    return _Costs()


def result_tiles(results: RunResults) -> tuple[Tile, ...]:
    """The most important numbers of a run: quality, cost, time and size of the experts compared with the base's."""
    metrics, tiles = results.metrics, []
    base, row = (metrics.row("base"), metrics.judged) if metrics else (None, None)
    losses = mean_losses(results)
    if metrics and base and row and base.fid and row.fid:
        tiles.append(Tile(estimate_text(row.fid), f"{metrics.label('FID')}; base {estimate_text(base.fid)}"))
    elif losses["base"] is not None and losses["expert"] is not None:
        tiles.append(Tile(number_text(losses["expert"]), f"held-out loss; base {number_text(losses['base'])}"))
    ratio = row.mac_ratio if row else None
    if ratio is None and results.assembled:
        ratio = results.assembled.mean_mac_ratio
    if ratio is not None:
        tiles.append(Tile(short_ratio(ratio), "of the base's MACs per sampling step"))
    if metrics and base and row and base.seconds_per_image and row.seconds_per_image:
        part = row.seconds_per_image / base.seconds_per_image
        alone = row.seconds_alone / base.seconds_alone if row.seconds_alone and base.seconds_alone else None
        tiles.append(time_tile(part, metrics.batch_size, alone))
    if results.assembled:
        tiles.append(Tile(f"{results.assembled.params / results.base.params:.1f}×", "the base's parameters stored"))
    return tuple(tiles)
