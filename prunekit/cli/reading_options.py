"""Options of every command that reads a base: which of its weights, and what it was trained for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit.choices import PredictionType, Weights

if TYPE_CHECKING:
    from prunekit.checkpoint import Asked

__all__ = ["PredictionOption", "ReadingOptions", "WeightsOption", "asked_of"]

WeightsOption = Annotated[
    Weights | None,
    typer.Option(help="Which weights of the base to read (default: ema if the base has both)."),
]
PredictionOption = Annotated[
    PredictionType | None,
    typer.Option(help="What the base predicts (default: as its files say, else epsilon)."),
]


@dataclass(frozen=True)
class ReadingOptions:
    """Which weights of a base are read, and what it was trained for, in place of what its files say."""

    weights: WeightsOption = None
    noise_schedule: Annotated[
        str | None,
        typer.Option(
            help="Noise schedule of the base: cosine, cosine:4000 (timesteps) or a scheduler_config.json (default: its files' own, "
            "else linear)."
        ),
    ] = None
    prediction_type: PredictionOption = None

    @property
    def asked(self) -> "Asked | None":
        """What was typed; None where nothing was, so that nothing is imported for it.

        Raises:
            InputError: the weights or the prediction type are unknown.
        """
        return asked_of(**vars(self))


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
