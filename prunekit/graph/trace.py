"""Read the channel groups of a network off one forward pass, see :mod:`prunekit.graph.flow`."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from prunekit._types import IntArray
from prunekit.errors import GraphError
from prunekit.graph.families import queries_of, ties_of
from prunekit.graph.flow import FIXED, Deadline, Flow, Product, outputs_fixed
from prunekit.graph.layers import (
    ENTERING,
    HEAD_WIDTHS,
    HEADS,
    LEAVING,
    Kind,
    axis_of,
    axis_size,
    group_count,
    layer_kind,
)
from prunekit.graph.structure import (
    Attribute,
    Axis,
    ChannelGraph,
    ChannelGroup,
    HeadMode,
    Member,
    NormMode,
    Term,
    Width,
)
from prunekit.graph.surgery import Inputs, run_once
from prunekit.graph.trial import faults

__all__ = ["trace"]

_PRODUCERS = ("conv", "linear", "transposed", "embedding")


def trace(
    model: nn.Module,
    example_inputs: Inputs,
    norm_mode: NormMode = "even",
    head_mode: HeadMode = "whole",
    seconds: float = 300.0,
) -> ChannelGraph:
    """Find which channels can only be removed together.

    Every channel group is pruned for trial, see :mod:`prunekit.graph.trial`; those that fail are left whole, with the reason.
    An attention that does not shrink in the mode asked for is tried in the other one.

    Args:
        model: the network; it is run a few times and not changed.
        example_inputs: arguments of one forward pass, batch 1: a dict by name, or a tuple by place.
        norm_mode: how group norms shrink, see :class:`ChannelGraph`.
        head_mode: how attentions shrink: by ``whole`` heads, or ``even``, every head by the same number of channels.
        seconds: wall-clock limit of following the network through and of its trials.

    Raises:
        GraphError: the network cannot be traced, or not within the limit.
    """
    ways = ("whole", "even", "scaled") if head_mode == "whole" else ("even", "scaled", "whole")
    tried: dict[str, int] = {}
    modes: dict[str, str] = {"": ways[0]}
    failed: dict[str, str] = {}
    deadline = Deadline(seconds)
    while True:
        run = _Run.of(model, example_inputs, deadline, modes)
        candidates = [run.group(found, norm_mode, modes) for found in run.found if found.name not in failed]
        graph = run.graph([group for group in candidates if group is not None], failed, norm_mode)
        wrong = faults(model, graph, example_inputs, deadline)
        again = [found for found in run.found if found.name in wrong and tried.get(found.name, 0) < len(ways) - 1]
        again = [found for found in again if found.heads or run.asks(found)]
        failed |= {name: reason for name, reason in wrong.items() if name not in {found.name for found in again}}
        if not again:
            kept = [group for group in graph.groups if group.name not in failed]
            return run.graph(kept, failed, norm_mode)
        for found in again:
            tried[found.name] = tried.get(found.name, 0) + 1 if found.heads else len(ways) - 1
            modes |= dict.fromkeys((found.name, *found.modules), ways[tried[found.name]] if found.heads else "scaled")


@dataclass(frozen=True, eq=False)
class _Found:
    """Channels that leave together: components of ids with the same axes.

    Args:
        name: see :class:`ChannelGroup`.
        layer: module name of the first layer that makes them.
        start: first of its positions.
        components: one for each root channel, in order, shape (size,).
        axes: places, in the run's list, of the axes that they are on.
        heads: number of contiguous blocks that must stay equal or leave whole, None for none.
        fixed_parts: whether the number of blocks is fixed.
        modules: modules that reshape the channels into these blocks.
    """

    name: str
    layer: str
    start: int
    components: IntArray
    axes: tuple[int, ...]
    heads: int | None
    fixed_parts: bool
    modules: tuple[str, ...]


@dataclass(frozen=True)
class _AxisOf:
    """One axis of one tensor: the tensor, its dimension, and the layer's axis that this is."""

    tensor: str
    dim: int
    layer: str
    axis: Axis
    kind: Kind | None


class _Run:
    """What one forward pass of a network says, ready to be made into channel groups."""

    def __init__(self, model: nn.Module, flow: Flow, order: dict[str, int], resolutions: dict[str, int]) -> None:
        self.model, self.flow, self.order, self.resolutions = model, flow, order, resolutions
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.entering: list[tuple[str, str, IntArray]] = []  # module, attribute, ids of the axis that it is the size of
        self.reasons: dict[int, str] = {}

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, deadline: Deadline, modes: Mapping[str, str]) -> "_Run":
        flow = Flow(model, deadline, modes)
        order: dict[str, int] = {}
        resolutions: dict[str, int] = {}
        attributes: list[tuple[str, str, IntArray]] = []
        try:
            with _watched(model, flow, order, resolutions, attributes), flow:
                output = run_once(model, inputs)
            outputs_fixed(flow, output)
        except GraphError:
            raise
        except Exception as error:  # whatever the network raises
            raise GraphError(
                f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}); "
                "check that the example inputs run."
            ) from error
        if not flow.axes:
            raise GraphError(f"{type(model).__name__} runs no operation on its parameters that could be followed.")
        last = len(order)
        ranks = {name: order.get(name, last) for name, _ in model.named_modules()}
        run = cls(model, flow, ranks, resolutions)
        run.entering = attributes
        run._fix_the_unsliceable()
        return run

    def _fix_the_unsliceable(self) -> None:
        """Tensors that surgery cannot slice, and axes that code takes to be equal."""
        tied = _tied_tensors(self.model)
        for (tensor, _), ids in self.flow.axes.items():
            if tensor in tied:
                self.flow.found.fixed.append((ids, f"{tied[tensor]} shares its weights with another layer"))
            elif ".parametrizations." in f".{tensor}":
                self.flow.found.fixed.append((ids, f"{tensor.split('.parametrizations')[0]} is parametrized"))
        for module, ids, _ in self.flow.found.norms:
            if len({tensor for (tensor, _), own in self.flow.axes.items() if np.isin(own, ids).any()}) > 1:
                self.flow.found.fixed.append(
                    (ids, f"{module} is a norm without weights over channels of several layers")
                )
        for a, b in ties_of(self.model):
            if a in self.flow.axes and b in self.flow.axes and len(self.flow.axes[a]) == len(self.flow.axes[b]):
                self.flow.found.same.append((self.flow.axes[a], self.flow.axes[b]))

    @cached_property
    def component(self) -> IntArray:
        """Component of every id, shape (ids,); −1 for what can never be removed."""
        self.raw = self._components()
        self._align_parts()
        self.raw = self._components()
        for ids, reason in self.flow.found.fixed:
            for one in np.unique(self.raw[ids[ids != FIXED]]):
                self.reasons.setdefault(int(one), reason)
        fixed = np.isin(self.raw, np.fromiter(self.reasons, dtype=np.int64, count=len(self.reasons)))
        fixed[FIXED] = True
        return np.where(fixed, -1, self.raw)

    def _components(self) -> IntArray:
        """Ids that are the same thing have the same number."""
        same = self.flow.found.same
        a, b = (np.concatenate([pair[i] for pair in same]) if same else np.zeros(0, dtype=np.int64) for i in (0, 1))
        edges = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(self.flow.count, self.flow.count))
        _, component = connected_components(edges, directed=False)
        return np.asarray(component, dtype=np.int64)

    def _align_parts(self) -> None:
        """Parts of a split that lie on different axes lose the same channels: they must stay equally long."""
        alike = {one: kind for kind, ones in self._alike(self.raw).items() for one in ones}
        for rectangle in self.flow.found.rectangles:
            parts = self.raw[rectangle.ids]
            if rectangle.fixed and len({alike.get(one) for one in parts.ravel().tolist()}) > 1:
                self.flow.link(rectangle.ids[1:], rectangle.ids[:1], "they are parts of something of a fixed size")

    def _alike(self, component: IntArray) -> dict[tuple[int, ...], list[int]]:
        """Components by the axes that they are on, without those below 0."""
        ids = np.concatenate(list(self.flow.axes.values()))
        owner = np.repeat(np.arange(len(self.axes)), [len(v) for v in self.flow.axes.values()])
        component = component[ids]
        order = np.argsort(component, kind="stable")
        order = order[component[order] >= 0]
        cuts = np.flatnonzero(np.diff(component[order])) + 1
        alike: dict[tuple[int, ...], list[int]] = {}
        for part in np.split(order, cuts) if len(order) else []:
            alike.setdefault(tuple(sorted(owner[part].tolist())), []).append(int(component[part[0]]))
        return alike

    @cached_property
    def axes(self) -> list[_AxisOf]:
        """Every axis that has ids."""
        return [self._axis(tensor, dim) for tensor, dim in self.flow.axes]

    def _axis(self, tensor: str, dim: int) -> _AxisOf:
        layer, _, name = tensor.rpartition(".")
        module = self.modules[layer]
        kind = layer_kind(module)
        own = getattr(module, name)
        axis = axis_of(kind, name, own.ndim, dim) if kind is not None else None
        return _AxisOf(tensor, dim, layer if axis else tensor, axis or str(dim), kind if axis else None)

    @cached_property
    def found(self) -> list[_Found]:
        """All sets of channels that leave together and that some layer makes, in network order."""
        alike = self._alike(self.component)
        found = [self._found(axes, np.array(components)) for axes, components in alike.items()]
        seen: set[str] = set()
        named = []
        for one in sorted((one for one in found if one), key=lambda one: (self.order[one.layer], one.start)):
            name = f"{one.layer}:{one.start}" if one.layer in seen else one.layer
            named.append(replace(one, name=name))
            seen.add(one.layer)
        return named

    def _found(self, axes: tuple[int, ...], components: IntArray) -> _Found | None:
        makers = [self.axes[a] for a in set(axes) if self.axes[a].axis == "out" and self.axes[a].kind in _PRODUCERS]
        makers = [maker for maker in makers if maker.tensor.endswith("weight")]
        if not makers:
            return None
        first = min(makers, key=lambda maker: self.order[maker.layer])
        along = self.component[self.flow.axes[first.tensor, first.dim]]
        _, places = np.unique(along, return_index=True)
        position = dict(zip(along[places].tolist(), places.tolist(), strict=True))
        components = np.array(sorted(components.tolist(), key=position.__getitem__))
        start = position[int(components[0])]
        found = _Found("", first.layer, start, components, tuple(sorted(set(axes))), None, False, ())
        return self._in_blocks(found)

    def _in_blocks(self, found: _Found) -> _Found:
        """The blocks (heads, parts of a split) that reshapes put the channels into; fixes what has no such order."""
        root = self._roots(found.components)
        blocks: IntArray | None = None
        fixed, modules = False, list[str]()
        for rectangle in self.flow.found.rectangles:
            grid = root[np.where(rectangle.ids == FIXED, -1, self.component[rectangle.ids])]
            if (grid < 0).all():
                continue
            rows = _table(grid)
            if rows is None or (rows < 0).any() or rows.size != len(found.components):
                self._give_up(found, "they are reshaped in a way that is not known how to keep")
                return found
            if rectangle.fixed and 1 in rows.shape:
                continue  # every part loses the same
            if rows.shape[1] == 1 and not self._holders(rectangle.module, HEADS, len(rows)):
                rows = rows.T
            if blocks is not None and not _same_blocks(rows, blocks):
                if 1 not in rows.shape and 1 not in blocks.shape:
                    self._give_up(found, "they are reshaped in two ways that do not agree")
                    return found
                rows = blocks if 1 in rows.shape else rows
            blocks, fixed = rows, fixed or rectangle.fixed
            modules.append(rectangle.module)
        if blocks is None:
            return found
        ordered = found.components[blocks.ravel()] if 1 not in blocks.shape else found.components
        return replace(
            found, components=ordered, heads=len(blocks), fixed_parts=fixed, modules=tuple(dict.fromkeys(modules))
        )

    def _roots(self, components: IntArray) -> IntArray:
        """Root channel of every component, −1 for others and, at the end, for what is fixed."""
        root = np.full(int(self.raw.max()) + 2, -1, dtype=np.int64)
        root[components] = np.arange(len(components))
        return root

    def _give_up(self, found: _Found, reason: str) -> None:
        self.reasons |= dict.fromkeys(found.components.tolist(), reason)

    def group(self, found: _Found, norm_mode: NormMode, modes: Mapping[str, str]) -> ChannelGroup | None:
        """A channel group with its legal widths, None where it was given up."""
        if int(found.components[0]) in self.reasons:
            return None
        head_mode = modes.get(found.name, modes[""])
        members = tuple(self._members(found))
        rows, whole, step = self._legal(found, members, norm_mode, head_mode)
        queries = () if whole else tuple(self._queries(found, head_mode == "scaled"))
        resolution = self.resolutions.get(found.layer, 1)
        narrows = not whole and (found.heads or self._is_among(found, self._attended()))
        least = 2 * (found.heads or 1) if narrows else 1  # heads of one channel are no attention
        if norm_mode == "even":
            least = max([least, *(2 * count for count in self._norms_of_vectors(members))])
        return ChannelGroup(
            found.name, len(found.components), rows, whole, step, members, resolution, queries=queries, least=least
        )

    def _members(self, found: _Found) -> Iterator[Member]:
        root = self._roots(found.components)
        seen: set[tuple[str, Axis]] = set()
        axes = sorted(found.axes, key=lambda a: (self.axes[a].layer != found.layer, self.axes[a].axis != "out", a))
        for place in axes:
            axis = self.axes[place]
            if (axis.layer, axis.axis) in seen:
                continue  # a bias lies along its weight's first axis
            seen.add((axis.layer, axis.axis))
            roots = root[self.component[self.flow.axes[axis.tensor, axis.dim]]]
            positions = np.flatnonzero(roots >= 0)
            yield Member(axis.layer, axis.axis, positions, roots[positions])

    def _legal(
        self, found: _Found, members: Iterable[Member], norm_mode: NormMode, head_mode: str
    ) -> tuple[int, bool, int]:
        """Rows, whether they leave whole, and the step."""
        size = len(found.components)
        norms = [(m, group_count(self.modules.get(m.layer))) for m in members]
        counts = [(len(m.positions) == axis_size(self.modules[m.layer], "out"), n) for m, n in norms if n]
        counts += [(True, n) for _, n, _ in self._bare_norms(found)]
        every = math.lcm(*[n for _, n in counts])
        leaving = head_mode == "whole" or found.heads == size  # heads whose channels cannot be told apart
        if found.heads is not None and leaving and not found.fixed_parts:
            rows = math.gcd(found.heads, *([n for spans, n in counts if spans] if norm_mode == "whole" else []))
            step = size // rows if norm_mode == "whole" or not counts else math.lcm(size // rows, every)
            if size % step == 0 and rows > 1:
                return size // step, True, step
        if found.heads is not None:
            every = math.lcm(every, found.heads)
        elif norm_mode == "whole":
            rows = math.gcd(*[n for spans, n in counts if spans])
            if rows > 1 and size % rows == 0:
                return rows, True, size // rows
        return (every if size % every == 0 else 1), False, min(every, size)

    def _norms_of_vectors(self, members: Iterable[Member]) -> Iterator[int]:
        """Numbers of norm groups of norms at a single position, which have nothing to do on norm groups of one channel."""
        for member in members:
            count = group_count(self.modules.get(member.layer))
            if not count or self.resolutions.get(member.layer) != 1:
                continue
            if len(member.positions) == axis_size(self.modules[member.layer], "out") > count:
                yield count

    def asks(self, found: _Found) -> bool:
        """Whether an attention that is written out may divide by the width of these channels."""
        return self._is_among(found, self._asks[1] & ~self._asks[0])

    def _is_among(self, found: _Found, ids: Any) -> bool:
        """Whether any of some ids stands for one of these channels."""
        return bool((self._roots(found.components)[self.component[ids]] >= 0).any())

    def _attended(self) -> IntArray:
        """Ids of what products of two activations sum over."""
        products = [p for p in self.flow.found.products if p.operator in ("bmm", "baddbmm")]
        factors = [ids.ravel() for p in products for ids in p.factors]
        return np.unique(np.concatenate([np.zeros(1, dtype=np.int64), *factors]))[1:]

    @cached_property
    def _asks(self) -> tuple[IntArray, IntArray]:
        """Whether each id stands for a channel of a query for certain, and perhaps, each of shape (ids,)."""
        asks = np.zeros((2, self.flow.count), dtype=bool)
        for ids in self.flow.found.queries:
            asks[:, ids.ravel()] = True
        for ids in self.flow.found.perhaps:
            asks[1, ids.ravel()] = True
        for layer in queries_of(self.model):
            asks[:, self.flow.axes.get((f"{layer}.weight", 0), [])] = True
        asks[:, FIXED] = False
        return asks[0], asks[1]

    def _bare_norms(self, found: _Found) -> Iterator[tuple[str, int, int]]:
        """Module, number of norm groups and channels of the norms without weights over exactly these channels."""
        root = self._roots(found.components)
        for module, ids, groups in self.flow.found.norms:
            mine = root[np.where(ids == FIXED, -1, self.component[ids])] >= 0
            if mine.all():
                yield module, groups, len(ids)

    def _queries(self, found: _Found, perhaps: bool) -> Iterator[tuple[str, IntArray]]:
        """Layers and positions that make this group's queries."""
        root, asking = self._roots(found.components), self._asks[int(perhaps)]
        for axis in (self.axes[place] for place in found.axes):
            own = self.flow.axes[axis.tensor, axis.dim]
            if axis.axis == "out" and axis.kind in _PRODUCERS and axis.tensor.endswith("weight"):
                mine = (root[self.component[own]] >= 0) & asking[own]
                if mine.any():
                    yield axis.layer, np.flatnonzero(mine)

    def graph(self, groups: Iterable[ChannelGroup], failed: Mapping[str, str], norm_mode: NormMode) -> ChannelGraph:
        """The graph of these groups; whatever is in none of them keeps its width."""
        groups = tuple(groups)
        by_name = {found.name: found for found in self.found}
        place = np.full(int(self.raw.max()) + 2, -1, dtype=np.int64)  # group of every component, −1 for none
        for g, group in enumerate(groups):
            place[by_name[group.name].components] = g
        sizes = {
            (axis.layer, axis.axis): len(self.flow.axes[axis.tensor, axis.dim])
            for axis in self.axes
            if (place[self.component[self.flow.axes[axis.tensor, axis.dim]]] >= 0).any()
        }
        count = _Count(place, self.component, groups)
        return ChannelGraph(
            groups,
            sizes,
            self._left_whole(place) | dict(failed),
            norm_mode,
            tuple(self._attributes(groups, by_name, count, norm_mode)),
            tuple(count.product(product) for product in self.flow.found.products),
            tuple(self._parameters(count)),
        )

    def _left_whole(self, place: IntArray) -> dict[str, str]:
        """Layers with channels that are in no group, with the reason."""
        reasons: dict[str, str] = {}
        for axis in sorted(self.axes, key=lambda axis: self.order.get(axis.layer, 0)):
            if axis.axis != "out" or axis.kind not in _PRODUCERS or axis.layer in reasons:
                continue
            ids = self.flow.axes[axis.tensor, axis.dim]
            told = [self.reasons[one] for one in self.raw[ids].tolist() if one in self.reasons]
            if told:
                reasons[axis.layer] = told[0]
        for name, module in self.modules.items():
            kind = layer_kind(module)
            if kind in _PRODUCERS and name in self.resolutions and axis_size(module, "out") == 1:
                reasons.setdefault(name, "it makes a single channel")
        return reasons

    def _attributes(
        self, groups: tuple[ChannelGroup, ...], by_name: Mapping[str, _Found], count: "_Count", norm_mode: NormMode
    ) -> Iterator[Attribute]:
        for module, name, ids in self.entering:
            width = count.width(ids)
            if width.by_group:
                yield Attribute(module, name, width)
        for g, group in enumerate(groups):
            found = by_name[group.name]
            for module, norm_groups, channels in self._bare_norms(found) if norm_mode == "whole" else ():
                if vars(self.modules[module]).get("num_groups") == norm_groups:
                    yield Attribute(
                        module, "num_groups", Width(0, {g: channels // group.size}, channels // norm_groups)
                    )
            if found.heads is None:
                continue
            names, value = (HEADS, found.heads) if group.whole else (HEAD_WIDTHS, group.size // found.heads)
            for module in found.modules:
                for holder, name in self._holders(module, names, value):
                    yield Attribute(holder, name, Width(0, {g: 1}, group.size // value))

    def _holders(self, module: str, names: Iterable[str], value: int) -> list[tuple[str, str]]:
        """Where a module or its parent keeps a number under one of these names."""
        pairs = [(holder, name) for holder in (module, module.rpartition(".")[0]) for name in names]
        return [(holder, name) for holder, name in pairs if vars(self.modules[holder]).get(name) == value]

    def _parameters(self, count: "_Count") -> Iterator[Term]:
        for name, parameter in self.model.named_parameters():
            scale, factors = 1, []
            for dim, size in enumerate(parameter.shape):
                ids = self.flow.axes.get((name, dim))
                width = count.width(ids) if ids is not None else Width(size)
                if width.by_group:
                    factors.append(width)
                else:
                    scale *= size
            if len(factors) > 2:
                raise GraphError(f"{name} follows more than two channel groups; its size is in no known form.")
            yield Term(name, "", scale, *factors)


@dataclass(frozen=True, eq=False)
class _Count:
    """Counts ids by channel group."""

    place: IntArray
    component: IntArray
    groups: tuple[ChannelGroup, ...]

    def width(self, ids: IntArray | None, divisor: int = 1) -> Width:
        """Number of these ids that stay."""
        if ids is None:
            return Width()
        flat = self.place[self.component[ids.ravel()]]
        numbers = np.bincount(flat[flat >= 0], minlength=len(self.groups))
        by_group = {int(g): int(numbers[g]) // self.groups[int(g)].size for g in np.flatnonzero(numbers)}
        return Width(int((flat < 0).sum()), by_group, divisor)

    def product(self, product: Product) -> Term:
        """The term of a product; heads that two factors share are counted once."""
        widths, scale, rows = [self.width(ids) for ids in product.factors], product.scale, product.rows
        if rows > 1 and any(self.groups[g].whole for g in widths[1].by_group):  # what stays of a head is all of it
            widths[1] = Width(product.factors[1].size // rows)
        elif rows > 1:
            widths[1] = replace(widths[1], divisor=rows)
        moving = [width for width in widths if width.by_group]
        still = [*(width for width in widths if not width.by_group), *moving[2:]]  # a third would make it trilinear
        full = np.array([group.size for group in self.groups])
        scale *= math.prod(width(full) for width in still)
        return Term(product.module, product.operator, scale, *moving[:2])


def _table(grid: IntArray) -> IntArray | None:
    """Root channels as a table (blocks, within), each once, from a grid with repeats; None where there is none.

    Axes along which nothing changes are left out; where only one is left, the first of the grid makes a column of blocks (heads
    that leave as one), and any other a single row.
    """
    axes = list(range(grid.ndim))
    for axis in reversed(range(grid.ndim)):
        if len(axes) > 1 and (grid == grid.take([0], axis=axes.index(axis))).all():
            grid = np.asarray(grid.take(0, axis=axes.index(axis)))
            axes.remove(axis)
    if len(axes) == 1:
        line = _once(grid)
        return None if line is None else line[:, None] if axes[0] == 0 else line[None]
    lines = [_once(row) for row in grid.reshape(-1, grid.shape[-1])]
    if any(line is None or len(line) != len(lines[0]) for line in lines):  # type: ignore[arg-type]
        return None
    table = np.array(lines, dtype=np.int64)
    _, first = np.unique(table, axis=0, return_index=True)
    table = table[np.sort(first)]
    return table if table.size == len(np.unique(table)) else None


def _once(line: IntArray) -> IntArray | None:
    """Each value once, in order; None where some stand more often than others."""
    _, first, counts = np.unique(line, return_index=True, return_counts=True)
    return line[np.sort(first)] if (counts == counts[0]).all() else None


def _same_blocks(a: IntArray, b: IntArray) -> bool:
    """Whether two tables hold the same root channels in each row, in whatever order."""
    return a.shape == b.shape and bool((np.sort(a, axis=1) == np.sort(b, axis=1)).all())


def _tied_tensors(model: nn.Module) -> dict[str, str]:
    """Tensors that several layers share, by each of their names, with the first layer's."""
    names: dict[Tensor, list[str]] = {}
    for layer, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names.setdefault(parameter, []).append(f"{layer}.{name}" if layer else name)
    shared = [same for same in names.values() if len(same) > 1]
    return {name: same[0].rpartition(".")[0] for same in shared for name in same}


@contextmanager
def _watched(
    model: nn.Module,
    flow: Flow,
    order: dict[str, int],
    resolutions: dict[str, int],
    attributes: list[tuple[str, str, IntArray]],
) -> Iterator[None]:
    """Within the block, note when each module starts, at what resolution it works, and which sizes it keeps beside tensors."""
    stack = [""]
    handles = []

    def enter(module: nn.Module, args: Any, kwargs: Any, name: str) -> None:
        order.setdefault(name, len(order))
        stack.append(name)
        flow.module = name
        if layer_kind(module) is None or getattr(module, "weight", None) is None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            attributes.extend(_kept_sizes(flow, name, module, ENTERING, tensors[:1]))

    def leave(module: nn.Module, args: Any, output: Any, name: str) -> None:
        stack.pop()
        flow.module = stack[-1]
        if layer_kind(module) is None:
            attributes.extend(_kept_sizes(flow, name, module, LEAVING, [output]))
        elif isinstance(output, Tensor) and getattr(module, "weight", None) is not None:
            positions = output.numel() // axis_size(module, "out")
            resolutions[name] = max(resolutions.get(name, 1), math.isqrt(max(positions - 1, 0)) + 1)

    for name, module in model.named_modules():
        handles.append(
            module.register_forward_pre_hook(lambda m, a, k, name=name: enter(m, a, k, name), with_kwargs=True)
        )
        handles.append(module.register_forward_hook(lambda m, a, out, name=name: leave(m, a, out, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kept_sizes(
    flow: Flow, name: str, module: nn.Module, names: Iterable[str], tensors: Iterable[Any]
) -> Iterator[tuple[str, str, IntArray]]:
    """Attributes of a module that equal the number of channels of a tensor."""
    kept = {key: value for key, value in vars(module).items() if key in names}
    for tensor in tensors:
        for grid in flow.of(tensor).grids if kept else ():
            for key, value in kept.items():
                if len(grid.dims) == 1 and not grid.hidden and value in (len(grid.ids), (len(grid.ids),)):
                    yield name, key, grid.ids
