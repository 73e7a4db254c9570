"""Time of a cost query in closed form against counting a pruned model, on the CIFAR-10 DDPM U-Net with random weights.

Prints medians as JSON: python benchmarks/cost_model.py
"""

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from prunekit.checkpoint import ModelSpec
from prunekit.cost import CostModel, count_macs
from prunekit.graph import PruningPlan, apply, trace

CIFAR_UNET = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 32,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}


def seconds(action: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    spec = ModelSpec("UNet2DModel", CIFAR_UNET)
    model, inputs = spec.build().eval(), spec.example_inputs()
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
        "macs": int(cost.macs(graph.full_widths)),
        "trace_seconds": traced - started,
        "cost_model_seconds": built - traced,
        "query_microseconds": 1e6 * seconds(lambda: cost.macs(plans[0]), 200),
        "plans_per_second_at_once": len(plans) / seconds(lambda: cost.macs(plans), 5),
        "count_milliseconds": 1e3 * seconds(lambda: count_macs(pruned, inputs), 5),
        "predicted_equals_counted": counted == int(cost.macs(plans[0])),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
