"""Torch-Pruning's pruners with this package's importance, and this package's plans through its groups."""

import copy

import numpy as np
import pytest
import torch
import torch_pruning as tp
from networks import unet, unet_inputs

from prunekit.errors import InputError, PlanError
from prunekit.graph import PruningPlan, apply, trace
from prunekit.interop.torch_pruning import TimestepImportance, prune_by_plan


@pytest.fixture(scope="module")
def traced():
    model = unet().eval()
    return model, trace(model, unet_inputs())


def scores_of(graph, seed=0):
    rng = np.random.default_rng(seed)
    return {group.name: rng.random(group.size) for group in graph}


def dependency_graph(model):
    return tp.DependencyGraph().build_dependency(model, example_inputs=unet_inputs())


def test_it_is_one_of_their_importances_and_gives_each_channel_its_score(traced):
    model, graph = traced
    scores = scores_of(graph)
    importance = TimestepImportance(model, graph, scores)
    assert isinstance(importance, tp.importance.Importance)
    group = graph["mid_block.resnets.0.conv1"]
    layer = model.get_submodule("mid_block.resnets.0.conv1")
    theirs = dependency_graph(model).get_pruning_group(layer, tp.prune_conv_out_channels, list(range(group.size)))
    np.testing.assert_allclose(importance(theirs).numpy(), scores[group.name], rtol=1e-6)
    some = dependency_graph(model).get_pruning_group(layer, tp.prune_conv_out_channels, [2, 5])
    np.testing.assert_allclose(importance(some).numpy(), scores[group.name][[2, 5]], rtol=1e-6)


def test_their_pruner_keeps_the_channels_of_highest_importance_in_every_norm_group(traced):
    model, graph = copy.deepcopy(traced[0]), traced[1]
    name, scores = "mid_block.resnets.0.conv1", scores_of(graph)
    scores[name] = np.arange(16.0)  # four norm groups of four channels
    layer = model.get_submodule(name)
    torch.nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(0))
    before = layer.bias.detach().clone()
    importance = TimestepImportance(model, graph, scores)
    ignored = [model.conv_out]
    tp.pruner.MetaPruner(model, unet_inputs(), importance, pruning_ratio=0.5, ignored_layers=ignored).step()
    assert torch.equal(layer.bias, before[[2, 3, 6, 7, 10, 11, 14, 15]])


def test_an_importance_of_the_whole_network_refuses_the_pruned_one(traced):
    model, graph = copy.deepcopy(traced[0]), traced[1]
    importance = TimestepImportance(model, graph, scores_of(graph))
    layer = model.get_submodule("mid_block.resnets.0.conv1")
    dependency_graph(model).get_pruning_group(layer, tp.prune_conv_out_channels, [0, 1, 2, 3]).prune()
    group = dependency_graph(model).get_pruning_group(layer, tp.prune_conv_out_channels, [0])
    with pytest.raises(InputError, match="score the pruned network"):
        importance(group)


def test_a_plan_through_their_groups_leaves_the_weights_that_apply_leaves(traced):
    model, graph = copy.deepcopy(traced[0]), traced[1]
    rng = np.random.default_rng(1)
    widths = np.array([rng.choice(group.widths) for group in graph])
    plan = PruningPlan.from_widths(graph, widths, scores_of(graph, 2))
    expected = apply(model, graph, plan)
    pruned = prune_by_plan(dependency_graph(model), model, graph, plan)
    assert pruned is model
    ours, theirs = expected.state_dict(), pruned.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    with torch.no_grad():
        assert torch.equal(expected(**unet_inputs()).sample, pruned(**unet_inputs()).sample)


def test_a_plan_of_another_network_is_refused_before_anything_is_removed(traced):
    model, graph = copy.deepcopy(traced[0]), traced[1]
    before = {key: value.shape for key, value in model.state_dict().items()}
    with pytest.raises(PlanError):
        prune_by_plan(dependency_graph(model), model, graph, PruningPlan({"nonsense": (0,)}, graph.fingerprint))
    assert {key: value.shape for key, value in model.state_dict().items()} == before


def test_branches_are_left_to_prunekit():
    """Scores of branches are not read, and a plan that removes one is refused before anything is removed."""
    model = unet().eval()
    graph = trace(model, unet_inputs(), shrink="both")
    assert graph.switches
    width = graph.shrinking("width")
    name, scores = "mid_block.resnets.0.conv1", scores_of(width)
    layer = model.get_submodule(name)
    theirs = dependency_graph(model).get_pruning_group(layer, tp.prune_conv_out_channels, list(range(width[name].size)))
    for known in (scores, scores | scores_of(graph)):
        found = TimestepImportance(model, graph, known)(theirs)
        np.testing.assert_allclose(found.numpy(), known[name], rtol=1e-6)

    kept = PruningPlan({name: tuple(range(8))}, graph.fingerprint)
    wanted = apply(model, graph, kept).state_dict()
    theirs = prune_by_plan(dependency_graph(copied := copy.deepcopy(model)), copied, graph, kept).state_dict()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in wanted.items())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    plan = PruningPlan(kept.kept, graph.fingerprint, ("branch:mid_block.resnets.1",))
    with pytest.raises(PlanError, match=r"removes branch:mid_block.resnets.1; Torch-Pruning"):
        prune_by_plan(dependency_graph(model), model, graph, plan)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
