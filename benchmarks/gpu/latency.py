"""Part (a), second half: tables of layer times on the device, how well they predict, and plans made with them.

For each precision and batch size, prunekit's own table is measured and stored as a file that any machine can plan with. Then a plan
for a share of the MACs, one with branches removed as well, and those that take as long by prediction are timed in turn with the
base.
"""

import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _manifest import markdown_table
from _random_plans import about, importance, matched_plans
from _timing import in_turns, on

from prunekit._files import write_json
from prunekit.cost import LatencyOptions, LatencyTable
from prunekit.errors import InputError
from prunekit.graph import PruningPlan, apply
from prunekit.steps.timing_layers import read_times

from .command import Part, Setting
from .forward import BUDGET, CALLS, LEAST, MOST, TINY_ROUNDS, Way, ready
from .jobs import Job, Key, Row, Rows
from .speed import FRACTIONS, Subject, subject

WAYS = (Way(16, "bfloat16"), Way(16), Way(1, "bfloat16"), Way(64, "bfloat16"), Way(16, "bfloat16", compiled=True))
FEW = {"grid": 2, "repeats": 1, "fits": 1, "checks": 1}


def jobs(setting: Setting, rows: Rows) -> list[Job]:
    """For each way to run: its table, then the plans that are made with it."""
    found = []
    for way in WAYS[1:2] if setting.tiny else WAYS:
        key: Key = asdict(way)
        found.append(Job.whole({"stage": "table", **key}, partial(measured, setting, way)))
        for fraction in FRACTIONS[:1] if setting.tiny else FRACTIONS:
            work = partial(planned, setting, way, fraction)
            found.append(Job.whole({"stage": "plans", **key, "fraction": fraction}, work))
    return found


def path_of(setting: Setting, way: Way) -> Path:
    """The table of a way to run."""
    return setting.output / f"latency-{way.dtype}-{way.batch}{'-compiled' if way.compiled else ''}.json"


def measured(setting: Setting, way: Way) -> Row:
    """Measure and store a table."""
    known = subject(setting.tiny)
    few = FEW if setting.tiny else {}
    options = LatencyOptions(
        batch_size=way.batch, dtype=way.dtype, compiled=way.compiled, device=str(setting.device), **few
    )
    table = LatencyTable.of(known.model, known.graph, known.cost, known.inputs, options)
    write_json(path_of(setting, way), table.to_json())
    return {
        "base_seconds": table.base_seconds,
        "median_error": table.error,
        "worst_error": table.worst,
        "layers": len(table.layers),
        "kinds": len(table.times),
    }


def planned(setting: Setting, way: Way, fraction: float) -> Row:
    """Plans at a share of the MACs and at the same predicted time, timed in turn with the base.

    Raises:
        InputError: the table is missing.
    """
    known, path = subject(setting.tiny), path_of(setting, way)
    if not path.is_file():
        raise InputError(
            f"There is no table {path.name}; expected it from the job before: repeat that one with --retry."
        )
    latency = read_times(path, way.batch).bind(known.graph, known.cost)
    scores = importance(known.graph, known.cost)
    plans = matched_plans(known.graph, known.cost, latency, scores, fraction)
    seconds = _seconds(setting, known, way, list(plans.values()))
    middle = np.median(seconds / seconds[:, :1], axis=0)[1:]
    found = [
        {"target": name, **about(known.graph, known.cost, latency, scores, widths), "measured": float(ratio)}
        for (name, widths), ratio in zip(plans.items(), middle, strict=True)
    ]
    for row in found:
        del row["widths"]
    return {"base_seconds": float(np.median(seconds[:, 0])), "rounds": len(seconds), "plans": found}


def _seconds(setting: Setting, known: Subject, way: Way, plans: list[np.ndarray]) -> np.ndarray:
    """Seconds of the base and of the plans in turn, shape (rounds, 1 + plans)."""
    zeros = {group.name: np.zeros(group.size) for group in known.graph}
    torch.compiler.reset()
    slim = [apply(known.model, known.graph, PruningPlan.from_widths(known.graph, each, zeros)) for each in plans]
    models = [copy.deepcopy(known.model), *slim]
    runs = [ready(model, known.inputs, way, setting.device, setting.tiny)[0] for model in models]
    rounds = (TINY_ROUNDS,) if setting.tiny else (LEAST, MOST, BUDGET)
    return in_turns(runs, on(setting.device, CALLS), *rounds)


def table(rows: Rows) -> str:
    """How well the tables predict, and the plans."""
    header = ["run", "batch", "base ms", "median error", "worst error", "kinds of layers", "seconds"]
    tables = [
        [
            _run(row),
            f"{row['batch']}",
            f"{1e3 * row['base_seconds']:.2f}",
            *(f"{row[name]:.1%}" for name in ("median_error", "worst_error")),
            f"{row['kinds']}",
            f"{row['job_seconds']:.0f}",
        ]
        for row in rows.having(stage="table")
    ]
    columns = ["run", "batch", "MACs asked", "target", "MACs", "branches gone", "lost", "time predicted", "measured"]
    plans = [
        [
            _run(row),
            f"{row['batch']}",
            f"{row['fraction']:g}",
            plan["target"],
            f"{plan['mac_ratio']:.3f}",
            f"{plan['removed']}",
            *(f"{plan[name]:.3f}" for name in ("lost", "predicted", "measured")),
        ]
        for row in rows.having(stage="plans")
        for plan in row["plans"]
    ]
    return (
        "## Tables of layer times\n\nErrors: of predicted times of random plans that the table was not fitted to.\n\n"
        f"{markdown_table(header, tables)}\n## Plans\n\n`MACs` plans meet a share of the MACs; `time` plans take as long, by "
        "prediction, as `MACs, width`. `both` may remove residual branches. Lost: share of the importance, which is random. Times "
        f"are shares of the base's, medians of rounds in turn.\n\n{markdown_table(columns, plans)}"
    )


def _run(row: Row) -> str:
    return f"{row['dtype']}{', compiled' if row['compiled'] else ''}"


PART = Part("Tables of layer times on one device", jobs, table)
