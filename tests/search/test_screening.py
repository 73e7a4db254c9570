"""A search that compares candidates on few draws first: the same draws, a repair that is exact where nothing drifts, one plan."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_search import trained
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunekit.cost import CostModel
from prunekit.graph import PruningPlan, Template, apply, trace
from prunekit.groups import TimestepGroup
from prunekit.importance import Probe
from prunekit.search import Repair, SearchOptions, make_proxy, search, search_operations, search_samples
from prunekit.search.screening import SlicedRepair


class Drawn:
    """A loss whose draws are told."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, timesteps, generator):
        return self.drawn_losses(model, self.draw(timesteps, generator), timesteps).mean()

    def draw(self, timesteps, generator):
        return (torch.randn(len(timesteps), 5, generator=generator),)

    def drawn_losses(self, model, drawn, timesteps):
        self.seen += zip(timesteps.tolist(), drawn[0][:, 0].tolist(), strict=True)
        return model(drawn[0]).square().mean(1)


def perceptron():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval()


@pytest.mark.parametrize("draws", [1, 10, 20, 200])
def test_part_of_the_draws_is_unchanged_and_evenly_spread(draws):
    model, few, whole = perceptron(), Drawn(), Drawn()
    probe = Probe(whole, TimestepGroup(0, 100, 300), samples=40, batch_size=16, chunk=16)
    probe.mean(model)
    part = replace(probe, loss=few).part(draws)
    assert part.mean(model) == pytest.approx(part.part(400).mean(model))
    assert set(few.seen) <= set(whole.seen)
    count = min(draws, 40)
    timesteps = sorted({t for t, _ in few.seen})
    assert len(timesteps) == part.samples == count
    assert all(100 + 200 * i / count <= t < 100 + 200 * (i + 1) / count for i, t in enumerate(timesteps))


@pytest.mark.parametrize(("draws", "others"), [(1, 1), (10, 20), (8, 16), (13, 27)])
def test_two_parts_share_no_draw_and_both_are_evenly_spread(draws, others):
    model, first, second = perceptron(), Drawn(), Drawn()
    probe = Probe(first, TimestepGroup(0, 100, 300), samples=40, batch_size=16, chunk=16)
    mine, rest = probe.parts(draws, others)
    mine.mean(model)
    replace(rest, loss=second).mean(model)
    assert (len(first.seen), len(second.seen)) == (mine.samples, rest.samples) == (draws, others)
    assert not set(first.seen) & set(second.seen)
    for seen in (first.seen, second.seen):
        timesteps, step = np.sort([t for t, _ in seen]), 200 / len(seen)
        ideal = 100 + (np.arange(len(seen)) + 0.5) * step
        assert np.abs(timesteps - ideal).max() <= step + 200 / 40


def test_part_of_the_draws_of_another_loss_are_its_first_timesteps():
    seen = []

    def loss(model, timesteps, generator):
        seen.append((timesteps.tolist(), generator.initial_seed()))
        return model(torch.zeros(1, 5)).sum()

    probe = Probe(loss, TimestepGroup(0, 0, 300), samples=40, chunk=16)
    probe.mean(perceptron())
    whole = list(seen)
    seen.clear()
    probe.part(20).mean(perceptron())
    assert seen == [whole[0], (whole[1][0][:4], whole[1][1])]


def fitted(model, inputs):
    graph = trace(model, (inputs[:1],))
    return graph, Probe(lambda network, *_: network(inputs).square().mean(), TimestepGroup(0, 0, 10), samples=1)


def plan_of(graph, **gone):
    kept = {
        graph.groups[int(place[1:])].name: tuple(
            c for c in range(graph.groups[int(place[1:])].size) if c not in channels
        )
        for place, channels in gone.items()
    }
    return PruningPlan(kept, graph.fingerprint)


def sliced(model, graph, probe, near, plan, kind="least-squares"):
    template = Template(model, graph)
    mender = SlicedRepair(Repair.of(model, graph, probe, kind), template)
    mender.start_from(near)
    pruned = template(plan)
    mender.mend(pruned, plan)
    return pruned


@torch.no_grad()
def test_a_channel_that_is_a_mixture_of_others_leaves_without_a_trace_from_a_pruned_network_too():
    model = perceptron()
    model[2].weight[3], model[2].bias[3] = 2 * model[2].weight[5], 2 * model[2].bias[5]
    inputs = torch.randn(256, 5, generator=torch.Generator().manual_seed(1))
    graph, probe = fitted(model, inputs)
    near = plan_of(graph, g0=[0, 4])
    plan = PruningPlan({**near.kept, **plan_of(graph, g1=[3]).kept}, graph.fingerprint)
    before = Repair.of(model, graph, probe).apply(near)(inputs)
    after = sliced(model, graph, probe, near, plan)(inputs)
    cut = apply(model, graph, plan)(inputs)
    assert (after - before).abs().max() < 0.02 * (cut - before).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bias", "least-squares"])
def test_of_the_plan_itself_it_is_the_repaired_network(kind):
    model = perceptron()
    inputs = torch.randn(256, 5, generator=torch.Generator().manual_seed(1))
    graph, probe = fitted(model, inputs)
    near = plan_of(graph, g0=[0, 4], g1=[1])
    repaired = Repair.of(model, graph, probe, kind).apply(near)
    torch.testing.assert_close(sliced(model, graph, probe, near, near, kind)(inputs), repaired(inputs))


def test_from_the_whole_network_the_first_cut_layer_is_repaired_as_ever():
    model = perceptron()
    inputs = torch.randn(256, 5, generator=torch.Generator().manual_seed(1))
    graph, probe = fitted(model, inputs)
    plan = plan_of(graph, g0=[0, 4])
    repaired = Repair.of(model, graph, probe).apply(plan)
    found = sliced(model, graph, probe, PruningPlan({}, graph.fingerprint), plan)
    torch.testing.assert_close(found[2].weight, repaired[2].weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[2].bias, repaired[2].bias, rtol=1e-4, atol=1e-5)


def test_a_plan_that_gets_channels_back_is_repaired_anew():
    tiny = screened()
    evaluate = make_proxy("least-squares", tiny.model, tiny.graph, tiny.probe)
    near, plan = plan_of(tiny.graph, g0=[0, 4]), plan_of(tiny.graph, g0=[0], g1=[1])
    assert evaluate(plan, near, 3, anew=False) == evaluate(plan, None, 3)


def screened(samples=16):
    tiny = trained()
    return replace(tiny, probe=replace(tiny.probe, samples=samples))


def test_a_round_measures_no_more_than_the_short_list_and_few_see_all_draws():
    tiny = screened()
    found = tiny.search("greedy", screening=2, shortlist=2, rounds=6, proxy="least-squares", finalists=2)
    per_round = Counter(entry["round"] for entry in found.measured if entry.get("sliced"))
    assert max(count for number, count in per_round.items() if number > 0) <= 2
    whole = [entry for entry in found.measured if "draws" not in entry]
    assert 2 <= len(whole) <= 3  # the whole network and the exchanges
    assert whole[0]["steps"] == [0] * len(tiny.graph)
    assert {entry.get("draws") for entry in found.measured} == {None, 2}
    final = [entry for entry in found.memory if entry["macs"] == found.macs and "draws" not in entry]
    assert final


@pytest.mark.parametrize("screening", [0, 8])
def test_the_multiplications_that_are_estimated_bound_those_of_a_search(screening):
    model, example = perceptron(), (torch.zeros(1, 5),)
    graph = trace(model, example)
    cost = CostModel.of(model, graph, example)
    full = int(cost.macs(graph.full_widths))
    probe = Probe(Drawn(), TimestepGroup(0, 0, 100), samples=64, batch_size=32)
    scores = {group.name: np.arange(1.0, group.size + 1) for group in graph}
    options = SearchOptions("greedy", screening=screening, shortlist=3, rounds=4)
    with FlopCounterMode(display=False) as counted:
        search(model, graph, cost, scores, probe, full // 2, options)
    most = search_operations(model, example, full, len(graph), options, probe.samples, probe.batch_size)
    assert most / 8 <= counted.get_total_flops() / 2 <= most


@torch.no_grad()
@pytest.mark.parametrize("intercept", [True, False])
def test_the_products_of_a_repair_are_those_of_its_inputs(intercept):
    model = perceptron() if intercept else nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)).eval()
    inputs = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
    graph, probe = fitted(model, inputs)
    seen = {}

    def see(name, signals, drift):
        seen[name] = signals.clone(), drift

    fit, plan = Repair.of(model, graph, probe), plan_of(graph, g0=[0, 4])
    fit.mend(apply(model, graph, plan), plan, see=see)
    signals, drift = seen["2"]
    about = signals - signals.mean(1, keepdim=True) if intercept else signals
    torch.testing.assert_close(drift.gram, about @ about.T)
    assert seen["0"][1] is None


def test_what_is_estimated_bounds_what_is_measured():
    tiny = screened()
    options = {"screening": 2, "shortlist": 3, "rounds": 4, "proxy": "least-squares"}
    found = tiny.search("greedy", **options)
    passed = sum(entry.get("draws", 16) for entry in found.measured)
    most, back = search_samples(SearchOptions("greedy", **options), 16, 16)
    assert passed <= most < search_samples(SearchOptions("greedy", **{**options, "screening": 0}), 16, 16)[0]
    assert back == 0


def test_a_set_of_few_draws_is_not_screened():
    tiny = screened(samples=2)
    found = tiny.search("greedy", screening=2)
    assert not any("draws" in entry for entry in found.memory)


@pytest.mark.parametrize("proxy", ["loss", "least-squares"])
def test_wherever_the_journal_ends_a_screened_search_goes_on_to_the_same_plan(tmp_path, proxy):
    tiny, path = screened(), tmp_path / "search.jsonl"
    first = tiny.search("greedy", screening=2, journal=path, proxy=proxy)
    written = path.read_bytes()
    lines = written.splitlines(keepends=True)
    for end in range(1, len(lines), 3):
        path.write_bytes(b"".join(lines[:end]) + lines[end][:7])
        again = tiny.search("greedy", screening=2, journal=path, proxy=proxy)
        assert again.plan == first.plan
        assert path.read_bytes() == written
    tiny.evaluated.clear()
    assert tiny.search("greedy", screening=2, journal=path, proxy=proxy).plan == first.plan
    assert tiny.evaluated == []


def test_impossible_screenings_are_refused():
    for wrong in ({"screening": -1}, {"finalists": 0}):
        with pytest.raises(ValueError, match="screening"):
            SearchOptions(**wrong)


def test_numbers_of_the_first_draws_compare_with_each_other_only():
    tiny = screened()
    evaluate = make_proxy("loss", tiny.model, tiny.graph, tiny.probe)
    plan = plan_of(tiny.graph, g0=list(range(12)))
    assert evaluate(plan, None, 16) == evaluate(plan)
    assert np.isfinite(evaluate(plan, None, 2))
