"""Which channels of a network leave together, read off one forward pass, see :mod:`prunekit.graph.flow`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from prunekit._types import BoolArray, IntArray
from prunekit.errors import GraphError, InputError
from prunekit.graph.asking import Asking
from prunekit.graph.blocks import same_blocks, table_of
from prunekit.graph.calls import Call, Recorder
from prunekit.graph.constraints import Constraints
from prunekit.graph.deadline import Deadline, run_first
from prunekit.graph.families import ties_of
from prunekit.graph.flow import outputs_fixed
from prunekit.graph.following import Following
from prunekit.graph.forward_pass import Inputs, run_once
from prunekit.graph.found import PRODUCERS, AxisOf, Found, Roots, cuts_blocks, tied_tensors, touching
from prunekit.graph.labels import FIXED, Rectangle
from prunekit.graph.layers import HEADS, axis_of, layer_kind
from prunekit.graph.structure import Axis, Member
from prunekit.graph.tying import experts, head_modes, tied_by
from prunekit.graph.watching import Seen, watched

__all__ = ["Channels"]


class Channels:
    """What one forward pass of a network says, ready to be made into channel groups.

    Args:
        model: the network.
        inputs: what it was given.
        flow: what has followed its forward pass.
        seen: what its modules said meanwhile.
        calls: the functions that it called.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, flow: Following, seen: Seen, calls: Sequence[Call]) -> None:
        self.model, self.inputs, self.flow, self.seen, self.calls = model, inputs, flow, seen, calls
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.order = {name: seen.order.get(name, len(seen.order)) for name in self.modules}
        self.reasons: dict[int, str] = {}

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Inputs,
        deadline: Deadline,
        modes: Mapping[str, str],
        ties: Iterable[tuple[str, str]] = (),
        constraints: Constraints | None = None,
    ) -> "Channels":
        """Run a network once and follow it.

        Args:
            model: the network.
            inputs: of the forward pass.
            deadline: until when.
            modes: how attentions shrink, by module, see :class:`Following`.
            ties: pairs of names of :attr:`found` that are to leave together.
            constraints: what the user says.

        Raises:
            GraphError: the network cannot be run or followed.
            InputError: layers that the user ties cannot be.
        """
        constraints = constraints or Constraints()
        flow = Following(model, deadline, {**head_modes(model, constraints), **modes})
        recorder = Recorder(flow)
        try:
            run_first(model, inputs, deadline)
            with watched(model, flow) as seen, flow, recorder:
                output = run_once(model, inputs)
            outputs_fixed(flow, output)
        except (GraphError, InputError):
            raise
        except Exception as error:  # whatever the network raises
            raise GraphError(
                f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}); "
                "check that the example inputs run."
            ) from error
        if not flow.axes:
            raise GraphError(f"{type(model).__name__} runs no operation on its parameters that could be followed.")
        run = cls(model, inputs, flow, seen, recorder.calls)
        run._fix_the_unsliceable()
        wanted = [pair for patterns in constraints.tie for pair in tied_by(run, patterns)]
        if wanted:
            flow.found.same += wanted
            run = cls(model, inputs, flow, seen, recorder.calls)
        for tie in ties:
            flow.found.same += run.tied(*tie)
            run = cls(model, inputs, flow, seen, recorder.calls)
        return run

    def tied(self, *names: str) -> Iterator[tuple[IntArray, IntArray]]:
        """An id of every root channel of two sets of channels, where both are there; of one, as many may go with one of the other.

        So channels of which only whole heads leave are held equal to those of as many heads.
        """
        sets = sorted((found.components for found in self.found if found.name in names), key=len)
        if len(sets) == 2 and len(sets[1]) % len(sets[0]) == 0:
            components, first = np.unique(self.component, return_index=True)
            a, b = (first[np.searchsorted(components, own)] for own in sets)
            yield a.repeat(len(b) // len(a)), b

    def _fix_the_unsliceable(self) -> None:
        """Tensors that surgery cannot slice, and axes that code takes to be equal."""
        tied = tied_tensors(self.model)
        for (tensor, _), ids in self.flow.axes.items():
            if tensor in tied:
                self.flow.found.fixed.append((ids, f"{tied[tensor]} shares its weights with another layer"))
        for module, ids, _ in self.flow.found.norms:
            if len({tensor for (tensor, _), own in self.flow.axes.items() if np.isin(own, ids).any()}) > 1:
                self.flow.found.fixed.append(
                    (ids, f"{module} is a norm without weights over channels of several layers")
                )
        self.flow.found.same += experts(self)
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
        from scipy.sparse import coo_array  # noqa: PLC0415 - takes a third of a second, and reading a plan needs none of it
        from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

        same = self.flow.found.same
        a, b = (np.concatenate([pair[i] for pair in same]) if same else np.zeros(0, dtype=np.int64) for i in (0, 1))
        edges = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(self.flow.count, self.flow.count))
        _, component = connected_components(edges, directed=False)
        return np.asarray(component, dtype=np.int64)

    def _align_parts(self) -> None:
        """Parts of a split that lie on different axes lose the same channels: they must stay equally long."""
        kinds = np.full(int(self.raw.max()) + 1, -1, dtype=np.int64)
        for kind, (_, components) in enumerate(self._alike(self.raw)):
            kinds[components] = kind
        for rectangle in self.flow.found.rectangles:
            found = kinds[self.raw[rectangle.ids]]
            if rectangle.fixed and (found != found.flat[0]).any():
                self.flow.link(rectangle.ids[1:], rectangle.ids[:1], "they are parts of something of a fixed size")

    def _alike(self, component: IntArray) -> Iterator[tuple[tuple[int, ...], IntArray]]:
        """Sets of axes, and the components that are on exactly these, without those below 0."""
        ids = np.concatenate(list(self.flow.axes.values()))
        owner = np.repeat(np.arange(len(self.axes)), [len(v) for v in self.flow.axes.values()])
        owner, component = owner[component[ids] >= 0], component[ids][component[ids] >= 0]
        order = np.lexsort((owner, component))
        components, starts, counts = np.unique(component[order], return_index=True, return_counts=True)
        for count in np.unique(counts):
            mine = counts == count
            rows = owner[order][starts[mine][:, None] + np.arange(count)]
            kinds, place = np.unique(rows, axis=0, return_inverse=True)
            by_kind = np.argsort(place.ravel(), kind="stable")
            cuts = np.flatnonzero(np.diff(place.ravel()[by_kind])) + 1
            for kind, part in zip(kinds, np.split(components[mine][by_kind], cuts), strict=True):
                yield tuple(kind.tolist()), part

    @cached_property
    def axes(self) -> list[AxisOf]:
        """Every axis that has ids."""
        return [self._axis(tensor, dim) for tensor, dim in self.flow.axes]

    def _axis(self, tensor: str, dim: int) -> AxisOf:
        layer, _, name = tensor.rpartition(".")
        module = self.modules[layer]
        kind = layer_kind(module)
        own = getattr(module, name)
        axis = axis_of(kind, name, own.ndim, dim) if kind is not None else None
        return AxisOf(tensor, dim, layer if axis else tensor, axis or str(dim), kind if axis else None)

    @cached_property
    def found(self) -> list[Found]:
        """All sets of channels that leave together and that some layer makes, in network order."""
        alike = list(self._alike(self.component))
        touched = touching([components for _, components in alike], self.component, self.flow.found)
        found = [self._found(*one, about) for one, about in zip(alike, touched, strict=True)]
        seen: set[str] = set()
        named = []
        for one in sorted((one for one in found if one), key=lambda one: (self.rank(one.layer), one.start)):
            name = f"{one.layer}:{one.start}" if one.layer in seen else one.layer
            named.append(replace(one, name=name))
            seen.add(one.layer)
        return named

    def rank(self, layer: str) -> int:
        """When a layer, or the module of a tensor, has run."""
        return self.order[layer if layer in self.order else layer.rpartition(".")[0]]

    def makes(self, axis: AxisOf) -> bool:
        """Whether channels are made along an axis: a layer's outputs, or the result of a product with a bare weight."""
        if axis.kind is not None:
            return axis.axis == "out" and axis.kind in PRODUCERS and axis.tensor.endswith("weight")
        return bool(self._made[self.flow.axes[axis.tensor, axis.dim]].any())

    @cached_property
    def _made(self) -> BoolArray:
        """For every id, whether some product makes it, shape (ids,)."""
        made = np.zeros(self.flow.count, dtype=bool)
        for ids in self.flow.found.made:
            made[ids] = True
        made[FIXED] = False
        return made

    def _found(self, axes: tuple[int, ...], components: IntArray, about: tuple[list[Rectangle], bool]) -> Found | None:
        makers = [self.axes[a] for a in set(axes) if self.makes(self.axes[a])]
        if not makers:
            return None
        first = min(makers, key=lambda maker: (maker.kind is None, self.rank(maker.layer)))
        along = self.component[self.flow.axes[first.tensor, first.dim]]
        _, places = np.unique(along, return_index=True)
        position = dict(zip(along[places].tolist(), places.tolist(), strict=True))
        components = np.array(sorted(components.tolist(), key=position.__getitem__))
        start = position[int(components[0])]
        found = Found("", first.layer, start, components, tuple(sorted(set(axes))), None, False, ())
        return self._in_blocks(found, *about)

    def _in_blocks(self, found: Found, rectangles: Iterable[Rectangle], bound: bool) -> Found:
        """The blocks (heads, parts of a split) that reshapes put the channels into; fixes what has no such order."""
        root = self.roots(found.components)
        blocks: IntArray | None = None
        fixed, modules = False, list[str]()
        for rectangle in rectangles:
            grid = root[np.where(rectangle.ids == FIXED, -1, self.component[rectangle.ids])]
            rows = table_of(grid)
            if rectangle.inner and blocks is not None and not fixed and 1 not in blocks.shape:
                bound = bound or cuts_blocks(rows, rectangle.fixed, blocks)
                continue
            if rows is None or (rows < 0).any() or rows.size != len(found.components):
                self._give_up(found, "they are reshaped in a way that is not known how to keep")
                return found
            if rectangle.fixed and 1 in rows.shape:
                continue  # every part loses the same
            if rows.shape[1] == 1 and not self.holders(rectangle.module, HEADS, len(rows)):
                rows = rows.T
            if blocks is not None and not same_blocks(rows, blocks):
                if 1 not in rows.shape and 1 not in blocks.shape:
                    self._give_up(found, "they are reshaped in two ways that do not agree")
                    return found
                rows = blocks if 1 in rows.shape else rows
            blocks, fixed = rows, fixed or rectangle.fixed
            modules.append(rectangle.module)
        if blocks is None or (bound and (fixed or len(blocks) == 1)):
            return self._without_blocks(found, bound)
        ordered = found.components[blocks.ravel()] if 1 not in blocks.shape else found.components
        return replace(
            found,
            components=ordered,
            heads=len(blocks),
            fixed_parts=fixed,
            modules=tuple(dict.fromkeys(modules)),
            bound=bound,
        )

    def _without_blocks(self, found: Found, bound: bool) -> Found:
        """Channels that lie in no blocks: if only whole blocks could leave, none can."""
        if bound:
            self._give_up(found, "they meet something of a fixed size, and no whole blocks of them could leave")
        return found

    def roots(self, components: IntArray) -> Roots:
        """Root channel of every component, −1 for others."""
        return Roots(components)

    def _give_up(self, found: Found, reason: str) -> None:
        self.reasons |= dict.fromkeys(found.components.tolist(), reason)

    def members(self, found: Found) -> Iterator[Member]:
        """The layers' axes that these channels are on."""
        root = self.roots(found.components)
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

    def makers(self, found: Found) -> Iterator[str]:
        """Layers, or bare tensors, that make these channels; a depthwise convolution makes anew what it reads."""
        for place in found.axes:
            axis = self.axes[place]
            if self.makes(axis) or (axis.kind == "depthwise" and axis.axis == "out"):
                yield axis.layer

    def is_among(self, found: Found, ids: Any) -> bool:
        """Whether any of some ids stands for one of these channels."""
        return bool((self.roots(found.components)[self.component[ids]] >= 0).any())

    @cached_property
    def asking(self) -> Asking:
        """Which channels are queries."""
        return Asking(self)

    def bare_norms(self, found: Found) -> Iterator[tuple[str, int, int]]:
        """Module, number of norm groups and channels of the norms without weights over exactly these channels."""
        root = self.roots(found.components)
        for module, ids, groups in self.flow.found.norms:
            mine = root[np.where(ids == FIXED, -1, self.component[ids])] >= 0
            if mine.all():
                yield module, groups, len(ids)

    def holders(self, module: str, names: Iterable[str], value: int) -> list[tuple[str, str]]:
        """Where a module or its parent keeps a number under one of these names."""
        pairs = [(holder, name) for holder in (module, module.rpartition(".")[0]) for name in names]
        return [(holder, name) for holder, name in pairs if vars(self.modules[holder]).get(name) == value]
