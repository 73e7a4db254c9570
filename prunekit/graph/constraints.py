"""What a user says about pruning a network: which layers stay whole, which are tied, how far they shrink, and how.

Layers are named by patterns such as ``mid_block.*``, see :func:`fnmatch.fnmatchcase`. A pattern also names every layer inside a
module that it matches.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from prunekit._json import JsonObject
from prunekit.errors import InputError
from prunekit.graph.branch import Branch
from prunekit.graph.layers import layer_kind, own_tensors
from prunekit.graph.structure import ChannelGraph, ChannelGroup, HeadMode, NormMode

__all__ = ["Constraints", "Declared", "closest", "is_named", "named_by"]

Declared = Literal["conv", "linear"]
_CLOSEST = 3  # names that an error suggests
_KEPT = "the constraint `keep` names it"


@dataclass(frozen=True)
class Constraints:
    """What a user says about pruning a network. Without arguments nothing is constrained.

    Args:
        keep: patterns of layers that keep all channels that they make. What they read may still shrink.
        tie: sets of patterns. The layers that a set names make equally many channels, and lose the same ones; they must have
            equally many before pruning.
        limit: pattern → how far each layer may shrink: a fraction of its channels (a float between 0 and 1), or a number of
            channels (a whole number from 1).
        declare: class name → ``conv`` or ``linear``, for layer classes that the tracer cannot follow. Such a class must take one
            tensor and compute a convolution without groups or a linear layer, with a weight laid out like torch's.
        norm_mode_of: pattern → how the group norms that these layers' channels pass shrink, where that differs from the rest;
            or names of the norms.
        head_mode_of: pattern → how the attentions of these layers shrink, where that differs from the rest. An attention that
            cannot shrink this way stays whole.

    Raises:
        InputError: a pattern is empty, a set to tie is empty, a limit or a mode has another form, or a pattern has two meanings.

    Example:
        >>> Constraints(keep=("mid_block",), limit={"up_blocks.*": 0.5}).to_json()
        {'keep': ['mid_block'], 'limit': {'up_blocks.*': 0.5}}
    """

    __pydantic_config__: ClassVar[JsonObject] = {"extra": "forbid", "allow_inf_nan": False}

    keep: tuple[str, ...] = ()
    tie: tuple[tuple[str, ...], ...] = ()
    limit: Mapping[str, int | float] = field(default_factory=dict)
    declare: Mapping[str, Declared] = field(default_factory=dict)
    norm_mode_of: Mapping[str, NormMode] = field(default_factory=dict)
    head_mode_of: Mapping[str, HeadMode] = field(default_factory=dict)

    def __post_init__(self) -> None:
        patterns = (*self.keep, *(one for tied in self.tie for one in tied), *self.limit, *self.declare)
        if any(not isinstance(one, str) or not one for one in (*patterns, *self.norm_mode_of, *self.head_mode_of)):
            raise InputError("Got an empty name among the constraints; expected names of layers, such as mid_block.*.")
        if any(not tied for tied in self.tie):
            raise InputError("Got a tie of no layers; expected patterns of at least two.")
        for pattern, least in self.limit.items():
            share = isinstance(least, float) and 0 < least < 1
            if isinstance(least, bool) or not (share or (isinstance(least, int) and least >= 1)):
                raise InputError(
                    f"Got limit {pattern}={least}; expected a fraction between 0 and 1, or a whole number of channels from 1; "
                    "keep keeps all of them."
                )
        modes: tuple[tuple[str, Mapping[str, str], Any], ...] = (
            ("declare", self.declare, Declared),
            ("norm_mode_of", self.norm_mode_of, NormMode),
            ("head_mode_of", self.head_mode_of, HeadMode),
        )
        for name, given, known in modes:
            for key, mode in given.items():
                if mode not in get_args(known):
                    raise InputError(f"Got {name} {key}={mode}; expected one of {', '.join(get_args(known))}.")

    def __bool__(self) -> bool:
        return self != Constraints()

    def to_json(self) -> JsonObject:
        """What is constrained, under the names of the arguments."""
        given = {name: value for name, value in asdict(self).items() if value}
        for name in given.keys() & {"keep", "tie"}:
            given[name] = [list(one) if isinstance(one, tuple) else one for one in given[name]]
        return given

    def norm_mode(self, layers: Iterable[str]) -> NormMode | None:
        """How the group norms of layers shrink, None where nothing is said.

        Raises:
            InputError: two patterns say different things.
        """
        found: NormMode | None = _mode("norm_mode_of", self.norm_mode_of, layers)
        return found

    def head_mode(self, layers: Iterable[str]) -> HeadMode | None:
        """How the attentions of layers shrink, None where nothing is said.

        Raises:
            InputError: two patterns say different things.
        """
        found: HeadMode | None = _mode("head_mode_of", self.head_mode_of, layers)
        return found

    def held(self, graph: ChannelGraph, model: nn.Module) -> ChannelGraph:
        """The same channel groups, none of which a plan may cut further than ``keep`` and ``limit`` say.

        Raises:
            InputError: a pattern matches no layer, or none that makes channels; a limit is on layers that ``keep`` keeps whole,
                or larger than what a layer has.
        """
        known = _layers(model) if self.keep or self.limit else []
        kept = {g.name for pattern in self.keep for g in _groups(graph, named_by("keep", pattern, known))}
        floors: dict[str, int] = {}
        for pattern, least in self.limit.items():
            layers = named_by("limit", pattern, known)
            groups = _groups(graph, layers)
            if groups and all(group.name in kept for group in groups):
                raise InputError(
                    f"The limit {pattern}={least} is on layers that keep keeps whole, such as {layers[0]}; "
                    "expected one of the two."
                )
            for group in groups:
                floors[group.name] = max(floors.get(group.name, 1), _floor(group, pattern, least, layers))
        whole = {name: _KEPT for name in graph.index if name in kept}
        limited = (
            replace(group, least=max(group.least, floors.get(group.name, 1))) for group in graph.with_whole(kept)
        )
        free = [b for b in graph.branches if not any(self._constrains(n) for n in _held_by(b, known))]
        return replace(graph, groups=tuple(limited), left_whole={**graph.left_whole, **whole}, branches=tuple(free))

    def _constrains(self, layer: str) -> bool:
        """Whether a layer is to be kept, or to shrink only so far."""
        return any(is_named(pattern, layer) for pattern in (*self.keep, *self.limit))


def _held_by(branch: Branch, layers: Iterable[str]) -> Iterator[str]:
    """The layers that are gone with a branch, and the module that holds it."""
    yield branch.module
    yield from (layer for layer in layers if branch.removes(layer))


def is_named(pattern: str, layer: str) -> bool:
    """Whether a pattern names a layer, or a module that it is in."""
    parts = layer.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(len(parts), 0, -1))


def named_by(option: str, pattern: str, layers: Iterable[str], kind: str = "layer") -> list[str]:
    """The layers that a pattern names.

    Args:
        option: the constraint that has the pattern, for the error.
        pattern: the pattern.
        layers: names of all layers that it could be about.
        kind: of these layers, for the error.

    Raises:
        InputError: there are none.
    """
    layers = list(layers)
    found = [layer for layer in layers if is_named(pattern, layer)]
    if not found:
        raise InputError(f"No {kind} is named {pattern}, which {option} asks for; expected {closest(pattern, layers)}.")
    return found


def closest(name: str, known: Iterable[str]) -> str:
    """The known names, or those of modules that they are in, that are most like a name or pattern: ``a, b or c``."""
    names = dict.fromkeys(".".join(one.split(".")[:n]) for one in known for n in range(one.count(".") + 1, 0, -1))
    like = get_close_matches(name.strip("*."), names, _CLOSEST, 0) or list(names)[:_CLOSEST]
    return " or ".join([", ".join(like[:-1]), like[-1]] if len(like) > 1 else like) or "the name of one that it has"


def _mode(option: str, modes: Mapping[str, Any], layers: Iterable[str]) -> Any:
    layers = list(layers)
    found: dict[Any, str] = {
        mode: pattern for pattern, mode in modes.items() if any(is_named(pattern, one) for one in layers)
    }
    if len(found) > 1:
        said = " and ".join(f"{pattern}={mode}" for mode, pattern in found.items())
        raise InputError(
            f"Got {option} {said}, which both name {layers[0]}; expected one mode for layers that shrink together."
        )
    return next(iter(found), None)


def _layers(model: nn.Module) -> list[str]:
    """Modules with tensors of their own that are no norms, and the tensors' names."""
    return [
        name
        for layer, module in model.named_modules()
        for name in (layer, *(f"{layer}.{key}" if layer else key for key in own_tensors(module)))
        if name and own_tensors(module) and layer_kind(module) != "norm"
    ]


def _groups(graph: ChannelGraph, layers: Iterable[str]) -> list[ChannelGroup]:
    """The channel groups of which layers make some channels."""
    names = set(layers)
    return [group for group in graph if not names.isdisjoint(group.makers)]


def _floor(group: ChannelGroup, pattern: str, least: int | float, layers: Iterable[str]) -> int:
    """Fewest root channels that leave a layer as many channels as a limit says."""
    times = max(_times(group, set(layers)))
    if least < 1:
        return max(
            1, math.ceil(least * group.size - 1e-9)
        )  # 0.1 of 10 channels is one, whatever binary fractions make of it
    if least > group.size * times:
        raise InputError(
            f"Got limit {pattern}={least}, and {group.name} has {group.size * times} channels that leave together; expected at "
            "most that many, or a fraction."
        )
    return math.ceil(least / times)


def _times(group: ChannelGroup, layers: set[str]) -> Iterator[int]:
    """How many channels of the named layers each root channel is."""
    for member in group.members:
        if member.layer in layers and member.layer in group.makers:
            yield len(member.positions) // group.size
