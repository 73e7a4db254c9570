"""Bounds on a config's values and on the resources for building its network, checked before it is built."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit._json import JsonDict
from prunekit._messages import plain
from prunekit.errors import FileFormatError

__all__ = ["Frugal", "ParametersOnMeta", "check_schedule", "check_values", "mistyped"]

MAX_NUMBER = 2**20
MAX_TEXT = 256  # characters
MAX_DEPTH = 4
MAX_ARRAY = 2**27  # elements of one tensor that is allocated before the file's tensors are read


def check_values(config: object, what: str, count: int = 4096) -> None:
    """Refuse a config with anything but a few plain values of sane size.

    Args:
        config: a file's config.
        what: its name in the message.
        count: largest number of values.

    Raises:
        FileFormatError: a number above 2²⁰, a long text, deep nesting, too many values, or no JSON value.
    """
    left: list[tuple[Any, int]] = [(config, 0)]
    while left:
        value, depth = left.pop()
        inner: Sequence[Any] = ()
        if isinstance(value, Mapping):
            inner = [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            inner = value
        else:
            _check_plain(value, what)
        count -= 1 + len(inner)
        if count < 0 or (inner and depth >= MAX_DEPTH):
            raise FileFormatError(f"{what} has too many values or is nested too deeply; expected a short, flat config.")
        left += [(one, depth + 1) for one in inner]


def _check_plain(value: object, what: str) -> None:
    """Refuse a single value that is not plain or too large."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise FileFormatError(f"{what} has a text of {len(value):,} characters; expected at most {MAX_TEXT}.")
    elif isinstance(value, int | float):
        if not abs(value) <= MAX_NUMBER:
            huge = isinstance(value, int) and value.bit_length() > 64
            raise FileFormatError(
                f"{what} has the number {'of many digits' if huge else value}; expected at most {MAX_NUMBER:,}."
            )
    elif value is not None:
        raise FileFormatError(f"{what} holds a {type(value).__name__}; expected numbers and short texts.")


def check_schedule(config: object, what: str) -> None:
    """Bounds of a noise schedule's config, which may list one number per timestep; see :func:`check_values`."""
    check_values(config, what, count=4 * MAX_NUMBER)


def mistyped(made: Callable[..., object], config: JsonDict) -> str | None:
    """The first value of a config that its class would misread, and what is expected, as the end of a sentence; None without one.

    These are texts and switches where the class's default is a number, and texts where it is a switch.

    Args:
        made: the class.
        config: arguments of its constructor; others are not looked at.
    """
    known = inspect.signature(made).parameters
    for name, value in config.items():
        default = known[name].default if name in known else None
        wanted = "true or false" if isinstance(default, bool) else f"a number such as {default}"
        misread = (str,) if isinstance(default, bool) else (str, bool) if isinstance(default, int | float) else ()
        if isinstance(value, misread):
            return f"the {name} {plain(value)}; expected {wanted}"
    return None


class Frugal(TorchDispatchMode):
    """Counts the tensor operations of a network's constructor, and refuses before memory is taken.

    Args:
        operations: largest number of operations.
        elements: largest total number of elements outside the meta device.

    Raises:
        FileFormatError: raised within the constructor when a bound is exceeded.
    """

    def __init__(self, operations: int, elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.operations, self.elements = operations, elements

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See :class:`torch.utils._python_dispatch.TorchDispatchMode`."""
        kwargs = kwargs or {}
        self.operations -= 1
        if self.operations < 0:
            raise FileFormatError("The config asks for more layers than the file has tensors for.")
        makes = not any(isinstance(value, Tensor) for value in args)
        on_meta = torch.device(kwargs.get("device") or "cpu").type == "meta"
        if makes and not on_meta:
            self.elements -= _size(args)
            if self.elements < 0:
                raise FileFormatError("The config asks for tensors far larger than the file's own.")
        result = func(*args, **kwargs)
        functional = not func._schema.name.endswith("_") and "empty" not in func._schema.name
        if functional and isinstance(result, Tensor) and result.numel() > MAX_ARRAY:
            raise FileFormatError(f"The config asks for a table of {result.numel():,} numbers; expected no such table.")
        return result


def _size(args: tuple[object, ...]) -> int:
    """Elements that a factory function makes, by its arguments."""
    for value in args:
        if isinstance(value, list | tuple) and all(isinstance(size, int) for size in value):
            return math.prod(value)
    return max((abs(value) for value in args if isinstance(value, int)), default=0)


class ParametersOnMeta(TorchFunctionMode):
    """Uninitialised tensors, as layers make them for their weights, go to the meta device; all others are real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: JsonDict | None = None) -> Any:
        """See :class:`torch.overrides.TorchFunctionMode`."""
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)
