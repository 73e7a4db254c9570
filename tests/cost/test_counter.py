import json

import pytest
import torch
import torch.nn.functional as F
from networks import SelfAttention, rows, unet, unet_inputs
from torch import nn

from prunekit.cost import count_macs, count_params
from prunekit.cost.counter import FORMULAS

N, L, D = 1, 12, 16


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(6, 5), (1, 6), 6 * 5),
        (nn.Linear(6, 5, bias=False), (1, 9, 6), 9 * 6 * 5),
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 7), 10 * 7 * 9 * 3 * 8),
        (nn.Conv2d(3, 8, 5, stride=2), (1, 3, 11, 11), 4 * 4 * 25 * 3 * 8),
        (nn.Conv2d(4, 8, 3, dilation=2), (1, 4, 9, 9), 5 * 5 * 9 * 4 * 8),
        (nn.Conv2d(8, 12, 3, padding=1, groups=4), (1, 8, 6, 6), 6 * 6 * 9 * 2 * 12),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 6, 6), 6 * 6 * 9 * 8),
        (nn.Conv1d(4, 6, 3), (1, 4, 10), 8 * 3 * 4 * 6),
        (nn.Conv3d(2, 3, 3), (1, 2, 5, 5, 5), 27 * 27 * 2 * 3),
        (nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1), (1, 6, 5, 5), 5 * 5 * 16 * 6 * 4),
        (nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), (1, 6, 5, 5), 5 * 5 * 4 * 6 * 2),
    ],
)
def test_layers_cost_what_their_closed_forms_say(layer, shape, macs):
    counted = count_macs(layer, (noise(*shape),))
    assert counted.macs == macs
    assert counted.flops == 2 * macs
    assert counted.params == sum(parameter.numel() for parameter in layer.parameters())


class Fused(nn.Module):
    def forward(self, q, k, v, mask=None):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_on_the_cpu_costs_both_of_its_products(heads, masked):
    """L²·d for the scores and L²·d for the values, per head."""
    q = noise(1, heads, L, D)
    mask = torch.zeros(L, L) if masked else None
    assert count_macs(Fused(), (q, q, q, mask)).macs == 2 * heads * L * L * D


def test_cross_attention_costs_queries_times_keys():
    q, k, v = noise(1, 2, L, D), noise(1, 2, 7, D), noise(1, 2, 7, 8)
    assert count_macs(Fused(), (q, k, v)).macs == 2 * (L * 7 * D + L * 7 * 8)


def test_plain_products_cost_as_much_as_fused_ones():
    inputs = (rows(1, 4, 5),)
    projections = 4 * (5 * 8 + 4 * 8 * 8 + 8 * 3)
    for heads in (1, 2):
        assert count_macs(SelfAttention(heads), inputs).macs == projections + 2 * 4 * 4 * 8


def test_torchs_own_transformer_layer_is_counted_though_it_can_run_as_one_operator():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    counted = count_macs(layer, (rows(1, 4, 8),))
    assert counted.macs == 4 * (8 * 24 + 8 * 8 + 2 * 8 * 16) + 2 * 4 * 4 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_published_size_of_the_cifar10_unet():
    """google/ddpm-cifar10-32: 35.7M parameters and 6.1 GMACs in the literature, which leaves the attention products out."""
    model = unet(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_num_groups=32,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    counted = count_macs(model, {"sample": torch.zeros(1, 3, 32, 32), "timestep": torch.zeros(1, dtype=torch.long)})
    assert (counted.macs, counted.params) == (6_221_856_768, 35_746_307)
    five_at_16x16, one_at_4x4 = 5 * 2 * 256**2 * 256, 2 * 16**2 * 256
    assert counted.by_operator["scaled_dot_product_attention"] == five_at_16x16 + one_at_4x4


def test_modules_add_up_to_the_whole_and_operators_too(bench):
    tiny = bench("unet")
    counted = count_macs(tiny.model, tiny.inputs)
    children = [counted.by_module.get(name, 0) for name, _ in tiny.model.named_children()]
    assert sum(children) == counted.by_module[""] == counted.macs == sum(counted.by_operator.values())
    for parent, module in tiny.model.named_modules():
        own = [counted.by_module.get(f"{parent}.{name}", 0) for name, _ in module.named_children()]
        if parent and type(module).__name__ not in ("Attention", "Linear", "Conv2d"):
            assert sum(own) == counted.by_module.get(parent, 0)
    assert counted.by_module["conv_in"] == 64 * 9 * 1 * 8


def test_operators_have_one_name_on_every_device_and_with_or_without_bias(bench):
    tiny = bench("unet")
    assert list(count_macs(tiny.model, tiny.inputs).by_operator) == [
        "convolution",
        "linear",
        "scaled_dot_product_attention",
    ]
    layers = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5, bias=False), nn.Unflatten(1, (5, 1)), nn.Conv1d(5, 2, 1))
    assert count_macs(layers, (noise(2, 4),)).by_operator == {"linear": 2 * (12 + 15), "convolution": 2 * 10}
    products = bench("products")
    assert set(count_macs(products.model, products.inputs).by_operator) == {"linear", "matmul"}


@pytest.mark.parametrize("name", ["unet", "products", "conv"])
def test_what_modules_do_themselves_adds_up(bench, name):
    tiny = bench(name)
    counted = count_macs(tiny.model, tiny.inputs)
    assert sum(macs for operators in counted.own.values() for macs in operators.values()) == counted.macs
    for layer, operators in counted.own.items():
        if not list(tiny.model.get_submodule(layer).children()):
            assert sum(operators.values()) == counted.by_module[layer]


def test_parameters_by_module_add_up(bench):
    tiny = bench("unet")
    counted = count_macs(tiny.model, tiny.inputs)
    sizes = counted.params_by_module
    assert sum(sizes.get(name, 0) for name, _ in tiny.model.named_children()) == sizes[""] == counted.params
    assert sizes["conv_in"] == 8 * 9 + 8
    assert sizes["conv_norm_out"] == 16
    assert "conv_act" not in sizes


def test_what_has_no_formula_is_listed_and_never_silently_zero(bench):
    tiny = bench("unet")
    counted = count_macs(tiny.model, tiny.inputs)
    norms = sum(isinstance(module, nn.GroupNorm) for module in tiny.model.modules())
    assert counted.uncounted["native_group_norm"] == norms
    assert counted.uncounted["silu"] > norms / 2
    assert {"add", "div", "mul", "sin"} <= set(counted.uncounted)
    assert not {"convolution", "addmm", "mm"} & set(counted.uncounted)
    assert counted.unknown == ()


def test_moving_numbers_about_is_no_arithmetic_and_is_not_listed(bench):
    tiny = bench("unet")
    moved = {"view", "empty", "cat", "clone", "_to_copy", "arange", "_unsafe_view", "_unsafe_index", "ones"}
    assert not moved & set(count_macs(tiny.model, tiny.inputs).uncounted)


def test_what_may_hold_multiply_accumulates_is_told_from_what_has_none():
    class Mixed(nn.Module):
        def forward(self, a, b):
            return (
                torch.softmax(F.pad(torch.cdist(a, b), (1, 1)), -1).cumsum(0).mean() + torch.linalg.inv(a.T @ a).sum()
            )

    counted = count_macs(Mixed(), (noise(30, 4), noise(30, 4)))
    assert counted.by_operator["matmul"] >= 4 * 30 * 4
    assert "linalg_inv_ex" in counted.unknown
    assert {"_softmax", "cumsum", "mean", "add"} <= set(counted.uncounted) - set(counted.unknown)
    assert counted.to_json()["unknown"] == list(counted.unknown)


def test_an_unknown_product_shows_up_as_unknown():
    class Distances(nn.Module):
        def forward(self, a, b):
            return torch.cdist(a, b)

    counted = count_macs(Distances(), (noise(30, 4), noise(30, 4)))
    assert counted.macs > 0 or counted.unknown


RECURRENT = {
    "one layer": {"num_layers": 1},
    "two layers": {"num_layers": 2},
    "two layers in both directions": {"num_layers": 2, "bidirectional": True},
    "without biases": {"num_layers": 2, "bias": False},
    "time first": {"num_layers": 1, "batch_first": False},
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_multiplies_its_matrices_at_every_position(kind, name):
    layer = kind(16, 24, **{"batch_first": True, **RECURRENT[name]})
    counted = count_macs(layer, (noise(1, 6, 16) if layer.batch_first else noise(6, 1, 16),))
    assert counted.macs == 6 * sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2)
    assert counted.by_operator == {"matmul": counted.macs}
    assert counted.unknown == ()


def test_an_lstm_costs_the_same_in_one_kernel_and_step_by_step():
    layer = nn.LSTM(16, 24, 2, bidirectional=True)
    together = count_macs(layer, (noise(6, 1, 16),))
    allowed = torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(False)
    try:
        apart = count_macs(layer, (noise(6, 1, 16),))
    finally:
        torch._C._set_mkldnn_enabled(allowed)
    assert (together.macs, together.by_operator) == (apart.macs, apart.by_operator)


def test_the_kernel_of_a_gpu_costs_what_that_of_the_processor_costs():
    layer = nn.LSTM(16, 24, 2, bidirectional=True, proj_size=5)
    shapes = [weight.shape for weight in layer.parameters()]
    formula = FORMULAS[torch.ops.aten._cudnn_rnn]
    assert formula(torch.Size((6, 1, 16)), shapes, 4, None) == count_macs(layer, (noise(6, 1, 16),)).flops


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    assert count_params(nn.Sequential(layer, nn.ReLU(), layer)) == 20
    assert count_macs(nn.Sequential(layer, nn.ReLU(), layer), (noise(1, 4),)).macs == 2 * 16


def test_counting_changes_nothing_and_repeats():
    model = unet(dropout=0.2).train()
    model.mid_block.eval()
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    first = count_macs(model, unet_inputs())
    assert count_macs(model, unet_inputs()) == first
    assert json.loads(json.dumps(first.to_json()))["flops"] == 2 * first.macs
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert set(model.state_dict()) == set(state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
