"""Part (c): train steps, tracing and a search round of networks as large as SDXL's U-Net and DiT-XL/2, with random weights.

A train step is measured in prunekit's own loop (fresh noise, clipping, moving average, checks) and bare: forward, backward and
AdamW on one batch that never changes. Both keep weights in float32 and compute in bfloat16.
"""

import itertools
import os
import statistics
import time
from functools import partial

import torch
from _manifest import markdown_table
from _search_round import one_round
from _timing import Run
from torch import nn
from torch.utils._pytree import tree_map

from prunekit.cost import CostModel
from prunekit.graph import trace
from prunekit.groups import TimestepGroup
from prunekit.importance import Probe
from prunekit.training import DenoisingObjective, RangeTimesteps, TrainOptions, train
from prunekit.training.recomputing import checkpoint_gradients

from .command import Part, Setting
from .jobs import Job, Key, Row, Rows
from .machine import emptied, peak
from .networks import Large, networks

BLOCKS, STEPS, TINY_STEPS = 5, 4, 1  # blocks that are timed, after one that is not; steps in each
RATE, TIMESTEPS = 1e-5, 1000
DRAWS, CANDIDATES = 8, 4
MOST_SECONDS = 300.0  # of tracing
LOOPS = ("bare", "prunekit")


def jobs(setting: Setting, _: Rows) -> list[Job]:
    """Train steps first, then searches."""
    trained, searched = [], []
    for name, network in networks(setting.tiny).items():
        modes = [(batch, False) for batch in network.batches] + [(batch, True) for batch in network.checkpointed]
        for batch, checkpointing in modes:
            for loop in LOOPS:
                key: Key = {"network": name, "batch": batch, "checkpointing": checkpointing, "loop": loop}
                work = partial(train_steps, setting, network, batch, checkpointing, loop)
                trained.append(Job.whole({"stage": "train", **key}, work))
        search = partial(search_round, setting, network)
        searched.append(Job.whole({"stage": "search", "network": name}, search))
    return trained + searched


def train_steps(setting: Setting, network: Large, batch: int, checkpointing: bool, loop: str) -> Row:
    """Seconds of a train step and the most memory that it takes."""
    device = setting.device
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # also on a machine that has a GPU
    emptied(device)
    steps = TINY_STEPS if setting.tiny else STEPS
    model, objective = network.build(device), network.objective()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    blocks = (bare if loop == "bare" else own)(model, objective, batch, checkpointing, steps)
    return {
        "parameters": parameters,
        "seconds": statistics.median(blocks) / steps,
        "fastest": min(blocks) / steps,
        "slowest": max(blocks) / steps,
        "peak": peak(device),
    }


def own(model: nn.Module, objective: DenoisingObjective, batch: int, checkpointing: bool, steps: int) -> list[float]:
    """Seconds of blocks of steps in prunekit's loop; a block ends when the loop reports its loss, which waits for the device."""
    options = TrainOptions(
        steps=(BLOCKS + 1) * steps,
        batch_size=batch,
        learning_rate=RATE,
        warmup_steps=0,
        log_every=steps,
        mixed_precision="bf16",
        gradient_checkpointing=checkpointing,
    )
    moments: list[float] = []
    train(
        model,
        objective,
        RangeTimesteps(0, TIMESTEPS),
        options,
        report=lambda _: moments.append(time.perf_counter()),
    )
    return [after - before for before, after in itertools.pairwise(moments)]


def bare(model: nn.Module, objective: DenoisingObjective, batch: int, checkpointing: bool, steps: int) -> list[float]:
    """Seconds of blocks of steps that only go forward and backward and step."""
    if checkpointing:
        checkpoint_gradients(model)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=RATE, fused=True)
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.randint(TIMESTEPS, (batch,), generator=generator)
    clean, noise, *conditions = (tensor.to(device) for tensor in objective.draw(timesteps, generator))
    placed = timesteps.to(device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = objective.per_sample(model, clean, noise, placed, *conditions).mean()
        loss.backward()
        optimizer.step()

    def block() -> None:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    block()
    return [wall_seconds(block) for _ in range(BLOCKS)]


def wall_seconds(run: Run) -> float:
    """Seconds of a call that waits for the device itself."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def search_round(setting: Setting, network: Large) -> Row:
    """Seconds of tracing a network without weights, of its cost model, and of one round of greedy in float32."""
    emptied(setting.device)
    device, inputs = setting.device, tree_map(lambda leaf: leaf.to("meta"), network.inputs())
    started = time.perf_counter()
    with torch.device("meta"):
        skeleton = network.spec.build()
    graph = trace(skeleton, inputs, seconds=MOST_SECONDS)
    traced = time.perf_counter()
    cost = CostModel.of(skeleton, graph, inputs)
    counted = time.perf_counter()
    model, draws = network.build(device).eval(), 1 if setting.tiny else DRAWS
    probe = Probe(network.objective(), TimestepGroup(0, 0, TIMESTEPS), 2 * draws, draws, 0)
    measure = one_round(model, graph, cost, probe, 1 if setting.tiny else CANDIDATES)
    emptied(device)
    began = time.perf_counter()
    losses = measure()  # numbers, so the device is done with them
    return {
        "groups": len(graph),
        "macs": int(cost.macs(graph.full_widths)),
        "trace_seconds": traced - started,
        "cost_seconds": counted - traced,
        "prepare_seconds": began - counted,
        "round_seconds": time.perf_counter() - began,
        "measured": len(losses),
        "draws": draws,
        "losses": losses,
        "peak": peak(device),
    }


def table(rows: Rows) -> str:
    """Train steps and searches."""
    header = ["network", "loop", "batch", "checkpointing", "ms a step", "images a second", "GiB"]
    steps = [
        [
            row["network"],
            row["loop"],
            f"{row['batch']}",
            "yes" if row["checkpointing"] else "no",
            f"{1e3 * row['seconds']:.1f} ({1e3 * row['fastest']:.1f} … {1e3 * row['slowest']:.1f})",
            f"{row['batch'] / row['seconds']:.1f}",
            _gibibytes(row),
        ]
        for row in rows.having(stage="train")
    ]
    columns = ["network", "groups", "GMACs", "trace s", "costs s", "measured", "draws", "round s", "GiB"]
    searches = [
        [
            row["network"],
            f"{row['groups']}",
            f"{row['macs'] / 1e9:.1f}",
            *(f"{row[name]:.1f}" for name in ("trace_seconds", "cost_seconds")),
            f"{row['measured']}",
            f"{row['draws']}",
            f"{row['round_seconds']:.1f}",
            _gibibytes(row),
        ]
        for row in rows.having(stage="search")
    ]
    return (
        "## Train steps\n\nRandom weights in float32, forward passes in bfloat16, AdamW. `bare` is forward, backward and optimizer "
        "on one batch that never changes; `prunekit` is its whole loop with a moving average. Medians of blocks of steps, with the "
        "fastest and the slowest; memory is the most that torch held, and `prunekit`'s has the moving average.\n\n"
        f"{markdown_table(header, steps)}\n## Tracing and searching\n\nOne round of `greedy` in float32: the plan that it starts "
        "from and some candidates, each repaired by least squares and measured on the draws. A whole round measures more "
        "candidates.\n\n"
        f"{markdown_table(columns, searches)}"
    )


def _gibibytes(row: Row) -> str:
    return "–" if row["peak"] is None else f"{row['peak'] / 2**30:.1f}"


PART = Part("Train steps and searches of large networks", jobs, table)
