"""Options that belong together are one parameter of a command: a dataclass, each of whose fields is an option."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from typing import Any, get_type_hints

__all__ = ["bundled"]


def bundled(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer sees it: every field of its dataclass parameters is an option in the dataclass's place."""
    own = inspect.signature(command)
    bundles: dict[str, Any] = {
        name: each.annotation for name, each in own.parameters.items() if is_dataclass(each.annotation)
    }
    if not bundles:
        return command

    @wraps(command)
    def wrapped(**values: Any) -> None:
        made = {
            name: bundle(**{field.name: values.pop(field.name) for field in fields(bundle)})
            for name, bundle in bundles.items()
        }
        command(**values, **made)

    parameters = [
        option
        for name, each in own.parameters.items()
        for option in (_options(bundles[name]) if name in bundles else [each])
    ]
    spread = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
    wrapped.__signature__ = own.replace(parameters=spread)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in spread} | {"return": None}
    return wrapped


def _options(bundle: Any) -> list[Parameter]:
    """A parameter for each field."""
    hints = get_type_hints(bundle, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[field.name])
        for field in fields(bundle)
    ]


def _default(field: "Field[object]") -> object:
    return Parameter.empty if field.default is MISSING else field.default
