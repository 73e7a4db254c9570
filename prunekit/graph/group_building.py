"""Channel groups, with their legal widths and all that follows them, made of what one forward pass has said."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from prunekit.errors import GraphError
from prunekit.graph.channels import Channels
from prunekit.graph.constraints import named_by
from prunekit.graph.counting import Count
from prunekit.graph.forward_pass import Inputs
from prunekit.graph.found import PRODUCERS, AxisOf, Found
from prunekit.graph.layers import HEAD_WIDTHS, HEADS, axis_size, group_count, layer_kind
from prunekit.graph.listing import complete
from prunekit.graph.retrying import Retries
from prunekit.graph.structure import ChannelGraph, ChannelGroup, Member, NormMode
from prunekit.graph.terms import Attribute, Term, Width
from prunekit.graph.witness import Witness

__all__ = ["Making"]


class Making:
    """Makes channel groups and graphs of what one forward pass has said.

    Args:
        channels: what it has said.
        retries: how groups are made.
        inputs: what the network was given, with values.
        norm_mode: how group norms shrink, where ``retries`` has no constraint on them.
    """

    def __init__(self, channels: Channels, retries: Retries, inputs: Inputs, norm_mode: NormMode) -> None:
        self.channels, self.retries, self.inputs, self.norm_mode = channels, retries, inputs, norm_mode
        self._mode_of: dict[str, NormMode] = {}
        self._made: tuple[int, ChannelGraph] | None = None
        self._groups = [self._group(found) for found in channels.found if found.name not in retries.failed]

    def graph(self) -> ChannelGraph:
        """The graph of all groups that have not failed; all other channels keep their width."""
        failed = self.retries.failed
        if self._made is not None and self._made[0] == len(failed):
            return self._made[1]
        kept = [group for group in self._groups if group is not None and group.name not in failed]
        made = self._graph(tuple(kept), failed)
        self._made = len(failed), made
        return made

    def in_the_modes_asked_for(self) -> ChannelGraph:
        """The graph; attentions that cannot shrink as the user asks stay whole, with the reason.

        Raises:
            InputError: a pattern for a mode names no norm, or no attention, that could shrink in it.
        """
        graph, constraints = self.graph(), self.retries.constraints
        norms = {norm for found in self.channels.found for norm in self._named_by_norms(found)}
        for pattern in constraints.norm_mode_of:
            named_by("norm_mode_of", pattern, sorted(norms), "layer with a group norm")
        heads = {found.name: (found.layer, *found.modules) for found in self.channels.found if found.heads}
        for pattern in constraints.head_mode_of:
            named_by("head_mode_of", pattern, [one for layers in heads.values() for one in layers], "attention")
        stay: dict[str, str] = {}
        for name in heads.keys() & graph.index.keys():
            asked = constraints.head_mode(heads[name])
            if asked is not None and (asked == "whole") != graph[name].whole:
                stay[name] = f"head_mode_of asks for {asked} heads, and it cannot shrink so"
        return replace(graph.with_whole(stay), left_whole={**graph.left_whole, **stay})

    def _named_by_norms(self, found: Found) -> set[str]:
        """Group norms over exactly these channels, and the layers that make channels which pass any."""
        passed = [m for m in self.channels.members(found) if group_count(self.channels.modules.get(m.layer))]
        norms = [module for module, _, _ in self.channels.bare_norms(found)]
        norms += [m.layer for m in passed if len(m.positions) == axis_size(self.channels.modules[m.layer], "out")]
        return {*norms, *self.channels.makers(found)} if passed or norms else set()

    def _group(self, found: Found) -> ChannelGroup | None:
        """A channel group with its legal widths, None where it was given up."""
        if int(found.components[0]) in self.channels.reasons:
            return None
        head_mode = self.retries.mode_of(found)
        members = tuple(self.channels.members(found))
        said = self.retries.constraints.norm_mode(sorted(self._named_by_norms(found)))
        self._mode_of[found.name] = said or self.norm_mode
        rows, whole, step = self._legal(found, members, head_mode)
        queries = () if whole else tuple(self.channels.asking.queries(found, head_mode == "scaled"))
        resolution = self.channels.seen.resolutions.get(found.layer, 1)
        narrows = not whole and (found.heads or np.isin(found.components, self.channels.asking.attended).any())
        least = 2 * (found.heads or 1) if narrows else 1  # heads of one channel are no attention
        scaled = tuple(sorted(self.retries.scaled.get(found.name, ())))
        if self._mode_of[found.name] == "even":
            least = max([least, *(2 * count for count in self._norms_of_vectors(members))])
        return ChannelGroup(
            found.name,
            len(found.components),
            rows,
            whole,
            step,
            members,
            resolution,
            queries=queries,
            scaled=scaled,
            least=least,
            makers=tuple(dict.fromkeys(self.channels.makers(found))),
        )

    def _legal(self, found: Found, members: Iterable[Member], head_mode: str) -> tuple[int, bool, int]:
        """Rows, whether they leave whole, and the step."""
        size, norm_mode = len(found.components), self._mode_of[found.name]
        norms = [(m, group_count(self.channels.modules.get(m.layer))) for m in members]
        counts = [(len(m.positions) == axis_size(self.channels.modules[m.layer], "out"), n) for m, n in norms if n]
        counts += [(True, n) for _, n, _ in self.channels.bare_norms(found)]
        every = math.lcm(*[n for _, n in counts])
        leaving = head_mode == "whole" or found.bound or found.heads == size  # heads of one channel leave whole
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
            count = group_count(self.channels.modules.get(member.layer))
            if not count or self.channels.seen.resolutions.get(member.layer) != 1:
                continue
            if len(member.positions) == axis_size(self.channels.modules[member.layer], "out") > count:
                yield count

    def _graph(self, groups: tuple[ChannelGroup, ...], failed: Mapping[str, str]) -> ChannelGraph:
        by_name = {found.name: found for found in self.channels.found}
        place = np.full(int(self.channels.raw.max()) + 2, -1, dtype=np.int64)  # group of every component, −1 for none
        for g, group in enumerate(groups):
            place[by_name[group.name].components] = g
        sizes = {
            (axis.layer, axis.axis): len(self.channels.flow.axes[axis.tensor, axis.dim])
            for axis in self.channels.axes
            if (place[self.channels.component[self.channels.flow.axes[axis.tensor, axis.dim]]] >= 0).any()
        }
        count = Count(place, self.channels.component, groups)
        return ChannelGraph(
            groups,
            sizes,
            self._complete(groups, self._left_whole() | dict(failed), failed),
            self.norm_mode,
            tuple(self._attributes(groups, by_name, count)),
            tuple(count.product(product) for product in self.channels.flow.found.products),
            tuple(self._parameters(count)),
            Witness(
                tuple((call.name, call.module) for call in self.channels.calls),
                self.inputs,
                self.retries.constraints.declare,
            ),
            self._norm_modes(groups),
        )

    def _complete(
        self, groups: tuple[ChannelGroup, ...], reasons: Mapping[str, str], failed: Mapping[str, str]
    ) -> dict[str, str]:
        """The reasons, with those of all layers of groups that failed, and of layers that nothing is known of."""
        makers = {layer: f for f in self.channels.found if f.name in failed for layer in self.channels.makers(f)}
        reasons = {**{layer: failed[found.name] for layer, found in makers.items()}, **reasons}
        return complete(self.channels.modules, groups, reasons, self._why)

    def _why(self, layer: str) -> str:
        """Why nothing makes channels of a layer's weights: what has become of them, if they were used."""
        axes = [axis for axis in self.channels.axes if axis.tensor.rpartition(".")[0] == layer]
        for axis in axes:
            told = self._told(axis)
            if told is not None:
                return told
        if axes or layer in self.channels.seen.order:
            return "nothing follows its weights to the channels that it makes"
        return "it does not run"

    def _told(self, axis: AxisOf) -> str | None:
        """Why the channels along an axis stay, if that is known."""
        reasons, ids = self.channels.reasons, self.channels.flow.axes[axis.tensor, axis.dim]
        return next((reasons[one] for one in self.channels.raw[ids].tolist() if one in reasons), None)

    def _left_whole(self) -> dict[str, str]:
        """Layers with channels that are in no group, with the reason."""
        reasons: dict[str, str] = {}
        for axis in sorted(self.channels.axes, key=lambda axis: self.channels.rank(axis.layer)):
            if axis.layer in reasons or not self.channels.makes(axis):
                continue
            told = self._told(axis)
            if told is not None:
                reasons[axis.layer] = told
        for name, module in self.channels.modules.items():
            kind = layer_kind(module)
            if kind in PRODUCERS and name in self.channels.seen.resolutions and axis_size(module, "out") == 1:
                reasons.setdefault(name, "it makes a single channel")
        return reasons

    def _attributes(
        self, groups: tuple[ChannelGroup, ...], by_name: Mapping[str, Found], count: Count
    ) -> Iterator[Attribute]:
        for module, name, ids in self.channels.seen.sizes:
            width = count.width(ids)
            if width.by_group and (type(self.channels.modules[module]), name) not in self.retries.frozen:
                yield Attribute(module, name, width)
        for g, group in enumerate(groups):
            found = by_name[group.name]
            for holder, name, times in self.retries.followed.get(group.name, ()):
                yield Attribute(holder, name, Width(0, {g: times}))
            for module, norm_groups, channels in self._bare_whole(found):
                if vars(self.channels.modules[module]).get("num_groups") == norm_groups:
                    yield Attribute(
                        module, "num_groups", Width(0, {g: channels // group.size}, channels // norm_groups)
                    )
            yield from self._heads(g, group, found)

    def _bare_whole(self, found: Found) -> Iterator[tuple[str, int, int]]:
        """Norms without weights that lose whole norm groups."""
        return self.channels.bare_norms(found) if self._mode_of[found.name] == "whole" else iter(())

    def _norm_modes(self, groups: Iterable[ChannelGroup]) -> dict[str, NormMode]:
        """Modes of norms that differ from the rest: a norm over several groups has room for what each of them needs."""
        modes: dict[str, set[NormMode]] = {}
        for group in groups:
            for member in group.members:
                if group_count(self.channels.modules.get(member.layer)):
                    modes.setdefault(member.layer, set()).add(self._mode_of[group.name])
        chosen: dict[str, NormMode] = {norm: "whole" if "whole" in asked else "even" for norm, asked in modes.items()}
        return {norm: mode for norm, mode in chosen.items() if mode != self.norm_mode}

    def _heads(self, g: int, group: ChannelGroup, found: Found) -> Iterator[Attribute]:
        """Numbers of heads, where heads leave whole, or else their width. Queries that share keys have several heads for one."""
        if found.heads is None:
            return
        names, value = (HEADS, found.heads) if group.whole else (HEAD_WIDTHS, group.size // found.heads)
        lengths = {len(member.positions) for member in group.members} if group.whole else {group.size}
        for times in sorted({length // min(lengths) for length in lengths}):
            for module in found.modules:
                for holder, name in self.channels.holders(module, names, times * value):
                    yield Attribute(holder, name, Width(0, {g: times}, group.size // value))

    def _parameters(self, count: Count) -> Iterator[Term]:
        for name, parameter in self.channels.model.named_parameters():
            scale, factors = 1, []
            for dim, size in enumerate(parameter.shape):
                ids = self.channels.flow.axes.get((name, dim))
                width = count.width(ids) if ids is not None else Width(size)
                if width.by_group:
                    factors.append(width)
                else:
                    scale *= size
            if len(factors) > 2:
                raise GraphError(f"{name} follows more than two channel groups; its size is in no known form.")
            yield Term(name, "", scale, *factors)
