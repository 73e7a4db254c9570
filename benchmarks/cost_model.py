"""Time of a closed-form cost query, compared with counting a pruned model, on the CIFAR-10 DDPM U-Net with random weights.

Prints medians as JSON, and writes reports/engine/cost_model.json: python benchmarks/cost_model.py
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from _manifest import publish
from cifar_unet import cifar_unet

from prunekit.cost import CostModel, count_macs
from prunekit.graph import PruningPlan, apply, trace


def seconds(action: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    model, inputs = cifar_unet()
    started = time.perf_counter()
    graph = trace(model, inputs)
    traced = time.perf_counter()
    cost = CostModel.of(model, graph, inputs)
    built = time.perf_counter()
    rng = np.random.default_rng(0)
    plans = np.array([[rng.choice(group.widths) for group in graph] for _ in range(2000)])
    scores = {group.name: rng.random(group.size) for group in graph}
    pruned = apply(model, graph, PruningPlan.from_widths(graph, plans[0], scores))
    counted = count_macs(pruned, inputs).macs
    figures = {
        "threads": 1,
        "macs": int(cost.macs(graph.full_widths)),
        "trace_seconds": traced - started,
        "cost_model_seconds": built - traced,
        "query_microseconds": 1e6 * seconds(lambda: cost.macs(plans[0]), 200),
        "plans_per_second_at_once": len(plans) / seconds(lambda: cost.macs(plans), 5),
        "count_milliseconds": 1e3 * seconds(lambda: count_macs(pruned, inputs), 5),
        "predicted_equals_counted": counted == int(cost.macs(plans[0])),
    }
    publish("cost_model", figures)


if __name__ == "__main__":
    main()
