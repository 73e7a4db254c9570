"""Part (a): how fast slim networks are, by MACs, precision, compiling, batch size, multiples of widths, and depth against width.

The network is CIFAR-10's U-Net with random weights. First every slim network is planned, on the CPU; then each is timed in turn
with the base. Torch-Pruning's networks have as many MACs at most.
"""

import copy
import itertools
import statistics
from dataclasses import asdict
from functools import cache

import numpy as np
from _manifest import markdown_table
from _random_plans import importance, plan_of
from _torch_pruning import Peer
from cifar_unet import CIFAR_UNET, cifar_unet
from torch import Tensor, nn

from prunekit._types import IntArray
from prunekit.checkpoint import ModelSpec
from prunekit.choices import TimedPrecision
from prunekit.cost import CostModel, count_macs
from prunekit.errors import BudgetError, InputError
from prunekit.graph import ChannelGraph, PruningPlan, apply, trace
from prunekit.steps.bases import seeded_weights

from .command import Part, Setting
from .forward import Way, compared
from .jobs import Job, Key, Row, Rows

FRACTIONS: tuple[float, ...] = (0.6, 0.8, 0.4)
BATCHES: tuple[int, ...] = (16, 1, 64)
MULTIPLES = (1, 8, 16, 64)
DEEP = 8  # multiple of the widths where branches may go, too
PEER = "torch-pruning"
WAYS: tuple[str, ...] = (*(f"width, multiples of {each}" for each in MULTIPLES), "depth", "both", PEER)
RUNS: tuple[tuple[TimedPrecision, bool], ...] = (
    ("bfloat16", False),
    ("float32", False),
    ("bfloat16", True),
    ("float32", True),
)
TINY = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "add_attention": False,
}


class Subject:
    """The base, its channel groups, and how to prune it."""

    def __init__(self, tiny: bool) -> None:
        self.model, self.inputs = tiny_unet() if tiny else cifar_unet()

    @property
    def graph(self) -> ChannelGraph:
        """Channel groups and residual branches; norms lose whole groups, so that widths move in small steps."""
        return self._traced()[0]

    @property
    def cost(self) -> CostModel:
        """Their costs."""
        return self._traced()[1]

    @cache  # noqa: B019 - a subject lives as long as the process
    def _traced(self) -> tuple[ChannelGraph, CostModel]:
        graph = trace(self.model, self.inputs, norm_mode="whole", shrink="both")
        return graph, CostModel.of(self.model, graph, self.inputs)

    def planned(self, way: str, fraction: float) -> Row:
        """What a way to prune makes of a share of the MACs."""
        full = int(self.cost.macs(self.graph.full_widths))
        if way == PEER:
            return self._peers(full, fraction)
        graph = self._limited(way)
        try:
            widths = plan_of(graph, self.cost, importance(graph, self.cost), int(fraction * full))
        except BudgetError as error:
            return {"least": float(error.feasible[0]) / full}
        return {
            "mac_ratio": int(self.cost.macs(widths)) / full,
            "params": int(self.cost.params(widths)),
            "widths": self._named(widths),
        }

    def _limited(self, way: str) -> ChannelGraph:
        """The channel groups that a way may change."""
        branches = {group.name for group in self.graph if group.branch is not None}
        if way == "depth":
            return self.graph.with_whole({group.name for group in self.graph} - branches)
        if way == "both":
            return self.graph.with_multiples({1: DEEP})
        multiple = int(way.rpartition(" ")[2])
        limited = self.graph.with_multiples({1: multiple}) if multiple > 1 else self.graph
        return limited.with_whole(branches)

    def _peers(self, full: int, fraction: float) -> Row:
        peer = Peer(self.model, self.inputs, "local", None)
        best = peer.best(int(fraction * full), full)
        if "ratio" not in best:
            return {"least": best["least_reached"]}
        slim = peer.pruned(best["ratio"])
        params = sum(parameter.numel() for parameter in slim.parameters())
        return {"mac_ratio": count_macs(slim, self.inputs).macs / full, "params": params, "ratio": best["ratio"]}

    def _named(self, widths: IntArray) -> dict[str, int]:
        """Widths of the groups that change, by name."""
        pairs = zip(self.graph, widths.tolist(), strict=True)
        return {group.name: width for group, width in pairs if width != group.size}

    def slim(self, row: Row) -> nn.Module:
        """The network of a row."""
        if "ratio" in row:
            return Peer(self.model, self.inputs, "local", None).pruned(row["ratio"])
        widths = np.array([row["widths"].get(group.name, group.size) for group in self.graph], dtype=np.int64)
        scores = {group.name: np.zeros(group.size) for group in self.graph}
        return apply(self.model, self.graph, PruningPlan.from_widths(self.graph, widths, scores))


def tiny_unet() -> tuple[nn.Module, dict[str, Tensor]]:
    """A network of the same blocks that takes no time."""
    spec = ModelSpec("UNet2DModel", {**CIFAR_UNET, **TINY})
    with seeded_weights(0):
        return spec.build().eval(), spec.example_inputs()


@cache
def subject(tiny: bool) -> Subject:
    """The base of a size, once for a process."""
    return Subject(tiny)


def jobs(setting: Setting, rows: Rows) -> list[Job]:
    """First the networks, then their times."""
    fractions, batches, ways, runs = FRACTIONS, BATCHES, WAYS, RUNS
    if setting.tiny:
        fractions, batches, ways, runs = FRACTIONS[:1], (1,), (WAYS[1], *WAYS[-3:]), (RUNS[0], RUNS[3])

    def network(fraction: float, way: str) -> Job:
        key: Key = {"stage": "network", "fraction": fraction, "way": way}
        return Job.whole(key, lambda: subject(setting.tiny).planned(way, fraction))

    def time(run: tuple[TimedPrecision, bool], batch: int, fraction: float, way: str) -> Job:
        dtype, compiled = run
        key: Key = {"fraction": fraction, "way": way}
        kind = Way(batch, dtype, compiled)
        return Job.whole({"stage": "time", **asdict(kind), **key}, lambda: timed(setting, rows, key, kind))

    pairs = list(itertools.product(fractions, ways))
    return [
        *(network(*pair) for pair in pairs),
        *(time(run, batch, *pair) for run in runs for batch in batches for pair in pairs),
    ]


def network_row(setting: Setting, rows: Rows, key: Key) -> Row:
    """The row of a slim network, which is planned now if it was not yet.

    Raises:
        InputError: planning it failed.
    """
    whole = {"stage": "network", **key}
    if rows.find(whole) is None:
        rows.append({"key": whole, **whole, **subject(setting.tiny).planned(str(key["way"]), float(key["fraction"]))})
    found = rows.find(whole)
    if found is None or "error" in found:
        raise InputError("The network was not made; expected its row: see the reason there, and repeat with --retry.")
    return found


def timed(setting: Setting, rows: Rows, key: Key, way: Way) -> Row:
    """The times of one network and the base.

    Raises:
        InputError: the network was not made.
    """
    found = network_row(setting, rows, key)
    if "least" in found:
        return {"least": found["least"]}
    known = subject(setting.tiny)
    base, slim = copy.deepcopy(known.model), known.slim(found)
    return {
        "mac_ratio": found["mac_ratio"],
        **compared(base, slim, known.inputs, way, setting.device, setting.tiny),
    }


def table(rows: Rows) -> str:
    """A table for each precision, compiled or not: speed-ups of all ways by batch size."""
    parts = [
        "CIFAR-10's U-Net with random weights, whole norm groups removed. Speed-up: median of the rounds' ratios of the base's "
        "time to the slim network's, in turn, with quartiles. Memory: most that torch held during a forward pass of the largest "
        "batch, weights included, of the base and of the slim network. The ideal speed-up is 1 / MACs. torch-pruning ranks each "
        "layer by itself and rounds nothing.\n"
    ]
    batches = sorted({row["batch"] for row in rows.having(stage="time")})
    for dtype, compiled in RUNS:
        own = [row for row in rows.having(stage="time", dtype=dtype, compiled=compiled) if "slim" in row]
        if own:
            header = ["network", "MACs", *(f"batch {batch}" for batch in batches), "MiB"]
            parts += [
                f"## {dtype}{', compiled' if compiled else ''}\n",
                _base_times(own),
                markdown_table(header, _lines(own, batches)),
            ]
    unmet = [
        f"{row['way']} at {row['fraction']:g} (least {row['least']:.3f})"
        for row in rows.having(stage="network")
        if "least" in row
    ]
    parts += [f"Never so small: {', '.join(unmet)}.\n"] if unmet else []
    return "\n".join(parts)


def _base_times(own: list[Row]) -> str:
    """The base's milliseconds by batch size: the median over the ways that it was compared with."""
    told = []
    for batch in sorted({row["batch"] for row in own}):
        seconds = [row["base"]["seconds"] for row in own if row["batch"] == batch]
        told.append(f"{1e3 * statistics.median(seconds):.2f} ms at batch {batch}")
    return f"The base takes {', '.join(told)}.\n"


def _lines(own: list[Row], batches: list[int]) -> list[list[str]]:
    lines = []
    for fraction, way in dict.fromkeys((row["fraction"], row["way"]) for row in own):
        same = {row["batch"]: row for row in own if (row["fraction"], row["way"]) == (fraction, way)}
        last = same[max(same)]
        cells = [_speedup(same[batch]) if batch in same else "–" for batch in batches]
        lines.append([way, f"{last['mac_ratio']:.3f}", *cells, _mebibytes(last)])
    return lines


def _speedup(row: Row) -> str:
    low, high = row["quartiles"]
    return f"{row['speedup']:.2f} ({low:.2f} … {high:.2f})"


def _mebibytes(row: Row) -> str:
    base, slim = row["base"]["peak"], row["slim"]["peak"]
    return "–" if slim is None else f"{base / 2**20:.0f} → {slim / 2**20:.0f}"


PART = Part("Speed of slim networks on one device", jobs, table)
