import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, rows
from torch import nn
from torch.nn.utils import parametrizations

from prunekit.cost import CostModel, count_macs
from prunekit.errors import GraphError
from prunekit.graph import PruningPlan, apply, trace


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_network_costs_what_the_counter_says(bench, name):
    tiny = bench(name)
    counted = count_macs(tiny.model, tiny.inputs)
    assert int(tiny.cost.macs(tiny.graph.full_widths)) == counted.macs
    assert int(tiny.cost.params(tiny.graph.full_widths)) == counted.params


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_many_widths_at_once_cost_what_each_costs_alone(bench, seed, count):
    tiny = bench("unet")
    rng = np.random.default_rng(seed)
    widths = np.stack([[rng.choice(group.widths) for group in tiny.graph] for _ in range(count)])
    for of in (tiny.cost.macs, tiny.cost.params):
        together = of(widths)
        assert together.dtype == np.int64
        assert together.shape == (count,)
        assert together.tolist() == [int(of(row)) for row in widths]
        np.testing.assert_array_equal(of(widths[None, :, None])[0, :, 0], together)
    assert sum(tiny.cost.by_module(widths[0]).values()) == together_macs(tiny, widths[0])


def together_macs(tiny, widths):
    return int(tiny.cost.macs(widths))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_removing_channels_never_costs_more(bench, seed):
    tiny = bench("unet")
    rng = np.random.default_rng(seed)
    widths = np.array([rng.choice(group.widths) for group in tiny.graph])
    for g, group in enumerate(tiny.graph):
        if widths[g] > group.widths[-1]:
            narrower = widths.copy()
            narrower[g] -= group.step
            assert tiny.cost.macs(narrower) < tiny.cost.macs(widths)
            assert tiny.cost.params(narrower) < tiny.cost.params(widths)


def test_rows_are_the_counters_modules_and_operators(bench):
    tiny = bench("unet")
    counted, by_module = count_macs(tiny.model, tiny.inputs), tiny.cost.by_module(tiny.graph.full_widths)
    for name, module in tiny.model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert by_module[name] == counted.by_module.get(name, 0)
    assert by_module["mid_block.attentions.0"] == 2 * 16 * 16 * 16
    by_operator = tiny.cost.by_operator(tiny.graph.full_widths)
    assert by_operator["convolution"] == counted.by_operator["convolution"]
    attention = sum(macs for name, macs in by_operator.items() if name.startswith("_scaled_dot_product"))
    assert attention == counted.by_operator["scaled_dot_product_attention"]


def test_products_that_no_layer_owns_are_linear_in_their_channels(bench):
    tiny = bench("products")
    assert tiny.cost.by_operator(tiny.graph.full_widths)["bmm"] == 2 * 4 * 4 * 8
    narrower = tiny.graph.full_widths.copy()
    narrower[tiny.graph.index["query"]] = 3
    narrower[tiny.graph.index["value"]] = 2
    assert tiny.cost.by_operator(narrower)["bmm"] == 4 * 4 * 3 + 4 * 4 * 2


def test_a_cost_that_is_quadratic_in_a_width_is_known_too():
    class Gram(nn.Module):
        """Products of channels with channels."""

        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.first(x)
            return self.out(x @ (x.transpose(1, 2) @ x))

    model = Gram().eval()
    inputs = (rows(1, 4, 5),)
    graph = trace(model, inputs)
    cost = CostModel.of(model, graph, inputs)
    assert cost.by_operator(np.array([3]))["bmm"] == 2 * 4 * 3 * 3


class Picky(nn.Module):
    """Runs one of its layers only while another is wide."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.first, self.middle, self.out = nn.Linear(5, 8), nn.Linear(3, 3), nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x)
        if h.shape[-1] > self.limit:
            self.middle(x[..., :3])
        return self.out(h)


def test_a_layer_that_runs_at_some_widths_only_is_left_whole():
    graph = trace(Picky(4).eval(), (rows(1, 5),))
    assert "first" not in graph.index
    assert "other layers run" in graph.left_whole["first"]


def test_a_cost_that_depends_on_the_width_in_an_unknown_way_is_refused():
    inputs = (rows(1, 5),)
    graph = trace(Picky(0).eval(), inputs)  # always runs it
    with pytest.raises(GraphError, match="depends on its width"):
        CostModel.of(Picky(4).eval(), graph, inputs)


def test_a_layer_that_runs_twice_costs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.out(torch.relu(self.middle(torch.relu(self.middle(self.first(x))))))

    model, inputs = Twice().eval(), (rows(1, 6),)
    graph = trace(model, inputs)
    cost = CostModel.of(model, graph, inputs)
    assert int(cost.macs(np.array([3]))) == 6 * 3 + 2 * 3 * 3 + 3 * 2
    pruned = apply(model, graph, PruningPlan({"first": (1, 2, 6)}, graph.fingerprint))
    assert count_macs(pruned, inputs).macs == int(cost.macs(np.array([3])))


def test_a_network_without_channel_groups_has_one_cost():
    model, inputs = nn.Linear(4, 3), (rows(1, 4),)
    graph = trace(model, inputs)
    assert len(graph) == 0
    cost = CostModel.of(model, graph, inputs)
    assert (int(cost.macs(graph.full_widths)), int(cost.params(graph.full_widths))) == (12, 15)


def test_measuring_the_coefficients_leaves_no_hook_behind(bench):
    tiny = bench("unet")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.model.modules())


class Sequence(nn.Module):
    """Layers of which those of an LSTM stay whole.

    Args:
        kind: of the recurrent layers.
    """

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(8, 16), kind(16, 24, 2, batch_first=True, bidirectional=True)
        self.wide, self.last = nn.Linear(48, 32), nn.Linear(32, 8)

    def forward(self, x):
        return self.last(self.wide(self.middle(self.first(x).relu())[0]).relu())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_have_rows(kind):
    net, inputs = Sequence(kind), (torch.randn(1, 6, 8),)
    graph = trace(net, inputs)
    cost = CostModel.of(net, graph, inputs)
    assert [group.name for group in graph] == ["wide"]
    own = 6 * sum(weight.numel() for weight in net.middle.parameters() if weight.ndim == 2)
    assert cost.by_module(graph.full_widths)["middle"] == own
    assert int(cost.macs(np.array([8]))) == 6 * (8 * 16 + 48 * 8 + 8 * 8) + own
    assert cost.unknown == ()


@pytest.mark.parametrize("kind", ["matrix_exp", "cayley", "householder"])
def test_a_parametrized_weight_is_computed_once(kind):
    """Whoever looks at a network from the outside may ask for a weight, which computes it: those products do not count."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 3, 1))
    parametrizations.orthogonal(net[1], orthogonal_map=kind)
    net.append(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1)))
    inputs = (torch.randn(1, 3, 10, 10),)
    graph = trace(net, inputs)
    with pytest.warns(
        UserWarning, match=r"Sequential runs \w*linalg_\w+, whose MACs are not known; they count as none"
    ):
        cost = CostModel.of(net, graph, inputs)
    assert int(cost.macs(graph.full_widths)) == count_macs(net, inputs).macs
    assert cost.unknown == count_macs(net, inputs).unknown != ()
    assert {"3", "5.0"} <= {group.name for group in graph}
    assert {"0", "1.parametrizations.weight"} <= set(graph.left_whole)
