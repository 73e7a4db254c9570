"""Surgery: slice a network's tensors by a plan, and fit a network's layers to sliced tensors.

The two halves are apart on purpose. Fitting needs shapes only, so a slim model on disk is rebuilt by the very code that pruned it.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._types import IntArray
from prunekit.errors import PlanError
from prunekit.graph.families import attentions, refresh, rescaled
from prunekit.graph.plan import PruningPlan
from prunekit.graph.structure import Axis, ChannelGraph, Member, shrunk_norm_groups

__all__ = [
    "Inputs",
    "apply",
    "axis_dim",
    "axis_size",
    "evaluation_mode",
    "fit",
    "layer_kind",
    "norm_groups",
    "run_once",
    "sliced_state",
]

Inputs = Mapping[str, Any] | tuple[Any, ...]
Kind = Literal["conv", "depthwise", "transposed", "linear", "norm", "embedding"]
_VECTORS = ("bias", "running_mean", "running_var")  # one number per output channel
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)
_DIMS: Mapping[Kind, Mapping[Axis, int]] = {
    "conv": {"out": 0, "in": 1},
    "depthwise": {"out": 0},
    "transposed": {"out": 1, "in": 0},
    "linear": {"out": 0, "in": 1},
    "norm": {"out": 0},
    "embedding": {"out": 1},
}


def layer_kind(module: nn.Module) -> Kind | None:
    """How a layer's tensors are laid out, or None for a module that surgery does not know."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "transposed" if module.groups == 1 else None
    if isinstance(module, nn.modules.conv._ConvNd):
        depthwise = module.groups == module.in_channels == module.out_channels and module.groups > 1
        return "depthwise" if depthwise else "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "norm" if isinstance(module, _NORMS) else None


def axis_size(module: nn.Module, axis: Axis) -> int:
    """Full number of positions on an axis of a layer."""
    kind = layer_kind(module)
    if kind == "norm":
        if isinstance(module, nn.GroupNorm):
            return module.num_channels
        return module.normalized_shape[-1] if isinstance(module, nn.LayerNorm) else int(module.num_features)  # type: ignore[arg-type]
    assert isinstance(module.weight, Tensor)  # noqa: S101 - members are made of known layers only
    assert kind is not None  # noqa: S101 - see above
    return int(module.weight.shape[_DIMS[kind][axis]])


def axis_dim(model: nn.Module, member: Member) -> int:
    """Dimension of the member's layer's weight that the member's axis is."""
    kind = layer_kind(model.get_submodule(member.layer))
    assert kind is not None  # noqa: S101 - members are made of known layers only
    return _DIMS[kind][member.axis]


def sliced_state(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> dict[str, Tensor]:
    """The state dict with the plan's channels removed; untouched tensors are the model's own, not copies.

    Raises:
        PlanError: the plan does not fit the graph.
    """
    plan.check(graph)
    state = dict(model.state_dict())
    for (layer, axis), keep in _kept_positions(graph, plan).items():
        module = model.get_submodule(layer)
        kind = layer_kind(module)
        assert kind is not None  # noqa: S101 - members are made of known layers only
        index = torch.from_numpy(keep)
        for name, tensor in _own_tensors(module).items():
            dim = _DIMS[kind][axis] if name == "weight" else (0 if axis == "out" else None)
            if dim is not None and tensor.ndim > dim:
                key = f"{layer}.{name}" if layer else name
                state[key] = state[key].index_select(dim, index.to(tensor.device))
    for name, module in attentions(model):
        rescaled(name, module, state)
    return state


def norm_groups(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> dict[str, int]:
    """``num_groups`` of every group norm that the plan changes: the one thing that shapes do not tell."""
    changed: dict[str, int] = {}
    for (layer, _), keep in _kept_positions(graph, plan).items():
        module = model.get_submodule(layer)
        if isinstance(module, nn.GroupNorm):
            groups = shrunk_norm_groups(module.num_groups, module.num_channels, len(keep), graph.norm_mode)
            if groups != module.num_groups:
                changed[layer] = groups
    return changed


def fit(model: nn.Module, state: Mapping[str, Tensor], groups_of_norms: Mapping[str, int]) -> nn.Module:
    """Give every layer the tensors of ``state`` and the sizes that their shapes imply, in place.

    Args:
        model: a network of the right architecture and any widths; its tensors may be on the meta device.
        state: one tensor for every entry of the state dict.
        groups_of_norms: ``num_groups`` where it differs from the architecture's.

    Raises:
        PlanError: names differ, or a layer's tensors contradict each other.
    """
    expected = set(model.state_dict())
    if expected != set(state):
        odd = sorted(expected ^ set(state))[:3]
        raise PlanError(
            f"The tensors do not belong to {type(model).__name__}: {', '.join(odd)} are in one of them only."
        )
    made: dict[Tensor, nn.Parameter] = {}  # parameters that were one stay one
    for layer, module in model.named_modules():
        prefix = f"{layer}." if layer else ""
        for name, tensor in _own_tensors(module).items():
            new = state.get(prefix + name, tensor)
            if name in module._parameters:
                module._parameters[name] = made.setdefault(tensor, nn.Parameter(new, tensor.requires_grad))
            else:
                module._buffers[name] = new
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups_of_norms.get(layer, module.num_groups)
        _set_sizes(module, layer)
        _check_vectors(module, layer)
    refresh(model)
    return model


def apply(model: nn.Module, graph: ChannelGraph, plan: PruningPlan, *, share: bool = False) -> nn.Module:
    """A new network with the plan's channels removed; the caller's is untouched.

    Args:
        model: the network that ``graph`` was traced from.
        graph: its channel groups.
        plan: what to keep.
        share: True lets untouched tensors be the caller's own (for evaluation only: training would change both).
    """
    state = sliced_state(model, graph, plan)
    groups_of_norms = norm_groups(model, graph, plan)
    own = chain(model.named_parameters(), model.named_buffers())
    memo: dict[int, Any] = {id(tensor): tensor for name, tensor in own if share or name in state}
    clone = copy.deepcopy(model, memo)  # structure only; the tensors come from `state`
    if not share:
        state = {key: tensor.detach().clone() for key, tensor in state.items()}
    return fit(clone, state, groups_of_norms)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards every module, not only the root, has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def run_once(model: nn.Module, inputs: Inputs) -> Any:
    """One forward pass without gradients, in eval mode, leaving the modes as they were."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it runs whole transformer layers behind hooks' and counters' backs
    try:
        with evaluation_mode(model), torch.no_grad():
            return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself, without its children's."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _kept_positions(graph: ChannelGraph, plan: PruningPlan) -> dict[tuple[str, Axis], IntArray]:
    """Positions that stay, for every layer axis that loses some."""
    removed: dict[tuple[str, Axis], list[IntArray]] = {}
    for name, kept in plan.kept.items():
        group = graph[name]
        gone = np.setdiff1d(np.arange(group.size), np.array(kept))
        if gone.size:
            for member in group.members:
                positions = member.positions[np.isin(member.roots, gone)]
                removed.setdefault((member.layer, member.axis), []).append(positions)
    return {
        key: np.setdiff1d(np.arange(graph.axis_sizes[key]), np.concatenate(positions))
        for key, positions in removed.items()
    }


def _set_sizes(module: Any, layer: str) -> None:
    """Sizes that a layer keeps beside its tensors, read off their shapes."""
    kind = layer_kind(module)
    match kind:
        case "conv" | "depthwise":
            module.out_channels = module.weight.shape[0]
            module.groups = module.out_channels if kind == "depthwise" else module.groups
            module.in_channels = module.weight.shape[1] * module.groups
        case "transposed":
            module.in_channels, module.out_channels = module.weight.shape[:2]
        case "linear":
            module.out_features, module.in_features = module.weight.shape
        case "embedding":
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case "norm" if module.weight is not None:
            width = module.weight.shape[0]
            if isinstance(module, nn.GroupNorm):
                if module.num_groups < 1 or width % module.num_groups:
                    raise PlanError(
                        f"{layer} has {width} channels, which {module.num_groups} norm groups do not divide."
                    )
                module.num_channels = width
            elif isinstance(module, nn.LayerNorm):
                module.normalized_shape = tuple(module.weight.shape)
            else:
                module.num_features = width


def _check_vectors(module: Any, layer: str) -> None:
    """Refuse a layer whose weight says another number of output channels than its bias or running statistics."""
    if layer_kind(module) is not None and module.weight is not None:
        width = axis_size(module, "out")
        lengths = {name: len(t) for name, t in _own_tensors(module).items() if name in _VECTORS and t.ndim == 1}
        if any(length != width for length in lengths.values()):
            raise PlanError(f"{layer} has {width} channels by its weight, and {lengths} by its other tensors.")
