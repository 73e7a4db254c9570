"""Example inputs as JSON: a form for each argument of the forward pass, by its name.

An argument is a tensor, a plain value, or a list or an object of such::

    {
      "hidden_states": {"shape": [1, 16, 32, 32]},
      "timestep": {"shape": [1], "dtype": "int64", "value": 500},
      "img_shapes": {"constant": [[[1, 32, 32]]]},
      "added_cond_kwargs": {"object": {"text_embeds": {"shape": [1, 1280]}, "time_ids": {"shape": [1, 6]}}},
      "cap_feats": {"list": [{"shape": [8, 2560]}]}
    }

A tensor is filled with ``value`` (0 if missing), and is of ``dtype`` ``float32`` if that is missing.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit._json import JsonDict, JsonObject, read_json
from prunekit.checkpoint.config_limits import check_values
from prunekit.errors import FileFormatError

__all__ = ["form_of", "inputs_of", "read_inputs"]

_TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool", "complex64")
_MAX_ELEMENTS = 2**26  # of all inputs together
_MAX_DEPTH = 4
_HOW = 'expected such as {"shape": [1, 4, 32, 32]}, {"shape": [1], "dtype": "int64", "value": 0} or {"constant": 16}'


def read_inputs(path: Path | str) -> dict[str, object]:
    """Example inputs of a JSON file, by name.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it has another form.
    """
    return inputs_of(read_json(Path(path)), str(path))


def inputs_of(data: object, what: str) -> dict[str, object]:
    """Arguments of a forward pass from their JSON form.

    Args:
        data: JSON.
        what: where it comes from, as error messages begin.

    Raises:
        FileFormatError: it has another form, or asks for tensors that are too large.
    """
    if not isinstance(data, Mapping) or not data:
        raise FileFormatError(f"{what} names no arguments of a forward pass; for each of them, {_HOW}.")
    left = _MAX_ELEMENTS
    found: JsonObject = {}
    for name, form in data.items():
        found[str(name)], left = _value(form, f"{what} for {str(name)[:80]!r}", left, 0)
    return found


def _value(form: Any, what: str, left: int, depth: int) -> tuple[Any, int]:
    """The value that a form describes, and how many tensor elements may still be created."""
    kind = [key for key in ("shape", "constant", "list", "object") if isinstance(form, Mapping) and key in form]
    if len(kind) != 1 or depth > _MAX_DEPTH or set(form) - {*kind, *(("dtype", "value") if kind == ["shape"] else ())}:
        raise FileFormatError(f"{what} has {str(form)[:80]}; {_HOW}.")
    inner = form[kind[0]]
    if kind == ["shape"]:
        return _tensor(form, what, left)
    if kind == ["constant"]:
        check_values({"": inner}, what)
        return inner, left
    if not isinstance(inner, list if kind == ["list"] else Mapping):
        raise FileFormatError(f"{what} has {str(form)[:80]}; expected a list or an object of forms there.")
    entries: Iterable[tuple[Any, Any]] = inner.items() if isinstance(inner, Mapping) else enumerate(inner)
    made: dict[Any, Any] = {}
    for key, entry in entries:
        made[key], left = _value(entry, what, left, depth + 1)
    return (list(made.values()) if kind == ["list"] else made), left


def _tensor(form: JsonDict, what: str, left: int) -> tuple[Tensor, int]:
    shape, kind, fill = form["shape"], form.get("dtype", "float32"), form.get("value", 0)
    whole = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape) and len(shape) <= 8
    if not whole or kind not in _TYPES or isinstance(fill, str) or not isinstance(fill, int | float):
        raise FileFormatError(f"{what} has {str(form)[:80]}; {_HOW}, and a dtype of {', '.join(_TYPES)}.")
    left -= math.prod(shape)
    if left < 0:
        raise FileFormatError(
            f"{what} has shape {shape}; expected at most {_MAX_ELEMENTS:,} numbers in all inputs together."
        )
    try:
        made = torch.full(shape, fill, dtype=getattr(torch, kind))
    except (RuntimeError, OverflowError) as error:
        raise FileFormatError(f"{what} has the value {fill}, which {kind} cannot hold; {_HOW}.") from error
    whole = not made.is_floating_point() and not made.is_complex()
    lost = bool(torch.isinf(made).any()) or (whole and made.numel() > 0 and made.flatten()[0].item() != fill)
    if lost or (isinstance(fill, bool) and kind != "bool"):
        raise FileFormatError(f"{what} has the value {str(fill).lower()}, which is none of {kind}; {_HOW}.")
    return made, left


def form_of(value: Any) -> Any:
    """The JSON form of arguments by name; None where an argument has none, as a cache of keys has not.

    Of a tensor with different numbers only the shape is kept: costs do not depend on the numbers.
    """
    form = {name: _form(one) for name, one in value.items()}
    try:
        json.dumps(form)
    except TypeError:
        return None
    return form


def _form(value: object) -> object:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        alike = (
            value.numel() > 0
            and not value.is_meta
            and not value.is_complex()
            and bool((value == value.flatten()[0]).all())
        )
        fill = {"value": value.flatten()[0].item()} if alike and value.flatten()[0] != 0 else {}
        return {"shape": list(value.shape), **({"dtype": kind} if kind != "float32" else {}), **fill}
    if isinstance(value, Mapping):
        return {"object": {str(key): _form(one) for key, one in value.items()}}
    if isinstance(value, list | tuple) and any(isinstance(one, Tensor | Mapping) for one in value):
        return {"list": [_form(one) for one in value]}
    return {"constant": value}
