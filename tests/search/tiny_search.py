"""Searches on tiny networks. As a script: one search in a folder, which a test may kill, or start on several ranks."""

import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunekit.cost import CostModel
from prunekit.graph import ChannelGraph, trace
from prunekit.groups import TimestepGroup
from prunekit.importance import Probe
from prunekit.search import Measure, SearchOptions, SearchResult, ranks, search


@dataclass(frozen=True, eq=False)
class Tiny:
    """A network, its channel groups and a loss that counts how often it is asked."""

    model: Any
    graph: ChannelGraph
    cost: CostModel
    probe: Probe
    evaluated: list[int]

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, cost: CostModel, inputs: Any, targets: Any = None) -> "Tiny":
        """The loss is the squared distance to ``targets``, the whole network's own outputs when absent."""
        evaluated: list[int] = []

        def outputs(network: nn.Module) -> torch.Tensor:
            made = network(**inputs) if isinstance(inputs, dict) else network(*inputs)
            return made if isinstance(made, torch.Tensor) else made.sample

        with torch.no_grad():
            wanted = outputs(model) if targets is None else targets

        def loss(network: nn.Module, timesteps: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            evaluated.append(1)
            return (outputs(network) - wanted).square().mean()

        return cls(model, graph, cost, Probe(loss, TimestepGroup(0, 0, 10), samples=1), evaluated)

    def search(
        self, name: str, ratio: float = 0.6, of: str = "macs", journal: Path | None = None, **options: Any
    ) -> SearchResult:
        rng = np.random.default_rng(7)
        scores = {group.name: rng.random(group.size) for group in self.graph}
        settings = {"rounds": 4, "shortlist": 3, "trials": 12, "tolerance": 0.01, "proxy": "loss", **options}
        target = int(ratio * int(Measure.by_name(of, self.cost).of(self.graph.full_widths)))
        chosen = SearchOptions(name, target_of=of, **settings)
        return search(self.model, self.graph, self.cost, scores, self.probe, target, chosen, journal=journal)


def trained() -> Tiny:
    """A perceptron that has learned something, so that its channels differ in what they are worth."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)
        )
        inputs = torch.randn(256, 6)
        targets = torch.stack([inputs[:, :2].prod(1), inputs[:, 2].sin(), inputs[:, 3:].square().sum(1)], 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(300):
            optimizer.zero_grad()
            (model(inputs) - targets).square().mean().backward()
            optimizer.step()
    model.eval()
    example = (inputs[:1],)
    graph = trace(model, example)
    return Tiny.of(model, graph, CostModel.of(model, graph, example), (inputs,), targets)


def searched_together(name: str, **options: Any) -> list[SearchResult]:
    """The results of two workers that search at the same time: neither may be done before the other has begun."""
    workers, both = [trained(), trained()], threading.Barrier(2)
    for tiny in workers:
        loss, evaluated = tiny.probe.loss, tiny.evaluated

        def together(*asked: Any, loss: Any = loss, evaluated: Any = evaluated) -> torch.Tensor:
            if not evaluated:
                both.wait(60)
            return loss(*asked)

        object.__setattr__(tiny.probe, "loss", together)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda tiny: tiny.search(name, **options), workers))


def main(name: str, folder: Path, seconds: float, proxy: str) -> None:
    """Search with a proxy that takes so long; write the plan, and a line for every evaluation as it ends."""
    ranks.join()
    tiny = trained()
    log = os.open(folder / f"evaluated-{ranks.place()[0]}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    quick = tiny.probe.loss

    def slow(*asked: Any) -> torch.Tensor:
        time.sleep(seconds)
        loss = quick(*asked)
        os.write(log, f"{float(loss)!r}\n".encode())
        return loss

    object.__setattr__(tiny.probe, "loss", slow)
    found = tiny.search(name, journal=folder / "search.jsonl", trials=24, proxy=proxy)
    plan = json.dumps(found.plan.to_json())
    (folder / f"plan-{ranks.place()[0]}.json").write_text(plan)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
