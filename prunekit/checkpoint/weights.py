"""Finds the network's tensors in a checkpoint: trainers wrap them in dicts, and add prefixes to their names.

Where the architecture is known, the names say it: a part of the file fits when, behind one prefix, it has exactly the
network's names. Of several parts that fit, an exponential moving average (EMA) is preferred, and a note says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.checkpoint.layouts import Candidate, Part, Target, average_outside, candidates, differences, lists, parts
from prunekit.errors import FileFormatError, InputError

__all__ = ["Weights", "fitting", "preferred", "shapes_within"]

_WRAPPERS = ("module.", "_orig_mod.", "ema_model.", "online_model.", "model.diffusion_model.", "model.")
_ORDER = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True, eq=False)
class Weights:
    """A network's tensors and where in the file they were.

    Args:
        state: tensors by the network's own names.
        place: keys and prefix in the file, such as ``ema.ema_model.model``.
        ema: True where they are a moving average.
        choice: True where the file has other weights that could have been read.
        layout: whose layout it is, where that is known and does not go without saying.
        twins: other places whose tensors fit as well and differ, if nothing says which are the network's.
    """

    state: dict[str, Tensor]
    place: str
    ema: bool
    choice: bool
    layout: str = ""
    twins: tuple[str, ...] = ()

    def note(self, path: Path) -> str:
        """A note for the user on the choice; empty if there was none."""
        others = ", not its other weights" if self.choice else ""
        where = ", ".join(each for each in (self.place or "the whole file", self.layout) if each)
        if self.ema:
            return f"Reading the EMA weights of {path} ({where}){others}."
        if self.twins:
            return f"Reading the weights of {path} under {where}, not {' or '.join(self.twins)}, which fits as well."
        return f"Reading the raw weights of {path} ({where}), not its EMA weights." if self.choice else ""


def preferred(content: Mapping[object, object], path: Path) -> Weights:
    """The likeliest state dict of a checkpoint whose architecture is not known, without its wrappers' names.

    Raises:
        FileFormatError: there are no tensors, or not the plain ones of a state dict; or the moving average is a list, which only
            the network's parameters give names to.
    """
    found = _likeliest(content)
    listed = next(lists(content), None)
    if listed is not None and not any(part.ema for part in found):
        raise FileFormatError(
            f"The EMA weights of {path} are a list without names ({listed[0]}); give its architecture, by `config`."
        )
    if not found:
        raise FileFormatError(f"{path} holds no tensors; expected a state dict.")
    return _plain(Weights(found[0].inner, found[0].where, found[0].ema, len(found) > 1), path)


def shapes_within(content: Mapping[object, object], path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the likeliest state dict of a checkpoint, or of its list of parameters: what a network may be as large as.

    Raises:
        FileFormatError: there are no tensors.
    """
    listed = next(lists(content), None)
    found = _likeliest(content)
    if found:
        return {key: tuple(tensor.shape) for key, tensor in found[0].inner.items()}
    if listed is None:
        raise FileFormatError(f"{path} holds no tensors; expected a state dict.")
    return {str(number): tuple(tensor.shape) for number, tensor in enumerate(listed[1])}


def fitting(
    content: Mapping[Any, Any], target: Target, path: Path, asked: str | None = None, averaged: bool = False
) -> Weights:
    """The part of a checkpoint that has exactly a network's tensors, the EMA's where there are several.

    Args:
        content: what a file holds.
        target: the network.
        path: the file, for messages.
        asked: ``ema`` or ``raw`` where the caller asks for them.
        averaged: whether it is known from outside that the file holds a moving average.

    Raises:
        FileFormatError: no part fits, or the tensors are not plain ones, and the message names the first that differ; or there is a
            moving average in a layout that is not known, and nobody asked for the raw weights.
        InputError: the file does not have the weights that were asked for.
    """
    found = list(candidates(content, target))
    whole = [one for one in found if not one.partial and not differences(one.state, target.shapes)]
    whole.sort(key=lambda one: _rank(one.where, one.ema))
    fit = whole + [full for one in found if one.partial and (full := _completed(one, whole, target)) is not None]
    if not fit:
        raise FileFormatError(_misfit(content, found, target, path))
    ema, raw = [one for one in fit if one.ema], [one for one in fit if not one.ema]
    if averaged and not ema:
        ema, raw = raw, []
    if (asked == "ema" and not ema) or (asked == "raw" and not raw):
        other = (raw or ema)[0].where or "the whole file"
        raise InputError(
            f"{path} has no {asked} weights of {target.network}, but others ({other}); leave `weights` {asked} out."
        )
    one = raw[0] if asked == "raw" or not ema else ema[0]
    if asked is None and not ema:
        unread = average_outside(content, target)
        if unread:
            raise FileFormatError(
                f"{path} has EMA weights under {unread}, in an unknown layout or of another network, beside raw ones; give "
                "`weights` raw to read those, or save the EMA weights by themselves as a state dict."
            )
    choice = bool(raw and ema) or (len(fit) > 1 and one.ema)
    others = [] if ema else raw[1:]  # the first is read
    twins = tuple(each.where or "the whole file" for each in others if not _same(each.state, one.state))
    _check_floats(one.state, target, path)
    return _plain(Weights(one.state, one.where, any(one is each for each in ema), choice, one.layout, twins), path)


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def _check_floats(state: Mapping[str, Tensor], target: Target, path: Path) -> None:
    """Refuse parameters that are no floating-point numbers, as quantised ones; converted they would be other weights."""
    for name in target.parameters:
        if name in state and not state[name].is_floating_point():
            kind = str(state[name].dtype).removeprefix("torch.")
            raise FileFormatError(
                f"{name} in {path} has numbers of type {kind}; expected floating point: weights that are not quantised."
            )


def _completed(one: Candidate, whole: list[Candidate], target: Target) -> Candidate | None:
    """A layout of parameters alone with what it lacks from the raw weights of the same file; None where it does not fit."""
    rest = next((other.state for other in whole if not other.ema), {})
    lacking = [name for name in target.shapes if name not in one.state]
    if any(name not in rest or target.parameters.get(name) for name in lacking):
        return None
    state = {name: one.state[name] if name in one.state else rest[name] for name in target.shapes}
    return None if differences(state, target.shapes) else one._replace(state=state)


def _misfit(content: Mapping[object, object], found: list[Candidate], target: Target, path: Path) -> str:
    nearest = min(found, key=lambda one: (one.partial, _rank(one.where, one.ema)), default=None)
    if nearest is None or nearest.partial:
        likeliest = _likeliest(content)
        if not likeliest:
            return f"{path} holds no tensors that fit {target.network}; expected a state dict of it."
        likely = likeliest[0]
        nearest = Candidate(likely.where, likely.ema, "", target.named(likely.inner))
    where = f" under {nearest.where}" if nearest.where else ""
    return f"The tensors of {path}{where} do not fit {target.network}: {differences(nearest.state, target.shapes)}."


def _likeliest(content: Mapping[object, object]) -> list[Part]:
    """The parts of a checkpoint without their wrappers' names, the one that is most likely the network's first."""
    return sorted((_unwrapped(part) for part in parts(content)), key=lambda part: _rank(part.where, part.ema))


def _rank(where: str, ema: bool) -> tuple[bool, int, bool]:
    known = where.split(".")[0]
    return (
        not ema,
        _ORDER.index(known) if known in _ORDER else len(_ORDER),
        any(key.startswith("opt") for key in where.split(".")),
    )


def _unwrapped(part: Part) -> Part:
    """Without the wrappers' names: an averaged model's alone where a file has it beside another, else what all names have."""
    while True:
        rest = part.inner
        own = next((word for word in _WRAPPERS if all(key.startswith(word) for key in rest)), None)
        if own is None and any(key.startswith("ema_model.") for key in rest):
            own = "ema_model."
        if own is None:
            return part
        part = part._replace(prefix=part.prefix + own)


def _plain(weights: Weights, path: Path) -> Weights:
    """Refuse tensors that stand for more memory than the file has.

    Raises:
        FileFormatError: sparse, quantized or meta tensors, or ones that are larger than what is stored of them.
    """
    total = 0
    for key, tensor in weights.state.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise FileFormatError(f"{key} in {path} is no plain tensor; expected a dense one with its values.")
        total += tensor.numel() * tensor.element_size()
    size = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
    if total > 2 * size:
        raise FileFormatError(f"The tensors of {path} claim {total:,} bytes, and it stores {size:,}; copy it again.")
    return weights
