"""Research code at the depth of published models: what can be pruned costs what was said."""

import pytest
import torch
from research_code import RESEARCH

from prunekit.cost import CostModel
from prunekit.graph import trace


@pytest.mark.slow
@pytest.mark.parametrize("name", ["guided-diffusion, scale-shift", "EDM, ADM", "DDIM, Diff-Pruning", "U-ViT"])
def test_deep_networks_can_be_pruned_below_half_of_their_macs(name):
    make, inputs = RESEARCH[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    graph = trace(model, inputs)
    cost = CostModel.of(model, graph, inputs)  # it compares itself with the counter, at full width and at the least
    assert float(cost.macs([int(group.widths[-1]) for group in graph])) < 0.5 * float(cost.macs(graph.full_widths))
