"""Types of values that several sections of a recipe have."""

from typing import Annotated

from pydantic import AfterValidator, Field

from prunekit.limits import MAX_COUNT, MAX_SEED
from prunekit.recipe.bounds import TRAINING
from prunekit.training import TrainOptions

__all__ = ["STRICT", "NotNegative", "Positive", "Ratio", "Seed", "Seeds", "Train"]

STRICT: dict[str, object] = {"extra": "forbid", "allow_inf_nan": False}
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NotNegative = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Train = Annotated[TrainOptions, TRAINING]
Ratio = Annotated[float, Field(gt=0, le=1)]


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse a seed that is there twice: it would be one training or one set of images that counts as two."""
    twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
    if twice is not None:
        raise ValueError(f"Got seed {twice} more than once; expected different seeds.")
    return seeds


Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_different)]
"""Seeds, each once."""
