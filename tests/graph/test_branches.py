"""Residual branches are found in the structure alone, and a network without one computes what it does with the sum left out."""

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from branch_nets import FOUND, NOT_FOUND, Reshaping, network
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, Network

from prunekit.cost import CostModel, count_macs
from prunekit.errors import GraphError, PlanError
from prunekit.graph import Constraints, PruningPlan, apply, trace
from prunekit.graph.explaining import check_explained
from prunekit.graph.forward_pass import output_tensors, run_once
from prunekit.graph.template import Template


class Traced:
    """A network, its graph with switches, and its costs."""

    def __init__(self, made: Network) -> None:
        self.model, self.inputs = made.model, made.inputs
        self.graph = trace(self.model, self.inputs, shrink="both")
        self.cost = CostModel.of(self.model, self.graph, self.inputs)

    def plan(self, seed: int) -> tuple[np.ndarray, PruningPlan]:
        rng = np.random.default_rng(seed)
        widths = np.array([rng.choice(group.widths) for group in self.graph])
        return widths, PruningPlan.from_widths(self.graph, widths, {g.name: rng.random(g.size) for g in self.graph})

    def without(self, *names: str) -> PruningPlan:
        return PruningPlan({}, self.graph.fingerprint, names)


@pytest.fixture(scope="module")
def traced():
    known = {}

    def make(name: str) -> Traced:
        if name not in known:
            known[name] = Traced(NETWORKS[name]() if name in NETWORKS else network(name))
        return known[name]

    return make


@pytest.mark.parametrize("name", FOUND)
def test_branches_are_found_where_something_is_added_to_what_it_was_computed_from(traced, name):
    found = {branch.name.removeprefix("branch:"): branch.depth for branch in traced(name).graph.branches}
    assert found == FOUND[name][1]


@pytest.mark.parametrize("name", NOT_FOUND)
def test_other_sums_are_no_branches(name):
    made = network(name)
    graph = trace(made.model, made.inputs, shrink="both")
    assert graph.branches == ()
    assert all(group.branch is None for group in graph)


def test_a_unet_of_diffusers_has_a_branch_for_each_block_and_attention(traced):
    found = {branch.module for branch in traced("unet").graph.branches}
    blocks = {
        name
        for name, module in traced("unet").model.named_modules()
        if type(module).__name__ in ("ResnetBlock2D", "Attention")
    }
    assert found == blocks | {"mid_block"}


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("pruned", [False, True], ids=["whole", "narrow"])
def test_a_removed_branch_leaves_what_it_was_added_to(traced, name, pruned):
    """The same weights with zeros in the layers that end the branch: then its sum adds nothing."""
    one = traced(name)
    widths = one.plan(3)[0] if pruned else one.graph.full_widths.copy()
    for place, group in enumerate(one.graph):
        if group.branch is None:
            continue
        kept = np.array([w if g.branch is None else 1 for g, w in zip(one.graph, widths, strict=True)])
        gone = kept.copy()
        gone[place] = 0
        scores = {g.name: np.random.default_rng(1).random(g.size) for g in one.graph}
        plan = PruningPlan.from_widths(one.graph, kept, scores)
        silent = apply(one.model, one.graph, plan)
        for writer, _ in group.branch.writers:
            for tensor in silent.get_submodule(writer).parameters():
                torch.nn.init.zeros_(tensor)
        removed = apply(one.model, one.graph, PruningPlan(plan.kept, plan.fingerprint, (group.name,)))
        for found, wanted in zip(_outputs(removed, one.inputs), _outputs(silent, one.inputs), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        assert int(one.cost.macs(gone)) < int(one.cost.macs(kept))


def _outputs(model, inputs):
    return output_tensors(run_once(model, copy.deepcopy(inputs)))


@pytest.mark.parametrize("name", ["modulated", "joint attention", "parallel", "nested", "unet", "unet-scale-shift"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_any_plan_costs_what_the_counter_says_and_every_way_to_apply_it_agrees(traced, name, seed):
    one = traced(name)
    widths, plan = one.plan(seed)
    pruned = apply(one.model, one.graph, plan)
    counted = count_macs(pruned, one.inputs)
    assert (int(one.cost.macs(widths)), int(one.cost.params(widths))) == (counted.macs, counted.params)
    np.testing.assert_array_equal(plan.widths(one.graph), one.graph.settled(widths))
    np.testing.assert_array_equal(one.graph.settled(one.graph.settled(widths)), one.graph.settled(widths))
    assert PruningPlan.from_json(plan.to_json()) == plan
    template = Template(one.model, one.graph)
    template(one.plan(seed + 1)[1])  # what the plan before has removed comes back
    for found, wanted in zip(_outputs(template(plan), one.inputs), _outputs(pruned, one.inputs), strict=True):
        assert torch.equal(found, wanted)


def test_rows_of_removed_branches_are_absent_and_cost_nothing(traced):
    one = traced("nested")
    widths = one.graph.full_widths.copy()
    assert one.cost.present(widths).all()
    widths[one.graph.index["branch:blocks.0.1"]] = 0
    owners = one.cost.macs_rows.owners
    gone = {owner for owner, there in zip(owners, one.cost.present(widths), strict=True) if not there}
    assert gone == {"blocks.0.1.wide", "blocks.0.1.narrow"}
    assert one.cost.by_module(widths).get("blocks.0.1.wide", 0) == 0


def test_depth_alone_keeps_all_channels_and_width_alone_all_branches(traced):
    one = traced("nested")
    width, depth = one.graph.shrinking("width"), one.graph.shrinking("depth")
    assert [group.name for group in width] == [group.name for group in one.graph if group.branch is None]
    assert all(len(group.widths) == (1 if group.branch is None else 2) for group in depth)
    assert width.fingerprint == depth.fingerprint == one.graph.fingerprint


@pytest.mark.parametrize("constraints", [{"keep": ("blocks.0.1.wide",)}, {"limit": {"blocks.0.1.*": 0.5}}])
def test_a_branch_with_a_layer_that_is_to_stay_is_not_removed(constraints):
    made = network("nested")
    graph = trace(made.model, made.inputs, shrink="both", constraints=Constraints(**constraints))
    assert [branch.module for branch in graph.branches] == ["blocks.0.0"]


def test_plans_that_do_not_fit_are_refused(traced):
    one, other = traced("nested"), traced("unet")
    for plan, said in (
        (one.without("branch:blocks.7"), "removes 'branch:blocks.7', which is no branch of this network"),
        (one.without("first"), "removes 'first', which is no branch"),
        (PruningPlan({"branch:blocks.0.0": (0,)}, one.graph.fingerprint), "which this network does not have"),
        (PruningPlan({}, other.graph.fingerprint, ("branch:mid_block",)), "made for another network"),
    ):
        with pytest.raises(PlanError, match=said):
            apply(one.model, one.graph, plan)
    narrow = trace(one.model, one.inputs)
    with pytest.raises(PlanError, match="no branch of this network"):
        apply(one.model, narrow, one.without("branch:blocks.0.0"))


def test_another_network_is_not_rebuilt_from_the_plan(traced):
    one = traced("nested")
    pruned = apply(one.model, one.graph, one.without("branch:blocks.0.0"))
    with pytest.raises(GraphError, match="runs other layers"):
        one.graph.witness.check(pruned)  # without the plan's stubs nobody expects fewer calls


def test_the_callers_network_stays_whole(traced):
    one = traced("unet")
    before = {key: tensor.clone() for key, tensor in one.model.state_dict().items()}
    apply(one.model, one.graph, one.without("branch:mid_block"))
    Template(one.model, one.graph)(one.without("branch:mid_block"))
    assert one.model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in one.model.state_dict().items())


def test_a_network_on_the_meta_device_has_the_same_branches(traced):
    with torch.device("meta"):
        made = network("modulated")
    found = trace(made.model, tuple(x.to("meta") for x in traced("modulated").inputs), shrink="both")
    assert found.branches == traced("modulated").graph.branches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_has_the_same_branches(traced, dtype):
    one = traced("modulated")
    inputs = tuple(x.to(dtype) for x in one.inputs)
    found = trace(copy.deepcopy(one.model).to(dtype), inputs, shrink="both")
    assert found.branches == one.graph.branches


def test_what_is_reshaped_on_the_way_to_a_branch_stays():
    torch.manual_seed(0)
    net, inputs = Reshaping(), (torch.randn(1, 5, 4), torch.randn(1, 7, 6))
    graph = trace(net, inputs, shrink="both")
    assert [branch.name for branch in graph.branches] == ["branch:cross"]
    rng = np.random.default_rng(0)
    for width in graph.groups[0].widths:
        widths = graph.full_widths.copy()
        widths[0], widths[-1] = width, 0
        scores = {group.name: rng.random(group.size) for group in graph}
        pruned = apply(net, graph, PruningPlan.from_widths(graph, widths, scores))
        assert type(pruned.proj) is type(net.proj)
        assert pruned(*inputs).shape == (1, 5, 4)


@pytest.mark.parametrize("name", FOUND)
def test_the_unpruned_network_explains_the_stubs_of_its_branches_and_no_others(traced, name):
    found = traced(name)
    check = partial(check_explained, found.model, [found.inputs])
    every = tuple(branch.name for branch in found.graph.branches)
    for removed in (every, *((one,) for one in every)):
        stubs = PruningPlan({}, found.graph.fingerprint, removed).stubs(found.graph)
        check(removed, stubs)
        for odd in (replace(stubs[0], module="no.such.module"), replace(stubs[0], nested=not stubs[0].nested)):
            with pytest.raises(PlanError):
                check(removed, (odd, *stubs[1:]))
        if stubs[0].kind == "shortcut":
            outputs = tuple(replace(one, scale=-one.scale) for one in stubs[0].outputs)
            with pytest.raises(PlanError, match="does not return"):
                check(removed, (replace(stubs[0], outputs=outputs), *stubs[1:]))


def test_without_a_pass_nothing_is_refused(traced):
    found = traced("unet")
    check_explained(found.model, [{"sample": "no picture"}], ("branch:no.such",), ())
    with pytest.raises(PlanError, match="no residual branch"):
        check_explained(found.model, [found.inputs], ("branch:no.such",), ())
