"""Widths in multiples by default: where, how far they give way to a target, and what is said of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_search import Tiny
from torch import nn

from prunekit.cost import CostModel
from prunekit.graph import trace
from prunekit.recipe import load_recipe
from prunekit.search import SearchOptions, WidthProblem, default_multiples, meet_target, search
from prunekit.search.exact import nearest_below
from prunekit.search.multiples import within_reach
from prunekit.steps.bases import open_base


def chain(*widths):
    layers = [nn.Linear(a, b) for a, b in zip((5, *widths), (*widths, 3), strict=True)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).eval()
    graph = trace(model, (torch.ones(1, 5),))
    return model, graph, CostModel.of(model, graph, (torch.ones(1, 5),))


@pytest.fixture(scope="module")
def middling():
    return chain(96, 64, 72)


def problem(graph, cost, ratio, tolerance=0.001):
    full = int(cost.macs(graph.full_widths))
    lost = [np.arange(len(group.widths), dtype=float) for group in graph]
    return WidthProblem(graph, cost, lost, int(ratio * full), int(tolerance * full))


def held(graph):
    return [group.multiple for group in default_multiples(graph)]


def test_only_groups_that_keep_a_choice_get_multiples_and_tiny_networks_none():
    _, graph, _ = chain(128, 96, 16, 8, 100, 64)
    assert held(graph) == [8, 8, 1, 1, 1, 8]
    assert held(chain(48, 32, 128)[1]) == [1, 1, 1]
    assert held(chain(100, 90)[1]) == [1, 1]


@pytest.mark.parametrize("name", ["digits-demo", "digits-curriculum", "fashion-quick", "fashion-tdc"])
def test_the_bases_of_published_runs_are_tiny_so_their_widths_stay(name):
    base = load_recipe(Path(__file__).resolve().parents[2] / "recipes" / f"{name}.yaml").base
    spec = base.spec() if base.checkpoint is None else open_base(base.checkpoint).spec
    graph = trace(spec.build(), spec.example_inputs())
    assert default_multiples(graph) is graph


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.0005, 0.001, 0.01]))
def test_whatever_target_some_widths_meet_is_met(middling, at, tolerance):
    _, graph, cost = middling
    full, least = (int(cost.macs(np.array(w))) for w in (graph.full_widths, [1] * len(graph)))
    free = replace(problem(graph, cost, 1, tolerance), target=least + at * (full - least) // 1000)
    asked = replace(free, graph=default_multiples(graph))
    found = within_reach(asked)
    steps, _ = nearest_below(found, found.max_steps)
    best, _ = nearest_below(free, free.max_steps)
    assert free.missed(best) > free.tolerance or 0 <= found.missed(steps) <= found.tolerance
    coarse, _ = nearest_below(asked, asked.max_steps)
    if 0 <= asked.missed(coarse) <= asked.tolerance and asked.target >= int(asked.spent(asked.max_steps)):
        assert found.graph is asked.graph


@pytest.mark.slow
def test_few_groups_give_way_where_multiples_are_too_coarse():
    _, graph, cost = chain(*[64] * 8)
    asked = problem(default_multiples(graph), cost, 0.707)
    tight = replace(
        asked, target=asked.target // 8 * 8 + 7, tolerance=3
    )  # all that multiples of 8 cost is a multiple of 8
    assert tight.missed(nearest_below(tight, tight.max_steps)[0]) >= 7
    found = within_reach(tight)
    finer = sum(group.multiple == 1 for group in found.graph)
    assert 1 <= finer <= 4
    found = replace(found, lost=[np.arange(len(group.widths), dtype=float) for group in found.graph])
    assert 0 <= found.missed(meet_target(found)) <= 3


def result_of(model, graph, cost, ratio, **options):
    inputs = (torch.randn(8, 5, generator=torch.Generator().manual_seed(0)),)
    tiny = Tiny.of(model, graph, cost, inputs)
    scores = {group.name: np.arange(group.size, dtype=float) for group in graph}
    target = int(ratio * int(cost.macs(graph.full_widths)))
    return search(model, graph, cost, scores, tiny.probe, target, SearchOptions("oneshot", **options))


def test_a_result_says_its_multiples_and_what_they_cost(middling):
    model, graph, cost = middling
    found = result_of(model, graph, cost, 0.6)
    said = found.multiples
    assert not said.asked
    assert said.groups[8] + said.groups.get(1, 0) == 3
    assert len(said.finer) == said.groups.get(1, 0)
    assert all(w % 8 == 0 for name, (_, w) in found.widths.items() if name not in said.finer)
    assert 0 <= found.missed <= 0.001 * found.base
    assert 0 <= said.costs <= found.missed
    assert said.to_json()["groups"]["8"] == said.groups[8]


def test_multiples_that_are_asked_for_are_kept_and_their_price_is_said(middling):
    model, graph, cost = middling
    found = result_of(model, graph.with_multiples({1: 32}), cost, 0.6)
    assert found.multiples.asked
    assert found.multiples.finer == ()
    assert all(now == before or now % 32 == 0 for before, now in found.widths.values())
    assert found.missed > 0.001 * found.base
    assert 0 < found.multiples.costs <= found.missed
    anything = result_of(model, graph.with_multiples({}), cost, 0.6)
    assert anything.multiples.groups == {1: 3}
    assert anything.multiples.costs == 0


def test_a_target_below_what_multiples_reach_gets_finer_widths(middling):
    model, graph, cost = middling
    least = int(cost.macs(np.array([8, 8, 8]))) - 1
    found = result_of(model, graph, cost, least / int(cost.macs(graph.full_widths)))
    assert found.multiples.finer
    assert found.spent <= found.target
