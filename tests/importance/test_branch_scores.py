"""Scores of residual branches beside those of channels."""

import json

import numpy as np
import pytest
import torch
from denoisers import GROUPS, INPUTS, Apart, drawn, made, score
from torch import nn
from torch.utils.checkpoint import checkpoint

from prunekit.errors import FileFormatError
from prunekit.graph import PruningPlan, apply, trace
from prunekit.importance import CRITERIA, ImportanceMap, Probe, branch_passes, importance
from prunekit.importance.branch_signals import branch_signals
from prunekit.importance.branches import Rise

BRANCHES = ("branch:blocks.0", "branch:blocks.1", "branch:outside")
SIZES = {"first": 8, "blocks.0.one": 7, "blocks.1.one": 7, "outside.one": 7}


class Block(nn.Module):
    """Ends with the sum."""

    def __init__(self, *, added=True, again=None):
        super().__init__()
        self.one, self.two, self.added, self.again = nn.Linear(8, 7), nn.Linear(7, 8), added, again

    def forward(self, x):
        f = self.inner(x) if self.again is None else checkpoint(self.inner, x, use_reentrant=self.again)
        return x + f if self.added else f

    def inner(self, x):
        return self.two(torch.tanh(self.one(x)))


class Residual(nn.Module):
    """Two blocks that end with the sum, and one whose output is added outside it."""

    def __init__(self, again=None):
        super().__init__()
        self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 6)
        self.time = nn.Embedding(100, 8)
        self.blocks = nn.ModuleList([Block(again=again), Block(again=again)])
        self.outside = Block(added=False, again=again)

    def forward(self, x, t):
        h = self.first(x) + self.time(t)
        for block in self.blocks:
            h = block(h)
        return self.out(h + self.outside(h))


@pytest.fixture
def model():
    return made(Residual)


def graph_of(model, shrink="both"):
    return trace(model, INPUTS, shrink=shrink)


def probe_of(samples=48):
    return Probe(drawn, GROUPS[1], samples, 16, 0, 16)


def scored(model, by="taylor", shrink="both", **options):
    return importance(model, INPUTS, drawn, GROUPS, by=by, samples=48, chunk=16, shrink=shrink, **options)


@pytest.mark.parametrize("by", CRITERIA)
def test_every_criterion_scores_each_branch_once_and_channels_as_without_branches(by, model):
    found, alone = scored(model, by), score(model, by, samples=48, chunk=16)
    assert dict(found.sizes) == {**SIZES, **dict.fromkeys(BRANCHES, 1)}
    assert found.channels == SIZES
    for one, other in zip(found.scores, alone.scores, strict=True):
        assert list(one) == list(found.sizes)
        assert all(one[name].shape == (1,) and np.isfinite(one[name]).all() for name in BRANCHES)
        assert len({float(one[name][0]) for name in BRANCHES}) == 3
        for name in SIZES:
            if by != "random":
                np.testing.assert_allclose(one[name], other[name], rtol=1e-9)


def test_the_rise_of_a_branch_is_the_loss_without_it_less_the_loss_with_it(model):
    graph, probe = graph_of(model), probe_of()
    rises = Rise()(model, graph, probe)
    for name in BRANCHES:
        without = apply(model, graph, PruningPlan({}, graph.fingerprint, (name,)))
        np.testing.assert_allclose(rises[name], [probe.mean(without) - probe.mean(model)], rtol=1e-6)
    np.testing.assert_array_equal(CRITERIA["proxy"](model, graph, probe)["branch:outside"], rises["branch:outside"])
    few = CRITERIA["taylor"](model, graph, probe)
    np.testing.assert_array_equal(few["branch:outside"], Rise(32)(model, graph, probe)["branch:outside"])
    assert few["branch:outside"] != rises["branch:outside"]


@pytest.mark.parametrize("by", CRITERIA)
def test_the_passes_that_branches_take_are_those_that_are_told(by, model):
    def evaluations(shrink):
        count = 0

        def loss(*drawing):
            nonlocal count
            count += len(drawing[1])
            return drawn(*drawing)

        graph, probe = graph_of(model, shrink), Probe(loss, GROUPS[1], 48, 16, 0, 16)
        CRITERIA[by](model, graph, probe)
        return count

    told = branch_passes(by, 48)
    more = evaluations("both") - evaluations("width")
    if told:
        assert more == (len(BRANCHES) + 1) * told  # and once with all branches
    else:
        assert more <= 48  # no more than one pass for all of them


def test_signals_are_those_of_a_gate_on_what_the_branch_adds(model):
    graph, probe = graph_of(model), Probe(Apart(), GROUPS[1], 48, 16, 0, 16)
    signals, fisher = branch_signals(model, graph, probe), CRITERIA["fisher"](model, graph, probe)
    slopes = {name: [] for name in BRANCHES}
    for loss, _ in probe.one_by_one().losses(model):
        loss.backward()
        for name, own in slopes.items():
            last = model.get_submodule(name.removeprefix("branch:")).two
            own.append(sum((p.detach() * p.grad).sum().item() for p in last.parameters()))
        model.zero_grad()
    for name, own in slopes.items():
        np.testing.assert_allclose(signals[name].slope, np.mean(own), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(signals[name].slope_squared, np.mean(np.square(own)), rtol=1e-4)
        np.testing.assert_allclose(fisher[name], [signals[name].slope_squared / 2], rtol=1e-5)


def test_the_first_order_is_the_derivative_of_the_loss_by_the_gate(model):
    graph, probe, step = graph_of(model), probe_of(), 1e-3
    model = model.double()
    own = Probe(lambda m, t, g: drawn_double(m, t, g), probe.group, 48, 16, 0, 16)
    signals = branch_signals(model, graph, own)
    for name in BRANCHES:
        last = model.get_submodule(name.removeprefix("branch:")).two
        losses = []
        for factor in (1 + step, (1 - step) / (1 + step)):
            with torch.no_grad():
                for parameter in last.parameters():
                    parameter.mul_(factor)
            losses.append(own.mean(model))
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.div_(1 - step)
        np.testing.assert_allclose(signals[name].slope, (losses[0] - losses[1]) / (2 * step), rtol=1e-4)


def drawn_double(model, timesteps, generator):
    x = torch.randn(len(timesteps), 6, generator=generator).double() * (1 + timesteps[:, None] / 50)
    return (model(x, timesteps) - x).square().mean()


def test_sizes_and_influence_are_those_of_what_is_added_and_what_it_is_added_to(model):
    graph, probe = graph_of(model), probe_of()
    seen = []
    handle = model.blocks[1].register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    probe.mean(model)
    handle.remove()
    x, y = (torch.cat(rows).double() for rows in zip(*seen, strict=True))
    signals = branch_signals(model, graph, probe, slopes=False)
    own = signals["branch:blocks.1"]
    np.testing.assert_allclose(own.added, (y - x).square().sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(own.without, x.square().sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(own.influence, 1 - torch.cosine_similarity(x, y).mean(), rtol=1e-4)
    assert (own.slope, own.slope_squared) == (0, 0)
    assert (signals["branch:outside"].without, signals["branch:outside"].influence) == (0, 1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_that_are_computed_again_for_their_gradients_count_once(reentrant):
    plain, again = made(Residual), made(Residual, reentrant)
    again.load_state_dict(plain.state_dict())
    for one, other in zip(
        branch_signals(plain, graph_of(plain), probe_of()).values(),
        branch_signals(again, graph_of(plain), probe_of()).values(),
        strict=True,
    ):
        for value in ("slope", "slope_squared", "added", "without", "influence"):
            np.testing.assert_allclose(getattr(other, value), getattr(one, value), rtol=1e-5)


def test_signals_leave_hooks_and_gradients_alone(model):
    model.out.weight.grad = torch.ones_like(model.out.weight)
    branch_signals(model, graph_of(model), probe_of())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model.out.weight.grad, torch.ones_like(model.out.weight))
    assert model.first.weight.grad is None


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_maps_say_which_entries_are_branches_and_what_goes_with_each(model, suffix, tmp_path):
    found = scored(model)
    found.save(tmp_path / f"map{suffix}")
    again = ImportanceMap.load(tmp_path / f"map{suffix}")
    assert again.branches == found.branches
    assert tuple(again.branches) == BRANCHES
    own = again.branches["branch:blocks.1"]
    assert own.layers == ("blocks.1.one", "blocks.1.two")
    assert own.channel_groups == ("blocks.1.one",)
    np.testing.assert_array_equal(again.of(1)["branch:outside"], found.of(1)["branch:outside"])


def test_maps_without_branches_are_as_before_and_old_files_load(model):
    told = score(model).to_json()
    assert "branches" not in told
    assert ImportanceMap.from_json(json.loads(json.dumps(told))).branches == {}


@pytest.mark.parametrize(
    "branches",
    [
        {"branch:elsewhere": {"layers": [], "channel_groups": []}},
        {"first": {"layers": [], "channel_groups": []}},
        {"branch:outside": {"layers": ["one"]}},
        ["branch:outside"],
    ],
)
def test_branches_that_do_not_fit_the_scores_are_refused(model, branches):
    told = json.loads(json.dumps(scored(model).to_json()))
    with pytest.raises(FileFormatError, match="again"):
        ImportanceMap.from_json({**told, "branches": branches})


def test_depth_says_that_channels_are_kept(model):
    found = scored(model, shrink="depth")
    assert set(found.left_whole) == {*SIZES, "out"}
    assert found.left_whole["first"] == "channels are kept, since only branches are removed"


def test_a_plan_counts_channels_that_go_with_a_branch_as_removed(model):
    graph = graph_of(model)
    plan = PruningPlan({"first": (0, 1, 2), "outside.one": (4,)}, graph.fingerprint, ("branch:blocks.0",))
    expected = {"first": (8, 3), "blocks.0.one": (7, 0), "blocks.1.one": (7, 7), "outside.one": (7, 1)}
    assert plan.channels(graph) == expected


@pytest.mark.parametrize("loss", [drawn, Apart()])
def test_the_rise_on_few_draws_of_a_part_is_that_on_a_part_of_the_part(model, loss):
    graph, part = graph_of(model), Probe(loss, GROUPS[1], 48, 16, 0, 16).part(24)
    few, alone = Rise(8)(model, graph, part), Rise()(model, graph, part.part(8))
    assert few == alone
