"""The JSON Schema of recipes, made from the models. Editors complete with it; a misspelt key is compared with its keys."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from prunekit._json import JsonDict
from prunekit._messages import did_you_mean
from prunekit.errors import InputError
from prunekit.results.schemas import DescribedSchema

__all__ = [
    "Choice",
    "Limits",
    "ShownAs",
    "choices_at",
    "has_forms",
    "inner",
    "is_place",
    "keys_at",
    "kinds_at",
    "schema_of",
]


@dataclass(frozen=True)
class Choice:
    """A text that must be one of some names, or may name a file; the schema lists them.

    Args:
        names: the known ones.
        files: suffixes of files that may be named too.
    """

    names: tuple[str, ...]
    files: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        named = {**handler(core), "enum": list(self.names)}
        suffixes = "|".join(suffix.removeprefix(".") for suffix in self.files)
        return (
            {"anyOf": [named, {"type": "string", "format": "path", "pattern": rf"\.({suffixes})$"}]}
            if self.files
            else named
        )

    def _known(self, name: str) -> str:
        if name not in self.names and not name.lower().endswith(self.files):
            known = ", ".join([*sorted(self.names), *(f"a file ending in {suffix}" for suffix in self.files)])
            raise InputError(f"Got {name!r}{did_you_mean(name, self.names)}; expected one of {known}.")
        return name


@dataclass(frozen=True)
class Limits:
    """Bounds and names of options that another package defines, in the words of JSON Schema.

    A ``minimum`` with a ``maximum`` is checked here. The other package checks everything else; the schema only shows it.

    Args:
        options: such as ``{"steps": {"minimum": 1, "maximum": 10**9}}``.
    """

    options: Mapping[str, JsonDict]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._within, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, facts in self.options.items():
            properties[name].update(facts)
        return schema

    def _within(self, options: object) -> object:
        for name, facts in self.options.items():
            value, least, most = getattr(options, name), facts.get("minimum"), facts.get("maximum")
            if least is not None and most is not None and not least <= value <= most:
                raise InputError(f"Got {name} {value}; expected a whole number from {least} to {most:,}.")
        return options


@dataclass(frozen=True)
class ShownAs:
    """A mapping that is read unchanged and checked later; the schema shows the type that it is checked against.

    Args:
        form: that type.
    """

    form: Any

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(TypeAdapter(self.form).core_schema)


@cache
def schema_of(model: type[BaseModel]) -> dict[str, object]:
    """The JSON Schema of a model's input. Do not change the returned value: it is shared."""
    return model.model_json_schema(schema_generator=DescribedSchema)


def inner(schema: JsonDict, node: JsonDict) -> Iterator[JsonDict]:
    """The forms that a value may have, with references resolved."""
    if "$ref" in node:
        yield from inner(schema, schema["$defs"][str(node["$ref"]).rpartition("/")[2]])
    elif "anyOf" in node:
        for one in node["anyOf"]:
            yield from inner(schema, one)
    else:
        yield node


def _at(schema: JsonDict, place: Sequence[str | int]) -> Iterator[JsonDict]:
    """The forms that the value at a place may have."""
    nodes = [schema]
    for part in place:
        nodes = [form for node in nodes for form in inner(schema, node)]
        nodes = [found for node in nodes if isinstance(found := _below(node, part), Mapping)]
    for node in nodes:
        yield from inner(schema, node)


def _below(node: JsonDict, part: str | int) -> Any:
    if isinstance(part, int) and "items" in node:
        return node["items"]
    others = next(iter(node.get("patternProperties", {}).values()), node.get("additionalProperties"))
    return node.get("properties", {}).get(part, others)


def keys_at(schema: JsonDict, place: Sequence[str | int]) -> tuple[str, ...]:
    """The keys that the mapping at a place of a recipe may have.

    Args:
        schema: see :func:`schema_of`.
        place: keys and indices on the way there.
    """
    return tuple(dict.fromkeys(key for node in _at(schema, place) for key in node.get("properties", {})))


def is_place(schema: JsonDict, place: Sequence[str | int]) -> bool:
    """Whether a recipe can have a value at a place, as far as its schema says.

    Args:
        schema: see :func:`schema_of`.
        place: keys and indices on the way there.
    """
    return next(_at(schema, place), None) is not None


def has_forms(schema: JsonDict, place: Sequence[str | int]) -> bool:
    """Whether the value at a place of a recipe may have one of several forms, besides being left out.

    Args:
        schema: see :func:`schema_of`.
        place: keys and indices on the way there.
    """
    return len([node for node in _at(schema, place) if node.get("type") != "null"]) > 1


def kinds_at(schema: JsonDict, place: Sequence[str | int]) -> tuple[str, ...]:
    """The types of JSON that the value at a place of a recipe may have; empty where it may have any.

    Args:
        schema: see :func:`schema_of`.
        place: keys and indices on the way there.
    """
    found = [node.get("type") for node in _at(schema, place)]
    return () if None in found else tuple(dict.fromkeys(map(str, found)))


def choices_at(schema: Mapping[str, object], place: Sequence[str | int]) -> tuple[str, ...]:
    """The texts that the value at a place of a recipe may be, where they are listed."""
    found = [value for node in _at(schema, place) for value in (*node.get("enum", ()), node.get("const"))]
    return tuple(dict.fromkeys(value for value in found if isinstance(value, str)))
