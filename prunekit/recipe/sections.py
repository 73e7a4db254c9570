"""A recipe's section outside a recipe: options that a caller gives as such, or as a mapping with the section's keys."""

from collections.abc import Mapping
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from prunekit.errors import InputError
from prunekit.recipe.models import ExpertsRecipe
from prunekit.recipe.planning_sections import PruneOptions
from prunekit.recipe.tuning_sections import FinetuneOptions

__all__ = ["section_of"]

_Options = TypeVar("_Options", PruneOptions, FinetuneOptions)
_NAMES = {PruneOptions: "prune", FinetuneOptions: "finetune"}


def section_of(kind: type[_Options], given: object) -> _Options:
    """The options of a section.

    Args:
        kind: the section's class.
        given: options, a mapping with the section's keys such as ``{"train": {"steps": 100}}``, or None for the defaults.

    Raises:
        InputError: it is something else, or a key or value does not belong; the sentence is that of a recipe.

    Example:
        >>> section_of(FinetuneOptions, {"overlap": 20}).overlap
        20
    """
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    name = _NAMES[kind]
    if not isinstance(given, Mapping):
        raise InputError(
            f"Got {type(given).__name__} as options; expected {kind.__name__} or a mapping with the keys of a recipe's {name} "
            "section."
        )
    try:
        return TypeAdapter(kind).validate_python(dict(given))
    except ValidationError as error:
        raise InputError(_said(error, name)) from error


def _said(error: ValidationError, section: str) -> str:
    place, said = ExpertsRecipe.explain(error, (section,))
    return f"{'.'.join(map(str, (section, *place)))}: {said}"
