import copy
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from networks import NETWORKS

from prunekit.cost import CostModel
from prunekit.graph import ChannelGraph, PruningPlan, trace

collect_ignore_glob = ["conftest.py", "*/conftest.py"]  # --doctest-modules would import them all as `conftest`


@dataclass(frozen=True, eq=False)
class Bench:
    """A tiny network, traced and with its cost model. The model is shared by all tests: copy it before changing it."""

    model: Any
    inputs: Any
    graph: ChannelGraph
    cost: CostModel

    def plan(self, widths: Any, seed: int = 0) -> PruningPlan:
        """Random channels at the given widths."""
        rng = np.random.default_rng(seed)
        scores = {group.name: rng.random(group.size) for group in self.graph}
        return PruningPlan.from_widths(self.graph, np.asarray(widths), scores)

    def random_plan(self, seed: int) -> PruningPlan:
        rng = np.random.default_rng([1, seed])
        return self.plan([rng.choice(group.widths) for group in self.graph], seed)

    @property
    def smallest(self) -> np.ndarray:
        return np.array([group.widths[-1] for group in self.graph])

    def copy(self) -> Any:
        return copy.deepcopy(self.model)


@pytest.fixture(scope="session")
def bench():
    """``bench(name, norm_mode)``: each network is built and traced once for the whole session."""

    @functools.cache
    def make(name: str, norm_mode: str = "even") -> Bench:
        network = NETWORKS[name]()
        graph = trace(network.model, network.inputs, norm_mode)
        return Bench(network.model, network.inputs, graph, CostModel.of(network.model, graph, network.inputs))

    return make
