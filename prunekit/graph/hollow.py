"""Results without values for the operators that torch's meta device takes long for.

Torch knows the shapes of some operators from Python code that computes them step by step: a group norm takes four milliseconds
there. A network consists of a few kinds of operators, whose results are easily told for contiguous tensors; all else is torch's.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from prunekit._types import Args, Function, Kwargs

__all__ = ["hollow_result"]

_aten = torch.ops.aten
_META = torch.device("meta")
_HALVES = (torch.float16, torch.bfloat16)
_PLAIN = {  # results have the type that the arguments are promoted to
    getattr(getattr(_aten, name), overload)
    for name in ("add", "sub", "mul", "div")
    for overload in ("Tensor", "Scalar")
}
_OF_ONE = {
    _aten.pow.Tensor_Scalar,
    *(
        getattr(_aten, name).default
        for name in ("silu", "gelu", "sigmoid", "tanh", "relu", "rsqrt", "sqrt", "exp", "sin", "cos", "neg")
    ),
}


def hollow_result(func: Function, args: Args, kwargs: Kwargs) -> object:
    """What an operator gives for tensors of the meta device; ``NotImplemented`` where torch is to be asked.

    Args:
        func: overload of an aten operator.
        args: its arguments by place; the tensors among them are on the meta device.
        kwargs: and by name.
    """
    rule = _RULES.get(func)
    if rule is None or any(isinstance(value, Tensor) for value in kwargs.values()):
        return NotImplemented
    any_strides = rule is _matrix  # what a product of matrices gives is contiguous
    for value in args:
        if isinstance(value, Tensor) and not _is_simple(value, any_strides):
            return NotImplemented
    return rule(args, kwargs)


def _is_simple(tensor: Tensor, any_strides: bool = False) -> bool:
    return tensor.is_meta and tensor.is_floating_point() and (any_strides or tensor.is_contiguous())


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=_META)


def _plain(args: Args, kwargs: Kwargs) -> object:
    """A sum, a product and the like, of which one tensor has the shape of the result."""
    first, second = args[:2]
    if not isinstance(first, Tensor) or not first.ndim or isinstance(second, complex) or set(kwargs) - {"alpha"}:
        return NotImplemented
    if not isinstance(second, Tensor):
        return _empty(first.shape, first.dtype)
    if first.dtype != second.dtype or not second.ndim:
        return NotImplemented
    shape = torch.broadcast_shapes(first.shape, second.shape) if first.shape != second.shape else first.shape
    return _empty(shape, first.dtype) if shape in (first.shape, second.shape) else NotImplemented


def _of_one(args: Args, kwargs: Kwargs) -> object:
    return _empty(args[0].shape, args[0].dtype) if not isinstance(args[-1], complex) else NotImplemented


def _mean(args: Args, kwargs: Kwargs) -> object:
    x, dims = args[:2]
    if kwargs or not dims:
        return NotImplemented
    gone, keep = {dim % x.ndim for dim in dims}, len(args) > 2 and args[2]
    sizes = ((1 if dim in gone else size) for dim, size in enumerate(x.shape) if keep or dim not in gone)
    return _empty(tuple(sizes), x.dtype)


def _concatenated(args: Args, kwargs: Kwargs) -> object:
    tensors: Sequence[Tensor] = args[0]
    first, dim = tensors[0], args[1] if len(args) > 1 else 0
    like = [(one.ndim, one.dtype) for one in tensors if _is_simple(one)]
    if kwargs or like != [(first.ndim, first.dtype)] * len(tensors) or not first.ndim:
        return NotImplemented
    shape = list(first.shape)
    dim %= first.ndim
    for one in tensors[1:]:
        if one.shape[:dim] != first.shape[:dim] or one.shape[dim + 1 :] != first.shape[dim + 1 :]:
            return NotImplemented  # torch says what is wrong
        shape[dim] += one.shape[dim]
    return _empty(shape, first.dtype)


def _matrix(args: Args, kwargs: Kwargs) -> object:
    """``mm`` and ``addmm`` of which the second matrix may be transposed."""
    a, b = args[-2:]
    same = len({value.dtype for value in args}) == 1
    if kwargs or not same or a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        return NotImplemented
    if len(args) == 3 and args[0].shape != b.shape[1:]:
        return NotImplemented
    return _empty((a.shape[0], b.shape[1]), a.dtype)


def _convolution(args: Args, kwargs: Kwargs) -> object:
    x, w, bias, strides, padding, dilation, transposed, _, groups = args
    dims = w.ndim - 2
    if kwargs or transposed or x.ndim != w.ndim or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        return NotImplemented
    if x.dtype != w.dtype or (bias is not None and (bias.shape != w.shape[:1] or bias.dtype != x.dtype)):
        return NotImplemented
    strides, padding, dilation = (list(one) * dims if len(one) == 1 else one for one in (strides, padding, dilation))
    sizes = [
        (size + 2 * pad - reach * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, pad, reach in zip(x.shape[2:], w.shape[2:], strides, padding, dilation, strict=True)
    ]
    return _empty((x.shape[0], w.shape[0], *sizes), x.dtype) if min(sizes, default=0) > 0 else NotImplemented


def _group_norm(args: Args, kwargs: Kwargs) -> object:
    x, weight, bias, count, channels, _, groups, _ = args
    vectors = [vector for vector in (weight, bias) if vector is not None]
    if kwargs or channels % groups or any(v.shape != (channels,) or v.dtype != x.dtype for v in vectors):
        return NotImplemented
    return (_empty(x.shape, x.dtype), *(_empty((count, groups), x.dtype) for _ in range(2)))


def _layer_norm(args: Args, kwargs: Kwargs) -> object:
    x, shape, weight, bias, _ = args
    vectors = [vector for vector in (weight, bias) if vector is not None]
    lead = x.ndim - len(shape)
    if kwargs or tuple(x.shape[lead:]) != tuple(shape) or not math.prod(shape):
        return NotImplemented
    if any(v.shape != x.shape[lead:] or v.dtype != x.dtype for v in vectors):
        return NotImplemented
    statistics = torch.float32 if x.dtype in _HALVES else x.dtype
    rows = (*x.shape[:lead], *[1] * len(shape))
    return (_empty(x.shape, x.dtype), *(_empty(rows, statistics) for _ in range(2)))


_RULES: Mapping[Function, Callable[[Args, Kwargs], object]] = {
    **dict.fromkeys(_PLAIN, _plain),
    **dict.fromkeys(_OF_ONE, _of_one),
    _aten.mean.dim: _mean,
    _aten.cat.default: _concatenated,
    _aten.mm.default: _matrix,
    _aten.addmm.default: _matrix,
    _aten.convolution.default: _convolution,
    _aten.native_group_norm.default: _group_norm,
    _aten.native_layer_norm.default: _layer_norm,
}
