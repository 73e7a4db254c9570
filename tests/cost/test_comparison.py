import copy
import sys

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from networks import NETWORKS, SelfAttention, rows, unet, unet_inputs
from torch import nn

from prunekit.cost import OtherCount, count_macs, other_counters


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def compared(model, *inputs):
    return other_counters(model, inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_they_leave_out_and_add_explains_their_figures(name):
    """figure = macs − Σ omits + Σ adds, for every counter and network."""
    network = NETWORKS[name]()
    counted = count_macs(network.model, network.inputs)
    others = other_counters(network.model, network.inputs)
    assert list(others) == ["fvcore", "thop", "torch-pruning"]
    for other in others.values():
        assert not other.failed
        assert other.figure == counted.macs - sum(other.omits.values()) + sum(other.adds.values())
        assert all(row.macs == counted.own.get(row.module, {}).get(row.operator, 0) for row in other.differences)


def test_on_a_unet_both_omit_attention_and_fvcore_adds_norms_and_resampling(bench):
    tiny = bench("unet")
    counted = count_macs(tiny.model, tiny.inputs)
    others = other_counters(tiny.model, tiny.inputs, counted)
    attention = {"scaled_dot_product_attention": counted.by_operator["scaled_dot_product_attention"]}
    assert others["thop"].omits == others["fvcore"].omits == attention
    assert others["thop"].adds == {}
    assert set(others["fvcore"].adds) == {"group_norm", "upsample_nearest2d"}
    places = {row.module: row for row in others["thop"].differences}
    assert set(places) == {name for name, m in tiny.model.named_modules() if type(m).__name__ == "Attention"}
    middle = places["mid_block.attentions.0"]
    assert (middle.macs, middle.figure) == (2 * 16 * 16 * 16, 0)
    norm = next(row for row in others["fvcore"].differences if row.module == "conv_norm_out")
    assert (norm.macs, norm.figure) == (0, 5 * 8 * 64)


def test_they_agree_on_convolutions_and_linear_layers():
    conv = compared(nn.Conv2d(3, 8, 3, padding=1), noise(1, 3, 8, 8))
    figures = {name: other.figure for name, other in conv.items()}
    biases = 64 * 8  # torch-pruning counts them too
    assert figures == {"fvcore": 64 * 27 * 8, "thop": 64 * 27 * 8, "torch-pruning": 64 * 27 * 8 + biases}
    assert conv["torch-pruning"].adds == {"convolution": biases}
    for name, other in compared(nn.Linear(4, 3, bias=False), noise(5, 4)).items():
        assert other == OtherCount(60, 12), name


def test_fused_attention_is_nothing_to_them():
    class Fused(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v)

    q = noise(1, 2, 12, 16)
    for other in compared(Fused(), q, q, q).values():
        assert (other.figure, other.omits) == (0, {"scaled_dot_product_attention": 2 * 2 * 12 * 12 * 16})


def test_products_outside_layers_are_nothing_to_thop():
    others = compared(SelfAttention(heads=1), rows(1, 4, 5))
    assert others["thop"].omits == {"matmul": 2 * 4 * 4 * 8}
    assert others["fvcore"] == OtherCount(1536, others["fvcore"].params)


def test_thop_multiplies_a_strided_transposed_convolution_too_often():
    """It counts output positions, each with the whole kernel; there is one kernel for each input position."""
    others = compared(nn.ConvTranspose2d(6, 4, 2, stride=2), noise(1, 6, 5, 5))
    assert others["fvcore"].figure == 25 * 4 * 24
    assert others["thop"].adds == {"convolution": 3 * 25 * 4 * 24}


def test_thop_has_no_rule_for_layers_of_a_class_of_ones_own():
    class Own(nn.Linear):
        pass

    others = compared(nn.Sequential(Own(4, 3), nn.Linear(3, 2)), noise(1, 4))
    assert others["thop"].omits == {"linear": 12}
    assert (others["thop"].figure, others["thop"].params, others["fvcore"].params) == (6, 8, 15 + 8)


def test_thop_counts_a_layer_again_under_its_second_name():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Linear(4, 4))
            self.second = nn.Sequential(self.first[0])

        def forward(self, x):
            return self.second(self.first(x))

    others = compared(Twice(), noise(1, 4))
    assert (others["fvcore"].figure, others["fvcore"].omits, others["fvcore"].adds) == (32, {}, {})
    assert (others["thop"].figure, others["thop"].omits, others["thop"].adds) == (128, {}, {"linear": 96})


def test_they_get_their_arguments_by_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, factor, x):
            return self.layer(x) * factor

    figures = other_counters(Net(), {"x": noise(1, 4), "factor": noise(1, 1)})
    assert {name: other.figure for name, other in figures.items()} == {
        "fvcore": 12,
        "thop": 12,
        "torch-pruning": 12 + 3,
    }


def test_a_counter_that_fails_costs_its_own_column_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "thop", None)
    others = compared(nn.Linear(4, 3), noise(1, 4))
    assert others["fvcore"].figure == 12
    assert others["thop"].figure is None
    assert others["thop"].failed.startswith("ModuleNotFoundError: ")
    assert others["thop"].to_json() == {"figure": None, "failed": others["thop"].failed}


def test_torch_pruning_is_asked_only_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert list(compared(nn.Linear(4, 3), noise(1, 4))) == ["fvcore", "thop"]


def test_torch_prunings_figure_is_the_one_that_it_gives_itself(bench, capsys):
    tiny = bench("unet")
    theirs, params = tp.utils.count_ops_and_params(tiny.model, tiny.inputs)
    capsys.readouterr()
    other = other_counters(tiny.model, tiny.inputs)["torch-pruning"]
    assert (other.figure, other.params) == (theirs, params)
    assert capsys.readouterr().out == ""


def test_a_network_that_they_cannot_run_gives_their_reason():
    class Shy(nn.Module):
        def forward(self, x):
            if type(x) is torch.Tensor and torch.jit.is_tracing():
                raise RuntimeError("not today")
            return x @ x

    others = compared(Shy(), noise(4, 4))
    assert "not today" in others["fvcore"].failed
    assert others["thop"].omits == {"matmul": 64}


def test_comparing_changes_nothing():
    model = unet(dropout=0.2).train()
    model.mid_block.eval()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    other_counters(model, unet_inputs())
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(name.startswith("total_") for m in model.modules() for name in (*vars(m), *m._buffers))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
