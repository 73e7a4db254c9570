"""Results that are told without torch's meta device must be the ones that it gives, strides included."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from prunekit.graph.hollow import hollow_result
from prunekit.graph.weightless import weightless

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def images(dtype=torch.float32):
    return meta(2, 8, 4, 4, dtype=dtype)


CASES = {
    "a sum": (aten.add.Tensor, (images(), images())),
    "a sum with a vector": (aten.add.Tensor, (meta(1, 8, 1, 1), images())),
    "a sum of two that are both stretched": (aten.add.Tensor, (meta(8, 1), meta(1, 8))),
    "a sum of other strides": (aten.add.Tensor, (images().transpose(1, 2), images().transpose(1, 2))),
    "a sum of two types": (aten.add.Tensor, (images(), images(torch.float64))),
    "a product with a number": (aten.mul.Tensor, (images(), 2.0)),
    "a quotient": (aten.div.Tensor, (images(torch.bfloat16), images(torch.bfloat16))),
    "whole numbers": (aten.div.Tensor, (meta(3, dtype=torch.int64), meta(3, dtype=torch.int64))),
    "a power": (aten.pow.Tensor_Scalar, (images(), 2)),
    "an activation": (aten.gelu.default, (images(torch.float16),)),
    "an activation of other strides": (aten.silu.default, (images().permute(0, 2, 3, 1),)),
    "a mean": (aten.mean.dim, (images(), [-1], True)),
    "a mean over two": (aten.mean.dim, (images(), [1, -1])),
    "a concatenation": (aten.cat.default, ([images(), images()], 1)),
    "a concatenation with something of other strides": (aten.cat.default, ([images(), images().transpose(2, 3)], 1)),
    "a concatenation with nothing": (aten.cat.default, ([meta(0), images()], 1)),
    "matrices": (aten.mm.default, (meta(3, 4), meta(5, 4).t())),
    "a linear layer": (aten.addmm.default, (meta(5), meta(3, 4), meta(5, 4).t())),
    "a linear layer with a matrix for its bias": (aten.addmm.default, (meta(3, 5), meta(3, 4), meta(4, 5))),
    "a convolution": (
        aten.convolution.default,
        (images(), meta(6, 8, 3, 3), meta(6), [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
    ),
    "a grouped, dilated convolution": (
        aten.convolution.default,
        (meta(1, 8, 9), meta(4, 4, 2), None, [1], [0], [2], False, [0], 2),
    ),
    "a transposed convolution": (
        aten.convolution.default,
        (images(), meta(8, 6, 2, 2), None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1),
    ),
    "a group norm": (aten.native_group_norm.default, (images(), meta(8), meta(8), 2, 8, 16, 4, 1e-5)),
    "a group norm in half precision": (
        aten.native_group_norm.default,
        (images(torch.bfloat16), None, None, 2, 8, 16, 4, 1e-5),
    ),
    "a layer norm": (aten.native_layer_norm.default, (images(), [4], meta(4), meta(4), 1e-5)),
    "a layer norm in half precision": (
        aten.native_layer_norm.default,
        (images(torch.float16), [4, 4], None, None, 1e-5),
    ),
}


def told(value):
    return [(one.shape, one.dtype, one.stride(), one.device.type) for one in tree_leaves(value)]


@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_torch(case):
    func, args = CASES[case]
    result = hollow_result(func, args, {})
    assert result is NotImplemented or told(result) == told(func(*args))


def test_the_kinds_that_networks_consist_of_are_told():
    left = {case for case, (func, args) in CASES.items() if hollow_result(func, args, {}) is NotImplemented}
    assert left == {case for case in CASES if "other strides" in case} | {
        "a sum of two that are both stretched",
        "a sum of two types",
        "whole numbers",
        "a concatenation with nothing",
        "a linear layer with a matrix for its bias",
        "a transposed convolution",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: meta(2, 3) + meta(2, 4),
        lambda: F.linear(meta(2, 3), meta(5, 4)),
        lambda: F.conv2d(meta(1, 3, 4, 4), meta(5, 4, 1, 1)),
        lambda: F.conv2d(meta(1, 3, 4, 4), meta(5, 3, 5, 5)),
        lambda: torch.cat([meta(2, 3), meta(3, 4)]),
        lambda: F.layer_norm(meta(2, 3), (4,)),
        lambda: F.group_norm(meta(2, 6, 3), 2, meta(5), meta(5)),
    ],
)
def test_what_torch_refuses_is_refused(wrong):
    with weightless(), pytest.raises(RuntimeError):
        wrong()
