"""Every published file is read through the models and written again unchanged; the schemas and their page are up to date."""

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from prunekit._json import read_json
from prunekit.allocation import allocate
from prunekit.errors import FileFormatError, InputError
from prunekit.groups import Evidence, Grouping, make_groups
from prunekit.importance import ImportanceMap
from prunekit.results.consistency_results import ConsistencyFile
from prunekit.results.estimate import Estimate
from prunekit.results.evidence_results import EvidenceManifest
from prunekit.results.expert_results import BaseManifest, ExpertsManifest
from prunekit.results.learning_results import CurriculumManifest, MultistageManifest
from prunekit.results.manifest_head import Settings
from prunekit.results.model import Model
from prunekit.results.planning_files import AllocationFile, GroupsFile, ImportanceFile
from prunekit.results.reading_manifests import manifest_of, read_manifest
from prunekit.results.schemas import FILES, file_schema, formats_page
from prunekit.results.versions import records_of_state
from prunekit.schedule import NoiseSchedule, sampler_timesteps

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "reports").glob("*/manifest.json"))
OTHERS = [
    *((path, AllocationFile) for path in sorted((ROOT / "reports").glob("*/allocation.json"))),
    *((path, GroupsFile) for path in sorted((ROOT / "reports").glob("*/groups.json"))),
    *((path, GroupsFile) for path in sorted((ROOT / "reports").glob("*/groupings/*.json"))),
    *((path, ImportanceFile) for path in sorted((ROOT / "reports").glob("*/importance.json"))),
    *((path, ConsistencyFile) for path in sorted((ROOT / "reports" / "consistency").glob("*/consistency.json"))),
]
KINDS = {
    "digits-demo": ExpertsManifest,
    "fashion-tdc": EvidenceManifest,
    "digits-curriculum": CurriculumManifest,
    "digits-multistage": MultistageManifest,
}


def unknown(value, place=""):
    """Places of keys that no model has."""
    if isinstance(value, Model):
        yield from (f"{place}.{key}" for key in value.model_extra or {})
        for key in type(value).model_fields:
            yield from unknown(getattr(value, key), f"{place}.{key}")
    elif isinstance(value, list):
        for part in value:
            yield from unknown(part, f"{place}[]")
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from unknown(part, f"{place}.{key}")


def text(data):
    return json.dumps(data, sort_keys=True)  # tells 1 from 1.0


def name_of(path):
    return str(path.relative_to(ROOT / "reports").parent)


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_every_published_manifest_is_read_and_written_unchanged(path):
    manifest = read_manifest(path.parent)
    assert text(manifest.to_json()) == text(json.loads(path.read_text()))
    assert list(unknown(manifest)) == []


@pytest.mark.parametrize(("path", "form"), OTHERS, ids=[f"{name_of(path)}-{path.stem}" for path, _ in OTHERS])
def test_every_other_published_file_is_read_and_written_unchanged(path, form):
    data = read_json(path)
    found = form.of(data, str(path))
    assert text(found.to_json()) == text(data)
    assert list(unknown(found)) == []


def test_every_kind_of_manifest_has_a_class_of_its_own():
    for name, form in KINDS.items():
        assert type(read_manifest(ROOT / "reports" / name)) is form
    shipped = json.loads((ROOT / "prunekit" / "assets" / "digits-base.json").read_text())
    assert type(manifest_of(shipped)) is BaseManifest
    assert json.dumps(manifest_of(shipped).to_json()) == json.dumps(shipped)


def test_what_planning_writes_is_what_the_models_write():
    schedule = NoiseSchedule.linear(100)
    groups = make_groups(schedule, 3)
    allocation = allocate(groups, schedule, 0.8, sampler_timesteps(100, 10))
    for made in (allocation, allocation.for_model(10**9)):
        assert json.dumps(AllocationFile.of(made.to_json(), "it").to_json()) == json.dumps(made.to_json())
    evidence = Evidence(np.array([0, 50]), {"fraction": np.array([0.0, 0.5])}, np.eye(2), {"eta": 0.02})
    grouping = Grouping(groups, evidence).to_json()
    assert json.dumps(GroupsFile.of(grouping, "it").to_json()) == json.dumps(grouping)
    scores = ImportanceMap("taylor", groups.groups[:1], {"conv": 2}, {"out": "why"}, ({"conv": np.array([1.0, 2.0])},))
    assert json.dumps(ImportanceFile.of(scores.to_json(), "it").to_json()) == json.dumps(scores.to_json())


@pytest.mark.parametrize("name", FILES)
def test_the_schema_in_docs_is_up_to_date(name):
    path = ROOT / "docs" / "formats" / f"{name}.schema.json"
    fresh = path.read_text() == json.dumps(file_schema(name), indent=2) + "\n"
    assert fresh, f"stale: prunekit schema --file {name} > docs/formats/{name}.schema.json"
    jsonschema.Draft202012Validator.check_schema(file_schema(name))


def test_the_page_of_files_is_up_to_date():
    fresh = (ROOT / "docs" / "formats.md").read_text() == formats_page()
    assert fresh, "stale: prunekit schema --file formats --markdown > docs/formats.md"
    assert {path.name.partition(".")[0] for path in (ROOT / "docs" / "formats").iterdir()} == set(FILES)


def test_every_key_in_the_schemas_is_described():
    for name in FILES:
        schema = file_schema(name)
        for part in (schema, *schema.get("$defs", {}).values()):
            bare = [key for key, form in part.get("properties", {}).items() if not form.get("description")]
            assert bare == [], (name, part.get("title"))


@pytest.mark.parametrize("name", KINDS)
def test_published_manifests_are_valid_by_the_schema_and_damaged_ones_are_not(name):
    kind = KINDS[name].kind.name.lower()
    validator = jsonschema.Draft202012Validator(file_schema(f"manifest-{kind}"))
    data = json.loads((ROOT / "reports" / name / "manifest.json").read_text())
    assert next(validator.iter_errors(data), None) is None
    data["ledger"] = [{"stage": "search", "samples": "many", "macs": 1}]
    assert [list(error.path) for error in validator.iter_errors(data)] == [["ledger"]]
    with pytest.raises(FileFormatError, match=r'\(ledger\[0\]\.samples is "many"; expected a whole number\)'):
        manifest_of(data)


def test_a_file_without_a_schema_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"no file 'alocation' \(did you mean allocation\?\); expected one of groups"):
        file_schema("alocation")


def test_format_names_are_stated_once():
    sources = sorted((ROOT / "prunekit").rglob("*.py"))
    stated = [(path.stem, name) for path in sources for name in re.findall(r'"prunekit-[a-z-]+/\d+"', path.read_text())]
    assert {stem for stem, _ in stated} == {"formats"}
    assert len(stated) == len(set(stated))


def test_whole_numbers_stay_whole_and_unknown_keys_are_kept():
    data = {"mean": 3, "se": 0.5, "of_a_later_version": [1]}
    assert json.dumps(Estimate.of(data, "it").to_json()) == json.dumps(data)
    assert Estimate(mean=3).to_json() == {"mean": 3}


def test_a_configuration_keeps_the_order_of_its_keys():
    data = {"format": "prunekit-manifest/1", "config": {"name": "x", "finetune": {"train": {"steps": 3}}, "data": {}}}
    manifest = manifest_of(data)
    assert list(manifest.to_json()["config"]) == ["name", "finetune", "data"]
    assert manifest.settings == Settings.of(data["config"], "it")
    data["config"]["finetune"]["train"]["steps"] = "3"
    with pytest.raises(FileFormatError, match=r'config\.finetune\.train\.steps is "3"; expected a whole number'):
        manifest_of(data)


def test_a_key_that_may_be_missing_may_not_be_null():
    data = {"format": "prunekit-groups/1", "num_timesteps": 10, "groups": [{"index": 0, "start": 0, "stop": 10}]}
    assert GroupsFile.of(data, "it").evidence is None
    with pytest.raises(FileFormatError, match="evidence is null; expected an object"):
        GroupsFile.of({**data, "evidence": None}, "it")


def test_a_file_that_is_nested_too_deeply_is_refused_in_one_sentence():
    deep = current = {}
    for _ in range(5000):
        current["a"] = current = {}
    with pytest.raises(
        FileFormatError,
        match=r"^The manifest cannot be read \([^\n]* is nested too deeply\); make it again with `prunekit run`\.$",
    ):
        manifest_of({"format": "prunekit-manifest/1", "seeds": {"base": deep}})


def test_older_comparisons_have_only_the_name_of_their_features():
    data = json.loads((ROOT / "reports" / "fashion-tdc" / "manifest.json").read_text())
    data["metrics"]["features"] = "fashion-cnn"
    assert manifest_of(data).metrics.features.name == "fashion-cnn"


def test_the_records_of_all_stages_in_one_file_are_read():
    stages = {"base": {"key": "ab", "seconds": 1.5, "facts": {"ledger": []}}}
    (record,) = records_of_state({"stages": stages}, "state.json").values()
    assert (record.key, record.outputs, record.results.ledger) == ("ab", None, [])
    with pytest.raises(FileFormatError, match=r"Stage base of state\.json cannot be read \('key' is missing\)"):
        records_of_state({"stages": {"base": {"seconds": 1.5, "facts": {}}}}, "state.json")
    with pytest.raises(FileFormatError, match="holds no stages"):
        records_of_state({"stages": 3}, "state.json")
