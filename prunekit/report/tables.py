"""The tables of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from prunekit._json import JsonDict
from prunekit.allocation import GroupTarget
from prunekit.report.run import RunResults
from prunekit.report.table import Column, Row, Table, count, estimate, flat, named, ratio
from prunekit.report.wording import (
    ABSENT,
    decibel_text,
    error_note,
    number_text,
    short_verdict,
    timestep_text,
)
from prunekit.results.expert_results import Expert, GroupLoss
from prunekit.results.reading_manifests import Manifest

__all__ = [
    "cost_table",
    "loss_table",
    "metric_table",
    "seconds_table",
    "summary_rows",
    "width_table",
]


def _timesteps(row: Row) -> str:
    return timestep_text(row["first_timestep"], row["last_timestep"] + 1)


def cost_table(results: RunResults) -> Table:
    """MACs, FLOPs and parameters of the base, each expert, and the experts' mean over the sampler's steps."""
    rows = [_base_row(results), *(_expert_row(results, target) for target in results.allocation.groups)]
    if results.assembled is not None:
        rows.append(_assembled_row(results))
    columns: tuple[Column, ...] = (
        named("Model", "model"),
        Column("Timesteps", "", _timesteps),
        Column("SNR (dB)", "snr_db", lambda row: decibel_text(row["snr_db"])),
        ratio("Share of steps", "share"),
        ratio("Target ratio", "target_ratio"),
        ratio("MACs kept", "mac_ratio"),
        count("MACs", "macs"),
        replace(count("FLOPs = 2·MACs", "flops"), spare=True),
        count("Parameters", "params"),
        ratio("Parameters kept", "param_ratio"),
    )
    if any(expert.removed for expert in results.experts.values()):
        columns += (count("Branches removed", "branches_removed"),)
    caption = "The base, the expert of each timestep group (0 = cleanest), and the experts together"
    note = (
        "MACs are per sample per evaluation of the network. Share: the part of the sampler's steps that falls into the "
        "timestep group. Ratios are fractions of the base."
    )
    if results.assembled is not None:
        note += " The last row is measured on the assembled model; its parameters are those of all experts together."
    return Table("table", caption, tuple(rows), columns, note, last_is_total=results.assembled is not None)


def _base_row(results: RunResults) -> Row:
    base = results.base
    return {
        "model": "base",
        "first_timestep": 0,
        "last_timestep": results.allocation.num_timesteps - 1,
        "snr_db": None,
        "share": 1.0,
        "target_ratio": None,
        "target_macs": None,
        "macs": base.macs,
        "flops": 2 * base.macs,
        "params": base.params,
        "mac_ratio": 1.0,
        "param_ratio": 1.0,
        "branches_removed": None,
    }


def _expert_row(results: RunResults, target: GroupTarget) -> Row:
    base, expert = results.base, results.experts.get(target.index)
    return {
        "model": f"expert {target.index}",
        "first_timestep": target.start,
        "last_timestep": target.stop - 1,
        "snr_db": target.snr_db,
        "share": target.share,
        "target_ratio": target.mac_ratio,
        "target_macs": expert.target_macs if expert else target.target_macs,
        "macs": expert.macs if expert else None,
        "flops": 2 * expert.macs if expert else None,
        "params": expert.params if expert else None,
        "mac_ratio": expert.macs / base.macs if expert else None,
        "param_ratio": expert.params / base.params if expert else None,
        "branches_removed": len(expert.removed or ()) if expert else None,
    }


def _assembled_row(results: RunResults) -> Row:
    allocation, assembled = results.allocation, results.assembled
    if assembled is None:
        raise AssertionError("an assembled row needs an assembled model")
    return {
        **_base_row(results),
        "model": f"experts, mean over {allocation.sampler_steps} {allocation.sampler} steps",
        "target_ratio": allocation.mean_mac_ratio,
        "macs": assembled.mean_macs,
        "flops": 2 * assembled.mean_macs,
        "params": assembled.params,
        "mac_ratio": assembled.mean_mac_ratio,
        "param_ratio": assembled.params / results.base.params,
    }


def loss_table(results: RunResults) -> Table | None:
    """Held-out denoising loss per timestep group; None if not measured."""
    if not results.losses:
        return None
    targets = {target.index: target for target in results.allocation.groups}
    with_pruned = any(loss.pruned is not None for loss in results.losses)
    columns = [named("Timestep group", "group"), Column("Timesteps", "", _timesteps)]
    columns += [estimate("Base", "base")]
    columns += [estimate("Pruned, before fine-tuning", "pruned")] if with_pruned else []
    columns += [
        estimate("Expert", "expert"),
        estimate("Expert − base, paired", "difference"),
        Column("Against the base", "difference_percent", lambda row: row["verdict"]),
    ]
    note = (
        "± is one standard error over held-out images, for one training of each network. The difference is taken image by image, "
        "so its error is usually smaller than those of the two losses."
    )
    shown = [e for loss in results.losses for e in (loss.base, loss.pruned, loss.expert, loss.difference)]
    if any(loss.bounds for loss in results.losses):
        columns += [
            estimate("Bound of the base", "bound_base"),
            estimate("Bound of the expert", "bound_expert"),
            estimate("Bound, expert − base, paired", "bound_difference"),
        ]
        note += (
            " The bound is the variational bound on the negative log-likelihood, as the mean term of a timestep in bits per "
            "dimension; lower is better. It depends on the variances that the networks predict."
        )
    if any(e is not None and e.se is None for e in shown):
        note += " Numbers without ±: one seed, no error."
    rows = tuple(_loss_row(loss, targets[loss.group]) for loss in results.losses)
    return Table(
        "losses", "Mean denoising loss on held-out images with fixed noise; lower is better", rows, tuple(columns), note
    )


_BOUNDED = ("base", "expert", "difference")


def _loss_row(loss: GroupLoss, target: GroupTarget) -> Row:
    percent, words = None, ABSENT
    if loss.base is not None and loss.expert is not None:
        words = short_verdict(loss.expert, loss.base, loss.difference)
    if loss.base is not None and loss.difference is not None and loss.base.mean > 0:
        percent = 100 * loss.difference.mean / loss.base.mean
    return {
        "group": loss.group,
        "first_timestep": target.start,
        "last_timestep": target.stop - 1,
        **flat(base=loss.base, pruned=loss.pruned, expert=loss.expert, difference=loss.difference),
        **({} if loss.bounds is None else flat(**{f"bound_{name}": loss.bounds.get(name) for name in _BOUNDED})),
        "difference_percent": percent,
        "verdict": words,
    }


_HIGHER = {
    "precision": "Precision",
    "recall": "Recall",
    "clip_score": "CLIP score",
    "agreement": "Agreement with captions",
}
"""Measures of which more is better, with their labels."""


def metric_table(results: RunResults) -> Table | None:
    """Sample quality and cost of each model; None if not measured. Without features, there are no FID and KID, but the reason."""
    metrics = results.metrics
    if metrics is None:
        return None
    paired = any(row.fid_difference is not None for row in metrics.rows)
    higher = [key for key in _HIGHER if any(getattr(row, key) is not None for row in metrics.rows)]
    rows = tuple(
        {
            "model": row.model,
            **flat(fid=row.fid, kid=row.kid),
            **flat(**{key: getattr(row, key) for key in higher}),
            **(flat(fid_difference=row.fid_difference) if paired else {}),
            "seconds_per_image": row.seconds_per_image,
            "mean_macs": row.mean_macs,
            "flops": None if row.mean_macs is None else 2 * row.mean_macs,
            "mac_ratio": row.mac_ratio,
            "features": metrics.features.name if metrics.features else None,
            "count": metrics.count,
        }
        for row in metrics.rows
    )
    label = metrics.label("FID")
    distances = [estimate(label, "fid"), estimate(metrics.label("KID"), "kid")] if metrics.features else []
    distances += [estimate(f"{label}, paired difference from the base", "fid_difference")] if paired else []
    columns: tuple[Column, ...] = (
        named("Model", "model"),
        *distances,
        *(estimate(_HIGHER[key], key) for key in higher),
        Column("Seconds per image", "seconds_per_image", lambda row: number_text(row["seconds_per_image"], 3)),
        count("Mean MACs per step", "mean_macs"),
        count("Mean FLOPs = 2·MACs", "flops"),
        ratio("MACs kept", "mac_ratio"),
    )
    steps = f"{metrics.steps} {metrics.sampler} steps" if metrics.steps else metrics.sampler
    caption = f"{metrics.count} images of each model, {steps}"
    if not metrics.features:
        return Table("metrics", caption, rows, columns, f"No FID or KID: {metrics.no_features}")
    note = f"{error_note(results)} Compare only numbers with the same features and the same n."
    if paired:
        note += (
            " The difference's error is the greater of the one over the seeds and the one from a paired bootstrap over images. "
            "Neither contains what another training would change."
        )
    better = f"lower FID and KID and higher {_in_words(higher)} are better" if higher else "lower is better"
    return Table("metrics", f"{caption}; {better}", rows, columns, note)


def _in_words(measures: Sequence[str]) -> str:
    """Measures by the keys of :data:`_HIGHER`, within a sentence."""
    *first, last = (_HIGHER[key] if key == "clip_score" else _HIGHER[key].lower() for key in measures)
    return f"{', '.join(first)} and {last}" if first else last


def seconds_table(seconds: Mapping[str, float] | None) -> Table | None:
    """Wall-clock time per stage; None if not kept."""
    if not seconds:
        return None
    rows = tuple({"stage": stage, "seconds": float(value)} for stage, value in seconds.items())
    columns = (named("Stage", "stage"), Column("Seconds", "seconds", lambda row: f"{row['seconds']:,.1f}"))
    return Table("seconds", "Wall-clock time of each stage", rows, columns)


def width_table(experts: Mapping[int, Expert], names: Sequence[str]) -> Table:
    """Channels before and after pruning, with a row for each channel group and a column for each timestep group.

    Args:
        experts: by timestep group.
        names: names of the channel groups, in the order of the rows.
    """
    rows = []
    for name in names:
        row: dict[str, str | int | None] = {"name": name}
        for group in sorted(experts):
            before, after = experts[group].changes.get(name, (None, None))
            row |= {f"before_{group}": before, f"after_{group}": after}
        rows.append(row)
    columns = (named("Channel group", "name"), *map(_width_column, sorted(experts)))
    return Table("widths", "Channels before → after", tuple(rows), columns)


def _width_column(group: int) -> Column:
    def text(row: Row) -> str:
        before, after = row[f"before_{group}"], row[f"after_{group}"]
        return ABSENT if before is None else f"{before} → {after}"

    return Column(f"Timestep group {group}", "", text)


def summary_rows(manifest: Manifest | JsonDict) -> list[Row]:
    """The run's final table as plain data: the base, each expert, and the experts together.

    Returns:
        Dicts with the keys ``model``, ``timesteps``, ``share``, ``target_ratio``, ``mac_ratio``, ``macs``, ``flops``
        (2·MACs), ``params``, ``loss_change_percent``, ``fid`` and ``fid_se``; None for a missing number. ``fid`` is
        the base's in the first row and the experts' in the last. State it with its features and count:
        ``RunResults.from_manifest(manifest).metrics.label("FID")``.

    Raises:
        FileFormatError: the manifest cannot be read.
    """
    results = RunResults.from_manifest(manifest)
    losses = loss_table(results)
    changes = {f"expert {row['group']}": row["difference_percent"] for row in losses.rows} if losses else {}
    fids = {}
    if results.metrics is not None:
        fids = {row.model: row.fid for row in results.metrics.rows if row.fid is not None}
    table = cost_table(results)
    summary: list[Row] = []
    for number, row in enumerate(table.rows):
        last = table.last_is_total and number == len(table.rows) - 1
        fid = fids.get("experts" if last else row["model"])
        kept = ("share", "target_ratio", "mac_ratio", "macs", "flops", "params")
        summary.append(
            {"model": row["model"], "timesteps": _timesteps(row)}
            | {key: row[key] for key in kept}
            | {"loss_change_percent": changes.get(row["model"])}
            | {"fid": fid.mean if fid else None, "fid_se": fid.se if fid else None}
        )
    return summary
