import copy

import pytest
import torch
from networks import NETWORKS

from prunekit.cost import verify
from prunekit.errors import GraphError
from prunekit.graph import apply


@pytest.fixture
def pruned(bench):
    tiny = bench("unet", "whole")
    plan = tiny.random_plan(3)
    return tiny, plan, apply(tiny.model, tiny.graph, plan)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_apply_makes_is_what_the_plan_says(bench, name, seed):
    tiny = bench(name)
    plan = tiny.random_plan(seed)
    verify(tiny.model, apply(tiny.model, tiny.graph, plan), tiny.graph, plan, tiny.cost, tiny.inputs)


def narrower(model):
    model.time_embedding.linear_1.weight = torch.nn.Parameter(model.time_embedding.linear_1.weight[:-1])


def other_heads(model):
    model.mid_block.attentions[0].heads += 1


def other_groups(model):
    model.conv_norm_out.num_groups = 3


def broken(model):
    model.conv_out.forward = lambda x: x.no_such_thing


def cropped(model):
    inner = model.conv_out.forward
    model.conv_out.forward = lambda x: inner(x)[..., 1:]


def dearer(model):
    inner = model.conv_out.forward
    model.conv_out.forward = lambda x: inner(x) + 0 * inner(x)


CASES = {
    narrower: "shape",
    other_heads: "heads",
    other_groups: "groups",
    broken: "does not run",
    cropped: "outputs of shapes",
    dearer: "MACs",
}


@pytest.mark.parametrize("change", CASES)
def test_a_network_that_is_something_else_is_refused_with_what_differs(pruned, change):
    tiny, plan, model = pruned
    wrong = copy.deepcopy(model)
    change(wrong)
    with pytest.raises(GraphError, match=CASES[change]):
        verify(tiny.model, wrong, tiny.graph, plan, tiny.cost, tiny.inputs)
