"""Random programs of tensor operations: whatever can be pruned is pruned rightly, and whatever cannot is left whole."""

import copy
import re

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from programs import LENGTH, STEPS, Program

from prunekit.cost import CostModel, count_macs
from prunekit.graph import PruningPlan, apply, trace
from prunekit.graph.forward_pass import run_once
from prunekit.graph.surgery import all_tensors, tensors_of


def silenced(model, graph, plan):
    """The full network with zeros where the plan's channels are made and where they are read."""
    model = copy.deepcopy(model)
    for name, kept in plan.kept.items():
        for member in graph[name].members:
            gone = torch.from_numpy(member.positions[~np.isin(member.roots, kept)])
            for key, dim in tensors_of(model, member.layer, member.axis):
                if dim or not key.endswith("weight.original1"):  # rows of zeros have no direction; their length is zero
                    all_tensors(model)[key].index_fill_(dim, gone, 0)
    return model


def random_plan(graph, seed):
    rng = np.random.default_rng(seed)
    kept = {group.name: group.select(rng.random(group.size), int(rng.choice(group.widths))) for group in graph}
    return PruningPlan({name: tuple(map(int, channels)) for name, channels in kept.items()}, graph.fingerprint)


def check(model, inputs, seed, plans=2, **modes):
    """Random plans cost what was said, and compute what the silenced network computes; none of these networks has norms."""
    graph = trace(model, inputs, **modes)
    cost = CostModel.of(model, graph, inputs)
    largest = run_once(model, inputs).abs().max()
    for i in range(plans):
        plan = random_plan(graph, [seed, i])
        pruned = apply(model, graph, plan)
        counted, widths = count_macs(pruned, inputs), plan.widths(graph)
        assert (int(cost.macs(widths)), int(cost.params(widths))) == (counted.macs, counted.params)
        expected = run_once(silenced(model, graph, plan), inputs)
        torch.testing.assert_close(run_once(pruned, inputs), expected, rtol=1e-3, atol=1e-4 * float(largest) + 1e-5)
    return graph


def sequence(seed):
    return (torch.randn(1, LENGTH, 5, generator=torch.Generator().manual_seed(seed)),)


@pytest.mark.slow_cases("flexible heads")
@pytest.mark.parametrize("step", STEPS)
def test_each_operation_is_followed_or_left_whole(step):
    graph = check(Program([step]).eval(), sequence(0), 0, plans=3)
    assert set(graph.index) | set(graph.left_whole) >= {"layers.0"}


@examples(20)
@given(
    st.lists(st.sampled_from(list(STEPS)), min_size=2, max_size=5),
    st.sampled_from(["whole", "even"]),
    st.integers(0, 10_000),
)
def test_programs_of_operations_are_pruned_rightly(steps, head_mode, seed):
    check(Program(steps, seed).eval(), sequence(seed), seed, head_mode=head_mode)


PRUNABLE = {
    "gated": {"layers.0", "layers.1"},
    "glu": {"layers.0", "layers.1"},
    "thirds": {"layers.0", "layers.1"},
    "packed heads": {"layers.0", "layers.1"},
    "scattered heads": {"layers.0", "layers.1"},
    "one head": {"layers.0", "layers.1"},
    "linear attention": {"layers.0", "layers.1"},
    "half written through a view": {"layers.0", "layers.1"},
    "interleaved": {"layers.0", "layers.1"},
    "rotated": {"layers.0", "layers.1"},
    "rotated by halves": {"layers.0", "layers.1"},
    "swapped": {"layers.0"},
    "flip": {"layers.0"},
    "table": {"layers.0", "layers.1"},
    "recomputed": {"layers.0", "layers.1"},
    "shuffled": {"layers.0", "layers.1"},
    "patched": {"layers.0", "layers.1"},
    "raw product": {"layers.0", "layers.1"},
    "twice": {"layers.0"},
    "tied": {"layers.0", "layers.1"},
    "torch attention": {"layers.0"},
    "complex": {"layers.0", "layers.1"},
    "diagonal kernel": {"layers.0", "layers.1"},
    "from zeros": {"layers.0", "layers.1"},
    "biased heads": {"layers.0", "layers.1"},
}


@pytest.mark.parametrize("step", PRUNABLE)
def test_what_survives_pruning_is_not_left_whole(step):
    graph = trace(Program([step]).eval(), sequence(0))
    assert set(graph.index) >= PRUNABLE[step]


UNSAFE = {  # step: its layer, what is said of it
    "unequal": ("layers.1", "in a way that is not known|stops the network"),
    "remembered": ("layers.0", "stops the network"),
    "remembered half": ("layers.1", "stops the network|in a way that is not known"),
    "scale of now": ("layers.0", "in a way that is not known"),
    "channel mean": ("layers.1", "in a way that is not known"),
    "channel max": ("layers.1", "amax"),
    "gated from zero": ("layers.1", "in a way that is not known"),
    "softmax": ("layers.1", "sum to one"),
    "written in place": ("layers.1", "picked out"),
    "roll": ("layers.1", "roll|fixed size"),
    "gathered": ("layers.1", "index"),
}


@pytest.mark.parametrize("step", UNSAFE)
def test_what_does_not_survive_pruning_is_left_whole_with_the_reason(step):
    layer, reason = UNSAFE[step]
    graph = trace(Program([step]).eval(), sequence(0))
    whole = [said for name, said in graph.left_whole.items() if name.split(":")[0] == layer]
    assert any(re.search(reason, said) for said in whole), graph.left_whole
