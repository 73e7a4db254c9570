"""The reference page of recipes, made from their JSON Schema: every section, and what each of its keys means."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from prunekit._json import JsonDict
from prunekit.experiments import Experiment
from prunekit.recipe.recipe import MODELS, Recipe
from prunekit.recipe.schema import inner, schema_of

__all__ = ["recipe_schema", "reference_page"]

_INTRO = """\
# Recipes

A recipe is a YAML file that describes a whole experiment; `prunekit run RECIPE` runs it, and `prunekit estimate RECIPE` says what
that will take. Stages whose section is missing are not run. An unknown key is refused with its line, and so is a value that is
not of the key's type. Values are read by YAML 1.2: `0100` is a hundred, `1e-3` a number, and `yes` and `no` are texts, which also
stand for true and false where one of those belongs.

`prunekit schema` prints the [JSON Schema](recipe.schema.json) of recipes. An editor with a YAML language server completes and
checks a recipe that begins with `# yaml-language-server: $schema=PATH/recipe.schema.json`.

This page is made from the code by `prunekit schema --markdown`.
"""
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
}
_BOUNDS = {
    "minimum": "at least {:,}",
    "exclusiveMinimum": "above {:,}",
    "maximum": "at most {:,}",
    "exclusiveMaximum": "below {:,}",
    "minItems": "at least {} of them",
    "minProperties": "at least {} of them",
}


def recipe_schema() -> dict[str, object]:
    """The JSON Schema of recipes, for editors and other programs."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema_of(Recipe)}


def reference_page() -> str:
    """The reference page, in Markdown."""
    schema = schema_of(Recipe)
    places = _places(schema)
    parts = [_INTRO, _kinds(), *(_section(schema, place, node, places) for place, node in places.items())]
    return "\n".join(parts)


def _kinds() -> str:
    """The kinds of experiments, and the sections that each needs."""
    lines = ["## Kinds of recipes", "", "| has | what it does | needs |", "|---|---|---|"]
    for kind in reversed(Experiment):
        model = MODELS[kind]
        asked = " and ".join(f"`{section}`" for section in kind.sections) or "none of these"
        meaning = " ".join((model.__doc__ or "").split())
        lines.append(f"| {asked} | {meaning} | {model.needs() and model.needs() + '.'} |")
    return "\n".join([*lines, ""])


def _places(schema: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Every mapping with known keys, by the first place where it occurs in a recipe; a section comes before its parts."""
    found: dict[str, JsonDict] = {}

    def visit(place: str, node: JsonDict) -> None:
        for form in inner(schema, node):
            if "items" in form:
                visit(place, form["items"])
            for other in _others(form):
                visit(f"{place}.*", other)
            if form.get("properties") and all(form is not known for known in found.values()):
                found[place] = form
                for key, below in form["properties"].items():
                    visit(f"{place}.{key}" if place else key, below)

    visit("", schema)
    return found


def _others(form: JsonDict) -> Iterator[JsonDict]:
    """The forms of the values in a mapping whose keys are names chosen by the user."""
    yield from form.get("patternProperties", {}).values()
    if isinstance(form.get("additionalProperties"), Mapping):
        yield form["additionalProperties"]


def _section(schema: JsonDict, place: str, node: JsonDict, places: Mapping[str, JsonDict]) -> str:
    lines = [f"## {place or 'The recipe'}", ""]
    if "description" in node:
        lines += [node["description"].replace("\n", "\n\n"), ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, value in node["properties"].items():
        default = "required" if key in node.get("required", ()) else _default(schema, value)
        meaning = value.get("description", "").replace("\n", " ").replace("|", "\\|")
        lines.append(f"| `{key}` | {_value(schema, value, places)} | {default} | {meaning} |")
    return "\n".join([*lines, ""])


def _value(schema: Mapping[str, object], node: Mapping[str, object], places: Mapping[str, Mapping[str, object]]) -> str:
    """The kind of value that a key takes, and its bounds."""
    forms = [form for form in inner(schema, node) if form.get("type") != "null"]
    return " or ".join(dict.fromkeys(_form(schema, form, places) for form in forms)) or "anything"


def _form(schema: JsonDict, form: JsonDict, places: Mapping[str, JsonDict]) -> str:
    home = next((place for place, node in places.items() if node is form), None)
    bounds = "".join(f", {text}" for text in _bounds(form))
    if home:
        return f"[{home}](#{home.replace('.', '').replace('*', '')})"
    if choices := form.get("enum", [form["const"]] if "const" in form else []):
        return ", ".join(f"`{choice}`" for choice in choices)
    if form.get("format") == "path":
        return "file"
    if "items" in form:
        return f"list of {_value(schema, form['items'], places)}{bounds}"
    if others := list(_others(form)):
        return f"mapping of names to {_value(schema, others[0], places)}{bounds}"
    return _TYPES.get(str(form.get("type")), "anything") + bounds


def _bounds(form: Mapping[str, object]) -> Iterator[str]:
    least, most = form.get("minimum"), form.get("maximum")
    if least is not None and most is not None:
        yield f"{least:,} to {most:,}"
    else:
        for key, text in _BOUNDS.items():
            if key in form:
                yield text.format(form[key])


def _default(schema: Mapping[str, object], node: Mapping[str, object]) -> str:
    default = node.get("default")
    if default is None:
        return "none"
    short = _short(schema, node, default)
    return (
        f"`{json.dumps(short, ensure_ascii=False)}`"
        if short not in ({}, "")
        else "its own defaults"
        if default
        else "empty"
    )


def _short(schema: JsonDict, node: JsonDict, value: Any) -> Any:
    """A default; for a section, only the values that differ from the section's own defaults."""
    forms = list(inner(schema, node))
    if isinstance(value, list):
        below: JsonDict = next((form["items"] for form in forms if "items" in form), {})
        return [_short(schema, below, one) for one in value]
    if isinstance(value, Mapping):
        own: JsonDict = next((form["properties"] for form in forms if "properties" in form), {})
        return {key: one for key, one in value.items() if one != own.get(key, {}).get("default")}
    return value
