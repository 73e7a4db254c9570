import re
import threading

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from networks import NETWORKS, Mlp, rows, unet
from torch import nn

from prunekit.cost import count_macs
from prunekit.errors import GraphError, PlanError
from prunekit.graph import PruningPlan, Template, apply, attributes, fit, sliced_state, trace
from prunekit.graph.forward_pass import evaluation_mode, run_once
from prunekit.graph.surgery import all_tensors, tensors_of

MODES = ("even", "whole")
ONE_MODE = {"unet-unfused", "unet-normless", "unet-normless-one-head", "conv", "embedding", "products"}
CASES = [(name, mode) for name in NETWORKS for mode in MODES if mode == "even" or name not in ONE_MODE]


def tensor(output):
    return output if isinstance(output, torch.Tensor) else output.sample


def output(model, inputs):
    return tensor(run_once(model, inputs))


def silenced(tiny, plan):
    """The full network with zeros where the plan's channels are made and where they are read."""
    model = tiny.copy()
    for name, kept in plan.kept.items():
        for member in tiny.graph[name].members:
            gone = torch.from_numpy(member.positions[~np.isin(member.roots, kept)])
            for key, dim in tensors_of(model, member.layer, member.axis):
                all_tensors(model)[key].index_fill_(dim, gone, 0)
    return model


@pytest.mark.slow_but("conv*", "mlp*", "embedding*", "two-norms*", "products*", "unet-even", "unet-scale-shift-whole")
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_any_plan_costs_what_the_closed_form_says_and_evaluates_as_the_sliced_tensors(bench, name, mode):
    tiny = bench(name, mode)
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    expected, pruned_by = output(tiny.model, tiny.inputs), Template(tiny.model, tiny.graph)

    @examples(3)
    @given(st.integers(0, 10_000))
    def check(seed):
        plan = tiny.random_plan(seed) if seed else tiny.plan(tiny.smallest)
        pruned = apply(tiny.model, tiny.graph, plan)
        counted = count_macs(pruned, tiny.inputs)
        widths = plan.widths(tiny.graph)
        assert (int(tiny.cost.macs(widths)), int(tiny.cost.params(widths))) == (counted.macs, counted.params)
        found = output(pruned, tiny.inputs)
        assert found.shape == expected.shape
        assert found.isfinite().all()
        assert torch.equal(found, output(apply(tiny.model, tiny.graph, plan, share=True), tiny.inputs))
        assert torch.equal(found, output(pruned_by(plan), tiny.inputs))

    check()
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())
    assert torch.equal(output(tiny.model, tiny.inputs), expected)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_template_takes_on_plan_after_plan_as_a_fresh_copy_would_be(bench, name, mode):
    tiny = bench(name, mode)
    pruned_by = Template(tiny.model, tiny.graph)
    whole = PruningPlan({}, tiny.graph.fingerprint)
    for plan in (tiny.plan(tiny.smallest), whole, tiny.random_plan(1), tiny.plan(tiny.smallest), tiny.random_plan(2)):
        found, fresh = pruned_by(plan), apply(tiny.model, tiny.graph, plan)
        assert repr(found) == repr(fresh)
        tensors = all_tensors(fresh)
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in all_tensors(found).items())
        assert torch.equal(output(found, tiny.inputs), output(fresh, tiny.inputs))
        for module in found.modules():  # what a repair does to it must not last
            module._parameters = {
                key: value if value is None else nn.Parameter(value + 1) for key, value in module._parameters.items()
            }


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_an_empty_plan_changes_no_bit(bench, name, mode):
    tiny = bench(name, mode)
    same = apply(tiny.model, tiny.graph, PruningPlan({}, tiny.graph.fingerprint))
    assert torch.equal(output(same, tiny.inputs), output(tiny.model, tiny.inputs))
    assert attributes(tiny.model, tiny.graph, PruningPlan({}, tiny.graph.fingerprint)) == {}
    shared = {t.data_ptr() for t in same.state_dict().values()} & {
        t.data_ptr() for t in tiny.model.state_dict().values()
    }
    assert not shared


NORMLESS = ["unet-normless", "unet-normless-one-head", "conv", "embedding", "products"]


@pytest.mark.parametrize("name", NORMLESS)
def test_without_norms_over_channels_removing_channels_is_silencing_them(bench, name):
    """Skip concatenations, heads, one head's scale, depthwise and transposed layers, a flattening, an embedding."""
    tiny = bench(name)

    @examples(4)
    @given(st.integers(0, 10_000))
    def check(seed):
        plan = tiny.random_plan(seed)
        pruned = output(apply(tiny.model, tiny.graph, plan), tiny.inputs)
        torch.testing.assert_close(pruned, output(silenced(tiny, plan), tiny.inputs), rtol=1e-4, atol=1e-5)

    check()


@pytest.mark.slow_but("unet")
@pytest.mark.parametrize("name", ["unet", "unet-one-head", "unet-unfused"])
def test_attention_narrowed_alone_keeps_the_scale_of_its_scores(bench, name):
    tiny = bench(name)
    attentions = [group.name for group in tiny.graph if group.name.endswith("to_q")]
    assert len(attentions) >= 3
    widths = np.array([group.widths[-1] if group.name in attentions else group.size for group in tiny.graph])
    model = tiny.copy()
    for attention in (m for n, m in model.named_modules() if n.endswith("attentions.0")):
        attention.to_q.weight.data.mul_(8)  # scores far from uniform
    plan = tiny.plan(widths)
    hard = type(tiny)(model, tiny.inputs, tiny.graph, tiny.cost)
    pruned = output(apply(model, tiny.graph, plan), tiny.inputs)
    torch.testing.assert_close(pruned, output(silenced(hard, plan), tiny.inputs), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pruned, output(model, tiny.inputs), atol=1e-3)


def test_whole_norm_groups_leave_the_others_as_they_are_and_even_removal_does_not(bench):
    """No norm of this network spans a concatenation; the removed channels feed nothing."""
    for mode, exact in (("whole", True), ("even", False)):
        tiny = bench("two-norms", mode)
        plan = tiny.plan([8 for _ in tiny.graph], seed=3)
        feeding_nothing = tiny.copy()
        for name, kept in plan.kept.items():
            for member in tiny.graph[name].members:
                if member.axis == "in":
                    gone = torch.from_numpy(member.positions[~np.isin(member.roots, kept)])
                    feeding_nothing.get_submodule(member.layer).weight.data.index_fill_(1, gone, 0)
        difference = output(apply(tiny.model, tiny.graph, plan), tiny.inputs) - output(feeding_nothing, tiny.inputs)
        if exact:
            assert difference.abs().max() < 1e-5
        else:
            assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("name", ["unet", "unet-one-head", "unet-resnet-resampling", "unet-unfused"])
@pytest.mark.parametrize("mode", MODES)
def test_attributes_that_copy_a_width_follow_it(bench, name, mode):
    tiny = bench(name, mode)
    for seed in range(3):
        pruned = apply(tiny.model, tiny.graph, tiny.random_plan(seed))
        for path, module in pruned.named_modules():
            kind = type(module).__name__
            if kind in ("Upsample2D", "Downsample2D"):
                assert module.channels == width_into(module, path, pruned)
            elif kind == "Attention":
                full = tiny.model.get_submodule(path)
                dim = full.inner_dim // full.heads
                queries, keys, values = (layer.out_features for layer in (module.to_q, module.to_k, module.to_v))
                assert queries == keys == values == module.inner_dim == module.inner_kv_dim
                assert module.inner_dim == module.heads * dim or module.heads == full.heads == 1
                assert module.sliceable_head_dim == module.heads
                assert module.query_dim == module.cross_attention_dim == module.to_q.in_features
                spans_heads = full.out_dim == full.inner_dim  # who reads it reshapes heads by it
                assert module.out_dim == (module.inner_dim if spans_heads else module.to_out[0].out_features)
                assert module.scale == pytest.approx((module.inner_dim // module.heads) ** -0.5)
                assert module.to_out[0].in_features == module.inner_dim
            elif isinstance(module, nn.GroupNorm):
                assert module.num_channels == len(module.weight) == len(module.bias)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                ins, outs = (
                    (module.in_channels, module.out_channels)
                    if isinstance(module, nn.Conv2d)
                    else (module.in_features, module.out_features)
                )
                assert module.weight.shape[:2] == (outs, ins)


def width_into(resampler, path, model):
    """Channels that reach a resampling layer: its convolution's, or where it has none its residual block's."""
    if isinstance(resampler.conv, nn.Conv2d):
        return resampler.conv.in_channels
    return model.get_submodule(path.rsplit(".", 1)[0]).conv1.in_channels


def test_the_number_of_heads_follows_the_heads_that_stay(bench):
    tiny = bench("unet")
    group = tiny.graph["mid_block.attentions.0.to_q"]
    pruned = apply(tiny.model, tiny.graph, PruningPlan({group.name: tuple(range(4, 12))}, tiny.graph.fingerprint))
    attention, full = pruned.mid_block.attentions[0], tiny.model.mid_block.attentions[0]
    assert (attention.heads, full.heads) == (2, 4)
    for part in ("to_q", "to_k", "to_v"):
        assert torch.equal(getattr(attention, part).weight, getattr(full, part).weight[4:12])


def test_surgery_touches_neither_the_callers_attributes_nor_its_buffers():
    class Net(Mlp):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1), persistent=False)

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = Net().eval()
    graph = trace(model, (rows(1, 6),))
    calls, attributes = model.calls.clone(), {n: dict(vars(m)) for n, m in model.named_modules()}
    pruned = apply(model, graph, PruningPlan({"wide": (0, 3, 4)}, graph.fingerprint))
    run_once(pruned, (rows(1, 6),))
    assert pruned.wide.out_features == 3
    assert torch.equal(model.calls, calls)
    assert {n: dict(vars(m)) for n, m in model.named_modules()} == attributes


def test_modes_and_gradient_flags_go_with_the_copy():
    model = Mlp().train()
    model.second.eval()
    model.wide.requires_grad_(False)
    graph = trace(model, (rows(1, 6),))
    pruned = apply(model, graph, PruningPlan({"wide": (1, 2)}, graph.fingerprint))
    assert [m.training for m in pruned.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in pruned.parameters()] == [p.requires_grad for p in model.parameters()]
    pruned(rows(4, 6)).sum().backward()
    assert model.first.weight.grad is None
    assert pruned.first.weight.grad is not None


def test_weights_that_are_shared_stay_shared():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b, self.wide = (nn.Linear(8, 8) for _ in range(4))
            self.b.weight = self.a.weight
            self.out = nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.wide(self.b(self.a(self.first(x)))))

    model = Shared().eval()
    graph = trace(model, (rows(1, 8),))
    assert list(graph.index) == ["wide"]
    pruned = apply(model, graph, PruningPlan({"wide": (0, 5)}, graph.fingerprint))
    assert pruned.a.weight is pruned.b.weight
    assert pruned.a.weight is not model.a.weight


def test_one_module_under_two_names_is_sliced_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.middle, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.again = self.middle

        def forward(self, x):
            return self.out(torch.relu(self.again(torch.relu(self.middle(self.first(x))))))

    model = Twice().eval()
    graph = trace(model, (rows(1, 6),))
    pruned = apply(model, graph, PruningPlan({"first": (0, 2, 7)}, graph.fingerprint))
    assert pruned.again is pruned.middle
    assert pruned.middle.weight.shape == (3, 3)
    assert torch.equal(pruned.middle.weight, model.middle.weight[[0, 2, 7]][:, [0, 2, 7]])


def test_untouched_tensors_are_the_callers_own_when_shared_and_copies_when_not(bench):
    tiny = bench("mlp")
    plan = PruningPlan({"wide": (0, 1)}, tiny.graph.fingerprint)
    assert sliced_state(tiny.model, tiny.graph, plan)["first.weight"].data_ptr() == tiny.model.first.weight.data_ptr()
    shared, own = (apply(tiny.model, tiny.graph, plan, share=share) for share in (True, False))
    assert shared.first.weight.data_ptr() == tiny.model.first.weight.data_ptr()
    assert own.first.weight.data_ptr() != tiny.model.first.weight.data_ptr()


def test_a_plan_of_another_network_is_refused_before_anything_is_sliced(bench):
    with pytest.raises(PlanError, match="another network"):
        apply(bench("unet").model, bench("unet").graph, bench("mlp").random_plan(1))


def tampered(state, key, make):
    return {**state, key: make(state[key])}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "conv_in.bias"}, "conv_in.bias"),
        (lambda s: {**s, "extra.weight": torch.zeros(2)}, "extra.weight"),
        (lambda s: tampered(s, "conv_in.bias", lambda v: v[:-1]), "conv_in has 8 channels by its weight"),
        (lambda s: tampered(s, "conv_norm_out.bias", lambda v: v[:-1]), "conv_norm_out has 8 channels"),
        (lambda s: tampered(s, "conv_norm_out.weight", lambda v: v[:-1]), "4 norm groups do not divide"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(bench, change, reason):
    state = dict(bench("unet").model.state_dict())
    with pytest.raises(PlanError, match=reason):
        fit(unet(), change(state), {})


@pytest.mark.parametrize("count", [0, -4, 3])
def test_impossible_numbers_of_norm_groups_are_refused(bench, count):
    with pytest.raises(PlanError, match="groups"):
        fit(unet(), bench("unet").model.state_dict(), {"conv_norm_out": {"num_groups": count}})


@pytest.mark.parametrize("mode", MODES)
def test_fitting_shapes_alone_rebuilds_the_pruned_network(bench, mode):
    tiny = bench("unet", mode)
    plan = tiny.random_plan(5)
    pruned = apply(tiny.model, tiny.graph, plan)
    rebuilt = fit(unet(), pruned.state_dict(), attributes(tiny.model, tiny.graph, plan))
    assert torch.equal(output(rebuilt, tiny.inputs), output(pruned, tiny.inputs))
    norms = [sizes for sizes in attributes(tiny.model, tiny.graph, plan).values() if "num_groups" in sizes]
    assert bool(norms) == (mode == "whole")


def test_evaluation_mode_gives_every_module_its_own_mode_back():
    model = Mlp().train()
    model.second.eval()
    inside = []

    def fail():
        inside.extend(module.training for module in model.modules())
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(model):
        fail()
    assert not any(inside)
    assert [name for name, module in model.named_modules() if not module.training] == ["second"]


def test_a_file_sets_only_numbers_that_are_widths():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.mine, self.steps, self.a, self.b = 16, 12, nn.Linear(4, 16), nn.Linear(16, 4)

    state = {
        "a.weight": torch.zeros(9, 4),
        "a.bias": torch.zeros(9),
        "b.weight": torch.zeros(4, 9),
        "b.bias": torch.zeros(4),
    }
    assert fit(Kept(), state, {"": {"mine": 9}}).mine == 9
    for name, value in (("mine", 8), ("steps", 9), ("steps", 1), ("training", 1), ("_version", 1), ("unknown", 9)):
        with pytest.raises(PlanError, match="could become"):
            fit(Kept(), state, {"": {name: value}})


class Holding(nn.Sequential):
    """Convolutions and something beside them."""

    def __init__(self, held: object) -> None:
        super().__init__(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 3, 3))
        self[1].held = held


class Asking(nn.Sequential):
    """A class that ``copy.deepcopy`` cannot make."""

    def __new__(cls, wanted: object) -> "Asking":
        return super().__new__(cls)

    def __init__(self, wanted: object) -> None:
        super().__init__(*Holding(None))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Holding(threading.Lock()), "its attribute 1.held, of type lock, refuses it"),
        (lambda: Asking(None), "the class Asking refuses it"),
        (lambda: nn.Sequential(Asking(None)), "the class Asking of its module 0 refuses it"),
    ],
    ids=["attribute", "class", "class of a part"],
)
def test_what_cannot_be_copied_is_named(make, named):
    with pytest.raises(GraphError, match=rf"cannot be copied: {re.escape(named)} .*remove it before the call"):
        trace(make(), (torch.randn(1, 3, 8, 8),))


def test_channels_that_are_last_in_memory_stay_last():
    model = Holding(None).to(memory_format=torch.channels_last)
    graph = trace(model, (torch.randn(1, 3, 8, 8),))
    pruned = apply(model, graph, PruningPlan({"0": tuple(range(0, 16, 2))}, graph.fingerprint))
    for layer in (pruned[0], pruned[2]):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert not layer.weight.is_contiguous()
    assert torch.equal(pruned[0].weight, model[0].weight[::2])
