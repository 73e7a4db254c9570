"""Surgery: slice a network's tensors by a plan, and fit a network's layers to sliced tensors.

The two halves are apart on purpose. Fitting needs shapes only, so a slim model on disk is rebuilt by the very code that pruned it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from prunekit._types import IntArray
from prunekit.errors import InputError, PlanError
from prunekit.graph.branch import Stub
from prunekit.graph.copying import structure
from prunekit.graph.families import refresh
from prunekit.graph.forward_pass import eval_flags
from prunekit.graph.layers import ATTRIBUTES, axis_size, dim_of, group_count, known_kind, own_tensors, set_sizes
from prunekit.graph.plan import PruningPlan
from prunekit.graph.structure import Axis, ChannelGraph, shrunk_norm_groups
from prunekit.graph.stubs import put_stubs

__all__ = [
    "all_tensors",
    "apply",
    "are_gone",
    "attributes",
    "fit",
    "put",
    "refit",
    "sliced_shapes",
    "sliced_state",
    "slicer",
    "tensors_of",
    "without_own_saving",
]


def sliced_state(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> dict[str, Tensor]:
    """:func:`all_tensors` with the plan's channels removed; untouched tensors are the model's own, not copies.

    Args:
        model: the network that ``graph`` was traced from.
        graph: its channel groups.
        plan: what to keep.

    Raises:
        PlanError: the plan does not fit the graph.
    """
    cut, stubs = slicer(model, graph, plan), plan.stubs(graph)
    state = {key: cut(key, tensor) for key, tensor in all_tensors(model).items() if not are_gone(key, stubs)}
    for alias, key in _aliases(model):
        if key in state:
            state[alias] = state[key]
    return state


def slicer(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> Callable[..., Tensor]:
    """What slices one tensor of full size by its state key; an untouched tensor is given back itself.

    Called with ``done``, a dimension, it takes a tensor that is sliced along that one.

    Raises:
        PlanError: the plan does not fit the graph.
    """
    plan.check(graph)
    kept: dict[str, list[tuple[int, Tensor]]] = {}
    positions = plan.positions(graph)
    for (layer, axis), keep in positions.items():
        for key, dim in tensors_of(model, layer, axis):
            kept.setdefault(key, []).append((dim, torch.from_numpy(keep)))
    factors: dict[str, list[Tensor]] = {}
    for key, factor in _query_factors(model, graph, plan, positions):
        factors.setdefault(key, []).append(factor)

    def cut(key: str, tensor: Tensor, done: int | None = None) -> Tensor:
        full = tensor
        for dim, keep in kept.get(key, ()):
            if dim != done:
                tensor = tensor.index_select(dim, keep.to(tensor.device))
        for factor in factors.get(key, ()):
            tensor = (tensor * factor.to(tensor)).to(tensor.dtype)
        return _laid_out_as(tensor, full)

    return cut


def _laid_out_as(tensor: Tensor, full: Tensor) -> Tensor:
    """A tensor with the channels last in memory where the tensor that it was cut from has them there."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(full.ndim)
    if layout is None or tensor is full or full.is_contiguous() or not full.is_contiguous(memory_format=layout):
        return tensor
    return tensor.contiguous(memory_format=layout)


def are_gone(name: str, stubs: Iterable[Stub]) -> bool:
    """Whether a module or tensor is gone where stubs stand."""
    return any(stub.removes(name) for stub in stubs)


def sliced_shapes(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> dict[str, tuple[int, ...]]:
    """Shapes of :func:`sliced_state`, by state key."""
    shapes = {key: list(tensor.shape) for key, tensor in all_tensors(model).items()}
    for (layer, axis), keep in plan.positions(graph).items():
        for key, dim in tensors_of(model, layer, axis):
            shapes[key][dim] = len(keep)
    for alias, key in _aliases(model):
        if alias in shapes and key in shapes:
            shapes[alias] = shapes[key]
    stubs = plan.stubs(graph)
    return {key: tuple(shape) for key, shape in shapes.items() if not are_gone(key, stubs)}


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, and the buffers that a state dict leaves out: a table of positions narrows with the channels."""
    return {**dict(model.named_buffers()), **model.state_dict()}


def attributes(model: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> dict[str, dict[str, int]]:
    """Numbers beside tensors that the plan changes, by module and name: what the tensors' shapes do not tell."""
    widths, stubs = plan.widths(graph), plan.stubs(graph)
    changed: dict[str, dict[str, int]] = {}
    for attribute in graph.attributes:
        value = attribute.width(widths)
        if value != attribute.width(graph.full_widths):
            changed.setdefault(attribute.module, {})[attribute.name] = value
    modules: dict[str, Any] = dict(model.named_modules())
    for (layer, axis), kept in plan.positions(graph).items():
        groups = group_count(modules.get(layer)) if axis == "out" else None
        if groups is not None:
            mode = graph.norm_modes.get(layer, graph.norm_mode)
            left = shrunk_norm_groups(groups, axis_size(modules[layer], "out"), len(kept), mode)
            if left != groups:
                changed.setdefault(layer, {})["num_groups"] = left
    there = {stub.module for stub in stubs}  # the code around a stub may ask for its sizes
    return {name: values for name, values in changed.items() if name in there or not are_gone(name, stubs)}


def fit(model: nn.Module, state: Mapping[str, Tensor], sizes: Mapping[str, Mapping[str, int]]) -> nn.Module:
    """Give every layer the tensors of ``state`` and the sizes that their shapes imply, in place.

    Args:
        model: a network of the right architecture and any widths; its tensors may be on the meta device.
        state: one tensor for every entry of the state dict; buffers beside it may be there too.
        sizes: attributes that no shape tells, by module and name, where they differ from the architecture's.

    Raises:
        PlanError: names differ, a layer's tensors contradict each other, or a size is none of this architecture.
    """
    expected, own = set(model.state_dict()), set(all_tensors(model))
    if not expected <= set(state) <= own:
        odd = sorted((expected - set(state)) | (set(state) - own))[:3]
        raise PlanError(
            f"The tensors do not belong to {type(model).__name__}: {', '.join(odd)} are in one of them only."
        )
    _check_names(model, state, sizes)
    return refit(model, state, sizes)


def _check_names(model: nn.Module, state: Mapping[str, Tensor], sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Refuse to set a number of an unknown name, unless it is the size of an axis and becomes the size that this axis has.

    A file may come from a stranger, and a smaller number of steps or layers would make another network run.
    """
    lengths: set[tuple[int, int]] | None = None
    modules = dict(model.named_modules())
    for name, values in sizes.items():
        for key, value in values.items():
            if key in ATTRIBUTES or name not in modules:
                continue
            if lengths is None:
                full = all_tensors(model)
                pairs = ((full[key], new) for key, new in state.items() if full[key].ndim == new.ndim)
                lengths = {pair for a, b in pairs for pair in zip(a.shape, b.shape, strict=True)}
            if (vars(modules[name]).get(key), value) not in lengths:
                raise PlanError(f"{name} of {type(model).__name__} has no width {key} that could become {value!r}.")


def refit(model: nn.Module, state: Mapping[str, Tensor], sizes: Mapping[str, Mapping[str, int]]) -> nn.Module:
    """:func:`fit` with tensors that are known to be this architecture's."""
    _set_attributes(model, sizes)
    put(model, state)
    with eval_flags(model):
        for layer, module in model.named_modules():  # a parametrized weight is computed of other modules' tensors
            set_sizes(module, layer)
        refresh(model)
    return model


def put(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every layer its tensors of ``state``, in place; parameters that were one stay one."""
    made: dict[Tensor, nn.Parameter] = {}
    for layer, module in model.named_modules():
        prefix = f"{layer}." if layer else ""
        for name, tensor in own_tensors(module).items():
            new = state.get(prefix + name, tensor)
            if name in module._parameters:
                module._parameters[name] = made.setdefault(tensor, nn.Parameter(new, tensor.requires_grad))
            else:
                module._buffers[name] = new


def _set_attributes(model: nn.Module, sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Lower whole numbers that modules keep, and nothing else of them."""
    modules = dict(model.named_modules())
    for name, values in sizes.items():
        for key, value in values.items():
            old = vars(modules[name]).get(key) if name in modules else None
            bound = old[0] if isinstance(old, tuple) and len(old) == 1 else old
            if (
                key.startswith("_")
                or isinstance(bound, bool)
                or not isinstance(bound, int)
                or not isinstance(value, int)
                or not 1 <= value <= bound
            ):
                raise PlanError(f"{name} of {type(model).__name__} has no {key} that could become {value!r}.")
            setattr(modules[name], key, (value,) if isinstance(old, tuple) else value)


def apply(model: nn.Module, graph: ChannelGraph, plan: PruningPlan, *, share: bool = False) -> nn.Module:
    """A new network with the plan's channels removed; the caller's is untouched.

    Args:
        model: the network that ``graph`` was traced from.
        graph: its channel groups.
        plan: what to keep.
        share: True lets untouched tensors be the caller's own (for evaluation only: training would change both), and does not
            run the network.

    Raises:
        PlanError: the plan does not fit the graph.
        GraphError: at these widths the network runs other layers than the full one, see :class:`Witness`.
    """
    with eval_flags(model):
        state, sizes = sliced_state(model, graph, plan), attributes(model, graph, plan)
    own, stubs = chain(model.named_parameters(), model.named_buffers()), plan.stubs(graph)
    clone = structure(model, (tensor for name, tensor in own if share or name in state or are_gone(name, stubs)))
    put_stubs(clone, stubs)
    if not share:
        state = {key: tensor.detach().clone() for key, tensor in state.items()}
    pruned = fit(clone, state, sizes)
    if not share and not plan.is_whole and graph.witness is not None:
        graph.witness.check(pruned, stubs)
    return without_own_saving(pruned, plan)


def without_own_saving(pruned: nn.Module, plan: PruningPlan) -> nn.Module:
    """The network, which refuses to be saved by its library if it is narrower than its config says: nothing could read that."""
    if not plan.is_whole and hasattr(pruned, "save_pretrained"):
        vars(pruned)["save_pretrained"] = _refuse_saving
    return pruned


def _refuse_saving(*_: object, **__: object) -> NoReturn:
    raise InputError(
        "Got save_pretrained of a pruned network, whose widths its config does not have; expected prunekit's form: save it by "
        "Pruned.save or prunekit.save_slim, read it by prunekit.load_slim; in a pipeline that is saved use prunekit.load_experts."
    )


def tensors_of(model: nn.Module, layer: str, axis: Axis) -> Iterator[tuple[str, int]]:
    """Tensors that a layer's axis is an axis of, by state key, with the dimension."""
    if axis not in ("in", "out"):
        yield layer, int(axis)
        return
    module = model.get_submodule(layer)
    kind = known_kind(module)
    for name, tensor in own_tensors(module).items():
        dim = dim_of(kind, axis, name, tensor.ndim)
        if dim is not None:
            yield f"{layer}.{name}" if layer else name, dim


def _aliases(model: nn.Module) -> Iterator[tuple[str, str]]:
    """State keys of modules that have a second name, with the keys under their first."""
    first: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        known = first.setdefault(module, name)
        if known != name:
            yield from ((f"{name}.{key}", f"{known}.{key}") for key in own_tensors(module))


def _query_factors(
    model: nn.Module, graph: ChannelGraph, plan: PruningPlan, positions: Mapping[tuple[str, Axis], IntArray]
) -> Iterator[tuple[str, Tensor]]:
    """Factors that keep q·k/√d what it was where heads narrow: √(new/old) on what makes the queries.

    The same for weights that a custom layer divides by the root of its width.
    """
    ndims = {key: tensor.ndim for key, tensor in all_tensors(model).items()}
    for name, kept in plan.kept.items():
        group = graph[name]
        factor = math.sqrt(len(kept) / group.size)
        if factor < 1:
            yield from ((key, torch.tensor(factor, dtype=torch.float64)) for key in group.scaled)
        for layer, queries in group.queries if factor < 1 else ():
            scale = np.ones(graph.axis_sizes[layer, "out"])
            scale[queries] = factor
            for key, dim in tensors_of(model, layer, "out"):
                shape = [-1 if d == dim else 1 for d in range(ndims[key])]
                yield key, torch.from_numpy(scale[positions[layer, "out"]]).reshape(shape)
