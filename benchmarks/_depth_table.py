"""The table of benchmarks/depth.py, from its rows."""

from typing import Any

import numpy as np
from _manifest import markdown_table

Row = dict[str, Any]
TITLES = {
    "digits": "U-Net of digits, 8×8 (11.5 MMACs)",
    "fashion": "U-Net of Fashion-MNIST, 16×16 (17.1 MMACs)",
    "dit": "DiT of Fashion-MNIST, 16×16 (29.8 MMACs)",
}


def summaries(rows: list[Row], times: list[Row]) -> list[Row]:
    """Each base, budget and way: means over seeds and timestep groups, and the paired comparison with width."""
    keys = dict.fromkeys((row["base"], row["budget"], row["way"]) for row in rows)
    return [_summary(rows, times, *key) for key in keys]


def _summary(rows: list[Row], times: list[Row], base: str, budget: float, way: str) -> Row:
    own = [row for row in rows if (row["base"], row["budget"], row["way"]) == (base, budget, way)]
    found: Row = {
        "base": base,
        "budget": budget,
        "way": way,
        "rows": len(own),
        "seeds": len({row["seed"] for row in own}),
    }
    met = [row for row in own if "after" in row]
    if not met:
        return {**found, "least": min(row["least"] for row in own)}
    width = {
        _pair(row): row["after"] for row in rows if (row["base"], row["budget"], row["way"]) == (base, budget, "width")
    }
    against = np.array([row["after"] / width[_pair(row)] - 1 for row in met if _pair(row) in width])
    return {
        **found,
        **{key: float(np.mean([row[key] for row in met])) for key in ("mac_ratio", "param_ratio", "whole")},
        **{key: float(np.mean([row[key] / row["whole"] - 1 for row in met])) for key in ("before", "after")},
        "removed": float(np.mean([len(row["removed"]) for row in met])),
        "branches": max(row.get("branches", 0) for row in met),
        "against_width": float(against.mean()) if len(against) else None,
        "against_width_stderr": float(against.std(ddof=1) / np.sqrt(len(against))) if len(against) > 1 else None,
        "better": int((against < 0).sum()),
        "of": len(against),
        "times": _times(times, base, budget, way),
    }


def _pair(row: Row) -> tuple[int, int]:
    return row["seed"], row["group"]


def _times(times: list[Row], base: str, budget: float, way: str) -> dict[str, float]:
    """Share of the base's time by batch size, median over seeds and groups."""
    found: dict[str, list[float]] = {}
    for row in times:
        if (row["base"], row["budget"]) == (base, budget) and way in row["times"]:
            found.setdefault(str(row["batch"]), []).append(row["times"][way]["ratio"])
    return {batch: float(np.median(values)) for batch, values in found.items()}


def markdown(found: list[Row], steps: int, draws: int) -> str:
    """A table for each base and budget."""
    parts = [
        "# Depth beside width at equal MACs\n",
        "Each of two timestep groups is pruned to the budget by the default search, which may remove channels (`width`), residual "
        f"branches (`depth`) or both, and fine-tuned for {steps} steps of 64 images on its own timesteps. Losses are those of "
        f"held-out images with fixed noise ({draws:,} draws a group), as changes from the unpruned base in percent, before and "
        "after the fine-tune, averaged over groups and seeds. `whole` is the base with the same fine-tune. The comparison with "
        "width is after the fine-tune, paired by seed and group. Time is processor time of one thread, as a share of the base's: "
        "base and all ways run in turn, medians of 31 rounds. Made by `python benchmarks/depth.py`; rows in `depth.jsonl`, times "
        "in `depth_times.jsonl`.\n",
    ]
    for base, title in TITLES.items():
        own = [row for row in found if row["base"] == base]
        if own:
            parts.append(f"## {title}\n\n{_table(own)}")
    return "\n".join(parts)


def _table(own: list[Row]) -> str:
    header = ["budget, way", "MACs", "parameters", "branches gone", "before", "after", "against width", "better in"]
    header += ["time, batch 1", "time, batch 16"]
    order = sorted(own, key=lambda row: -row["budget"])
    return markdown_table(header, [_line(row) for row in order])


def _line(row: Row) -> list[str]:
    name = row["way"] if row["way"] == "whole" else f"{row['budget']:g}, {row['way']}"
    if "least" in row:
        return [name, f"not below {row['least']:.3f}", *["–"] * 8]
    plain = row["way"] in ("whole", "width")
    error = row["against_width_stderr"] or 0.0
    return [
        name,
        f"{row['mac_ratio']:.3f}",
        f"{row['param_ratio']:.3f}",
        "–" if not row["branches"] else f"{row['removed']:.1f} of {row['branches']}",
        f"{row['before']:+.2%}",
        f"{row['after']:+.2%}",
        "–" if plain else f"{row['against_width']:+.2%} ± {error:.2%}",
        "–" if plain else f"{row['better']} of {row['of']}",
        *(f"{row['times'][batch]:.2f}" if batch in row["times"] else "–" for batch in ("1", "16")),
    ]
