"""Where checkpoints keep a network's tensors: under prefixes and in dicts of dicts, and moving averages in more layouts.

- by name under a key or a prefix that says so: ``ema``, ``model_ema`` (k-diffusion), ``ema_model.`` (ema-pytorch);
- a list in the order of the network's parameters: ``shadow_params`` (score_sde, torch-ema, diffusers' ``EMAModel``);
- by name without dots: ``model_ema.`` (``LitEma`` of latent diffusion);
- torch's ``AveragedModel``, which says so by its ``n_averaged``, and Lightning's ``WeightAveraging``, which has the average in
  ``state_dict`` and the raw weights in ``current_model_state``.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn

from prunekit.checkpoint.nested_places import places

__all__ = [
    "Candidate",
    "Part",
    "Target",
    "average_outside",
    "candidates",
    "differences",
    "lists",
    "parts",
    "says_ema",
    "says_raw",
]

_EMA = re.compile(
    r"(^|[._-])(?i:ema|averaged?)(?=[._-]|$)|(?<![A-Za-z])EMA(?=[A-Z][a-z])"
)  # as in model_ema, EMACallback
_RAW = re.compile(r"(?i)(?:^|(?<=[._-]))(?:non|no|not|without)[._-]?(?:ema|averaged?)(?=[._-]|$)")  # as in non_ema
_SHADOW = "shadow_params"
_LIGHTNING = ("averaging_state", "current_model_state")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Target:
    """A network's tensors, as a file must have them.

    Args:
        network: its name, for messages.
        shapes: of its state dict.
        parameters: names of its parameters in the order of ``parameters()``; the trained ones are True.
        convert: gives a state dict with old names (``query`` for ``to_q``) the network's own, in place.
    """

    network: str
    shapes: Shapes
    parameters: Mapping[str, bool] = field(default_factory=dict)
    convert: Callable[[dict[str, Tensor]], object] | None = None

    @classmethod
    def of(cls, network: nn.Module, name: str) -> "Target":
        """The tensors of a network, which may be on the meta device."""
        shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        trained = {key: parameter.requires_grad for key, parameter in network.named_parameters()}
        convert = getattr(network, "_fix_state_dict_keys_on_load", None)
        convert = convert or getattr(
            network, "_convert_deprecated_attention_blocks", None
        )  # as older diffusers calls it
        return cls(name, shapes, trained, convert)

    @property
    def elements(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def telling(self) -> str:
        """The most telling name, one that no version of diffusers changed."""
        stable = [name for name in self.shapes if ".to_" not in name]
        return max(stable or self.shapes, key=len, default="")

    @cached_property
    def without_dots(self) -> dict[str, str]:
        """The trained parameters by their names without dots, the most telling first; none where two are the same then."""
        trained = sorted((name for name, trains in self.parameters.items() if trains), key=len, reverse=True)
        names = {name.replace(".", ""): name for name in trained}
        return names if len(names) == len(trained) else {}

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with the network's names in place of those that its tensors had in earlier versions of diffusers."""
        found = dict(state)
        if self.convert is not None and set(found) != set(self.shapes):
            self.convert(found)
        return found


class Part(NamedTuple):
    """A dict of tensors in a checkpoint, or what is behind a prefix in it.

    Args:
        place: the keys that lead there.
        prefix: of the names.
        tensors: by their names with the prefix.
        averaged: whether another part of the checkpoint says that these are a moving average.
    """

    place: str
    prefix: str
    tensors: Mapping[str, Tensor]
    averaged: bool = False

    @property
    def where(self) -> str:
        """Keys and prefix, with dots between."""
        return ".".join(each for each in (self.place, self.prefix.rstrip(".")) if each)

    @property
    def ema(self) -> bool:
        """Whether the place says that this is a moving average."""
        name = f"{self.place}.{self.prefix}"
        return (self.averaged or says_ema(name) or "n_averaged" in self.tensors) and "online_model" not in name.lower()

    @property
    def inner(self) -> dict[str, Tensor]:
        """The tensors behind the prefix."""
        keys = (key for key in self.tensors if key.startswith(self.prefix))
        return {key.removeprefix(self.prefix): self.tensors[key] for key in keys}


class Candidate(NamedTuple):
    """Tensors that may be the network's.

    Args:
        where: keys and prefix in the file.
        ema: whether the place says that they are a moving average.
        layout: whose layout it is, where that is known.
        state: tensors by the network's own names. Layouts of parameters alone lack frozen ones and buffers.
        partial: whether what is lacking may be taken from another place.
    """

    where: str
    ema: bool
    layout: str
    state: dict[str, Tensor]
    partial: bool = False


def says_ema(name: str) -> bool:
    """Whether a name says that something is a moving average."""
    return _ema_in(name) is not None


def says_raw(name: str) -> bool:
    """Whether a name says that something is no moving average."""
    return _RAW.search(name) is not None


def _ema_in(name: str) -> re.Match[str] | None:
    """The word in a name that says so; ``non_ema`` says the opposite."""
    return _EMA.search(_RAW.sub(lambda found: " " * len(found[0]), name))


def parts(content: Mapping[object, object]) -> Iterator[Part]:
    """Every dict in a checkpoint that holds tensors itself, the outermost first."""
    swapped = all(isinstance(content.get(key), Mapping) for key in _LIGHTNING)
    for place in places(content):
        if place.tensors and not place.listed:
            yield Part(place.where, "", place.tensors, swapped and place.where.split(".")[0] == "state_dict")


def lists(content: Mapping[Any, Any]) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Lists of tensors that hold a moving average, by their place."""
    for place in places(content):
        if place.listed and place.whole and _lists_ema(place.where):
            yield place.where, list(place.tensors.values())


def _lists_ema(where: str) -> bool:
    return where.split(".")[-1] == _SHADOW or says_ema(where)


def candidates(content: Mapping[Any, Any], target: Target) -> Iterator[Candidate]:
    """All places in a checkpoint where a network's tensors may be, the outermost first within each layout."""
    for outer in parts(content):
        for part in _behind_prefixes(outer, target):
            yield Candidate(part.where, part.ema, _layout(part), target.named(part.inner))
        yield from _without_dots(outer, target)
    for where, tensors in lists(content):
        for names in (list(target.parameters), [name for name, trained in target.parameters.items() if trained]):
            if len(names) == len(tensors):
                named = dict(zip(names, tensors, strict=True))
                yield Candidate(where, True, "a list in the order of the parameters", named, partial=True)
                break


def average_outside(content: Mapping[object, object], target: Target) -> str:
    """Where a checkpoint has a moving average as large as the network, in any layout; empty if it has none."""
    found: dict[str, int] = {}
    for place in places(content):
        if place.listed and _lists_ema(place.where):
            found[place.where] = found.get(place.where, 0) + sum(place.sizes.values())
        for key, size in place.sizes.items():
            name = f"{place.where}.{key}".lstrip(".")
            match = _ema_in(name)
            if match is not None and "online_model" not in name:
                end = name.find(".", match.end())
                where = name if end < 0 else name[:end]
                found[where] = found.get(where, 0) + size
    for part in parts(content):
        if part.averaged:
            found[part.place] = sum(tensor.numel() for tensor in part.tensors.values())
    return next((where for where, size in found.items() if 2 * size >= target.elements), "")


def differences(state: Mapping[str, Tensor], shapes: Shapes) -> str:
    """The first way in which tensors are not the network's state dict, empty if they are."""
    for said, names in (("Missing key(s)", set(shapes) - set(state)), ("Unexpected key(s)", set(state) - set(shapes))):
        if names:
            first = ", ".join(sorted(names)[:3])
            return f"{said} {first}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    other = next((key for key in shapes if tuple(state[key].shape) != shapes[key]), None)
    return "" if other is None else f"{other} has shape {tuple(state[other].shape)}, expected {shapes[other]}"


def _behind_prefixes(part: Part, target: Target) -> Iterator[Part]:
    """The part behind every prefix that the network's most telling name has in it."""
    telling = target.telling
    for key in part.tensors:
        if key == telling or key.endswith(f".{telling}"):
            yield part._replace(prefix=key.removesuffix(telling))


def _without_dots(part: Part, target: Target) -> Iterator[Candidate]:
    """Parameters under names without their dots; none where two names are the same without them."""
    names = target.without_dots
    telling = next(iter(names), "")
    if names.get(telling, telling) == telling:
        return
    for key in part.tensors:
        if not key.endswith(telling):
            continue
        found = part._replace(prefix=key.removesuffix(telling))
        state = {names[name]: tensor for name, tensor in found.inner.items() if name in names}
        if len(state) == len(names):
            yield Candidate(found.where, found.ema, "LitEma's names without dots", state, partial=True)


def _layout(part: Part) -> str:
    if part.averaged:
        return "Lightning's WeightAveraging"
    return "torch's AveragedModel" if "n_averaged" in part.tensors else ""
