"""What runs before a plan's first change is computed once, and every proxy is what it is without that, to the last bit."""

import numpy as np
import pytest
import torch
from networks import NETWORKS
from torch import nn

from prunekit.graph import PruningPlan, trace
from prunekit.groups import TimestepGroup
from prunekit.importance import Probe
from prunekit.search import make_proxy
from prunekit.search.prefix import Prefix, ordering

SHARING = ["loss", "bias", "least-squares"]


@pytest.fixture(autouse=True)
def _at_any_price(monkeypatch):
    monkeypatch.setattr(Prefix, "worth", 0)


def outputs_of(inputs):
    def outputs(network):
        made = network(**inputs) if isinstance(inputs, dict) else network(*inputs)
        return made if isinstance(made, torch.Tensor) else made.sample

    return outputs


def probe_of(outputs, batches=1):
    def loss(network, timesteps, generator):
        scale = 1 + torch.rand((), generator=generator)  # each batch is weighted in its own way
        return (scale * outputs(network)).square().mean()

    return Probe(loss, TimestepGroup(0, 0, 10), samples=batches, chunk=1)


@pytest.mark.slow_but("conv-*", "mlp-*", "unet-loss-3", "unet-scale-shift-bias-*")
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_whatever_was_shared_the_proxy_is_the_same_to_the_bit(bench, name, kind, batches):
    tiny = bench(name)
    probe = probe_of(outputs_of(tiny.inputs), batches)
    state = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    sharing = make_proxy(kind, tiny.model, tiny.graph, probe)
    alone = make_proxy(kind, tiny.model, tiny.graph, probe)
    rng, base = np.random.default_rng(3), [group.size for group in tiny.graph]
    for _ in range(3):  # rounds: candidates that change one group each; the last is accepted
        near = tiny.plan(base, 0)
        for g in rng.permutation(len(base))[:4]:
            widths = list(base)
            widths[g] = int(rng.choice(tiny.graph.groups[g].widths))
            plan = tiny.plan(widths, 0)
            assert sharing(plan, near) == alone(plan)
        base = widths
    far = tiny.random_plan(8)
    assert sharing(far, near) == sharing(far) == alone(far)
    assert all(torch.equal(value, state[key]) for key, value in tiny.model.state_dict().items())
    assert not any("forward" in vars(module) for module in tiny.model.modules())


class Chain(nn.Module):
    """Four layers in a row, which say that they ran."""

    def __init__(self, changed_in_place=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, 8) for size in (5, 8, 8, 8))
        self.changed_in_place, self.ran = changed_in_place, []

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = x.relu_() if self.changed_in_place else x.relu()
            self.ran.append(i)
        return x


def ran(model, kind="loss", calls=1):
    """Layers whose own forward ran, by candidate: each layer's output channels are cut in turn, from one plan."""
    torch.manual_seed(0)
    graph = trace(model, (torch.randn(1, 5),))
    rows, seen = torch.randn(64, 5), []

    def outputs(network):
        for _ in range(calls):
            made = network(rows)
        return made

    evaluate = make_proxy(kind, model, graph, probe_of(outputs))
    whole = PruningPlan({}, graph.fingerprint)
    evaluate(whole, whole)
    real = nn.functional.linear

    def counted(*args, **kwargs):
        seen[-1] += 1
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "linear", counted)
        for group in list(graph)[::-1]:
            seen.append(0)
            evaluate(PruningPlan({group.name: tuple(range(group.size // 2))}, graph.fingerprint), whole)
    return seen


def test_only_what_follows_the_first_change_runs_and_the_common_plan_once():
    # the candidates cut layer 2's, 1's and 0's channels; the first has the whole network run for all
    assert ran(Chain()) == [4 + 2, 3, 4]


def test_nothing_is_shared_where_the_network_is_called_several_times():
    assert ran(Chain(), calls=2) == [8, 8, 8]


def test_an_output_that_is_changed_in_place_afterwards_is_not_shared():
    assert ran(Chain(changed_in_place=True)) == [4 + 4, 4, 4]


def test_what_is_not_worth_it_is_not_done(monkeypatch):
    monkeypatch.setattr(Prefix, "worth", 1e9)
    assert ran(Chain()) == [4, 4, 4]


def test_layers_with_a_weight_in_common_run():
    model = Chain()
    model.layers[2].weight = model.layers[1].weight
    with ordering(model) as order:
        model(torch.randn(2, 5))
    assert set(order.macs) == {"layers.0", "layers.3"}
    assert order.macs["layers.0"] == 2 * 5 * 8
    assert order.of("layers.1.weight") == order.starts["layers.1"] == 2
