"""Trial by pruning: does removing a channel group's channels remove what they carried, and nothing else?

A dependency graph can be wrong without an error: heads that a reshape mixes, a width that an attribute or a buffer remembers. So
the network is pruned for trial, and run in step with the unpruned one in which the same channels are silenced (zero weights where
they are made and read), see :mod:`prunekit.graph.lockstep`. All groups are pruned at once; what fails tells which channels
were involved, and where that is open, the smallest set of groups that fails is looked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from prunekit._types import IntArray
from prunekit.errors import GraphError, PrunekitError
from prunekit.graph.channels import Channels
from prunekit.graph.culprits import smallest_sets
from prunekit.graph.deadline import Deadline, run_first
from prunekit.graph.forward_pass import Inputs
from prunekit.graph.lockstep import Lockstep
from prunekit.graph.plan import PruningPlan
from prunekit.graph.pruning_faults import Fault
from prunekit.graph.recording import Recording, Unsound
from prunekit.graph.slicing import Cutter
from prunekit.graph.statistics import Statistics, visible
from prunekit.graph.structure import ChannelGraph, ChannelGroup
from prunekit.graph.template import Template
from prunekit.graph.values import Pool, Shapes, Weights, random_inputs
from prunekit.graph.weightless import weightless

__all__ = ["ALL", "OF_COPIES", "OF_SHAPES", "Offence", "Trial"]

_ROUNDS = ("unequal", "equal", "first", "last", "front", "back")
"""Random widths that differ; widths as equal as can be; one step everywhere, at the front; random widths, also at the end; the
first two again, where the first channel goes, and the last."""
ALL = _ROUNDS[:4]
OF_SHAPES = _ROUNDS[:1]
OF_COPIES = _ROUNDS[4:]
"""Copies of large networks, of whose few channels each round takes many."""

_REACH = (4, 24)
"""How many calls before a fault, of which nobody knows the channels, may have to do with it; after that it may be any."""


@dataclass(frozen=True, eq=False)
class Offence:
    """Why a channel group cannot be pruned.

    Args:
        reason: why.
        others: names of groups that it fails together with.
        numbers: whole numbers among the arguments of the call that failed, of the full and of the pruned network.
        widths: of every group on trial, by name.
        module: that was running.
        near: groups that the calls just before it had to do with, the nearest first.
        parted: whether the pruned network called other functions.
    """

    reason: str
    others: tuple[str, ...] = ()
    numbers: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    widths: tuple[tuple[str, int], ...] = ()
    module: str = ""
    near: tuple[str, ...] = ()
    parted: bool = False


class Trial:
    """Prunes a network's channel groups for trial.

    Args:
        model: the network. It is run, so it should be a copy that nobody else uses; its tensors may be shared.
        graph: its channel groups.
        channels: what was read off its forward pass.
        inputs: arguments of one forward pass, by name or by place.
        deadline: when to give up.
        rounds: which widths are tried. For :data:`OF_SHAPES`, network and inputs have no values: only shapes are compared, and
            which functions are called.

    ``scaled`` has, by group, the tensors that seem to be divided by the root of its width.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        channels: Channels,
        inputs: Inputs,
        deadline: Deadline,
        rounds: Sequence[str] = ALL,
    ) -> None:
        self.graph, self.channels, self.deadline, self.rounds = graph, channels, deadline, rounds
        self.with_values = with_values = rounds is not OF_SHAPES
        self._components = {found.name: found.components for found in channels.found}
        self.full = model
        self.own_inputs, self.inputs = inputs, random_inputs(inputs) if with_values else inputs
        self.scaled: dict[str, set[str]] = {}
        self.pool: Pool | Shapes = Pool(self.full) if with_values else Shapes()
        self.template = Template(self.full, graph)
        self._known_widths: dict[str, dict[str, int]] = {}
        self._recording: Recording | None = None

    def offences(self) -> dict[str, Offence]:
        """Channel groups that cannot be pruned safely, by name.

        Raises:
            GraphError: the time is up.
            Unsound: without values, the network does not run.
        """
        with nullcontext() if self.with_values else weightless():
            self._run_first()
            return self._offences()

    def _run_first(self) -> None:
        """Fill what both networks keep from their first pass on."""
        try:
            run_first(self.full, self.inputs, self.deadline)
            self.template.run_first(self.inputs, self.deadline)
        except GraphError:
            raise
        except Exception:  # the trial says why it does not run
            self.deadline.check()

    def _offences(self) -> dict[str, Offence]:
        good = [group for group in self.graph if len(group.widths) > 1]
        found: dict[str, Offence] = {}
        for kind in self.rounds:
            while good:
                wrong = self._wrong(good, kind)
                if not wrong:
                    break
                found |= wrong
                good = [group for group in good if group.name not in found]
        return found

    def _wrong(self, groups: Sequence[ChannelGroup], kind: str) -> dict[str, Offence]:
        """Some of the groups that fail; none where all pass together."""
        faults = self._faults(groups, kind)
        if not faults:
            return {}
        alone: dict[str, Offence] = {}
        for fault in faults:
            names = self._names(fault.ids, groups)
            if len(names) == 1:
                alone.setdefault(names[0], self._offence(fault, groups, kind))
        if alone:
            return alone
        together: dict[str, Offence] = {}
        for least, fault in self._least(faults, groups, kind):
            members = [group.name for group in least]
            offence = self._offence(fault, least, kind)
            together |= {name: replace(offence, others=tuple(n for n in members if n != name)) for name in members}
        return together

    def _least(
        self, faults: Sequence[Fault], groups: Sequence[ChannelGroup], kind: str
    ) -> list[tuple[list[ChannelGroup], Fault]]:
        """Smallest sets of groups that fail together, each with what goes wrong then; at least one."""
        sets: list[list[ChannelGroup]] = []
        for reach in _REACH:
            sets = self._apart(faults, groups, reach)
            failing = self._failing(dict(enumerate(sets)), kind)
            sets = [some for place, some in enumerate(sets) if place in failing]
            if sets:
                break
        sets = sets or [list(groups)]
        least = smallest_sets(sets, lambda asked: set(self._failing(asked, kind)))
        reasons = self._failing(dict(enumerate(least)), kind)
        return [(some, reasons.get(place, faults[0])) for place, some in enumerate(least)]

    def _apart(self, faults: Sequence[Fault], groups: Sequence[ChannelGroup], reach: int) -> list[list[ChannelGroup]]:
        """The suspects of each fault whose suspects are no other's."""
        sets: list[list[ChannelGroup]] = []
        for fault in faults:
            names = set(self._suspects(fault, groups, reach))
            some = [group for group in groups if group.name in names]
            if some and not any(group in other for group in some for other in sets):
                sets.append(some)
        return sets

    def _failing(self, asked: Mapping[int, list[ChannelGroup]], kind: str) -> dict[int, Fault]:
        """Which of some sets of groups fail, and how: in one pass of all as far as it tells, the others each by itself."""
        known: dict[int, Fault] = {}
        if len(asked) > 1:
            everything = [group for some in asked.values() for group in some]
            owner = {group.name: place for place, some in asked.items() for group in some}
            faults = self._faults(everything, kind)
            owners = [{owner[name] for name in self._suspects(fault, everything)} for fault in faults]
            for fault, places in zip(faults, owners, strict=True):
                if len(places) == 1:
                    known.setdefault(next(iter(places)), fault)
            if all(places & set(known) for places in owners):
                return known
        for place, some in asked.items():
            found = [] if place in known else self._faults(some, kind)
            if found:
                known[place] = found[0]
        return known

    def _offence(self, fault: Fault, groups: Sequence[ChannelGroup], kind: str) -> Offence:
        widths = tuple((group.name, self._widths(kind)[group.name]) for group in groups)
        calls = self.channels.calls[max(fault.call - 8, 0) : fault.call + 1]
        near: list[str] = []
        for call in reversed(calls):
            near += self._names(visible([*call.before, *call.after]), self.graph)
        module = self.channels.calls[min(fault.call, len(self.channels.calls) - 1)].module
        return Offence(fault.reason, (), fault.numbers, widths, module, tuple(dict.fromkeys(near)), fault.parted)

    def _names(self, ids: IntArray, groups: Iterable[ChannelGroup]) -> list[str]:
        """The groups that some ids belong to."""
        components = np.unique(self.channels.component[ids])
        return [group.name for group in groups if np.isin(self._components[group.name], components).any()]

    def _suspects(self, fault: Fault, groups: Sequence[ChannelGroup], reach: int = _REACH[0]) -> list[str]:
        """Groups that have to do with a fault: with the call itself, or with those just before it."""
        if len(fault.ids):
            return self._names(fault.ids, groups)
        calls = self.channels.calls[max(fault.call - reach, 0) : fault.call + 1]
        return self._names(visible(labels for call in calls for labels in (*call.before, *call.after)), groups)

    def _faults(self, groups: Sequence[ChannelGroup], kind: str) -> list[Fault]:
        """What goes wrong when these groups shrink."""
        self.deadline.check()
        faults, is_sound = self._run(groups, kind)
        if not is_sound and self.pool.is_random:  # a network that only works with numbers of its own
            self.pool, self.inputs = Pool(self.full, is_random=False), self.own_inputs
            faults, _ = self._run(groups, kind)
        return faults

    def _run(self, groups: Sequence[ChannelGroup], kind: str) -> tuple[list[Fault], bool]:
        widths = self._widths(kind)
        kept = {group.name: group.select(self._scores(group, kind), widths[group.name]) for group in groups}
        plan = PruningPlan({name: tuple(c.tolist()) for name, c in kept.items()}, self.graph.fingerprint)
        weights = Weights(self.full, self.graph, self.pool, self.template)
        try:
            pruned = weights.prune(plan)
        except PrunekitError as error:
            return [Fault(f"removing its channels is refused: {error}", np.zeros(0, dtype=np.int64), 0)], True
        except Exception as error:
            return [Fault(f"removing its channels is refused ({error})", np.zeros(0, dtype=np.int64), 0)], True
        gone, scale = self._gone(plan)
        cutter = Cutter(gone, scale)
        try:
            recording = self._recorded(weights, cutter)
        except Unsound as error:
            if not self.with_values:
                raise
            return [Fault(f"the trial does not work: {error}", np.zeros(0, dtype=np.int64), 0)], False
        statistics = Statistics(gone, self.channels.component)
        step = Lockstep(recording, cutter, statistics, weights, self.deadline)
        faults = step.run(pruned, self.inputs)
        if faults:
            self._note_scaled(step.scaled, {group: widths[group.name] for group in groups})
        return faults, True

    def _widths(self, kind: str) -> dict[str, int]:
        """The width of every group on trial: the same whichever of them shrink."""
        if kind not in self._known_widths:
            groups = [group for group in self.graph if len(group.widths) > 1]
            self._known_widths[kind] = dict(zip((group.name for group in groups), _widths(groups, kind), strict=True))
        return self._known_widths[kind]

    def _scores(self, group: ChannelGroup, kind: str) -> np.ndarray:
        """Who stays: what comes last, or surely not what comes last, or first; in rows as different channels as can be."""
        if kind == "first":
            return np.asarray(np.arange(group.size) / group.size)
        if (
            kind == "front" and group.rows > 1
        ):  # heads that are merged in a wrong order show where rows keep different channels
            rows = (np.arange(group.size) / group.size).reshape(group.rows, -1)
            rows[1::2] = rows[1::2, ::-1]
            return np.asarray(rows.ravel())
        scores = np.random.default_rng([_ROUNDS.index(kind), self.graph.index[group.name]]).random(group.size)
        scores[-1] -= kind in ("last", "back")
        scores[0] -= kind == "front"
        return scores

    def _recorded(self, weights: Weights, cutter: Cutter) -> Recording:
        """What the full network does; without values, what is silenced makes no difference.

        Raises:
            Unsound: it does not do again what it did when it was followed.
        """
        if self._recording is not None:
            return self._recording
        recording = Recording(self.channels.calls, weights, cutter, self.deadline)
        try:
            recording.run(self.full, self.inputs)
        except GraphError:
            raise
        except Exception as error:  # whatever the network raises
            raise Unsound(str(error)) from error
        if not self.with_values:
            self._recording = recording
        return recording

    def _note_scaled(self, scaled: Sequence[tuple[str, float, IntArray]], widths: Mapping[ChannelGroup, int]) -> None:
        """Take down tensors whose scale has changed by the root of a group's share."""
        for key, factor, ids in scaled:
            names = self._names(ids, widths)
            for group, width in widths.items():
                if abs(factor**2 - group.size / width) < 1e-3 and group.name in names:
                    self.scaled.setdefault(group.name, set()).add(key)

    def _gone(self, plan: PruningPlan) -> tuple[np.ndarray, np.ndarray]:
        """For every id, whether it is removed, and what surgery multiplies it by."""
        component, axes = self.channels.component, self.channels.flow.axes
        gone = np.zeros(int(component.max()) + 2, dtype=bool)
        scale = np.ones(self.channels.flow.count)
        for name, kept in plan.kept.items():
            group = self.graph[name]
            gone[np.delete(self._components[name], list(kept))] = True
            for layer, positions in group.queries if len(kept) < group.size else ():
                for tensor in ("weight", "bias"):
                    if (f"{layer}.{tensor}", 0) in axes:
                        scale[axes[f"{layer}.{tensor}", 0][positions]] = (len(kept) / group.size) ** 0.5
        return gone[component], scale


def _widths(groups: Sequence[ChannelGroup], kind: str) -> list[int]:
    """A width for every group.

    A slice of remembered length shows when channels before it are gone, or its last ones; groups whose widths only have to be equal
    show when neighbours differ; layers that run only while widths differ show when they are equal.
    """
    if kind == "first":
        return [int(group.widths[1]) for group in groups]
    if kind in ("equal", "back"):
        return _equal_widths(groups)
    rng, widths = np.random.default_rng(_ROUNDS.index(kind)), list[int]()
    for group in groups:
        taken = set(widths[-6:])
        free = [width for width in group.widths[1:].tolist() if width not in taken]
        widths.append(int(rng.choice(free or group.widths[1:])))
    return widths


def _equal_widths(groups: Sequence[ChannelGroup]) -> list[int]:
    """The width that most groups can have, and where that cannot be had, the next below or the smallest."""
    values, counts = np.unique(np.concatenate([group.widths[1:] for group in groups]), return_counts=True)
    common = int(values[counts == counts.max()].max())
    widths = []
    for group in groups:
        below = group.widths[1:][group.widths[1:] <= common]
        widths.append(int(below[0] if len(below) else group.widths[-1]))
    return widths
