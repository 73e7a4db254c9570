"""One suite for every proposer, on tiny networks."""

import numpy as np
import pytest
from loopback import Loopback, loopback
from tiny_search import Tiny, trained

from prunekit.cost import count_macs
from prunekit.graph import apply
from prunekit.search import PROPOSERS, Endpoint

NETWORKS = ["unet", "conv", "mlp"]


@pytest.fixture(scope="module")
def server():
    with loopback() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def tinies(bench):
    made = {name: bench(name) for name in NETWORKS}
    return {name: Tiny.of(b.model, b.graph, b.cost, b.inputs) for name, b in made.items()}


@pytest.fixture(scope="module")
def perceptron():
    return trained()


def asked(server: Loopback, name: str) -> dict:
    return {"llm": Endpoint(server.url, "tiny")} if name == "llm" else {}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", PROPOSERS)
class TestEveryProposer:
    @pytest.mark.parametrize(("of", "ratio"), [("macs", 0.6), ("macs", 0.85), ("params", 0.6)])
    def test_ends_at_the_target_with_legal_widths(self, bench, tinies, server, name, network, of, ratio):
        tiny = tinies[network]
        found = tiny.search(name, ratio, of, **asked(server, name))
        assert found.spent <= found.target == int(ratio * found.base)
        uniform = tiny.search("uniform", ratio, of)
        assert found.missed <= max(0.01 * found.base, uniform.missed)
        found.plan.check(tiny.graph)
        for group in tiny.graph:
            assert group.is_legal(found.widths[group.name][1])
        counted = count_macs(apply(tiny.model, tiny.graph, found.plan), bench(network).inputs)
        assert (counted.macs if of == "macs" else counted.params) == found.spent

    def test_asked_again_says_and_remembers_the_same(self, tinies, server, name, network):
        first, second = (tinies[network].search(name, **asked(server, name)) for _ in range(2))
        assert first.plan == second.plan
        assert first.memory == second.memory

    def test_measures_nothing_twice_and_remembers_all_of_it(self, tinies, server, name, network):
        tiny = tinies[network]
        before = len(tiny.evaluated)
        found = tiny.search(name, **asked(server, name))
        steps = [tuple(entry["steps"]) for entry in found.measured]
        assert len(set(steps)) == len(steps) == len(tiny.evaluated) - before
        assert (len(steps) > 0) == (name not in ("uniform", "oneshot"))

    def test_keeps_a_well_formed_memory(self, tinies, server, name, network):
        tiny = tinies[network]
        found = tiny.search(name, of="params", **asked(server, name))
        for entry in found.memory:
            assert type(entry["round"]) is int
            if "steps" not in entry:
                assert set(entry) == {"round", "ratios"}
                continue
            assert set(entry) - {"chosen"} == {"round", "steps", "macs", "loss", "spent"}
            widths = np.array([g.widths[n] for g, n in zip(tiny.graph, entry["steps"], strict=True)])
            assert entry["macs"] == int(tiny.cost.macs(widths))
            assert entry["spent"] == int(tiny.cost.params(widths))
            assert entry["loss"] >= 0
        chosen = [entry for entry in found.memory if "chosen" in entry]
        assert all(
            {**e, "chosen": ""} in [{**m, "round": e["round"], "chosen": ""} for m in found.measured] for e in chosen
        )
        if chosen:  # the last choice is the plan
            assert chosen[-1]["spent"] == found.spent

    def test_removes_nothing_for_a_target_of_everything(self, tinies, server, name, network):
        found = tinies[network].search(name, 1.0, **asked(server, name))
        assert found.plan.kept == {}
        assert found.measured == []


@pytest.mark.parametrize("name", ["greedy", "evolution", "tpe"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7, 0.9])
def test_what_measures_ends_with_no_more_loss_than_uniform(perceptron, name, ratio):
    found = {which: perceptron.search(which, ratio, trials=32) for which in (name, "uniform")}
    losses = {
        which: perceptron.probe.mean(apply(perceptron.model, perceptron.graph, result.plan))
        for which, result in found.items()
    }
    assert losses[name] <= losses["uniform"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evolution", "tpe"])
def test_more_trials_end_with_less_loss_and_seeds_differ(tinies, name):
    tiny = tinies["unet"]
    few, many = (tiny.search(name, 0.7, trials=trials) for trials in (2, 40))
    assert min(entry["loss"] for entry in many.measured) < min(entry["loss"] for entry in few.measured)
    assert 20 < len(many.measured) <= 40
    assert tiny.search(name, 0.7, trials=8, seed=1).memory != tiny.search(name, 0.7, trials=8).memory
