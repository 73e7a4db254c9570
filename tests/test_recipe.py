import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.recipe import BaseOptions, MultistageOptions, Recipe, load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
WHOLE = """\
name: whole
description: Every section.
data: {source: digits, resolution: 8}
base:
  model:
    class: UNet2DModel
    config: {in_channels: 1}
  noise_schedule: {kind: cosine, num_timesteps: 500}
  prediction_type: v_prediction
  train:
    steps: 100
    learning_rate: 1e-3
groups:
  method: snr
  count: 4
allocation:
  budget: 0.8
  rule: snr
prune:
  criterion: magnitude
  search:
    proposer: greedy
    rounds: 3
finetune:
  overlap: 10
  train: {steps: 10}
evaluation:
  seeds: [0, 1]
"""


@pytest.fixture
def recipe(tmp_path):
    """Load a recipe from text."""

    def load(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path)

    return load


def line_of(text, part):
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def changed(old, new):
    assert WHOLE.count(old) == 1
    return WHOLE.replace(old, new)


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid_and_named_as_its_file(path):
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dump_of_a_recipe_is_the_same_recipe(path):
    recipe = load_recipe(path)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_every_value_arrives(recipe):
    read = recipe(WHOLE)
    assert (read.name, read.description) == ("whole", "Every section.")
    assert (read.data.source, read.data.resolution) == ("digits", 8)
    assert read.base.spec().class_name == "UNet2DModel"
    assert read.base.noise_schedule == {"kind": "cosine", "num_timesteps": 500}
    assert read.base.train.learning_rate == 1e-3  # YAML 1.1 itself takes 1e-3 for a text
    assert (read.groups.method, read.groups.count, read.groups.cuts) == ("snr", 4, None)
    assert (read.allocation.budget, read.allocation.rule, read.allocation.steps) == (0.8, "snr", 50)
    assert (read.prune.criterion, read.prune.search.rounds) == ("magnitude", 3)
    assert (read.finetune.overlap, read.finetune.train.steps) == (10, 10)
    assert read.evaluation.seeds == (0, 1)
    assert Recipe.model_validate(read.model_dump(mode="json")) == read


def test_stages_that_are_not_named_are_not_run(recipe):
    read = recipe("name: base-only\nbase: {checkpoint: 'embedded:digits'}\n")
    assert [read.groups, read.allocation, read.prune, read.finetune, read.evaluation] == [None] * 5


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("data: {", "dta: {", "dta"),
        ("  prediction_type:", "  predict:", "base.predict"),
        ("    steps: 100", "    stepps: 100", "base.train.stepps"),
        ("  count: 4", "  number: 4", "groups.number"),
        ("    rounds: 3", "    turns: 3", "prune.search.turns"),
        ("  train: {steps: 10}", "  train: {epochs: 10}", "finetune.train.epochs"),
        ("  seeds:", "  seed:", "evaluation.seed"),
    ],
)
def test_an_unknown_key_is_refused_with_its_line(recipe, old, new, where):
    text = changed(old, new)
    with pytest.raises(FileFormatError, match=rf"recipe\.yaml, line {line_of(text, new)}: {where}: .*[.?]$") as caught:
        recipe(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("name: whole", "name: Whole Thing", "name"),
        ("name: whole", "name: ../up", "name"),
        ("name: whole", "name: [a]", "name"),
        ("resolution: 8", "resolution: large", "data.resolution"),
        ("resolution: 8", "resolution: [8, x]", "data.resolution.1"),
        ("resolution: 8", "resolution: [8, 8, 8]", "data.resolution"),
        ("resolution: 8", "resolution: 8.5", "data.resolution"),
        ("    steps: 100", "    steps: 1.5", "base.train.steps"),
        ("    steps: 100", "    steps: 0", "base.train"),
        ("    learning_rate: 1e-3", "    learning_rate: fast", "base.train.learning_rate"),
        ("  prediction_type: v_prediction", "  prediction_type: noise", "base.prediction_type"),
        ("  method: snr", "  method: kmeans", "groups.method"),
        ("  count: 4", "  count: 0", "groups.count"),
        ("  count: 4", "  cuts: [100, x]", r"groups.cuts.1"),
        ("  budget: 0.8", "  budget: 1.2", "allocation.budget"),
        ("  budget: 0.8", "  budget: 0", "allocation.budget"),
        ("  budget: 0.8", "  budget: .nan", "allocation.budget"),
        ("  rule: snr", "  rule: cubic", "allocation.rule"),
        ("  rule: snr", "  steps: 0", "allocation.steps"),
        ("  rule: snr", "  floor: 0", "allocation.floor"),
        ("  criterion: magnitude", "  samples: -1", "prune.samples"),
        ("  overlap: 10", "  overlap: -1", "finetune.overlap"),
        ("  seeds: [0, 1]", "  seeds: []", "evaluation.seeds"),
        ("  seeds: [0, 1]", "  seeds: [0, x]", "evaluation.seeds.1"),
        ("  seeds: [0, 1]", "  samples: 0", "evaluation.samples"),
    ],
)
def test_a_wrong_value_is_refused_with_its_line(recipe, old, new, where):
    text = changed(old, new)
    line = line_of(text, "  train:" if where == "base.train" else new)
    with pytest.raises(FileFormatError, match=rf"line {line}: {where}: "):
        recipe(text)


@pytest.mark.parametrize(
    ("old", "new", "section", "said"),
    [
        ("kind: cosine", "kind: quadratic", "base.noise_schedule", "Unknown noise schedule 'quadratic'"),
        ("    class: UNet2DModel", "    klass: UNet2DModel", "base", "An architecture needs 'class' and 'config'"),
        ("  criterion: magnitude", "  criterion: vibes", "prune", "Unknown criterion 'vibes'; expected one of"),
        ("    proposer: greedy", "    proposer: oracle", "prune.search", "Unknown proposer 'oracle'; expected one of"),
        ("  train: {steps: 10}", "  train: {steps: 0}", "finetune.train", "Got steps 0; expected at least 1"),
    ],
)
def test_what_a_section_refuses_is_told_in_its_words(recipe, old, new, section, said):
    text = changed(old, new)
    name = section.rsplit(".", 1)[-1]
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.strip().startswith(f"{name}:")]
    with pytest.raises(FileFormatError, match=rf", line {lines[-1]}: {section}: {said}") as caught:
        recipe(text)
    assert "Value error" not in str(caught.value)
    assert not str(caught.value).endswith("..")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  seeds: [0, 1]", "  seeds: [1, 0, 1]", "Got seed 1 more than once; expected different seeds."),
        (
            "  train: {steps: 10}",
            "  train: {steps: 10, curriculum_width: 0}",
            "Got curriculum_center 0.3 and curriculum_width 0;",
        ),
        ("  train: {steps: 10}", "  train: {steps: 10, curriculum_center: -50}", "a centre in [0, 1]"),
        (
            "  method: snr\n  count: 4",
            "  experts: noisy\n  count: 3",
            "Got experts noisy with a method, a count or cuts",
        ),
    ],
)
def test_what_would_fail_or_mislead_after_the_training_is_refused_before(recipe, old, new, said):
    with pytest.raises(FileFormatError, match=re.escape(said)):
        recipe(changed(old, new))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"networks": []}, "expected unified, with which all are compared"),
        ({"networks": ["unified"]}, "expected unified, with which all are compared"),
        ({"networks": ["equal", "equal"]}, "expected unified, with which all are compared"),
        ({"networks": ["unified", "equal", "equal"]}, "others, each once"),
        ({"groupings": [{"experts": "noisy"}]}, "Got a grouping with experts noisy"),
        ({"seeds": [0, 0]}, "Got seed 0 more than once"),
    ],
)
def test_comparisons_without_anything_to_compare_are_refused(section, said):
    data = {"widths": [[8, 8], [8, 8]], "groupings": [{"count": 2}], **section}
    with pytest.raises((ValidationError, InputError), match=re.escape(said)):
        TypeAdapter(MultistageOptions).validate_python(data)


def test_learning_rates_are_one_for_each_group(recipe):
    text = changed("  overlap: 10", "  overlap: 10\n  learning_rates: [0.0005, 0.0005, 1e-3, 0.002]")
    assert recipe(text).finetune.learning_rates == (0.0005, 0.0005, 0.001, 0.002)
    cuts = text.replace("  method: snr\n", "").replace("count: 4", "cuts: [100, 200]")
    with pytest.raises(FileFormatError, match=r"Got 4 finetune\.learning_rates and 3 groups"):
        recipe(cuts)
    with pytest.raises(FileFormatError, match=r"finetune\.learning_rates\.1"):
        recipe(text.replace("[0.0005, 0.0005,", "[0.0005, 0,"))


def test_a_recipe_without_a_name_or_base_is_refused(recipe):
    with pytest.raises(FileFormatError, match=r"line 1: name: Field required\."):
        recipe("base: {checkpoint: x.pt}\n")
    with pytest.raises(FileFormatError, match=r"line 1: base: Field required\."):
        recipe("name: x\n")


@pytest.mark.parametrize("base", ["{}", "{checkpoint: x.pt, model: {class: UNet2DModel, config: {}}}"])
def test_a_base_is_either_read_or_trained(recipe, base):
    with pytest.raises(FileFormatError, match="line 2: base: A base needs either a checkpoint or a model to train"):
        recipe(f"name: x\nbase: {base}\n")
    with pytest.raises(InputError):
        BaseOptions()


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("name: x\nbase: {checkpoint: a.pt}\nname: y\n", "name", 3),
        ("name: x\nbase:\n  checkpoint: a.pt\n  checkpoint: b.pt\n", "checkpoint", 4),
    ],
)
def test_a_key_that_is_given_twice_is_refused(recipe, text, key, line):
    with pytest.raises(FileFormatError, match=rf"line {line}: {key}: given twice"):
        recipe(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "is not YAML"),
        ("name: x\n\tbase: y", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        ("[" * 1500, "is not YAML"),
        ("name: x\nbase: &loop {model: *loop}\n", "is not YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("", "holds no mapping"),
        ("- name: x\n", "holds no mapping"),
        ("just text", "holds no mapping"),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(recipe, text, said):
    with pytest.raises(FileFormatError, match=said) as caught:
        recipe(text)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_told(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="a folder; expected a recipe"):
        load_recipe(tmp_path)


def test_every_section_refuses_unknown_keys():
    sections = [
        option
        for field in Recipe.model_fields.values()
        for option in (field.annotation, *getattr(field.annotation, "__args__", ()))
        if is_dataclass(option)
    ]
    assert len(sections) == len(Recipe.model_fields) - 2  # all but name and description
    nested = [f.default_factory for section in sections for f in fields(section) if is_dataclass(f.default_factory)]
    assert nested
    assert all(option.__pydantic_config__["extra"] == "forbid" for option in [*sections, *nested])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  seeds: [0, 1]", "  seeds: []", "Got 0 of them; expected at least 1."),
        ("  overlap: 10", "  overlap: -3", "Got -3; expected a number greater than or equal to 0."),
        ("  overlap: 10", "  overlap: many", "Got 'many'; expected a whole number"),
    ],
)
def test_what_was_given_and_what_is_expected_are_both_told(recipe, old, new, said):
    with pytest.raises(FileFormatError, match=re.escape(said)):
        recipe(changed(old, new))
