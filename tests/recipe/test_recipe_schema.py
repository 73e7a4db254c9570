"""The JSON Schema and the reference page of recipes: complete, true and up to date."""

import json
import re
from collections import deque
from pathlib import Path

import pytest
import yaml
from recipe_parts import CHECKPOINT, CURRICULUM, EVIDENCE, MODEL, MULTISTAGE, SECTIONS

from prunekit.errors import FileFormatError
from prunekit.recipe import Recipe, load_recipe
from prunekit.recipe.reference import recipe_schema, reference_page
from prunekit.recipe.schema import inner

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SCHEMA = recipe_schema()
BOUNDS = {"minimum": -1, "exclusiveMinimum": 0, "maximum": 1, "exclusiveMaximum": 0}
"""By bound, the step that leads out of what it allows."""
WORKING = {
    "base": MODEL,
    "experts": {"base": CHECKPOINT, **SECTIONS},
    "curriculum": {"base": MODEL, "evaluation": {}, "curriculum": CURRICULUM},
    "multistage": {"base": MODEL, "evaluation": {}, "multistage": MULTISTAGE},
    "evidence": {"base": MODEL, **SECTIONS, "evidence": EVIDENCE},
}
WRONG = {
    "an unknown key": {"base": CHECKPOINT, "groups": {"metod": "snr"}},
    "an unknown name": {"base": CHECKPOINT, "groups": {"method": "kmeans"}},
    "too large": {"base": CHECKPOINT, "allocation": {"budget": 1.5}},
    "too large elsewhere": {"base": CHECKPOINT, "finetune": {"train": {"steps": 0}}},
    "an unknown section": {"base": CHECKPOINT, "evidense": EVIDENCE},
    "a missing section": {"base": MODEL, "curriculum": CURRICULUM},
    "a section too many": {"base": MODEL, "evaluation": {}, "prune": {}, "curriculum": CURRICULUM},
    "no model": {"base": CHECKPOINT, "evaluation": {}, "curriculum": CURRICULUM},
    "an entry's unknown key": {
        "base": MODEL,
        **SECTIONS,
        "evidence": {**EVIDENCE, "entries": {"a": {"changes": {"prune": {"samplez": 1}}}}},
    },
    "an entry's unknown option": {
        "base": MODEL,
        "evaluation": {},
        "curriculum": {"entries": {"a": {}, "b": {"stepz": 1}}},
    },
}


def keys():
    """Every key with its path and its forms."""
    left, seen = deque([((), SCHEMA)]), set()
    while left:
        way, node = left.popleft()
        for form in inner(SCHEMA, node):
            if "items" in form:
                left.append((way, form["items"]))
            if id(form) not in seen:
                seen.add(id(form))
                left += [((*way, key), below) for key, below in form.get("properties", {}).items()]
                yield from (((*way, key), below) for key, below in form.get("properties", {}).items())


def loads(tmp_path, data):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "x", **data}, sort_keys=False))
    try:
        return load_recipe(path)
    except FileFormatError:
        return None


@pytest.mark.parametrize(
    ("name", "content"),
    [("recipe.schema.json", json.dumps(SCHEMA, indent=2) + "\n"), ("recipe.md", reference_page())],
    ids=["schema", "page"],
)
def test_what_is_in_docs_is_up_to_date(name, content):
    fresh = (ROOT / "docs" / name).read_text(encoding="utf-8") == content
    options = " --markdown" if name.endswith("md") else ""
    assert fresh, f"stale: prunekit schema{options} > docs/{name}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_names_the_schema_for_editors(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == (
        ROOT / "docs" / "recipe.schema.json"
    )


def test_every_key_is_described_with_its_kind_of_value():
    found = dict(keys())
    assert len(found) > 100
    silent = [way for way, node in found.items() if "description" not in node and "changes" not in way]
    assert silent == []
    for way, node in found.items():
        assert all({"type", "enum", "const"} & set(form) for form in inner(SCHEMA, node)), way


def test_the_page_has_every_key_and_every_section():
    page = reference_page()
    for way, _ in keys():
        assert f"\n| `{way[-1]}` | " in page
    assert all(f"](#{section})" in page and f"\n## {section}\n" in page for section in [*SECTIONS, "data", "base"])
    assert "`least-squares`" in page
    assert "1 to 1,000,000,000" in page
    assert re.findall(r":[a-z]+:`", page) == [], "a role of Sphinx is left"


@pytest.mark.parametrize(
    "key",
    [(way, bound) for way, node in keys() for form in inner(SCHEMA, node) for bound in BOUNDS if bound in form],
    ids=lambda key: f"{'.'.join(key[0])}-{key[1]}",
)
def test_a_value_outside_the_bounds_of_the_schema_is_refused(tmp_path, key):
    way, bound = key
    node = dict(keys())[way]
    form = next(form for form in inner(SCHEMA, node) if bound in form)
    value = form[bound] + BOUNDS[bound]
    kind = {"multistage": "multistage", "curriculum": "curriculum", "evidence": "evidence"}.get(way[0], "experts")
    data = json.loads(json.dumps(WORKING[kind]))
    if way[0] == "base":
        data = {"base": json.loads(json.dumps(MODEL))}
    section = data
    for part in way[:-1]:
        section = section.setdefault(part, {})
    assert loads(tmp_path, data) is not None or way[:2] == ("base", "noise_schedule")
    section[way[-1]] = value
    assert loads(tmp_path, data) is None


def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="comes with the extra test")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid_by_the_schema(path):
    text = path.read_text(encoding="utf-8")
    assert [error.message for error in validator().iter_errors(yaml.safe_load(text))] == []
    assert list(validator().iter_errors(load_recipe(path).model_dump(mode="json"))) == []


@pytest.mark.parametrize("data", [data for kind, data in WORKING.items() if kind != "base"])
def test_what_loads_is_valid_by_the_schema(tmp_path, data):
    assert loads(tmp_path, data) is not None
    assert [error.message for error in validator().iter_errors({"name": "x", **data})] == []


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_what_is_refused_is_invalid_by_the_schema_too(tmp_path, data):
    assert loads(tmp_path, data) is None
    assert not validator().is_valid({"name": "x", **data})


def test_the_defaults_of_the_schema_are_those_of_a_recipe():
    recipe = Recipe.model_validate({"name": "x", "base": CHECKPOINT, **SECTIONS}).model_dump(mode="json")
    for section in ("data", *SECTIONS):
        (form,) = (form for form in inner(SCHEMA, SCHEMA["properties"][section]) if "properties" in form)
        assert {key: node.get("default") for key, node in form["properties"].items()} == recipe[section]
