"""Time of a train step in prunekit's loop against bare forward, backward and optimizer, on the embedded digits base.

The two alternate within one run, so that both meet the same noise of the machine. Prints JSON: python benchmarks/loop_overhead.py
"""

import copy
import json
import statistics
import time

import torch

from prunekit.data import load_images
from prunekit.pipeline.stages import open_base
from prunekit.training import DenoisingObjective, RangeTimesteps, TrainOptions, train

STEPS, ROUNDS, BATCH = 10, 7, 128


def main() -> None:
    base, images = open_base("embedded:digits"), load_images("digits").train.images
    objective = DenoisingObjective(images, base.schedule)
    bare_model, loop_model = copy.deepcopy(base.model).train(), copy.deepcopy(base.model)
    optimizer = torch.optim.AdamW(bare_model.parameters(), lr=1e-5)
    noisy, target = torch.randn(2, BATCH, 1, 8, 8).unbind()
    timesteps = torch.randint(0, 1000, (BATCH,))
    bare, loop = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            (bare_model(noisy, timesteps).sample - target).square().mean().backward()
            optimizer.step()
        bare.append((time.perf_counter() - started) / STEPS)
        options = TrainOptions(steps=STEPS, batch_size=BATCH, learning_rate=1e-5, log_every=STEPS)
        result = train(loop_model, objective, RangeTimesteps(0, 1000), options)
        loop.append(result.seconds / STEPS)
    ratio = statistics.median(b / a for a, b in zip(bare, loop, strict=True))
    figures = {
        "bare_milliseconds_per_step": 1e3 * statistics.median(bare),
        "loop_milliseconds_per_step": 1e3 * statistics.median(loop),
        "ratio": ratio,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
