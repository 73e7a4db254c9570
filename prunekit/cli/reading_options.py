"""Options of every command that reads a base: which of its weights, and what it was trained for."""

import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from prunekit.checkpoint import Asked

__all__ = ["PredictionOption", "WeightsOption", "asked_of", "with_reading_options"]

WeightsOption = Annotated[
    str | None,
    typer.Option(help="Which weights of the base to read: ema or raw (default: ema if the base has both)."),
]
PredictionOption = Annotated[
    str | None,
    typer.Option(
        help="What the base predicts: epsilon, sample or v_prediction (default: as its files say, else epsilon)."
    ),
]
_SHARED: dict[str, Any] = {
    "weights": WeightsOption,
    "noise_schedule": Annotated[
        str | None,
        typer.Option(
            help="Noise schedule of the base: cosine, cosine:4000 (timesteps) or a scheduler_config.json (default: its files' own, "
            "else linear)."
        ),
    ],
    "prediction_type": PredictionOption,
}


def with_reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter ``reading`` becomes the options above; it is given them as :class:`~prunekit.checkpoint.Asked`.

    It is given None where none was typed, so that nothing is imported for them.
    """

    @wraps(command)
    def wrapped(**values: Any) -> None:
        typed = {name: values.pop(name) for name in _SHARED}
        command(**values, reading=asked_of(**typed))

    own = inspect.signature(command)
    shared = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=_SHARED[name]) for name in _SHARED]
    left = [each.replace(kind=Parameter.KEYWORD_ONLY) for name, each in own.parameters.items() if name != "reading"]
    wrapped.__signature__ = own.replace(parameters=[*left, *shared])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in (*left, *shared)} | {"return": None}
    return wrapped


def asked_of(**options: str | None) -> "Asked | None":
    """What was typed; None where nothing was.

    Raises:
        InputError: the weights or the prediction type are unknown.
    """
    typed = {name: value for name, value in options.items() if value is not None}
    if not typed:
        return None
    from prunekit.checkpoint import Asked

    return Asked(**typed)
