"""Errors in recipes: the place of each, and a sentence about it."""

import re
from collections.abc import Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from prunekit._json import JsonDict
from prunekit._messages import did_you_mean, nearest
from prunekit.recipe.schema import choices_at, has_forms, is_place, keys_at

__all__ = ["Place", "explain", "fault"]

Place = tuple[str | int, ...]
"""Keys and indices on the way to a value of a recipe."""
_NAME = "a letter or digit, then letters, digits, spaces and any of . , + _ -, at most 64 in all"
_NAMES: dict[Place, str] = {("name",): "lower-case letters, digits and hyphens, at most 64"}
_COMMON = ("name", "description", "data", "base")  # what every kind of recipe has
_SHOULD_BE = "Input should be "
_OWN = "recipe"  # the type of this project's errors
_TAG = re.compile(r"int|float|str|bool|none|constrained-\w+|[\w-]+\[.*\]")  # pydantic's name of a form
_PLAIN = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
    "a valid list": "a list",
    "a valid dictionary": "a mapping",
}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def fault(place: Place, sentence: str) -> ValidationError:
    """An error at a place, to be raised by a validator."""
    kind = PydanticCustomError(_OWN, "{said}", {"said": sentence})
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
    place = _place(first, schema, within)
    below = [each for each in details if _place(each, schema, within)[: len(place)] == place]
    first = max(below, key=lambda each: len(_place(each, schema, within)))  # of the form that fits best
    place = _place(first, schema, within)
    others = [each for each in details if each["loc"] != first["loc"] and _place(each, schema, within) == place]
    wanted = [_wanted(each) for each in (first, *others)]
    if others and all(wanted):  # a value that may have one of several forms
        return place, f"Got {first['input']!r:.80}; expected {' or '.join(dict.fromkeys(filter(None, wanted)))}."
    return place, _sentence(first, place, schema, needs, within)


def _place(details: ErrorDetails, schema: JsonDict, within: Place) -> Place:
    """The place of an error in the recipe, without the names that pydantic gives the forms of a value."""
    way = [part for part in details["loc"] if part != "[key]"]
    if details["type"] == _OWN:
        return tuple(way)
    last, found = len(way) - 1, list[str | int]()
    for index, part in enumerate(way):
        tag = isinstance(part, str) and _TAG.fullmatch(part) and has_forms(schema, (*within, *found))
        if (is_place(schema, (*within, *found, part)) and not tag) or (index == last and _is_unknown(details)):
            found.append(part)
    return tuple(found)


def _wanted(details: ErrorDetails) -> str | None:
    """What pydantic expected, if its message says that."""
    said = details["msg"].rstrip(".")
    if not said.startswith(_SHOULD_BE):
        return None
    wanted = said.removeprefix(_SHOULD_BE)
    known = next((plain for name, plain in _PLAIN.items() if wanted.startswith(name)), None)
    return known or (f"a number {wanted}" if wanted.startswith(("greater", "less")) else wanted)


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
    if (wanted := _wanted(details)) is not None:
        return f"Got {given!r:.80}; expected {wanted}."
    said = details["msg"].removeprefix("Value error, ").rstrip(".")
    return said if said.endswith("?") else f"{said}."


def _unknown_key(place: Place, known: tuple[str, ...]) -> str:
    *way, key = place
    where = f" in {'.'.join(map(str, way))}" if way else ""
    near = nearest(key, known)
    rest = f"did you mean `{near}`?" if near else f"expected one of {', '.join(known)}."
    return f"Unknown key `{key!s:.80}`{where}; {rest}"
