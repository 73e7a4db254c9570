"""One suite for every proxy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prunekit.errors import InputError
from prunekit.graph import PruningPlan, apply
from prunekit.groups import make_groups
from prunekit.importance import Probe, importance
from prunekit.schedule import Parameterization
from prunekit.search import PROXIES, make_proxy, proxy_evaluations
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench
from prunekit.steps.image_choice import images_of
from prunekit.training import DenoisingObjective

TRAINED = ["recovery", "repaired-recovery"]


class Digits:
    def __init__(self):
        self.base = open_base("embedded:digits")
        bench = Bench.of(self.base)
        self.model, self.graph = self.base.model, bench.graph
        objective = DenoisingObjective(images_of(self.base).train.images, Parameterization(self.base.schedule))
        group = make_groups(self.base.schedule, 5)[2]
        self.probe = Probe(objective, group, samples=64, batch_size=32)
        inputs = self.base.spec.example_inputs()
        self.scores = importance(self.model, inputs, objective, [group], samples=64, graph=self.graph).of(2)

    def evaluate(self, name):
        return make_proxy(name, self.model, self.graph, self.probe)

    def plan(self, share):
        """Every channel group at about this share of its channels."""
        widths = [g.widths[np.abs(g.widths / g.size - share).argmin()] for g in self.graph]
        return PruningPlan.from_widths(self.graph, np.array(widths), self.scores)


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.mark.parametrize("name", PROXIES)
class TestEveryProxy:
    @pytest.mark.slow_cases("*recovery")
    def test_says_the_same_of_the_same_plan_whatever_it_was_asked_before(self, digits, name):
        first, other = digits.evaluate(name), digits.evaluate(name)
        some, more = digits.plan(0.7), digits.plan(0.4)
        told = [first(some), first(more)]
        assert [other(more), other(some), other(more)] == [told[1], told[0], told[1]]

    @pytest.mark.slow_cases("*recovery")
    def test_rises_with_what_is_removed(self, digits, name):
        evaluate = digits.evaluate(name)
        mild, medium, severe = (evaluate(digits.plan(share)) for share in (0.85, 0.5, 0.2))
        assert digits.probe.mean(digits.model) * 0.7 < mild < medium < severe

    def test_of_the_whole_network_is_its_loss_where_nothing_is_trained(self, digits, name):
        if name in TRAINED:
            assert digits.evaluate(name)(digits.plan(1.0)) < 1.2 * digits.probe.mean(digits.model)
        else:
            assert digits.evaluate(name)(digits.plan(1.0)) == digits.probe.mean(digits.model)

    def test_leaves_the_model_and_the_global_generator_alone(self, digits, name):
        state = {key: value.clone() for key, value in digits.model.state_dict().items()}
        flags = [p.requires_grad for p in digits.model.parameters()]
        rng = torch.get_rng_state()
        digits.evaluate(name)(digits.plan(0.6))
        assert all(torch.equal(value, state[key]) for key, value in digits.model.state_dict().items())
        assert flags == [p.requires_grad for p in digits.model.parameters()]
        assert all(p.grad is None for p in digits.model.parameters())
        assert not digits.model.training
        assert torch.equal(torch.get_rng_state(), rng)


def test_the_raw_proxy_is_the_loss_right_after_the_cut(digits):
    plan = digits.plan(0.6)
    assert digits.evaluate("loss")(plan) == digits.probe.mean(apply(digits.model, digits.graph, plan))


def test_repair_and_training_lower_what_the_cut_costs(digits):
    told = {name: digits.evaluate(name)(digits.plan(0.5)) for name in PROXIES}
    assert told["least-squares"] < min(told["bias"], told["loss"])  # means alone may do harm: norms undo them
    assert told["recovery"] < told["loss"]
    assert told["repaired-recovery"] < told["least-squares"]


@pytest.mark.parametrize("batch_size", [32, 100])
@pytest.mark.parametrize("name", PROXIES)
def test_what_a_proxy_takes_is_what_is_run_for_it(digits, name, batch_size):
    probe = replace(digits.probe, batch_size=batch_size)
    evaluate, rows = PROXIES[name](digits.model, digits.graph, probe), []

    def count(module, args):
        if type(module) is type(digits.model) and args:  # a new network's one pass to compare its calls has none
            rows.append(len(args[0]) * (3 if torch.is_grad_enabled() else 1))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        evaluate(digits.plan(0.6))
    finally:
        handle.remove()
    assert sum(rows) == proxy_evaluations(name, probe.samples, probe.batch_size)


def test_an_unknown_proxy_is_refused_with_the_known_ones(digits):
    with pytest.raises(InputError, match=r"'hope'.*loss, bias"):
        digits.evaluate("hope")
