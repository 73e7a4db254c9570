"""The library's messages name arguments, such as `weights`; the command line shows these as the flags that a user types."""

import inspect
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import wraps
from inspect import Parameter
from typing import Any

import typer

from prunekit.errors import PrunekitError

__all__ = ["as_flags", "flag_of", "with_flags"]

_NAMED = re.compile(r"`([a-z_]+)`")
_flags: ContextVar[Mapping[str, str]] = ContextVar("_flags")  # of the running command, by argument


def as_flags(message: str) -> str:
    """A message in which each argument that the running command takes as an option is that option's flag.

    Other words in backticks, and all words outside a command, stay as they are.
    """
    return _NAMED.sub(lambda named: _flags.get({}).get(named[1], named[0]), message)


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors name flags."""
    parameters = inspect.signature(command).parameters
    flags = {name: flag_of(each) for name, each in parameters.items() if not _is_positional(each)}

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> None:
        token = _flags.set(flags)
        try:
            command(*args, **values)
        except PrunekitError as error:
            error.args = (as_flags(str(error)), *error.args[1:])
            raise
        finally:
            _flags.reset(token)

    return wrapped


def flag_of(parameter: Parameter) -> str:
    """An option as the user types it."""
    for about in _metadata(parameter):
        names = [getattr(about, "default", None), *(getattr(about, "param_decls", None) or ())]
        for name in names:  # in an annotation, typer stores the first name as the default until it builds the command
            if isinstance(name, str) and name.startswith("--"):
                return name
    return f"--{parameter.name.replace('_', '-')}"


def _metadata(parameter: Parameter) -> tuple[Any, ...]:
    return getattr(parameter.annotation, "__metadata__", ())


def _is_positional(parameter: Parameter) -> bool:
    return any(isinstance(about, typer.models.ArgumentInfo) for about in _metadata(parameter))
