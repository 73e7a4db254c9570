import functools
import os

# Before torch is imported: sums over several threads differ in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from benches import Bench
from networks import NETWORKS

from prunekit.cost import CostModel
from prunekit.graph import trace

collect_ignore_glob = ["conftest.py", "*/conftest.py"]  # --doctest-modules would import them all as `conftest`


@pytest.fixture(scope="session")
def bench():
    """``bench(name, norm_mode)``: each network is built and traced once for the whole session."""

    @functools.cache
    def make(name: str, norm_mode: str = "even") -> Bench:
        network = NETWORKS[name]()
        graph = trace(network.model, network.inputs, norm_mode)
        return Bench(network.model, network.inputs, graph, CostModel.of(network.model, graph, network.inputs))

    return make
