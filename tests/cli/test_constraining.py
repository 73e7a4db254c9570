"""``prunekit prune`` with constraints, and recipes with the same words."""

import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from command_line import done, listing, typed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipeline"))
from micro_recipe import micro

from prunekit.cli.constraining import said_of_multiples
from prunekit.graph import Constraints
from prunekit.recipe import PruneOptions
from prunekit.slim import load_slim

LINE = "prunekit prune embedded:digits --group 1 --samples 16 --criterion magnitude --proposer oneshot --repair none"


def test_constraints_hold_in_the_slim_model_and_are_recorded_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (
        "--keep mid_block --keep conv_in --limit down_blocks.*=0.5 --limit time_embedding=40 "
        "--tie up_blocks.1.resnets.0.conv1,up_blocks.1.resnets.1.conv1 --norm-mode-of up_blocks.1=whole "
        "--head-mode-of up_blocks.*=even"
    )
    facts = done(f"{LINE} --target 0.7 {words} --json").json
    assert facts["macs"] <= 0.7 * facts["base_macs"]
    assert facts["multiples"] == {
        "groups": {"1": facts["multiples"]["groups"]["1"]},
        "asked": False,
        "finer": [],
        "costs": 0,
    }
    slim = load_slim("slim/group-1")
    assert slim.about["provenance"]["constraints"] == {
        "keep": ["mid_block", "conv_in"],
        "tie": [["up_blocks.1.resnets.0.conv1", "up_blocks.1.resnets.1.conv1"]],
        "limit": {"down_blocks.*": 0.5, "time_embedding": 40},
        "norm_mode_of": {"up_blocks.1": "whole"},
        "head_mode_of": {"up_blocks.*": "even"},
    }
    made = {name: len(m.weight) for name, m in slim.model.named_modules() if getattr(m, "weight", None) is not None}
    assert made["conv_in"] == 32
    assert all(made[f"mid_block.resnets.{i}.conv1"] == 48 for i in (0, 1))
    assert made["up_blocks.1.resnets.0.conv1"] == made["up_blocks.1.resnets.1.conv1"]
    assert made["time_embedding.linear_1"] >= 40
    assert made["down_blocks.0.resnets.0.conv1"] >= 16


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--keep mid_blok", "No layer is named mid_blok, which keep asks for; expected mid_block"),
        ("--keep mid_block --limit mid_block=0.5", "keep keeps whole"),
        ("--limit mid_block", "Got --limit mid_block; expected a name or pattern and a value"),
        ("--limit mid_block=half", "Got --limit mid_block=half; expected a fraction"),
        ("--limit mid_block=1.5", "expected a fraction between 0 and 1"),
        ("--limit mid_block=nan", "expected a fraction between 0 and 1"),
        ("--limit a=0.5 --limit a=0.6", "Got --limit a twice, as 0.5 and 0.6"),
        ("--tie conv_in", "names conv_in only"),
        ("--declare Foo=conv", "no module of class Foo"),
        ("--declare Attention=norm", "expected one of conv, linear"),
        ("--norm-mode-of mid_block=odd", "expected one of even, whole"),
        ("--head-mode-of conv_in=even", "No attention is named conv_in"),
    ],
)
def test_bad_constraints_get_one_sentence_and_write_nothing(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    result = typed(f"{LINE} --target 0.8 {words}")
    assert result.code == 2
    assert sentence in result.sentence
    assert listing(tmp_path) == {}


def test_a_target_below_what_constraints_allow_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = typed(f"{LINE} --target 0.5 --limit *=0.95")
    assert result.code == 2
    assert (
        "can be pruned to, 11,487,620 of its 11,491,328 MACs (0.9997)" in result.sentence
        or "Nothing of this network can be pruned" in result.sentence
    )


def test_nothing_to_prune_counts_what_the_floor_leaves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = done(f"{LINE} --target 1 --floor 1 --json").json
    assert "no smaller width is possible" in facts["nothing_to_prune"]


def test_the_table_says_what_multiples_cost():
    def fact(**multiples):
        return {
            "base": 1000,
            "multiples": {"groups": {"8": 3, "1": 1}, "asked": False, "finer": [], "costs": 0, **multiples},
        }

    assert said_of_multiples([fact(groups={"1": 4})]) is None
    said = said_of_multiples([fact(costs=1), fact(finer=["conv_in"])])
    assert "multiples of 8 (the default; --width-multiple 1 allows any)" in said
    assert "0.100% of the base nearer; 1 channel groups have finer ones" in said


def test_recipes_have_the_same_words_and_what_changes_widths_is_part_of_the_key():
    recipe = micro()
    assert recipe.prune is not None

    def key(**changes):
        changed = recipe.model_copy(update={"prune": replace(recipe.prune, **changes)})
        return changed.deciding(["prune"])

    keys = [key(), key(width_multiples=8), key(width_multiples={1: 8}), key(width_multiples={})]
    for word, value in {"keep": ("a",), "tie": (("a", "b"),), "limit": {"a": 2}, "declare": {"A": "conv"}}.items():
        keys.append(key(constraints=Constraints(**{word: value})))
    assert len({repr(one) for one in keys}) == len(keys)
    data = recipe.model_dump(mode="json")
    data["prune"]["constraints"] = {"keep": ["mid_block"], "limit": {"conv_in": 0.5, "a": 8}}
    read = type(recipe).model_validate(data)
    assert read.prune.constraints == Constraints(keep=("mid_block",), limit={"conv_in": 0.5, "a": 8})
    assert set(data["prune"]["constraints"]) <= {field.name for field in fields(Constraints)}
    assert PruneOptions(width_multiples=16).multiples == {1: 16}
