"""Errors in recipes: the place of each, and a sentence about it."""

from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from prunekit._json import JsonDict
from prunekit._messages import did_you_mean, nearest
from prunekit.recipe.schema import choices_at, keys_at

__all__ = ["Place", "explain", "fault"]

Place = tuple[str | int, ...]
"""Keys and indices on the way to a value of a recipe."""
_NAME = "a letter or digit, then letters, digits, spaces and any of . , + _ -, at most 64 in all"
_NAMES: dict[Place, str] = {("name",): "lower-case letters, digits and hyphens, at most 64"}
_COMMON = ("name", "description", "data", "base")  # what every kind of recipe has
_SHOULD_BE = "Input should be "
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def fault(place: Place, sentence: str) -> ValidationError:
    """An error at a place, to be raised by a validator."""
    kind = PydanticCustomError("recipe", "{said}", {"said": sentence})
    return ValidationError.from_exception_data("Recipe", [InitErrorDetails(type=kind, loc=place, input=None)])


def explain(error: ValidationError, schema: JsonDict, needs: str, within: Place = ()) -> tuple[Place, str]:
    """The first fault of a recipe: its place, and one sentence with its full stop.

    An unknown key comes first, since the others may follow from it: a misspelt section is also a missing one.

    Args:
        error: the model's error.
        schema: the model's JSON Schema.
        needs: the sentence that says which sections this kind of recipe needs, for a section that is missing or does not belong.
        within: the place of the checked value in the recipe; the returned place is relative to it.
    """
    details = error.errors(include_url=False)
    first = next((each for each in details if _is_unknown(each)), details[0])
    place = tuple(part for part in first["loc"] if part != "[key]")
    return place, _sentence(first, place, schema, needs, within)


def _is_unknown(details: ErrorDetails) -> bool:
    return details["type"] in _UNKNOWN or (details["type"] == "literal_error" and details["loc"][-1] == "[key]")


def _sentence(details: ErrorDetails, place: Place, schema: Mapping[str, object], needs: str, within: Place) -> str:
    if _is_unknown(details):
        return _unknown_key(place, keys_at(schema, (*within, *place[:-1])))
    kind, given, known = details["type"], details["input"], choices_at(schema, (*within, *place))
    if needs and not within and len(place) == 1 and place[0] not in _COMMON:
        if kind == "missing" or given is None:
            return f"{needs}; got no {place[0]}."
        if kind == "none_required":
            return f"{needs}; got {place[0]}."
    if kind == "literal_error" and known:
        return f"Got {given!r:.80}{did_you_mean(given, known)}; expected one of {', '.join(known)}."
    if kind == "dataclass_type":
        keys = keys_at(schema, (*within, *place))
        return f"Got {given!r:.80}; expected a mapping with keys such as {', '.join(keys[:3])}."
    if kind == "string_pattern_mismatch":
        return f"Got the name {given!r:.80}; expected {_NAMES.get(place, _NAME)}."
    if kind in ("too_short", "too_long"):
        bound = details["ctx"].get("min_length", details["ctx"].get("max_length"))
        return f"Got {details['ctx']['actual_length']} of them; expected at {'least' if kind == 'too_short' else 'most'} {bound}."
    said = details["msg"].removeprefix("Value error, ").rstrip(".")
    if said.startswith(_SHOULD_BE):
        wanted = said.removeprefix(_SHOULD_BE)
        return f"Got {given!r:.80}; expected {'a number ' if wanted.startswith(('greater', 'less')) else ''}{wanted}."
    return said if said.endswith("?") else f"{said}."


def _unknown_key(place: Place, known: tuple[str, ...]) -> str:
    *way, key = place
    where = f" in {'.'.join(map(str, way))}" if way else ""
    near = nearest(key, known)
    rest = f"did you mean `{near}`?" if near else f"expected one of {', '.join(known)}."
    return f"Unknown key `{key!s:.80}`{where}; {rest}"
