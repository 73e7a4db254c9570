"""Random plans of networks of every family that is meant to work, against oracles that the tracer does not use."""

import functools
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from benches import Bench
from hypothesis import given, settings
from hypothesis import strategies as st
from manners import EdmUNet, FoldedAttention, GuidedUNet, PartedAttention
from networks import Network, unet, unet_inputs
from peers import PEERS
from test_flow import silenced
from torch import nn

from prunekit.checkpoint import ModelSpec
from prunekit.cost import CostModel, count_macs
from prunekit.graph import apply, attributes, trace
from prunekit.graph.forward_pass import run_once
from prunekit.graph.layers import HEADS
from prunekit.graph.surgery import all_tensors
from prunekit.groups import TimestepGroup
from prunekit.slim import SlimModel, load_slim, save_slim


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make().eval()


def guided(**options):
    return Network(seeded(lambda: GuidedUNet(**options)), (noise(1, 3, 8, 8), torch.tensor([3])))


def edm(**options):
    return Network(seeded(lambda: EdmUNet(**options)), (noise(1, 3, 8, 8), torch.tensor([0.3])))


def conditional(**options):
    from diffusers import UNet2DConditionModel

    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 4,  # diffusers takes it for the number of heads
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    }
    inputs = {
        "sample": noise(1, 4, 8, 8),
        "timestep": torch.tensor([3]),
        "encoder_hidden_states": noise(1, 5, 12),
    }
    return Network(seeded(lambda: UNet2DConditionModel(**config)), inputs)


def dit(**options):
    from diffusers import DiTTransformer2DModel

    config = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2, "sample_size": 8}
    model = seeded(lambda: DiTTransformer2DModel(**{**config, "num_embeds_ada_norm": 10, **options}))
    inputs = {"hidden_states": noise(1, 4, 8, 8), "timestep": torch.tensor([3]), "class_labels": torch.tensor([1])}
    return Network(model, inputs)


def transformer():
    from diffusers import Transformer2DModel

    model = seeded(
        lambda: Transformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=16,
            num_layers=1,
            norm_num_groups=4,
            cross_attention_dim=12,
        )
    )
    return Network(model, {"hidden_states": noise(1, 16, 4, 4), "encoder_hidden_states": noise(1, 5, 12)})


FAMILIES = {
    "unet": lambda: Network(unet(), unet_inputs()),
    "unet-scale-shift": lambda: Network(unet(resnet_time_scale_shift="scale_shift"), unet_inputs()),
    "conditional": conditional,
    "conditional-linear": lambda: conditional(use_linear_projection=True),
    "dit": dit,
    "transformer": transformer,
    **{
        f"guided-{heads}-{attention.__name__[:6].lower()}-{'shift' if shift else 'add'}": functools.partial(
            guided, heads=heads, attention=attention, scale_shift=shift, resblock_updown=shift
        )
        for heads, attention, shift in (
            (1, FoldedAttention, True),
            (2, FoldedAttention, False),
            (4, FoldedAttention, True),
            (1, PartedAttention, False),
            (4, PartedAttention, True),
        )
    },
    **{
        f"edm-{heads}-{'adaptive' if adaptive else 'add'}": functools.partial(edm, heads=heads, adaptive=adaptive)
        for heads in (1, 2)
        for adaptive in (True, False)
    },
    **PEERS,
}
CASES = [
    *((name, "even", "whole") for name in FAMILIES if name != "karras"),
    *(
        (name, "whole", "even")
        for name in ("conditional", "dit", "guided-4-parted-shift", "edm-2-adaptive", "lucid", "small-dit")
    ),
]
OUTPUT_ONLY = [name for name in FAMILIES if name not in ("karras", "lucid-random-sinusoids", "transformer")]


@functools.cache
def traced(name, norm_mode, head_mode):
    network = FAMILIES[name]()
    graph = trace(network.model, network.inputs, norm_mode, head_mode)
    return Bench(network.model, network.inputs, graph, CostModel.of(network.model, graph, network.inputs))


def tensor(output):
    return output if isinstance(output, torch.Tensor) else output.sample


@contextmanager
def normless(*models):
    """Norms do nothing: then no channel depends on which others exist."""
    for model in models:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "RMSNorm":
                    setattr(parent, name, nn.Identity())
    untouched = {
        name: lambda x, *_args, **_options: x for name in ("group_norm", "layer_norm", "normalize", "rms_norm")
    }
    with mock.patch.multiple(F, **untouched):
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm_mode", "head_mode"), CASES)
def test_random_plans(name, norm_mode, head_mode):
    tiny = traced(name, norm_mode, head_mode)
    before = {key: value.clone() for key, value in all_tensors(tiny.model).items()}
    shape = tensor(run_once(tiny.model, tiny.inputs)).shape

    @settings(max_examples=2, deadline=None)
    @given(st.integers(0, 10_000))
    def check(seed):
        plan = tiny.random_plan(seed)
        pruned, widths = apply(tiny.model, tiny.graph, plan), plan.widths(tiny.graph)
        counted = count_macs(pruned, tiny.inputs)
        assert (int(tiny.cost.macs(widths)), int(tiny.cost.params(widths))) == (counted.macs, counted.params)
        assert tensor(run_once(pruned, tiny.inputs)).shape == shape
        heads_and_norms_fit(pruned)
        full = silenced(tiny.model, tiny.graph, plan)
        with normless(pruned, full):
            expected, found = (tensor(run_once(model, tiny.inputs)) for model in (full, pruned))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))

    check()
    assert all(torch.equal(value, before[key]) for key, value in all_tensors(tiny.model).items())


def heads_and_norms_fit(model):
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            assert module.num_channels == len(module.weight)
            assert module.num_channels % module.num_groups == 0
        queries = getattr(module, "to_q", None) or getattr(module, "to_qkv", None) or getattr(module, "qkv", None)
        heads = [vars(module)[key] for key in HEADS if isinstance(vars(module).get(key), int)]
        if queries is not None and heads and heads[0]:
            assert len(queries.weight) % heads[0] == 0


@pytest.mark.slow_but("[!l]*", "lucid", "lucid-1d")
@pytest.mark.parametrize("name", OUTPUT_ONLY)
def test_nothing_but_the_output_is_left_whole(name):
    tiny = traced(name, "even", "whole")
    assert len(tiny.graph) >= 3
    allowed = ("output", "single channel", "no smaller width is possible", "it does not run", "they are a kernel's")
    assert all(any(words in reason for words in allowed) for reason in tiny.graph.left_whole.values()), (
        tiny.graph.left_whole
    )


@pytest.mark.slow
def test_weights_that_are_normalised_where_they_are_used_can_shrink():
    tiny = traced("karras", "even", "whole")
    plan = tiny.plan(tiny.smallest)
    counted = count_macs(apply(tiny.model, tiny.graph, plan), tiny.inputs)
    assert counted.macs == int(tiny.cost.macs(plan.widths(tiny.graph))) < tiny.cost.macs(tiny.graph.full_widths)


@pytest.mark.parametrize(
    "name", ["unet", "conditional", "dit", "guided-4-parted-shift", "edm-2-adaptive", "lucid", "small-dit"]
)
@pytest.mark.parametrize(("norm_mode", "head_mode"), [("even", "whole"), ("whole", "even")])
def test_a_slim_model_comes_back_bit_by_bit(name, norm_mode, head_mode):
    tiny = traced(name, norm_mode, head_mode)
    plan = tiny.plan(tiny.smallest)
    widths = plan.widths(tiny.graph)
    known = type(tiny.model).__module__.startswith("diffusers.")
    spec = (
        ModelSpec.of(tiny.model)
        if known
        else ModelSpec(type(tiny.model).__name__, {}, lambda _: FAMILIES[name]().model)
    )
    slim = SlimModel(
        apply(tiny.model, tiny.graph, plan),
        spec,
        plan,
        attributes(tiny.model, tiny.graph, plan),
        TimestepGroup(0, 0, 10),
        10,
        int(tiny.cost.macs(widths)),
        int(tiny.cost.params(widths)),
    )
    with tempfile.TemporaryDirectory() as folder:
        save_slim(slim, Path(folder) / "slim")
        loaded = load_slim(Path(folder) / "slim", None if known else lambda _: FAMILIES[name]().model)
    expected = tensor(run_once(slim.model, tiny.inputs))
    assert torch.equal(tensor(run_once(loaded.model, tiny.inputs)), expected)


def groups_of_torch_pruning(model, inputs):
    """Layer, axis and positions that its dependency graph couples, one frozenset for each channel group."""
    import torch_pruning as tp

    names = {module: name for name, module in model.named_modules()}
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    kinds = [nn.Conv2d, nn.Linear]
    found = set()
    for group in graph.get_all_groups(root_module_types=kinds):
        members = set()
        for dependency, _ in group:
            module = dependency.target.module
            if module in names and isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm):
                into = dependency.handler in (tp.prune_conv_in_channels, tp.prune_linear_in_channels)
                members.add((names[module], "in" if into else "out"))
        found.add(frozenset(members))
    return found


@pytest.mark.slow_but("options0")
@pytest.mark.parametrize("options", [{}, {"attention_head_dim": None}, {"layers_per_block": 2}])
def test_plain_unets_have_the_groups_that_torch_pruning_finds(options):
    model = unet(**options)
    ours = {frozenset((member.layer, member.axis) for member in group.members) for group in trace(model, unet_inputs())}
    theirs = groups_of_torch_pruning(model, unet_inputs())
    output = {group for group in theirs if ("conv_out", "out") in group}
    assert ours == {ours_in(group, ours) for group in theirs - output}


def ours_in(group, ours):
    """Our group that holds a foreign one: attention ties its queries to its values, which torch-pruning keeps apart."""
    return next((own for own in ours if group <= own), group)


def test_norms_at_a_single_position_keep_two_channels_in_each_norm_group():
    network = Network(unet(), {**unet_inputs(), "sample": noise(1, 1, 2, 2)})
    graph = trace(network.model, network.inputs)
    CostModel.of(network.model, graph, network.inputs)  # runs the network at its smallest widths
    assert int(graph["mid_block.resnets.0.conv1"].widths[-1]) == 8
