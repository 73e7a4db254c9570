import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from prunekit.cost import count_macs
from prunekit.errors import BudgetError, InputError
from prunekit.graph import apply
from prunekit.graph.flow import Flow
from prunekit.groups import make_groups
from prunekit.importance import Probe, importance
from prunekit.recipe import PruneOptions
from prunekit.schedule import Parameterization
from prunekit.search import (
    PROPOSERS,
    SearchOptions,
    Task,
    WidthProblem,
    lost_importance,
    make_proxy,
    meet_target,
    proposer,
    search,
)
from prunekit.search.endpoint import UnconfirmedEndpoint
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench
from prunekit.steps.image_choice import images_of
from prunekit.training import DenoisingObjective

RATIO = 0.7


PROVEN = ["greedy", "oneshot", "uniform"]  # the others' own suite is in test_proposers.py


class Digits:
    """The embedded base, its channel groups, and one timestep group to prune it for."""

    def __init__(self):
        base = open_base("embedded:digits")
        self.bench = Bench.of(base)
        self.model, self.graph, self.cost = base.model, self.bench.graph, self.bench.cost
        self.inputs = base.spec.example_inputs()
        group = make_groups(base.schedule, 5)[3]
        objective = DenoisingObjective(images_of(base).train.images, Parameterization(base.schedule))
        self.probe = Probe(objective, group, samples=32, batch_size=32)
        scores = importance(self.model, self.inputs, objective, [group], samples=64, graph=self.graph)
        self.scores = scores.of(3)
        self.results = {}

    def search(self, name, ratio=RATIO, **options):
        options = SearchOptions(name, **{"rounds": 4, "shortlist": 6, **options})
        return search(self.model, self.graph, self.cost, self.scores, self.probe, int(ratio * self.bench.macs), options)

    def once(self, name):
        if name not in self.results:
            self.results[name] = self.search(name)
        return self.results[name]


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.mark.parametrize("name", PROVEN)
class TestEveryProposer:
    @pytest.mark.slow_but("oneshot", "uniform")
    def test_ends_at_most_a_tenth_of_a_percent_below_the_target_and_never_above(self, digits, name):
        found = digits.once(name)
        assert 0 <= found.target - found.macs <= 0.001 * digits.bench.macs
        assert (found.spent, found.missed, found.base) == (found.macs, found.target - found.macs, digits.bench.macs)
        pruned = apply(digits.model, digits.graph, found.plan)
        counted = count_macs(pruned, digits.inputs)
        assert (counted.macs, counted.params) == (found.macs, found.params)

    def test_says_every_width_before_and_after(self, digits, name):
        found = digits.once(name)
        assert list(found.widths) == [group.name for group in digits.graph]
        for group in digits.graph:
            before, after = found.widths[group.name]
            assert before == group.size
            assert after == len(found.plan.kept.get(group.name, range(group.size)))

    def test_keeps_the_channels_of_highest_score(self, digits, name):
        for group in digits.graph:
            kept = digits.once(name).plan.kept.get(group.name)
            if kept is not None:
                expected = group.select(digits.scores[group.name], len(kept))
                np.testing.assert_array_equal(kept, expected)

    def test_remembers_what_each_candidate_costs(self, digits, name):
        for entry in digits.once(name).memory:
            if "steps" in entry:
                widths = digits.graph.full_widths - np.array(entry["steps"]) * [g.step for g in digits.graph]
                assert entry["macs"] == int(digits.cost.macs(widths))
                assert entry["macs"] >= digits.once(name).target or entry["round"] == -1
                assert np.isfinite(entry["loss"])
            else:
                assert entry["chosen"] in digits.graph.index

    def test_refuses_an_impossible_target_before_measuring_anything(self, digits, name):
        calls = []

        def loss(model, timesteps, generator):
            calls.append(1)
            return torch.zeros(())

        probe = Probe(loss, digits.probe.group, 8, 8)
        with pytest.raises(BudgetError) as caught:
            search(digits.model, digits.graph, digits.cost, digits.scores, probe, 1000, SearchOptions(name))
        assert caught.value.feasible[1] == digits.bench.macs
        assert not calls

    def test_meets_a_target_of_parameters_in_multiples(self, digits, name):
        graph = digits.graph.with_multiples({1: 4})
        full = int(digits.cost.params(graph.full_widths))
        options = SearchOptions(name, rounds=2, shortlist=2, target_of="params")
        found = search(digits.model, graph, digits.cost, digits.scores, digits.probe, int(0.8 * full), options)
        assert (found.spent, found.base) == (found.params, full)
        assert 0 <= found.missed <= 0.001 * full
        assert all(after in (before, 4 * (after // 4)) for before, after in found.widths.values())
        assert all(entry["spent"] <= full for entry in found.memory if "steps" in entry)

    def test_removes_nothing_for_a_target_of_everything(self, digits, name):
        assert digits.search(name, ratio=1.0).plan.kept == {}


@pytest.mark.parametrize("name", ["oneshot", "uniform"])
def test_the_same_question_gets_the_same_plan(digits, name):
    assert digits.search(name).plan == digits.once(name).plan


def test_greedy_ends_with_no_more_loss_than_uniform(digits):
    evaluate = make_proxy(SearchOptions().proxy, digits.model, digits.graph, digits.probe)
    losses = {name: evaluate(digits.once(name).plan) for name in ("greedy", "uniform")}
    assert losses["greedy"] <= losses["uniform"]
    assert losses["greedy"] >= 0.5 * digits.probe.mean(digits.model)


def test_greedys_memory_begins_with_the_unpruned_loss_and_has_its_choices(digits):
    memory = digits.once("greedy").memory
    assert memory[0]["loss"] == digits.probe.mean(digits.model)
    assert memory[0]["macs"] == digits.bench.macs
    assert sum("chosen" in entry for entry in memory) >= 3


def test_uniform_keeps_about_the_same_fraction_everywhere_whatever_the_scores(digits):
    found = digits.once("uniform")
    steps = [group.step / group.size for group in digits.graph]
    kept = np.array([after / before for before, after in found.widths.values()])
    assert (np.abs(kept - np.median(kept)) <= np.maximum(steps, 0.15)).all()
    flat = {name: np.ones_like(values) for name, values in digits.scores.items()}
    others = search(digits.model, digits.graph, digits.cost, flat, digits.probe, found.target, SearchOptions("uniform"))
    assert others.widths == found.widths


@pytest.mark.slow
def test_greedy_repeats_itself_and_leaves_the_model_as_it_was_even_in_training_mode(digits):
    model = digits.model
    state = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    quick = {"rounds": 1, "shortlist": 2, "ratio": 0.95}
    first = digits.search("greedy", **quick)
    model.train()
    try:
        again = digits.search("greedy", **quick)  # dropout has no say
        assert model.training
    finally:
        model.eval()
    assert first.plan == again.plan
    assert first.memory == again.memory
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 0},
        {"shortlist": 0},
        {"tolerance": -0.1},
        {"tolerance": 1.0},
        {"proposer": "oracle"},
        {"target_of": "flops"},
        {"proxy": "hope"},
        {"bite": 0.0},
        {"fresh": 0},
        {"bite": 1.5},
        {"trials": 0},
        {"seed": -1},
        {"proposer": "llm"},
        {"proposer": "greedy", "study": "shared.log"},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError):
        SearchOptions(**options)


def on_paper(problem, scores, **options):
    """A task whose proxy is the importance lost."""

    def evaluate(plan, near=None):
        widths = plan.widths(problem.graph)
        steps = np.array([list(g.widths).index(width) for g, width in zip(problem.graph, widths, strict=True)])
        return float(problem.loss(steps))

    return Task(problem, scores, evaluate, **options)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(set(PROPOSERS) - {"llm"})),
    st.sampled_from(["even", "whole"]),
    st.floats(0.3, 0.95),
    st.sampled_from([{}, {1: 2}, {1: 4}]),
    st.integers(0, 1000),
)
def test_every_proposer_is_within_the_tolerance_wherever_meeting_the_target_alone_is(
    bench, name, mode, ratio, multiples, seed
):
    tiny = bench("unet", mode)
    graph = tiny.graph.with_multiples(multiples)
    full = int(tiny.cost.macs(graph.full_widths))
    rng = np.random.default_rng(seed)
    scores = {group.name: rng.random(group.size) for group in graph}
    lost = lost_importance(graph, scores)
    problem = WidthProblem(graph, tiny.cost, lost, int(ratio * full), int(0.001 * full))
    try:
        alone = problem.rank(meet_target(problem))[0]
    except BudgetError:
        return
    steps = proposer(name)(on_paper(problem, scores, rounds=4, shortlist=3, trials=6))
    assert int(problem.spent(steps)) <= problem.target
    assert problem.rank(steps)[0] <= (0 if alone == 0 else full)


def test_an_unknown_proposer_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'oracle'.*greedy, evolution, tpe, llm, oneshot, uniform"):
        proposer("oracle")


def test_candidates_are_measured_without_copying_a_weight_or_tracing_again(digits, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", never)
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", never)
    monkeypatch.setattr(Flow, "__init__", never)
    assert len(digits.search("greedy", rounds=1, shortlist=2, ratio=0.95).measured) > 2


def test_a_recipe_has_an_endpoint_and_refuses_what_it_does_not_know():
    llm = {"url": "http://127.0.0.1:8000/v1", "model": "tiny", "key_variable": "MY_KEY"}
    read = TypeAdapter(PruneOptions).validate_python({"search": {"proposer": "llm", "llm": llm}})
    assert read.search.llm == UnconfirmedEndpoint(**llm)
    for wrong in ({**llm, "api_key": "secret"}, {**llm, "url": "file:///etc/passwd"}):
        with pytest.raises(ValidationError):
            TypeAdapter(PruneOptions).validate_python({"search": {"proposer": "llm", "llm": wrong}})


@pytest.mark.slow
def test_a_round_takes_a_step_or_no_more_than_a_bite_of_a_channel_group(digits):
    def shares(found):
        """What each round left of the channel group that it cut, where that was more than a step."""
        chosen = [entry["steps"] for entry in found.memory if "chosen" in entry and entry["round"] > 0]
        assert len(chosen) > 2
        for before, after in itertools.pairwise([[0] * len(digits.graph), *chosen]):
            for group, old, new in zip(digits.graph, before, after, strict=True):
                if new > old + 1:
                    yield group.widths[new] / group.widths[old]

    assert min(shares(digits.search("greedy", ratio=0.5, bite=0.4))) >= 0.6
    assert min(shares(digits.search("greedy", ratio=0.5))) < 0.6


@pytest.mark.slow
def test_a_round_measures_as_many_afresh_as_it_is_told(digits):
    def by_round(**options):
        counts = Counter(entry["round"] for entry in digits.search("greedy", **options).measured)
        return [count for number, count in counts.items() if number > 1]

    few, more = by_round(), by_round(fresh=4)
    assert min(few) < 4 <= min(more)
