"""Channel groups: the channels of a network that can only be removed together, as plain data.

A *channel group* has ``size`` root channels. Each *member* ties positions on one axis of one layer to root channels: removing root
channel c removes every tied position everywhere. Nothing here knows of diffusion; only the witness holds
tensors, its example inputs.
"""

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, get_args

import numpy as np

from prunekit._chosen import check_choice
from prunekit._files import json_hash
from prunekit._types import FloatArray, IntArray
from prunekit.choices import HeadMode, NormMode, Shrink
from prunekit.errors import InputError
from prunekit.graph.branch import Branch
from prunekit.graph.terms import Attribute, Term

if TYPE_CHECKING:
    from prunekit.graph.witness import Witness

__all__ = [
    "Axis",
    "ChannelGraph",
    "ChannelGroup",
    "HeadMode",
    "Member",
    "NormMode",
    "Shrink",
    "shrunk_norm_groups",
]

Axis = str
"""``out`` or ``in`` of a layer; a dimension's number (``"0"`` …) of a tensor that belongs to no known layer."""


@dataclass(frozen=True, eq=False)
class Member:
    """Positions on one axis of a layer that belong to root channels.

    Args:
        layer: module name, as in ``named_modules``; the tensor's own name for one that belongs to no known layer.
        axis: ``out`` or ``in``, norms and embeddings have ``out`` only; a dimension's number for a tensor of no known layer.
        positions: shape (k,), positions on the axis.
        roots: shape (k,), the root channel of each position.
    """

    layer: str
    axis: Axis
    positions: IntArray
    roots: IntArray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are removed together, and in which numbers.

    Args:
        name: module name of the first layer that produces the channels; where that produces several groups, ``:`` and the first
            position follow for all but the first.
        size: number of root channels.
        rows: the channels are ``rows`` equal contiguous blocks (norm groups or attention heads); 1 for no structure.
        whole: True: whole rows are removed. False: the same number of channels from every row.
        step: the structure allows widths of ``size − k·step``.
        members: every layer axis that shrinks with the group.
        resolution: side of the image at which the channels are computed (root of the number of positions); 1 for vectors.
        multiple: widths below ``size`` are multiples of it, see :meth:`ChannelGraph.with_multiples`.
        queries: layers and positions on their ``out`` axes that an attention divides by the root of a head's width: when heads
            narrow, they are scaled so that what stays is divided as before.
        scaled: tensors, by state key, that their layer divides by the root of the group's width: they are scaled by the root of
            the share that stays.
        least: smallest legal width.
        floor: no smaller width is chosen, see :meth:`ChannelGraph.with_floor`.
        makers: layers, and tensors that belong to no known layer, that make the channels.
        branch: for a *switch*, the residual branch that it keeps (width 1) or removes (width 0). Its one root channel stands for
            all outputs of the layers that the branch ends with.
    """

    name: str
    size: int
    rows: int
    whole: bool
    step: int
    members: tuple[Member, ...]
    resolution: int = 1
    multiple: int = 1
    queries: tuple[tuple[str, IntArray], ...] = ()
    scaled: tuple[str, ...] = ()
    least: int = 1
    floor: int = 1
    makers: tuple[str, ...] = ()
    branch: Branch | None = None

    @cached_property
    def widths(self) -> IntArray:
        """Widths to choose from, descending from ``size``."""
        if self.branch is not None:
            return np.arange(self.size, min(self.least, self.size) - 1, -1)
        widths = np.arange(self.size, 0, -self.step)
        widths = widths[widths >= min(max(self.least, self.floor), self.size)]
        channels = widths * (len(self.members[0].positions) // self.size if self.members else 1)
        return np.asarray(widths[(widths == self.size) | (channels % self.multiple == 0)])

    def is_legal(self, width: int) -> bool:
        """Whether the structure allows this width; ``multiple`` and ``floor`` are wishes of the search, not of the structure."""
        return min(self.least, self.size) <= width <= self.size and (self.size - width) % self.step == 0

    def select(self, scores: FloatArray, width: int) -> IntArray:
        """Root channels to keep at a width: those of highest score that the structure allows, ascending.

        Args:
            scores: importance of each root channel, shape (size,), higher = keep. Equal scores keep the lower index.
            width: a legal width.

        Raises:
            InputError: the width is not legal, or the scores have another shape.
        """
        if not self.is_legal(width) or scores.shape != (self.size,):
            raise InputError(
                f"Channel group {self.name} has {self.size} channels in steps of {self.step}; "
                f"got width {width} and scores of shape {scores.shape}."
            )
        if self.whole:
            blocks = np.arange(self.size).reshape(self.rows, -1)
            best = np.argsort(-scores.reshape(self.rows, -1).sum(1), kind="stable")[: width // blocks.shape[1]]
            return np.sort(blocks[best].ravel())
        rows = self.rows if width % self.rows == 0 else 1
        order = np.argsort(-scores.reshape(rows, -1), axis=1, kind="stable")[:, : width // rows]
        return np.sort((order + np.arange(rows)[:, None] * (self.size // rows)).ravel())


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The channel groups of one network.

    Args:
        groups: in network order.
        axis_sizes: full size of each layer axis that any member touches.
        left_whole: layers whose output channels are never removed, with the reason.
        norm_mode: how group norms shrink: ``even`` (the same number from each norm group) or ``whole`` (whole norm groups,
            ``num_groups`` lowered).
        attributes: numbers kept beside tensors that follow the widths.
        products: every multiply-accumulate of one forward pass.
        parameters: every parameter.
        witness: what the network did when it was traced, None for a graph that was made by hand.
        norm_modes: modes of single group norms, where they differ from ``norm_mode``.
        has_multiples: whether somebody has decided what widths are multiples of; the search decides it otherwise.
        branches: residual branches that can be removed, see :meth:`shrinking`.
    """

    groups: tuple[ChannelGroup, ...]
    axis_sizes: Mapping[tuple[str, Axis], int]
    left_whole: Mapping[str, str]
    norm_mode: NormMode = "even"
    attributes: tuple[Attribute, ...] = ()
    products: tuple[Term, ...] = ()
    parameters: tuple[Term, ...] = ()
    witness: "Witness | None" = None
    norm_modes: Mapping[str, NormMode] = field(default_factory=dict)
    has_multiples: bool = False
    branches: tuple[Branch, ...] = ()

    def __repr__(self) -> str:
        sizes = [group.size for group in self.groups if group.branch is None]
        return (
            f"<ChannelGraph: channel groups {len(sizes)}, channels {sum(sizes)}, "
            f"residual branches {len(self.branches)}, layers left whole {len(self.left_whole)}>"
        )

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each group by name."""
        return {group.name: i for i, group in enumerate(self.groups)}

    def __getitem__(self, name: str) -> ChannelGroup:
        if name not in self.index:
            raise InputError(
                f"There is no channel group {name!r}; expected one of {', '.join(list(self.index)[:4])}, …."
            )
        return self.groups[self.index[name]]

    def with_multiples(self, multiples: Mapping[int, int]) -> "ChannelGraph":
        """The same channel groups, to be given widths in multiples that suit the hardware.

        Args:
            multiples: resolution → multiple of the widths at that resolution and above, up to the next one listed:
                ``{1: 16, 32: 32}`` is 32 from 32×32 images up, and 16 below; ``{}`` allows any widths.

        Raises:
            InputError: a resolution or multiple is below 1.
        """
        if any(resolution < 1 or multiple < 1 for resolution, multiple in multiples.items()):
            raise InputError(
                f"Got width multiples {dict(multiples)}; expected resolutions and multiples of at least 1."
            )
        groups = []
        for group in self.groups:
            reached = [resolution for resolution in multiples if resolution <= group.resolution]
            multiple = multiples[max(reached)] if reached and group.branch is None else 1
            groups.append(replace(group, multiple=multiple))
        return replace(self, groups=tuple(groups), has_multiples=True)

    def with_floor(self, share: float) -> "ChannelGraph":
        """The same channel groups, none of which is to shrink below a share of its channels.

        Args:
            share: in [0, 1]; 0 allows all that the structure does.

        Raises:
            InputError: the share is not in [0, 1].
        """
        if not 0 <= share <= 1:
            raise InputError(f"Got a floor of {share:g}; expected a share of every channel group from 0 to 1.")
        floored = (replace(group, floor=max(1, math.ceil(share * group.size - 1e-9))) for group in self.groups)
        return replace(self, groups=tuple(floored))

    def with_whole(self, names: Container[str]) -> "ChannelGraph":
        """The same channel groups, of which the named ones keep all their channels: a plan that cuts them is refused."""
        kept = (replace(group, least=group.size) if group.name in names else group for group in self.groups)
        return replace(self, groups=tuple(kept))

    def shrinking(self, shrink: Shrink) -> "ChannelGraph":
        """The same network, to be shrunk in width, in depth, or both.

        Args:
            shrink: ``width`` has the channel groups alone. ``both`` has a switch beside them for each residual branch. ``depth``
                has them, too, and keeps all channels.

        Raises:
            InputError: it is none of them.
        """
        check_choice("shrink", shrink, get_args(Shrink))
        channels = self if shrink != "depth" else self.with_whole({group.name for group in self.groups})
        groups = tuple(group for group in channels.groups if group.branch is None)
        if shrink == "width" or not self.branches:
            return replace(self, groups=groups)
        switches = tuple(switch_of(branch, self.axis_sizes) for branch in self.branches)
        return replace(self, groups=(*groups, *switches))

    @property
    def switches(self) -> tuple[ChannelGroup, ...]:
        """The groups that stand for residual branches."""
        return tuple(group for group in self.groups if group.branch is not None)

    @cached_property
    def branch_of(self) -> dict[str, Branch]:
        """Residual branches by name."""
        return {branch.name: branch for branch in self.branches}

    @cached_property
    def _inside(self) -> dict[int, IntArray]:
        """For the place of each switch, the places of what is gone with its branch: channel groups, and switches within it."""
        found = {}
        for place, switch in enumerate(self.groups):
            if switch.branch is not None:
                gone = [g for g, group in enumerate(self.groups) if g != place and _is_inside(group, switch.branch)]
                found[place] = np.array(gone, dtype=np.int64)
        return found

    def held_by(self, name: str) -> tuple[str, ...]:
        """Names of the channel groups and the branches that are gone with a branch that has a switch."""
        return tuple(self.groups[place].name for place in self._inside[self.index[name]])

    def settled(self, widths: IntArray) -> IntArray:
        """The same plan with full widths for what removed branches take with them, shape (groups,)."""
        gone = [inside for place, inside in self._inside.items() if widths[place] == 0]
        if not gone:
            return widths
        settled = widths.copy()
        for inside in gone:
            settled[inside] = self.full_widths[inside]
        return settled

    @cached_property
    def full_widths(self) -> IntArray:
        """Width of every group before pruning, shape (groups,)."""
        return np.array([group.size for group in self.groups], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, sizes and legal steps: a plan made for one network does not fit another."""
        rows = [[g.name, g.size, g.rows, g.whole, g.step] for g in self.groups if g.branch is None]
        modes = {"norm_modes": dict(self.norm_modes)} if self.norm_modes else {}
        return json_hash({"groups": rows, "norm_mode": self.norm_mode, **modes})[:16]


def switch_of(branch: Branch, axis_sizes: Mapping[tuple[str, Axis], int]) -> ChannelGroup:
    """The group of one root channel that stands for a residual branch."""
    members = []
    for writer, size in branch.writers:
        positions = np.arange(axis_sizes.get((writer, "out"), size))
        members.append(Member(writer, "out", positions, np.zeros_like(positions)))
    return ChannelGroup(
        branch.name, 1, 1, False, 1, tuple(members), least=0, makers=tuple(n for n, _ in branch.writers), branch=branch
    )


def _is_inside(group: ChannelGroup, branch: Branch) -> bool:
    """Whether nothing is left of a channel group, or of a branch, when another branch is gone."""
    if group.branch is not None:
        return branch.removes(group.branch.module)
    return bool(group.members) and all(branch.removes(member.layer) for member in group.members)


def shrunk_norm_groups(num_groups: int, channels: int, left: int, mode: NormMode) -> int:
    """``num_groups`` of a group norm that shrinks from ``channels`` to ``left`` channels.

    ``even`` keeps it. ``whole`` keeps the number of channels per norm group where that divides ``left``; where it does not (a norm
    over a concatenation), the greatest common divisor of the old number and ``left``.
    """
    if mode == "even":
        return num_groups
    per_group = channels // num_groups
    return left // per_group if left % per_group == 0 else math.gcd(num_groups, left)
