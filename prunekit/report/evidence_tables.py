"""Tables of a comparison of experts with baselines, and their pictures."""

from collections.abc import Callable
from dataclasses import replace

from prunekit.report.charts.bars import Bar, draw_bars
from prunekit.report.charts.marks import Key
from prunekit.report.document import Block, Fold, Words
from prunekit.report.evidence import TRAININGS, Entry, Evidence, short_gap
from prunekit.report.illustrations import Chart
from prunekit.report.loss_map import loss_map
from prunekit.report.pareto import Point
from prunekit.report.table import Column, Row, Table, count, estimate, flat, named, ratio
from prunekit.report.wording import ABSENT, large_text, number_text, short_ratio, si_text
from prunekit.results.estimate import Estimate

__all__ = [
    "entry_table",
    "group_table",
    "losses_chart",
    "points_of",
    "result_table",
    "training_blocks",
    "training_table",
]

_PARTS = {"base": "rest", "search": "s1", "fine-tuning": "s0"}  # use → class of the colour
_WORDS = {"base": "the base's training", "search": "search", "fine-tuning": "fine-tuning"}
_SAME = 2  # totals within as many percent are told in a sentence


def entry_table(evidence: Evidence) -> Table:
    """Cost of every entry, and means with standard errors over its fine-tuning seeds."""
    rows = tuple(_entry_row(evidence, entry) for entry in evidence.entries.values())
    fid = [
        estimate(evidence.label("FID"), "fid"),
        named(f"FID against {evidence.reference.name}", "verdict"),
    ]
    columns = (
        named("Entry", "entry"),
        named("Kind", "kind"),
        *(fid if evidence.has_fid else []),
        estimate("Loss", "loss"),
        *([estimate("KID", "kid")] if evidence.has_fid else []),
        *([estimate("Agreement with captions", "agreement")] if evidence.has_agreement else []),
        estimate("SSIM to the base", "ssim"),
        ratio("Sampling MACs, of the base's", "mac_ratio"),
        count("Sampling MACs", "sampling_macs"),
        count("Parameters stored", "params"),
        ratio("Training MACs, of the base's", "training_ratio"),
        Column("Seconds per image", "seconds_per_image", lambda row: number_text(row["seconds_per_image"], 3)),
        count("Seeds", "seeds"),
    )
    metrics = evidence.metrics
    note = (
        f"{evidence.error_note} The base itself is one model and has no error. Not clearly: the 95 % interval of the difference "
        "contains zero. Lower is better for loss, FID and KID; SSIM is 1 for the base itself. MACs are per sample per evaluation, "
        "averaged over the sampler's steps."
    )
    sampler = "the pipeline's scheduler" if metrics.sampler == "pipeline" else str(metrics.sampler).upper()
    caption = f"{metrics.count:,} images of each entry, {metrics.steps} steps of {sampler}"
    return Table("evidence", caption, rows, columns, note)


def result_table(evidence: Evidence) -> Table:
    """The first table of the page: the quality and the costs of every entry, without the other measures of :func:`entry_table`."""
    whole = entry_table(evidence)
    kept = {"entry", "kind", "fid", "verdict", "mac_ratio", "seconds_per_image", "params", "training_ratio"}
    kept |= {"agreement"} if evidence.has_fid else {"loss"}
    columns = tuple(
        replace(column, spare=column.key == "kind")
        for column in whole.columns
        if column.key.removesuffix("_mean") in kept
    )
    names = list(evidence.entries)
    note = (
        f"{evidence.error_note} Not clearly: the 95 % interval of the difference contains zero. Lower is "
        f"better{', for the agreement higher' if evidence.has_agreement else ''}. MACs while sampling are averaged over the "
        "sampler's steps."
    )
    strong = frozenset({names.index(evidence.headline.name)})
    return replace(whole, name="result", columns=columns, note=note, strong=strong)


def _entry_row(evidence: Evidence, entry: Entry) -> Row:
    reference, seconds = evidence.reference, entry.estimate("seconds_per_image")
    return {
        "entry": entry.name,
        "kind": entry.role,
        "seeds": sum(seed is not None for seed in entry.seeds),
        **flat(**{key: entry.estimate(key) for key in ("fid", "loss", "kid", "ssim")}),
        **(flat(agreement=entry.estimate("agreement")) if evidence.has_agreement else {}),
        "verdict": short_gap(entry, reference, "fid") if evidence.has_fid and entry is not reference else ABSENT,
        "mac_ratio": evidence.ratio(entry),
        "sampling_macs": entry.mean("sampling_macs"),
        "params": entry.mean("params"),
        "training_ratio": entry.total / evidence.base.total if evidence.base.total else None,
        "seconds_per_image": seconds.mean if seconds else None,
    }


def group_table(evidence: Evidence) -> Table:
    """Held-out loss of every entry in every timestep group of the evaluation, as a change from the base in percent."""
    rows = tuple(
        {
            "entry": entry.name,
            **flat(**{f"group_{i}": change for i, change in enumerate(_changes(evidence, entry))}),
        }
        for entry in _others(evidence)
    )
    columns = (named("Entry", "entry"), *(estimate(text, f"group_{i}") for i, text in enumerate(_ranges(evidence))))
    note = "Below zero is better than the base. ± is one standard error over fine-tuning seeds, all from one base."
    return Table("losses", "Held-out loss by timesteps, change from the base in percent", rows, columns, note)


def training_table(evidence: Evidence) -> Table:
    """The cost of making every entry, by use."""
    base = evidence.base.total
    rows = tuple(
        {
            "entry": entry.name,
            **{part: float(macs.mean()) for part, macs in entry.training.items()},
            "total": entry.total,
            "part": entry.total / base if base else None,
        }
        for entry in evidence.entries.values()
    )
    columns = (
        named("Entry", "entry"),
        *(Column(f"MACs of {_WORDS[part]}", part, _large(part)) for part in TRAININGS),
        Column("Total MACs", "total", _large("total")),
        ratio("Of the base's", "part"),
    )
    note = (
        "Means over the seeds. A backward pass counts as twice its forward pass. Search includes grouping and scoring."
    )
    return Table("training", "Training MACs, search included", rows, columns, note)


def points_of(evidence: Evidence, measure: str) -> list[Point]:
    """Every entry as a point for :func:`draw_pareto`."""
    return [
        Point(entry.name, entry.role, evidence.ratio(entry), Estimate.over(entry.values[measure]))
        for entry in evidence.entries.values()
    ]


def losses_chart(evidence: Evidence) -> Chart:
    """The changes of :func:`group_table` as coloured cells with their numbers."""
    entries = _others(evidence)
    changes = [_changes(evidence, entry) for entry in entries]
    return loss_map([entry.name for entry in entries], _ranges(evidence), changes)


def training_blocks(evidence: Evidence) -> list[Block]:
    """What making every entry took: a sentence if all but the reference took the same, otherwise a bar for each; and a table."""
    table = Fold("The numbers as a table", (training_table(evidence),))
    others = [entry for entry in evidence.entries.values() if entry is not evidence.reference]
    totals = [entry.total for entry in others]
    reference = evidence.reference
    if others and max(totals) <= (1 + _SAME / 100) * min(totals):
        own = f"the {si_text(reference.total)} of {reference.name}"
        share = f": {short_ratio(totals[0] / reference.total)} times {own}" if reference.total else ""
        same = f"Every entry took {si_text(max(totals))} MACs of training, search included and equal within {_SAME} %"
        return [Words(f"{same}{share}."), table]
    bars = [_bar(entry) for entry in evidence.entries.values()]
    told = ", ".join(f"{bar.name} {bar.total}" for bar in bars)
    said = f"Training MACs of every entry, split into the base's training, search and fine-tuning: {told}."
    keys = tuple(Key(_WORDS[part], style, "box") for part, style in _PARTS.items())
    return [Chart("Training MACs, search included; means over the seeds.", draw_bars(bars, said), keys), table]


def _bar(entry: Entry) -> Bar:
    parts = {part: float(entry.training[part].mean()) for part in _PARTS}
    told = ", ".join(f"{_WORDS[part]} {si_text(macs)}" for part, macs in parts.items() if macs)
    total = f"{si_text(entry.total)}"
    return Bar(entry.name, tuple((macs, _PARTS[part]) for part, macs in parts.items()), total, f"{entry.name}: {told}")


def _large(key: str) -> Callable[[Row], str]:
    return lambda row: large_text(row[key])


def _others(evidence: Evidence) -> list[Entry]:
    return [entry for entry in evidence.entries.values() if entry is not evidence.base]


def _changes(evidence: Evidence, entry: Entry) -> list[Estimate]:
    """Change of the loss from the base in percent, by timestep group."""
    base = evidence.base.losses.mean(0)
    return [Estimate.over(column) for column in (100 * (entry.losses / base - 1)).T]


def _ranges(evidence: Evidence) -> list[str]:
    """The timestep groups of the evaluation, for headings."""
    starts = (0, *evidence.cuts)
    return [
        *(f"t {start}–{stop - 1}" for start, stop in zip(starts, evidence.cuts, strict=False)),
        f"t from {starts[-1]}",
    ]
