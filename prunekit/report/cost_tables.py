"""The cost of a run: its ledger as tables, and a sentence that compares it with the base's training."""

from collections.abc import Sequence
from dataclasses import replace

from prunekit.ledger import BASE_TRAINING, MAKING, LedgerRow, making_macs, totals
from prunekit.report.run import RunResults
from prunekit.report.table import Column, Table, count, named, ratio
from prunekit.report.wording import large_text, short_ratio

__all__ = ["cost_sentence", "kinds_sentence", "kinds_table", "ledger_table"]

_WORDS = {
    "training": "training",
    "teacher": "a teacher's predictions",
    "grouping": "grouping",
    "importance": "importance",
    "search": "search",
    "ema": "moving averages of weights",
    "evaluation": "held-out losses",
    "sampling": "sampling for FID",
}
_NOTE = (
    "A backward pass counts as twice its forward pass. The optimizer's own arithmetic, counting and tracing on one sample and "
    "feature extractors are not counted."
)


def _large(heading: str, key: str) -> Column:
    return Column(heading, key, lambda row: large_text(row[key]))


def ledger_table(ledger: Sequence[LedgerRow]) -> Table | None:
    """The cost of making the experts, by stage, with a total; None if there is no ledger."""
    entries = [entry for entry in ledger if entry.kind in MAKING]
    if not entries:
        return None
    macs, parts = sum(entry.macs for entry in entries), [entry.forward for entry in entries]
    forward = None if None in parts else sum(part for part in parts if part is not None)
    total = LedgerRow("total", "training", sum(entry.samples for entry in entries), macs, forward)
    rows = tuple(
        {
            "stage": entry.stage,
            "kind": "" if entry is total else _WORDS[entry.kind],
            "samples": entry.samples,
            "forward_macs": entry.forward,
            "backward_macs": entry.backward,
            "macs": entry.macs,
            "flops": 2 * entry.macs,
            "part": entry.macs / macs if macs else None,
        }
        for entry in [*entries, total]
    )
    columns = (
        named("Stage", "stage"),
        named("Kind", "kind"),
        count("Samples", "samples"),
        _large("Forward MACs", "forward_macs"),
        _large("Backward MACs", "backward_macs"),
        _large("MACs", "macs"),
        replace(_large("FLOPs = 2·MACs", "flops"), spare=True),
        ratio("Part of the total", "part"),
    )
    return Table("ledger", "Cost of each stage", rows, columns, _NOTE, last_is_total=True)


def kinds_table(ledger: Sequence[LedgerRow]) -> Table | None:
    """The ledger's totals by kind, with moving averages and evaluation separate from making; None if there is no ledger."""
    if not ledger:
        return None
    rows = tuple(
        {
            "kind": _WORDS[kind],
            "making": "yes" if kind in MAKING else "no",
            "samples": row.samples,
            "forward_macs": row.forward,
            "backward_macs": row.backward,
            "macs": row.macs,
        }
        for kind, row in totals(ledger).items()
    )
    columns = (
        named("Kind", "kind"),
        named("Cost of making", "making"),
        count("Samples", "samples"),
        _large("Forward MACs", "forward_macs"),
        _large("Backward MACs", "backward_macs"),
        _large("MACs", "macs"),
    )
    note = (
        "Samples are counted once for every evaluation of a network. The MACs of moving averages are multiply-adds, one for every "
        "parameter and step."
    )
    return Table("kinds", "Costs by kind", rows, columns, note)


def cost_sentence(results: RunResults) -> str:
    """The cost of making all experts compared with the base's training; empty if there is no ledger."""
    base, made = making_macs(results.ledger)
    if not made:
        return ""
    training = results.base.training
    base = base or (int(training.macs) if training else 0)
    stages = [entry for entry in results.ledger if entry.kind in MAKING and entry.stage != BASE_TRAINING]
    searched = ", search and scoring included" if any(entry.kind == "search" for entry in stages) else ""
    sentence = f"Making all experts took {large_text(made)} MACs{searched}"
    if not base:
        return f"{sentence}; the cost of training the base is not recorded."
    return (
        f"{sentence}: {short_ratio(made / base)} of the {large_text(base)} MACs of the base's training, so base and experts "
        f"together took {short_ratio((base + made) / base)} times as many."
    )


def kinds_sentence(rows: Sequence[LedgerRow]) -> str:
    """Totals by kind in a sentence; empty if there are no rows."""
    if not rows:
        return ""
    parts = ", ".join(f"{_WORDS[kind]} {large_text(row.macs)}" for kind, row in totals(rows).items())
    return f"Total MACs: {parts}. {_NOTE}"
