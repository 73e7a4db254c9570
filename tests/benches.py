"""A tiny network, traced: what the tests of graphs, costs and searches share."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunekit.cost import CostModel
from prunekit.graph import ChannelGraph, PruningPlan


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
