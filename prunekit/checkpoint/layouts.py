"""Where checkpoints keep a network's tensors: under prefixes and in dicts of dicts, and moving averages in four more layouts.

- by name under a key or a prefix that says so: ``ema``, ``model_ema`` (k-diffusion), ``ema_model.`` (ema-pytorch);
- a list in the order of the network's parameters: ``shadow_params`` (score_sde, torch-ema, diffusers' ``EMAModel``);
- by name without dots: ``model_ema.`` (``LitEma`` of latent diffusion);
- torch's ``AveragedModel``, which says so by its ``n_averaged``.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

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

_EMA = re.compile(r"(^|[._-])(ema|averaged?)([._-]|$)")
_RAW = re.compile(r"(?:^|(?<=[._-]))(?:non|no|not|without)[._-]?(?:ema|averaged?)(?=[._-]|$)")  # as in non_ema
_MAX_DEPTH, _MAX_PARTS = 3, 64
_SHADOW = "shadow_params"

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

    def named(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict with the network's names in place of those that its tensors had in earlier versions of diffusers."""
        found = dict(state)
        if self.convert is not None and set(found) != set(self.shapes):
            self.convert(found)
        return found


class Part(NamedTuple):
    """A dict of tensors in a checkpoint, or what is behind a prefix in it."""

    place: str
    prefix: str
    tensors: Mapping[str, Tensor]

    @property
    def where(self) -> str:
        """Keys and prefix, with dots between."""
        return ".".join(each for each in (self.place, self.prefix.rstrip(".")) if each)

    @property
    def ema(self) -> bool:
        """Whether the place says that this is a moving average."""
        name = f"{self.place}.{self.prefix}".lower()
        return (says_ema(name) or "n_averaged" in self.tensors) and "online_model" not in name

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
    return _RAW.search(name.lower()) is not None


def _ema_in(name: str) -> re.Match[str] | None:
    """The word in a name that says so; ``non_ema`` says the opposite."""
    return _EMA.search(_RAW.sub(lambda found: " " * len(found[0]), name.lower()))


def parts(content: Mapping[object, object]) -> Iterator[Part]:
    """Every dict in a checkpoint that holds tensors itself, the outermost first."""
    for place, mapping in _mappings(content):
        tensors = {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}
        if tensors:
            yield Part(place, "", tensors)


def lists(content: Mapping[Any, Any]) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Lists of tensors that hold a moving average, by their place."""
    for place, mapping in _mappings(content):
        for key, value in mapping.items():
            where = f"{place}.{key}".lstrip(".")
            several = isinstance(value, list | tuple) and bool(value) and all(isinstance(one, Tensor) for one in value)
            if several and (key == _SHADOW or says_ema(where)):
                yield where, value


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
    found = {where: sum(tensor.numel() for tensor in tensors) for where, tensors in lists(content)}
    for part in parts(content):
        for key, tensor in part.tensors.items():
            name = f"{part.place}.{key}".lstrip(".")
            match = _ema_in(name)
            if match is not None and "online_model" not in name:
                end = name.find(".", match.end(2))
                where = name if end < 0 else name[:end]
                found[where] = found.get(where, 0) + tensor.numel()
    return next((where for where, size in found.items() if 2 * size >= target.elements), "")


def differences(state: Mapping[str, Tensor], shapes: Shapes) -> str:
    """The first way in which tensors are not the network's state dict, empty if they are."""
    for said, names in (("Missing key(s)", set(shapes) - set(state)), ("Unexpected key(s)", set(state) - set(shapes))):
        if names:
            first = ", ".join(sorted(names)[:3])
            return f"{said} {first}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    other = next((key for key in shapes if tuple(state[key].shape) != shapes[key]), None)
    return "" if other is None else f"{other} has shape {tuple(state[other].shape)}, expected {shapes[other]}"


def _mappings(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    level: list[tuple[str, Mapping[object, object]]] = [("", content)]
    count = 0
    for _ in range(_MAX_DEPTH):
        inner = []
        for place, mapping in level:
            yield place, mapping
            count += 1
            if count > _MAX_PARTS:
                return
            dicts = ((key, value) for key, value in mapping.items() if isinstance(value, Mapping))
            inner += [(f"{place}.{key}".lstrip("."), value) for key, value in dicts if isinstance(key, str)]
        level = inner


def _behind_prefixes(part: Part, target: Target) -> Iterator[Part]:
    """The part behind every prefix that a network's most telling name has in it, a name that no version of diffusers changed."""
    stable = [name for name in target.shapes if ".to_" not in name]
    telling = max(stable or target.shapes, key=len, default="")
    for key in part.tensors:
        if key == telling or key.endswith(f".{telling}"):
            yield part._replace(prefix=key.removesuffix(telling))


def _without_dots(part: Part, target: Target) -> Iterator[Candidate]:
    """Parameters under names without their dots; none where two names are the same without them."""
    names = {name.replace(".", ""): name for name, trained in target.parameters.items() if trained}
    telling = max(names, key=len, default="")
    if len(names) != sum(target.parameters.values()) or names.get(telling) == telling:
        return
    for key in part.tensors:
        if not key.endswith(telling):
            continue
        found = part._replace(prefix=key.removesuffix(telling))
        state = {names[name]: tensor for name, tensor in found.inner.items() if name in names}
        if len(state) == len(names):
            yield Candidate(found.where, found.ema, "LitEma's names without dots", state, partial=True)


def _layout(part: Part) -> str:
    return "torch's AveragedModel" if "n_averaged" in part.tensors else ""
