"""Kinds of recipes: the sections decide the kind, and each kind requires its own."""

from pathlib import Path

import pytest
import yaml
from recipe_parts import CHECKPOINT, CURRICULUM, EVIDENCE, MODEL, MULTISTAGE, SECTIONS

from prunekit.errors import FileFormatError
from prunekit.experiments import Experiment
from prunekit.recipe import (
    BaseRecipe,
    CurriculumRecipe,
    EntryRecipe,
    EvidenceRecipe,
    ExpertsRecipe,
    MultistageRecipe,
    Recipe,
    load_recipe,
)
from prunekit.recipe.recipe import MODELS
from prunekit.report.kinds import KINDS
from prunekit.studies.kinds_of_runs import RUNS

RECIPES = Path(__file__).parents[2] / "recipes"
KIND_OF = {
    "digits-base": BaseRecipe,
    "fashion-base": BaseRecipe,
    "fashion-demo": ExpertsRecipe,
    "ddpm-cifar10": ExpertsRecipe,
    "digits-demo": ExpertsRecipe,
    "digits-curriculum": CurriculumRecipe,
    "digits-multistage-on": MultistageRecipe,
    "fashion-tdc": EvidenceRecipe,
}


@pytest.fixture
def load(tmp_path):
    """A recipe as a user gives it."""

    def from_data(**data):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"name": "x", **data}, sort_keys=False))
        return load_recipe(path)

    return from_data


@pytest.fixture
def refused(load):
    """What is said of a wrong recipe, from its line on."""

    def said(**data):
        with pytest.raises(FileFormatError) as caught:
            load(**data)
        return str(caught.value).partition("recipe.yaml, ")[2]

    return said


def test_recipes_runs_and_reports_have_every_kind():
    assert set(MODELS) == set(RUNS) == set(Experiment)
    assert set(KINDS) == set(Experiment) - {Experiment.BASE}
    assert all(model.experiment is kind for kind, model in MODELS.items())


@pytest.mark.parametrize(("name", "kind"), KIND_OF.items())
def test_a_recipe_is_of_the_kind_that_its_sections_ask_for(name, kind):
    assert type(load_recipe(RECIPES / f"{name}.yaml")) is kind


def test_sections_that_are_null_ask_for_nothing():
    data = {"name": "x", "base": CHECKPOINT, **SECTIONS, "evidence": None, "multistage": None}
    recipe = Recipe.model_validate(data)
    assert type(recipe) is ExpertsRecipe
    assert type(Recipe.model_validate(recipe.model_dump(mode="json"))) is ExpertsRecipe
    assert type(Recipe.model_validate_json(recipe.model_dump_json())) is ExpertsRecipe
    assert Recipe.model_validate(recipe) is recipe


def test_all_kinds_write_the_same_keys_in_the_same_order():
    assert {tuple(model.model_fields) for model in MODELS.values()} == {tuple(Recipe.model_fields)}


def test_an_entry_has_every_section_and_the_base_has_none(load):
    recipe = load(base=MODEL, **SECTIONS, evidence=EVIDENCE)
    assert type(recipe.entry("a")) is EntryRecipe
    assert type(recipe.only()) is BaseRecipe
    assert recipe.only().model_dump() == recipe.model_copy(update=dict.fromkeys([*SECTIONS, "evidence"])).model_dump()
    part = recipe.entry("a").only("groups", "allocation", "prune")
    assert (type(part), part.finetune, part.prune) == (ExpertsRecipe, None, recipe.prune)


@pytest.mark.parametrize("missing", SECTIONS)
def test_a_comparison_says_what_it_needs_and_what_is_missing(refused, missing):
    sections = {name: {} for name in SECTIONS if name != missing}
    said = refused(base=MODEL, **sections, evidence=EVIDENCE)
    assert "An evidence section needs groups, allocation, prune, finetune and" in said
    assert said.endswith(f"; got no {missing}.")


@pytest.mark.parametrize("section", ["groups", "allocation", "prune", "finetune", "curriculum"])
def test_a_section_that_a_comparison_does_not_read_is_refused_with_its_line(refused, section):
    value = {"curriculum": CURRICULUM}.get(section, {})
    said = refused(base=CHECKPOINT, evaluation={}, multistage=MULTISTAGE, **{section: value})
    assert f"{section}: A multistage section needs an evaluation section, without" in said
    assert said.endswith(f"; got {section}.")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"loss_weight": "min-snr"}, "needs loss_weight none"),
        ({"label_dropout": 0.5}, "Got label_dropout or condition_dropout"),
    ],
)
def test_options_that_networks_for_stages_do_not_follow_are_refused(refused, train, said):
    assert said in refused(base=MODEL | {"train": train}, evaluation={}, multistage=MULTISTAGE)


def test_an_entry_that_hides_conditions_that_are_not_there_is_refused(refused):
    entries = {"a": {}, "b": {"label_dropout": 0.5}}
    said = refused(base=MODEL, evaluation={}, curriculum=CURRICULUM | {"entries": entries})
    assert "Got label_dropout or condition_dropout" in said


def test_a_comparison_of_trainings_needs_a_model(refused):
    said = refused(base=CHECKPOINT, evaluation={}, curriculum=CURRICULUM)
    assert "curriculum section needs a base with a model to train" in said
    assert said.endswith("; got a base with a checkpoint.")


def test_experts_of_a_trained_base_are_compared_too(load):
    assert isinstance(load(base=CHECKPOINT, **SECTIONS, evidence=EVIDENCE), EvidenceRecipe)


def evidence_of(changes, **sections):
    """A comparison with one entry that changes sections."""
    entries = {"a": {"changes": changes}}
    return EvidenceRecipe.model_validate(
        {"name": "n", "base": CHECKPOINT, **SECTIONS, **sections, "evidence": {**EVIDENCE, "entries": entries}}
    )


@pytest.mark.parametrize(
    ("own", "number"), [({"count": 1}, 1), ({"method": "snr", "count": 4}, 4), ({"cuts": [100]}, 2), ({"eta": 0.5}, 3)]
)
def test_an_entrys_groups_stand_above_the_recipes_cuts(own, number):
    recipe = evidence_of({"groups": own}, groups={"cuts": [300, 600]})
    assert recipe.entry("a").groups.number == number
    assert recipe.groups.number == 3


def test_an_entry_replaces_mappings_that_are_values():
    limited = {"width_multiples": {32: 8}, "constraints": {"limit": {"a": 0.5}, "keep": ["c"]}}
    recipe = evidence_of({"prune": {"width_multiples": {16: 4}, "constraints": {"limit": {"b": 0.25}}}}, prune=limited)
    found = recipe.entry("a").prune
    assert dict(found.width_multiples) == {16: 4}
    assert dict(found.constraints.limit) == {"b": 0.25}
    assert found.constraints.keep == recipe.prune.constraints.keep


@pytest.mark.parametrize("train", [None, 5, "x", ["steps"]])
def test_a_training_that_is_no_section_is_refused_in_one_sentence(tmp_path, train):
    path = tmp_path / "recipe.yaml"
    entries = {"a": {"changes": {"finetune": {"train": train}}}}
    path.write_text(
        yaml.safe_dump({"name": "n", "base": CHECKPOINT, **SECTIONS, "evidence": {**EVIDENCE, "entries": entries}})
    )
    with pytest.raises(FileFormatError, match="train"):
        load_recipe(path)
