"""JSON Schemas of prunekit's files, and the reference page of their keys, both made from the models."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from typing import cast

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from prunekit._messages import did_you_mean
from prunekit.errors import InputError
from prunekit.results.consistency_results import ConsistencyFile
from prunekit.results.encoded_files import EncodedFile, EncodingFile
from prunekit.results.evidence_results import EvidenceManifest
from prunekit.results.expert_results import BaseManifest, Evaluation, ExpertsManifest
from prunekit.results.learning_results import CurriculumManifest, MultistageManifest
from prunekit.results.model import Model
from prunekit.results.model_files import ExpertsFile, SlimFile
from prunekit.results.planning_files import AllocationFile, GroupsFile, ImportanceFile
from prunekit.results.recovery_files import RecoveriesFile
from prunekit.results.sensitivity_files import SensitivityFile
from prunekit.results.stage_files import StageFile
from prunekit.results.working_files import BaseFile, ImagesFile, JournalAnswer, JournalEntry, JournalHeader, LatencyFile

__all__ = ["FILES", "DescribedSchema", "File", "file_schema", "formats_page"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_ROLE = re.compile(r":[a-z]+:`(?:~[\w.]*\.)?([\w.]+)`")
_ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.MULTILINE)
_INTRO = """\
# JSON files, key by key

Every JSON file names its format and version under `format`. This page has the keys of the files that you may want to read or write
with other programs. Each has a JSON Schema. [File formats](reference/files.md) is the overview, and says what the other files hold.

A key that is not marked as required may be missing. Unknown keys are kept when a file is read and written again.

This page and the schemas are made from the code by `prunekit schema --file`.
"""
_NONE = re.compile(r"\bNone\b")
_TYPES = {
    "array": "list",
    "boolean": "true or false",
    "integer": "whole number",
    "null": "null",
    "number": "number",
    "object": "object",
    "string": "text",
}


@dataclass(frozen=True)
class File:
    """A file with a JSON Schema.

    Args:
        model: the file's content.
        title: heading of its section.
    """

    model: type[Model]
    title: str


FILES: Mapping[str, File] = {
    "groups": File(GroupsFile, "Timestep groups"),
    "allocation": File(AllocationFile, "Allocation"),
    "sensitivity": File(SensitivityFile, "Sensitivity"),
    "recoveries": File(RecoveriesFile, "Recoveries"),
    "importance": File(ImportanceFile, "Importance"),
    "evaluation": File(Evaluation, "Evaluation"),
    "consistency": File(ConsistencyFile, "Consistency"),
    "slim": File(SlimFile, "Slim model"),
    "experts": File(ExpertsFile, "Experts"),
    "manifest-base": File(BaseManifest, "Manifest of a base"),
    "manifest-experts": File(ExpertsManifest, "Manifest of experts"),
    "manifest-evidence": File(EvidenceManifest, "Manifest of experts beside baselines"),
    "manifest-curriculum": File(CurriculumManifest, "Manifest of ways to train"),
    "manifest-multistage": File(MultistageManifest, "Manifest of networks for stages"),
    "stage": File(StageFile, "Record of a stage"),
    "base": File(BaseFile, "Metadata of a base"),
    "latency": File(LatencyFile, "Layer times"),
    "search-header": File(JournalHeader, "First line of a search's journal"),
    "search-entry": File(JournalEntry, "Line of a search's journal: a candidate or a choice"),
    "search-answer": File(JournalAnswer, "Line of a search's journal: a language model's answer"),
    "images": File(ImagesFile, "Paths of images"),
    "encoded": File(EncodedFile, "Encoded images"),
    "encoding": File(EncodingFile, "Encoded images that are not finished"),
}
"""Every file with a JSON Schema, by the schema's name."""


class DescribedSchema(GenerateJsonSchema):
    """Takes descriptions from docstrings (for keys: from ``Args``), and shows every default, including those of factories."""

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        """The schema of a dataclass, with descriptions."""
        return _described(super().dataclass_schema(schema), schema["cls"])

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """The schema of a model, with descriptions."""
        return _described(super().model_schema(schema), schema["cls"])

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> object:
        """The default of a field."""
        if "default_factory" in schema and not schema.get("default_factory_takes_data"):
            return cast(object, schema["default_factory"]())  # type: ignore[call-arg]
        return cast(object, super().get_default_value(schema))


def _described(schema: JsonSchemaValue, section: type) -> JsonSchemaValue:
    properties = schema.get("properties", {})
    for owner in reversed(section.__mro__):  # a model may inherit keys
        text = _text_of(owner)
        for name, meaning in _ARGUMENT.findall(text.partition("Args:\n")[2]):
            if name in properties:
                properties[name]["description"] = _line(meaning[:1].upper() + meaning[1:])
    schema["description"] = _line(re.split(r"\n\n(?:Args|Raises|Example):", _text_of(section))[0])
    return schema


def _text_of(section: type) -> str:
    """A class's docstring as Markdown."""
    return _ROLE.sub(r"`\1`", cleandoc(section.__doc__ or "")).replace("``", "`")


def _line(text: str) -> str:
    """Put each paragraph on one line."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


class _FileSchema(DescribedSchema):
    """Leaves out the defaults and titles of keys, which say no more than that a key may be missing, and writes null for None."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        for part in (found, *found.get("properties", {}).values()):
            if "description" in part:
                part["description"] = _NONE.sub("null", part["description"])
        return found

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: object) -> bool:
        return False


@cache
def file_schema(name: str) -> Mapping[str, object]:
    """The JSON Schema of a file.

    Args:
        name: a key of :data:`FILES`.

    Raises:
        InputError: there is no such file.
    """
    if name not in FILES:
        raise InputError(f"There is no file {name!r}{did_you_mean(name, FILES)}; expected one of {', '.join(FILES)}.")
    return {"$schema": _DIALECT, **FILES[name].model.model_json_schema(schema_generator=_FileSchema)}


def formats_page() -> str:
    """The reference page of all files, in Markdown."""
    parts, sections = dict[str, Mapping[str, object]](), list[str]()
    for name, file in FILES.items():
        schema = file_schema(name)
        parts |= cast("Mapping[str, Mapping[str, object]]", schema.get("$defs", {}))
        known = cast("Mapping[str, Mapping[str, str]]", schema["properties"])
        lines = [
            f"## {file.title}",
            "",
            f"{_format(known)}[JSON Schema](formats/{name}.schema.json).",
        ]
        sections.append("\n".join([*lines, "", *_table(schema)]))
    shown = {name: part for name, part in sorted(parts.items()) if "properties" in part}
    told = ["## Parts", "", "Objects inside these files.", ""]
    for name, part in shown.items():
        told += [f"### {_title(name)}", "", *_table(part), ""]
    return "\n\n".join([_INTRO, *sections, "\n".join(told).rstrip()]).replace("\n\n\n", "\n\n") + "\n"


def _table(schema: Mapping[str, object]) -> Iterator[str]:
    """An object's description and its keys."""
    yield f"{schema['description']}"
    properties = cast("Mapping[str, Mapping[str, object]]", schema.get("properties", {}))
    required = cast("list[str]", schema.get("required", []))
    if properties:
        yield from ("", "| key | type | meaning |", "|---|---|---|")
    for name, form in properties.items():
        must = ", required" if name in required else ""
        yield f"| `{name}` | {_type(form)}{must} | {form.get('description', '')} |"


def _grouped(form: Mapping[str, object]) -> str:
    """A type inside another, in brackets if it is one of several."""
    kind = _type(form)
    return f"({kind})" if " or " in kind else kind


def _type(form: Mapping[str, object]) -> str:
    """A type in words, with a link if it is an object of a known form."""
    if "$ref" in form:
        name = str(form["$ref"]).rpartition("/")[2]
        return "any JSON" if name == "JsonValue" else f"[{_title(name)}](#{_title(name).lower()})"
    if "anyOf" in form:
        return " or ".join(_type(part) for part in cast("list[Mapping[str, object]]", form["anyOf"]))
    if "const" in form:
        return f"`{form['const']}`"
    if "enum" in form:
        return " or ".join(f"`{value}`" for value in cast("list[object]", form["enum"]))
    kind = str(form.get("type", ""))
    items, values = form.get("items"), form.get("additionalProperties")
    if kind == "array" and isinstance(items, Mapping):
        return f"list of {_grouped(items)}"
    if kind == "object" and isinstance(values, Mapping) and values.get("$ref") != "#/$defs/JsonValue":
        return f"object of names with {_grouped(values)}"
    return _TYPES.get(kind, "any JSON")


def _title(name: str) -> str:
    """A class's name as a heading."""
    return name.strip("_")


def _format(properties: Mapping[str, Mapping[str, str]]) -> str:
    """What the page says of a file's format; lines of a journal have none."""
    return f"Format `{properties['format']['const']}`, " if "format" in properties else ""
