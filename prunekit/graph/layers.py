"""Layers: how the tensors of convolutions, linear layers, norms and embeddings are laid out, torch's own and other people's.

A class of one's own counts as a layer when it looks like one: a ``weight`` of the right number of dimensions, and sizes under
torch's names (``in_channels`` and ``out_channels``, ``in_features`` and ``out_features``, ``num_channels`` and ``num_groups``).
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from prunekit.errors import GraphError, PlanError
from prunekit.graph.structure import Axis

__all__ = [
    "ATTRIBUTES",
    "Kind",
    "axis_of",
    "axis_size",
    "dim_of",
    "group_count",
    "known_kind",
    "layer_kind",
    "own_tensors",
    "set_sizes",
]

HEADS = (
    "heads",
    "num_heads",
    "n_heads",
    "num_attention_heads",
    "kv_heads",
    "num_kv_heads",
    "n_kv_heads",
    "num_key_value_heads",
)
HEAD_WIDTHS = ("head_dim", "dim_head", "attention_head_dim", "head_channels", "num_head_channels")
ENTERING = (
    "channels",
    "in_channels",
    "num_channels",
    "num_features",
    "in_features",
    "dim",
    "embed_dim",
    "normalized_shape",
)
LEAVING = ("out_channels", "out_features", "dim_out")
ATTRIBUTES = frozenset({*HEADS, *HEAD_WIDTHS, *ENTERING, *LEAVING, "num_groups"})
"""Attribute names under which layers store their widths. Of any other name, only the sizes of axes are ever set."""

Kind = Literal["conv", "depthwise", "transposed", "linear", "norm", "embedding"]
_VECTORS = ("bias", "running_mean", "running_var")  # one number per output channel
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
_DIMS: Mapping[Kind, Mapping[str, int]] = {
    "conv": {"out": 0, "in": 1},
    "depthwise": {"out": 0},
    "transposed": {"out": 1, "in": 0},
    "linear": {"out": 0, "in": 1},
    "norm": {"out": 0},
    "embedding": {"out": 1},
}


def layer_kind(module: Any) -> Kind | None:
    """How a layer's tensors are laid out, or None for a module that is not known to be a layer."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "transposed" if module.groups == 1 else None
    if isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups == module.in_channels == module.out_channels and module.groups > 1
        return "depthwise" if depthwise else "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "norm" if isinstance(module, _NORMS) else _kind_by_looks(module)


def known_kind(module: Any) -> Kind:
    """:func:`layer_kind` of a module that a channel group has an axis of.

    Raises:
        GraphError: the module is not known to be a layer.
    """
    kind = layer_kind(module)
    if kind is None:
        raise GraphError(
            f"A {type(module).__name__} has no known layout; expected a layer that the network was traced with."
        )
    return kind


def _kind_by_looks(module: Any) -> Kind | None:
    weight = module._parameters.get("weight") if isinstance(module, nn.Module) else None
    if weight is None:
        return None
    sizes = vars(module)
    if weight.ndim > 2 and {"in_channels", "out_channels"} <= set(sizes) and sizes.get("groups", 1) == 1:
        return "conv"
    if weight.ndim == 2 and {"in_features", "out_features"} <= set(sizes):
        return "linear"
    if weight.ndim == 1 and "num_groups" in sizes:
        return "norm"
    return None


def group_count(module: Any) -> int | None:
    """``num_groups`` of a group norm, None for anything else."""
    if layer_kind(module) != "norm" or isinstance(module, nn.modules.batchnorm._BatchNorm):
        return None
    count = vars(module).get("num_groups")
    return count if isinstance(count, int) else None


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself, without its children's."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def axis_of(kind: Kind, tensor: str, ndim: int, dim: int) -> Axis | None:
    """The axis that a dimension of a layer's own tensor is; None where it is neither (a kernel's, a table's rows)."""
    if tensor in _VECTORS and ndim == 1:
        return "out"
    if tensor != "weight":
        return None
    return next((axis for axis, at in _DIMS[kind].items() if at == dim), None)


def dim_of(kind: Kind, axis: Axis, tensor: str, ndim: int) -> int | None:
    """Dimension of a layer's own tensor that an axis is; None where the tensor does not have it."""
    if tensor == "weight":
        return _DIMS[kind].get(axis)
    return 0 if tensor in _VECTORS and ndim == 1 and axis == "out" else None


def axis_size(module: Any, axis: Axis) -> int:
    """Number of positions on an axis of a layer."""
    return int(module.weight.shape[_DIMS[known_kind(module)][axis]])


def set_sizes(module: Any, name: str) -> None:
    """Set the sizes that a layer keeps beside its tensors, read off their shapes.

    Raises:
        PlanError: its tensors contradict each other, or its norm groups do not divide its width.
    """
    kind = layer_kind(module)
    if kind is None or module.weight is None:
        return
    shape = module.weight.shape
    match kind:
        case "conv" | "depthwise":
            if kind == "depthwise":
                module.groups = shape[0]
            _set(module, out_channels=shape[0], in_channels=shape[1] * getattr(module, "groups", 1))
        case "transposed":
            _set(module, in_channels=shape[0], out_channels=shape[1])
        case "linear":
            _set(module, out_features=shape[0], in_features=shape[1])
        case "embedding":
            _set(module, num_embeddings=shape[0], embedding_dim=shape[1])
        case "norm":
            _set_norm(module, name)
    width = axis_size(module, "out")
    lengths = {key: len(t) for key, t in own_tensors(module).items() if key in _VECTORS and t.ndim == 1}
    if any(length != width for length in lengths.values()):
        raise PlanError(f"{name} has {width} channels by its weight, and {lengths} by its other tensors.")


def _set(module: Any, **sizes: int) -> None:
    for name, size in sizes.items():
        setattr(module, name, size)


def _set_norm(module: Any, name: str) -> None:
    width, sizes = int(module.weight.shape[0]), vars(module)
    groups = group_count(module)
    if groups is not None and (groups < 1 or width % groups):
        raise PlanError(f"{name} has {width} channels, which {groups} norm groups do not divide.")
    if "normalized_shape" in sizes:
        module.normalized_shape = tuple(module.weight.shape)
    for key in ("num_channels", "num_features"):
        if key in sizes:
            setattr(module, key, width)
