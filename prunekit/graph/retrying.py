"""What is changed when channel groups fail their trial, before they are given up: heads, ties, attributes that stay."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from prunekit.graph.channels import Channels
from prunekit.graph.constraints import Constraints
from prunekit.graph.flow import OTHERS
from prunekit.graph.found import Found
from prunekit.graph.structure import ChannelGraph, ChannelGroup
from prunekit.graph.trial import Offence, Trial

__all__ = ["Retries"]

_NUMBER = re.compile(r"\d+")
_PARTNERS = 3  # at most so many groups are tried as the one whose width another one is reshaped by


@dataclass(eq=False)
class Retries:
    """How a network's groups are made, and what has been tried.

    Args:
        ways: how attentions may shrink, the preferred way first.
        constraints: what the user says; nothing that is tried goes against it.
        modes: how they do, by module or group; :data:`OTHERS` for all others.
        ties: groups held equal.
        frozen: class and name of attributes that do not follow the widths.
        failed: groups that are given up, with the reason.
        scaled: by group, the tensors that are divided by the root of its width.
        followed: by group, numbers that code keeps of its width: module, attribute, and how many positions each channel has.
    """

    ways: tuple[str, ...]
    constraints: Constraints = field(default_factory=Constraints)
    modes: dict[str, str] = field(default_factory=dict)
    ties: list[tuple[str, str]] = field(default_factory=list)
    frozen: set[tuple[type, str]] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, set[str]] = field(default_factory=dict)
    followed: dict[str, set[tuple[str, str, int]]] = field(default_factory=dict)
    _ways_tried: dict[str, int] = field(default_factory=dict)
    _ties_tried: set[frozenset[str]] = field(default_factory=set)
    _tied_in: dict[tuple[str, str], int] = field(default_factory=dict)
    _trials: int = 0

    def __post_init__(self) -> None:
        self.modes[OTHERS] = self.ways[0]

    def mode_of(self, found: Found) -> str:
        """How channels shrink if they are an attention's."""
        return self.modes.get(found.name, self._ways_of(found)[0])

    def _ways_of(self, found: Found) -> tuple[str, ...]:
        """How channels may shrink, the preferred way first."""
        asked = self.constraints.head_mode((found.layer, *found.modules)) if found.heads else None
        return self.ways if asked is None else ("whole",) if asked == "whole" else ("even", "scaled")

    def after(self, trial: Trial, patient: bool = True) -> bool:
        """Decide what to change for the groups that failed.

        Args:
            trial: of all groups.
            patient: whether there is time to try other ways; otherwise the groups are given up at once.

        Returns:
            Whether anything has changed, so that the network is worth another trial; else the groups are in ``failed``.
        """
        offences, channels, graph = trial.offences(), trial.channels, trial.graph
        self._trials += 1
        if not patient:
            self.failed |= {name: offence.reason for name, offence in offences.items()}
            self.ties = [tie for tie in self.ties if not set(tie) & set(offences)]
            return bool(offences)
        by_name = {found.name: found for found in channels.found}
        if self._scale(trial.scaled):
            return True
        if any([self._let_be(graph[name], graph, offence, channels) for name, offence in offences.items()]):
            return True
        frozen = changed = self._freeze(offences, channels, graph)
        tied: set[str] = set()
        for name, offence in offences.items():
            if (frozen and offence.parted) or name in tied:
                continue
            if self._follow(graph[name], graph, offence, channels):
                changed = True
                continue
            tie = self._tie(name, offence, by_name, channels, graph)
            if tie is not None:
                others = [group.name for group in self._alike(name, graph)]
                others = [] if tie[1] in others else others  # only what all blocks share can be the partner of all
                held = {one for pair in self.ties for one in pair}
                for pair in (tie, *((other, tie[1]) for other in others if other not in held)):
                    self.ties.append(pair)
                    self._tied_in[pair] = self._trials
                    tied |= set(pair)
            elif not self._another_way(by_name[name], channels) and not self._untie(name):
                self.failed[name] = offence.reason
                continue
            changed = True
        return changed

    def _follow(self, group: ChannelGroup, graph: ChannelGraph, offence: Offence, channels: Channels) -> bool:
        """Take up numbers that stay where the width does not; gives back whether there are new ones.

        They may have any name: whole numbers of the module that was running, or of one that it is in, equal to the full width of
        an axis that has no other channels.
        """
        times = len(group.members[0].positions) // group.size
        lengths = {graph.axis_sizes[member.layer, member.axis] for member in group.members}
        if times * group.size not in lengths or not any(
            a == b == times * group.size for a, b in zip(*offence.numbers, strict=False)
        ):
            return False
        known = self.followed.setdefault(group.name, set())
        before = len(known)
        for holder in [*_ancestors(offence.module), ""]:
            for name, value in vars(channels.modules[holder]).items():
                plain = isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_")
                if plain and value == times * group.size:
                    known.add((holder, name, times))
            if len(known) > before:
                self._follow_alike(group, holder, known, channels, graph)
                return True
        return False

    def _follow_alike(
        self,
        group: ChannelGroup,
        holder: str,
        known: set[tuple[str, str, int]],
        channels: Channels,
        graph: ChannelGraph,
    ) -> None:
        """Take up the same numbers of the modules in the same place of other blocks."""
        if not holder:
            return
        found = [(name, times) for place, name, times in known if place == holder]
        if not group.name.startswith(f"{holder}."):  # what all blocks share
            pattern = re.compile(_NUMBER.sub(r"\\d+", re.escape(holder)))
            for place in filter(pattern.fullmatch, channels.modules):
                inside = any(member.layer.startswith(f"{place}.") for member in group.members)
                kept = vars(channels.modules[place]) if inside else {}
                known |= {(place, name, times) for name, times in found if kept.get(name) == times * group.size}
            return
        depth = holder.count(".") + 1
        for other in self._alike(group.name, graph):
            place = ".".join(other.name.split(".")[:depth])
            for name, times in found:
                if vars(channels.modules[place]).get(name) == times * group.size:
                    self.followed.setdefault(other.name, set()).add((place, name, times))

    def _scale(self, scaled: Mapping[str, set[str]]) -> bool:
        """Take up tensors that are divided by the root of a width; gives back whether there are new ones."""
        new = {name: keys - self.scaled.get(name, set()) for name, keys in scaled.items()}
        for name, keys in new.items():
            self.scaled[name] = self.scaled.get(name, set()) | keys
        return any(new.values())

    def _untie(self, name: str) -> bool:
        """Undo the latest ties of a group that fails with them, not those that it passed with; whether there were any."""
        own = [self._tied_in.get(tie, 0) for tie in self.ties if name in tie]
        self.ties = [tie for tie in self.ties if name not in tie or self._tied_in.get(tie, 0) < max(own)]
        return bool(own)

    def _another_way(self, found: Found, channels: Channels) -> bool:
        """Try an attention's next way to shrink."""
        tried = self._ways_tried.get(found.name, 0)
        ways = self._ways_of(found)
        if tried >= len(ways) - 1 or not (found.heads or channels.asking.asks(found)):
            return False
        self._ways_tried[found.name] = tried + 1 if found.heads else len(ways) - 1
        way = ways[self._ways_tried[found.name]] if found.heads else "scaled"
        self.modes |= dict.fromkeys((found.name, *found.modules), way)
        return True

    def _freeze(self, offences: Mapping[str, Offence], channels: Channels, graph: ChannelGraph) -> bool:
        """Attributes that decide which layers run are let be, in all modules of the class."""
        before = len(self.frozen)
        for name, offence in offences.items():
            if not offence.parted:
                continue
            places = {graph.index[one] for one in (name, *offence.others)}
            holders = set(_ancestors(offence.module))
            for attribute in graph.attributes:
                if attribute.module in holders and places & set(attribute.width.by_group):
                    self.frozen.add((type(channels.modules[attribute.module]), attribute.name))
        return len(self.frozen) > before

    def _let_be(self, group: ChannelGroup, graph: ChannelGraph, offence: Offence, channels: Channels) -> bool:
        """Let an attribute be that follows the group, where the call that failed was given its value: it is another one's width.

        Gives back whether there was any.
        """
        widths = np.array([dict(offence.widths).get(one.name, one.size) for one in graph], dtype=np.int64)
        numbers, holders = {*zip(*offence.numbers, strict=False)}, {*_ancestors(offence.module)}
        before = len(self.frozen)
        for attribute in graph.attributes:
            full, pruned = attribute.width(graph.full_widths), attribute.width(widths)
            is_own = attribute.module in holders and {*attribute.width.by_group} == {graph.index[group.name]}
            if is_own and full != pruned and (full, pruned) in numbers:
                self.frozen.add((type(channels.modules[attribute.module]), attribute.name))
        return len(self.frozen) > before

    def _alike(self, name: str, graph: ChannelGraph) -> Iterator[ChannelGroup]:
        """Groups of the other blocks of a stack, so that a deep network takes no more trials than a shallow one."""
        block, dot, last = name.rpartition(".")
        last = r"\d+" if last.isdigit() else re.escape(last)  # layers of one block that differ by a number are others
        pattern = re.compile(_NUMBER.sub(r"\\d+", re.escape(block + dot)) + last)
        for group in graph:
            is_other = group.name != name and group.name not in self.failed and group.size == graph[name].size
            if is_other and pattern.fullmatch(group.name):
                yield group

    def _tie(
        self,
        name: str,
        offence: Offence,
        by_name: Mapping[str, Found],
        channels: Channels,
        graph: ChannelGraph,
    ) -> tuple[str, str] | None:
        """A tie to a group whose width this one is reshaped, or divided, by."""
        group = graph[name]
        told = [other for other in _told_by_numbers(group, offence, graph)]
        near = [graph[other] for other in offence.near if other in graph.index and other != name]
        ways_left = self._ways_tried.get(name, 0) < len(self._ways_of(by_name[name])) - 1
        if not told and ways_left and (by_name[name].heads or channels.asking.asks(by_name[name])):
            return None  # another way to shrink comes first
        partners = [other for other in (*told, *near) if _fits(other, group) and other.name not in self.failed]
        for other in partners[:_PARTNERS]:
            pair = frozenset((name, other.name))
            if pair not in self._ties_tried:
                self._ties_tried.add(pair)
                return name, other.name
        return None


def _fits(a: ChannelGroup, b: ChannelGroup) -> bool:
    """Whether two groups have equally many positions somewhere, one by one or some with each of the other's."""
    spans = [{len(member.positions) for member in one.members} for one in (a, b)]
    return a.size == b.size or (bool(spans[0] & spans[1]) and max(a.size, b.size) % min(a.size, b.size) == 0)


def _told_by_numbers(group: ChannelGroup, offence: Offence, graph: ChannelGraph) -> Iterator[ChannelGroup]:
    """Groups of which the call's numbers are the widths, full and pruned."""
    widths = dict(offence.widths)
    numbers = {(a, b) for a, b in zip(*offence.numbers, strict=False) if a != b}
    own = graph.index[group.name]
    for other in sorted(graph, key=lambda one: abs(graph.index[one.name] - own)):
        pruned = widths.get(other.name, other.size)
        times = {len(member.positions) // other.size for member in other.members}
        told = {(other.size * t, pruned * t) for t in times} & numbers
        if other.name != group.name and any(full != pruned for full, pruned in told):
            yield other


def _ancestors(module: str) -> Iterable[str]:
    """A module's name and those of all modules that it is in, but for the root."""
    parts = module.split(".") if module else []
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
