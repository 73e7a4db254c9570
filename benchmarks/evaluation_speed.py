"""MACs per second of evaluating a network: a batch in one stream of all threads, in streams of one thread each, and a train step.

They alternate within one run, so that the machine's noise affects all equally. Rates are per second on the clock and per second of
processor time; time that threads spend waiting for each other at the end of an operator is processor time too.

    python benchmarks/evaluation_speed.py
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _manifest import REPORTS, markdown_table, publish
from torch import nn

from prunekit._files import atomic_path
from prunekit.checkpoint import ModelSpec
from prunekit.cost import count_macs
from prunekit.graph.streams import in_streams
from prunekit.recipe import load_recipe
from prunekit.steps.bases import open_base

EVALUATED, TRAINED = 256, 128  # batches of sampling and of fine-tuning


def networks() -> dict[str, tuple[nn.Module, ModelSpec]]:
    """The embedded digits base, and the network of ``recipes/fashion-tdc.yaml`` with random weights."""
    base = open_base("embedded:digits")
    fashion = load_recipe(Path(__file__).resolve().parents[1] / "recipes" / "fashion-tdc.yaml").base.spec()
    return {"digits": (base.model, base.spec), "fashion": (fashion.build(), fashion)}


def ways(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Callable[[], float]]:
    """Ways to use the network; each returns the MACs that it takes, in MACs of one sample."""
    x, t = torch.randn(EVALUATED, *shape), torch.tensor(500)

    def whole() -> float:
        with torch.no_grad():
            model.eval()(x, t)
        return EVALUATED

    def streams() -> float:
        model.eval()
        with torch.no_grad(), in_streams(model, EVALUATED) as evaluated:
            evaluated(x, t)
        return EVALUATED

    def train_step() -> float:
        model.train()(x[:TRAINED], t).sample.square().mean().backward()
        return 3 * TRAINED

    return {"one stream": whole, "streams": streams, "train step": train_step}


def rates(model: nn.Module, spec: ModelSpec, rounds: int) -> dict[str, Any]:
    """GMAC/s of every way, medians over the rounds."""
    inputs = spec.example_inputs()
    macs = count_macs(model, inputs).macs
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, way in ways(model, tuple(inputs["sample"].shape[1:])).items():
            wall, processor = time.perf_counter(), time.process_time()
            done = way() * macs / 1e9
            spent = time.perf_counter() - wall, time.process_time() - processor
            found.setdefault(name, []).append((done / spent[0], done / spent[1]))
    rows = {}
    for name, each in found.items():
        walls, processors = zip(*each, strict=True)
        rows[name] = {
            "gmacs_per_second": statistics.median(walls),
            "spread": [min(walls), max(walls)],
            "gmacs_per_processor_second": statistics.median(processors),
        }
    return {"macs": macs, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=REPORTS)
    args = parser.parse_args()
    load, threads, found = os.getloadavg()[0], torch.get_num_threads(), dict[str, dict[str, Any]]()
    for name, (model, spec) in networks().items():
        for count in dict.fromkeys((1, threads)):
            torch.set_num_threads(count)
            found.setdefault(name, {})[str(count)] = rates(model, spec, args.rounds)
    figures = {"rounds": args.rounds, "load_average": [load, os.getloadavg()[0]], "networks": found}
    publish("evaluation_speed", figures, args.output)
    table(figures, args.output)


def table(figures: dict[str, Any], folder: Path) -> None:
    """``evaluation_speed.md``."""
    low, high = figures["load_average"]
    text = (
        "# How fast a network is evaluated\n\n"
        f"Batches of {EVALUATED} at one timestep, as samplers and held-out losses evaluate them, and forward and backward of "
        f"{TRAINED}, as fine-tuning takes them; in turns, {figures['rounds']} rounds, medians with least and largest. The machine "
        f"had a load average of {low:.1f} at the start and {high:.1f} at the end. One stream is what versions before had: all "
        "threads share every operator, and wait for each other after it. In streams, each thread has a part of the samples. "
        "Made by `python benchmarks/evaluation_speed.py`.\n\n"
    )
    rows = [
        [
            f"{network}, threads: {threads}, {way}",
            f"{row['gmacs_per_second']:.1f} ({row['spread'][0]:.1f}–{row['spread'][1]:.1f})",
            f"{row['gmacs_per_processor_second']:.1f}",
        ]
        for network, counts in figures["networks"].items()
        for threads, own in counts.items()
        for way, row in own["rows"].items()
    ]
    with atomic_path(folder / "evaluation_speed.md") as part:
        part.write_text(text + markdown_table(["way", "GMAC/s", "GMAC per processor second"], rows), encoding="utf-8")


if __name__ == "__main__":
    main()
