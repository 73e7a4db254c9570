import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import ConvNet, Mlp, Network, SelfAttention, TwoNorms, image, rows, unet, unet_inputs
from torch import nn

from prunekit.cost import CostModel
from prunekit.errors import GraphError, InputError, PrunekitError
from prunekit.graph import PruningPlan, apply, trace
from prunekit.graph.forward_pass import run_once


def members(group):
    return {(m.layer, m.axis, len(m.positions)) for m in group.members}


def test_the_groups_of_a_small_network_are_the_ones_that_paper_and_pencil_give():
    graph = trace(Mlp(), (rows(1, 6),))
    assert [(g.name, g.size, g.rows, g.step, g.whole) for g in graph] == [
        ("first", 12, 1, 1, False),
        ("wide", 10, 1, 1, False),
    ]
    assert members(graph["first"]) == {
        *(("first", "out", 12), ("norm", "out", 12), ("second", "in", 12)),
        *(("second", "out", 12), ("wide", "in", 12)),
    }
    assert members(graph["wide"]) == {("wide", "out", 10), ("out", "in", 10)}
    assert graph.left_whole == {"out": "its channels are the network's output"}


def test_a_flattening_ties_a_run_of_positions_to_each_channel():
    graph = trace(ConvNet().eval(), (image(),))
    hidden = next(m for m in graph["up"].members if m.layer == "hidden")
    np.testing.assert_array_equal(hidden.positions[np.argsort(hidden.positions)], np.arange(384))
    np.testing.assert_array_equal(hidden.roots[np.argsort(hidden.positions)], np.repeat(np.arange(6), 64))


WHOLLY_KNOWN = ["unet", "unet-one-head", "unet-resnet-resampling", "unet-attention-norms", "unet-unfused"]


@pytest.mark.slow_cases("*unfused", "even-unet-attention-norms")
@pytest.mark.parametrize("name", WHOLLY_KNOWN)
@pytest.mark.parametrize("mode", ["even", "whole"])
def test_nothing_but_the_output_of_a_known_unet_is_left_whole(bench, name, mode):
    assert list(bench(name, mode).graph.left_whole) == ["conv_out"]


def test_groups_come_in_the_order_in_which_their_layers_run(bench):
    model, inputs = bench("unet").model, bench("unet").inputs
    started = []
    handles = [
        module.register_forward_pre_hook(lambda _m, _a, name=name: started.append(name))
        for name, module in model.named_modules()
    ]
    run_once(model, inputs)
    for handle in handles:
        handle.remove()
    ranks = [started.index(group.name) for group in bench("unet").graph]
    assert ranks == sorted(ranks)


def test_projections_of_attention_heads_leave_together_and_whole(bench):
    graph, model = bench("unet").graph, bench("unet").model
    group = graph["mid_block.attentions.0.to_q"]
    assert {m.layer.rsplit(".", 1)[-1] for m in group.members if m.axis == "out"} == {"to_q", "to_k", "to_v"}
    heads = model.mid_block.attentions[0].heads
    assert (group.rows, group.whole, group.step) == (heads, True, group.size // heads)
    assert heads == 4


def test_norm_groups_set_the_steps(bench):
    even, whole = bench("unet").graph, bench("unet", "whole").graph
    assert (even["conv_in"].rows, even["conv_in"].step, even["conv_in"].whole) == (4, 4, False)
    assert (whole["conv_in"].rows, whole["conv_in"].step, whole["conv_in"].whole) == (4, 2, True)


def test_whole_norm_groups_are_whole_in_every_norm_over_the_same_channels(bench):
    group = bench("two-norms", "whole").graph["first"]  # 4 groups of 4 in one norm, 8 groups of 2 in the other
    assert (group.rows, group.step) == (4, 4)


def test_tracing_twice_gives_the_same_graph(bench):
    again = trace(bench("unet").model, bench("unet").inputs)
    assert again.fingerprint == bench("unet").graph.fingerprint
    assert again.left_whole == bench("unet").graph.left_whole


def test_the_fingerprint_tells_networks_and_norm_modes_apart(bench):
    prints = [bench(name, mode).graph.fingerprint for name in ("unet", "mlp", "conv") for mode in ("even", "whole")]
    assert len(set(prints)) == len(prints)


def test_tracing_leaves_the_network_as_it_was():
    model = unet(dropout=0.1)
    model.train()
    model.mid_block.eval()
    model.conv_in.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    rng = torch.get_rng_state()
    trace(model, unet_inputs())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.slow
def test_frozen_weights_checkpointing_and_a_surrounding_no_grad_make_no_difference(bench):
    expected = bench("unet").graph.fingerprint
    frozen = unet().requires_grad_(False)
    assert trace(frozen, unet_inputs()).fingerprint == expected
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    checkpointing = unet()
    checkpointing.enable_gradient_checkpointing()
    assert trace(checkpointing, unet_inputs()).fingerprint == expected
    with torch.no_grad():
        assert trace(unet(), unet_inputs()).fingerprint == expected


class Wrapped(nn.Module):
    """Something done to a middle layer, between two plain ones."""

    def __init__(self, middle, out=8):
        super().__init__()
        self.first, self.middle, self.out = nn.Linear(6, 8), middle, nn.Linear(out, 2)

    def forward(self, x):
        return self.out(F.relu(self.middle(F.relu(self.first(x)))))


class Tied(Wrapped):
    def __init__(self):
        super().__init__(nn.Linear(8, 8))
        self.second = nn.Linear(8, 8)
        self.second.weight = self.middle.weight

    def forward(self, x):
        return self.out(F.relu(self.second(F.relu(self.middle(F.relu(self.first(x)))))))


class Positional(nn.Module):
    """A plain parameter or buffer as wide as the channels."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 2)
        self.position = nn.Parameter(torch.randn(1, 4, 8)) if kind == "parameter" else None
        if kind == "buffer":
            del self.position
            self.register_buffer("position", torch.randn(1, 4, 8))

    def forward(self, x):
        return self.out(F.relu(self.first(x) + self.position))


class Functional(Wrapped):
    def forward(self, x):
        return self.out(F.relu(F.linear(F.relu(self.first(x)), self.middle.weight, self.middle.bias)))


class SelfMixing(nn.Module):
    """torch's own attention module keeps its projections in one tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.mix, self.out = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        return self.out(x + self.mix(x, x, x)[0])


class Sorted(nn.Module):
    def forward(self, x):
        return x.sort(-1).values


class Chunked(nn.Module):
    """A gate in the second half of one layer's channels."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(6, 16), nn.Linear(8, 2)

    def forward(self, x):
        value, gate = self.first(x).chunk(2, -1)
        return self.out(value * F.gelu(gate))


class Shuffled(nn.Module):
    """Channels that become pixels."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.out(F.pixel_shuffle(self.first(x), 2))


def grouped(out, groups):
    return ConvNet(nn.Conv2d(8, out, 3, padding=1, groups=groups))


def layer_norm_over_pixels():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm((8, 8, 8)), nn.Conv2d(8, 3, 1))


FLAT, SEQUENCE = (rows(1, 6),), (rows(1, 4, 6),)
LEFT_WHOLE = {
    "grouped convolution": (lambda: grouped(8, 2), (image(),), "first", "middle is a grouped convolution"),
    "depthwise with a multiplier": (lambda: grouped(16, 8), (image(),), "first", "middle is a grouped convolution"),
    "layer norm over pixels": (layer_norm_over_pixels, (image(),), "0", "more than the channels"),
    "tied weights": (Tied, FLAT, "first", "shares its weights"),
    "spectral norm": (
        lambda: Wrapped(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))),
        FLAT,
        "first",
        "by their spectral norm",
    ),
    "spectral norm of a hook": (
        lambda: Wrapped(nn.utils.spectral_norm(nn.Linear(8, 8))),
        FLAT,
        "first",
        "by their spectral norm",
    ),
    "sorted channels": (lambda: Wrapped(Sorted()), FLAT, "first", "sort, which is not known"),
}
PRUNED = {
    "weight norm": (lambda: Wrapped(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))), FLAT, "first"),
    "attention of torch": (SelfMixing, (rows(1, 4, 5),), "first"),
    "group norm without weights": (lambda: TwoNorms(nn.GroupNorm(4, 16, affine=False)), (image(),), "first"),
    "instance norm": (lambda: TwoNorms(nn.InstanceNorm2d(16, affine=True)), (image(),), "first"),
    "instance norm with statistics": (
        lambda: TwoNorms(nn.InstanceNorm2d(16, track_running_stats=True)),
        (image(),),
        "first",
    ),
    "rms norm": (lambda: Wrapped(nn.RMSNorm(8)), FLAT, "first"),
    "parametric activation": (lambda: Wrapped(nn.PReLU(8)), FLAT, "first"),
    "raw parameter": (lambda: Positional("parameter"), SEQUENCE, "first"),
    "raw buffer": (lambda: Positional("buffer"), SEQUENCE, "first"),
    "functional use": (lambda: Functional(nn.Linear(8, 8)), FLAT, "middle"),
    "chunked gate": (Chunked, FLAT, "first"),
    "pixel shuffle": (Shuffled, (image(),), "first"),
    "heads in a reshape": (lambda: SelfAttention(heads=2), (rows(1, 4, 5),), "query"),
}


@pytest.mark.parametrize("asked", [{"norm_mode": "Whole"}, {"head_mode": "x"}, {"shrink": "branches"}])
def test_a_mode_that_nobody_knows_is_refused(asked):
    with pytest.raises(InputError, match=r"Got (norm_mode|head_mode|shrink) .*; expected one of "):
        trace(ConvNet(), (torch.randn(1, 3, 8, 8),), **asked)


@pytest.mark.parametrize("norm_mode", ["even", "whole"])
@pytest.mark.parametrize("case", LEFT_WHOLE)
def test_what_cannot_be_followed_is_left_whole_with_the_reason_and_the_rest_still_shrinks(case, norm_mode):
    make, inputs, layer, reason = LEFT_WHOLE[case]
    model = make().eval()
    graph = trace(model, inputs, norm_mode)
    assert layer not in graph.index
    assert reason in graph.left_whole[layer]
    kept = {group.name: tuple(range(int(group.widths[-1]))) for group in graph}
    pruned = apply(model, graph, PruningPlan(kept, graph.fingerprint))
    assert run_once(pruned, inputs).shape == run_once(model, inputs).shape


@pytest.mark.parametrize("norm_mode", ["even", "whole"])
@pytest.mark.parametrize("case", PRUNED)
def test_what_no_layer_class_tells_is_followed_by_what_is_computed(case, norm_mode):
    make, inputs, layer = PRUNED[case]
    model = make().eval()
    graph = trace(model, inputs, norm_mode)
    assert layer in graph.index
    CostModel.of(model, graph, inputs)  # compares with the counter at the smallest widths
    kept = {group.name: tuple(range(int(group.widths[-1]))) for group in graph}
    pruned = apply(model, graph, PruningPlan(kept, graph.fingerprint))
    assert run_once(pruned, inputs).shape == run_once(model, inputs).shape


def test_a_split_into_parts_keeps_the_parts_equal():
    graph = trace(Chunked(), FLAT)
    assert (graph["first"].size, len(graph["first"].members[0].positions)) == (8, 16)


def test_heads_in_a_reshape_narrow_evenly_where_no_attribute_could_lower_their_number():
    model = SelfAttention(heads=2).eval()
    group = trace(model, (rows(1, 4, 5),))["query"]
    assert (group.rows, group.whole) == (2, True)
    del model.heads
    SelfAttention.heads = 2  # a number that no instance keeps
    try:
        group = trace(model, (rows(1, 4, 5),))["query"]
        assert (group.rows, group.whole, int(group.widths[-1])) == (2, False, 4)
    finally:
        del SelfAttention.heads


def test_heads_and_norm_groups_over_the_same_channels_are_both_kept():
    """Two heads, four norm groups over the values."""
    model = SelfAttention(heads=2, normed=True).eval()
    for norm_mode in ("even", "whole"):
        graph = trace(model, (rows(1, 4, 5),), norm_mode)
        assert "query" in graph.index or "what the other channels compute" in graph.left_whole["query"]


def test_a_network_that_takes_too_long_to_follow_is_refused():
    with pytest.raises(GraphError, match="not followed through within 0 s"):
        trace(Mlp(), (rows(1, 6),), seconds=0)


TAILS = {
    "nothing": lambda y: y,
    "a squashing": torch.tanh,
    "a flattening": lambda y: y.flatten(1),
    "half of it": lambda y: y.chunk(2, 1)[0],
    "a dict": lambda y: {"scaled": 2 * y, "plain": y},
    "a tuple": lambda y: (y, y.mean()),
}


@pytest.mark.parametrize("tail", TAILS)
def test_output_channels_are_never_removed_whatever_is_done_to_them(tail):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x):
            return TAILS[tail](self.last(F.relu(self.first(x))))

    graph = trace(Net(), (image(),))
    assert list(graph.index) == ["first"]
    assert "output" in graph.left_whole["last"]


def test_time_projections_that_scale_and_shift_lose_both_for_each_channel(bench):
    graph = bench("unet-scale-shift").graph
    assert list(graph.left_whole) == ["conv_out"]
    group = graph["down_blocks.0.resnets.0.conv1"]
    assert {(m.layer, len(m.positions)) for m in group.members} >= {
        ("down_blocks.0.resnets.0.time_emb_proj", 2 * group.size)
    }


def conditional():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    generator = torch.Generator().manual_seed(0)
    return Network(
        model.eval(),
        {
            "sample": torch.randn(1, 4, 8, 8, generator=generator),
            "timestep": torch.tensor([3]),
            "encoder_hidden_states": torch.randn(1, 5, 12, generator=generator),
        },
    )


def transformer():
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    )
    inputs = {"hidden_states": image()[:, :1].repeat(1, 4, 1, 1), "timestep": torch.tensor([3])}
    return Network(model.eval(), {**inputs, "class_labels": torch.tensor([1])})


@pytest.mark.parametrize(("make", "output"), [(conditional, "conv_out"), (transformer, "proj_out_2")])
def test_text_conditional_unets_and_transformers_shrink_and_keep_their_outputs(make, output):
    network = make()
    graph = trace(network.model, network.inputs)
    assert "output" in graph.left_whole[output]
    assert len(graph) >= 8
    kept = {group.name: tuple(range(int(group.widths[-1]))) for group in graph}
    pruned = apply(network.model, graph, PruningPlan(kept, graph.fingerprint))
    assert run_once(pruned, network.inputs).sample.shape == run_once(network.model, network.inputs).sample.shape


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)

    def forward(self, x):
        raise ZeroDivisionError("no way through")


class Mute(Broken):
    def forward(self, x):
        self.first(x)
        return "words"


@pytest.mark.parametrize("make", [Broken, Mute])
def test_a_network_that_cannot_be_traced_is_refused_in_one_sentence(make):
    model = make().train()
    with pytest.raises(GraphError, match=f"{make.__name__}|The network returns a str") as caught:
        trace(model, (rows(1, 6),))
    assert isinstance(caught.value, PrunekitError)
    assert model.training


def test_inputs_of_the_wrong_shape_are_refused():
    with pytest.raises(GraphError, match="example inputs"):
        trace(Mlp(), (rows(1, 7),))


def test_an_unknown_channel_group_is_named():
    with pytest.raises(PrunekitError, match="'nowhere'"):
        trace(Mlp(), (rows(1, 6),))["nowhere"]
