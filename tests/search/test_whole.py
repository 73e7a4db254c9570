"""Why layers keep their width."""

import numpy as np
import pytest
import torch
from networks import unet, unet_inputs
from torch import nn

from prunekit.cost import CostModel
from prunekit.errors import BudgetError
from prunekit.graph import trace
from prunekit.search import WidthProblem, lost_importance


class Fixed(nn.Module):
    """Nothing here can leave: what is made is what is given back."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.first(x) + self.second(x)


def problem(graph, model, inputs, share):
    cost = CostModel.of(model, graph, inputs)
    scores = {group.name: np.ones(group.size) for group in graph}
    target = int(share * cost.macs(graph.full_widths))
    return WidthProblem(graph, cost, lost_importance(graph, scores), target, 0)


def test_a_network_that_cannot_shrink_is_told_with_its_reasons():
    model, inputs = Fixed(), (torch.ones(1, 4),)
    graph = trace(model, inputs)
    reasons = set(graph.left_whole.values())
    assert reasons
    with pytest.raises(BudgetError, match="Nothing of this network can be pruned") as caught:
        problem(graph, model, inputs, 0.5).check()
    assert all(reason in str(caught.value) for reason in reasons)
    assert "2 layers (first, …)" in str(caught.value)
    problem(graph, model, inputs, 1.0).check()


@pytest.mark.slow
def test_a_network_that_shrinks_too_little_is_told_its_range():
    model, inputs = unet(), unet_inputs()
    with pytest.raises(BudgetError, match=r"is below what this network can be pruned to; expected .* of the base"):
        problem(trace(model, inputs), model, inputs, 0.0001).check()
