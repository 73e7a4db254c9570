"""Misspelt keys and names: the message says what was probably meant."""

import pytest
import yaml
from recipe_parts import CHECKPOINT, EVIDENCE, MODEL, MULTISTAGE, SECTIONS

from prunekit._messages import nearest
from prunekit.checkpoint import ModelSpec
from prunekit.errors import FileFormatError, InputError
from prunekit.recipe import load_recipe

KEYS = {
    "evidense": ({"evidense": EVIDENCE}, "evidence"),
    "groups.metod": ({"groups": {"metod": "snr"}}, "method"),
    "data.sorce": ({"data": {"sorce": "digits"}}, "source"),
    "prune.search.llm.ur": ({"prune": {"search": {"llm": {"ur": "http://h/v1", "model": "m"}}}}, "url"),
    "prune.constraints.kep": ({"prune": {"constraints": {"kep": ["a"]}}}, "keep"),
    "finetune.train.learning-rate": ({"finetune": {"train": {"learning-rate": 1}}}, "learning_rate"),
    "finetune.distillation.wieght": ({"finetune": {"distillation": {"wieght": 1}}}, "weight"),
    "multistage.groupings.0.cont": (
        {"evaluation": {}, "multistage": {**MULTISTAGE, "groupings": [{"cont": 3}]}},
        "count",
    ),
    "evidence.entries.a.kin": ({**SECTIONS, "evidence": {**EVIDENCE, "entries": {"a": {"kin": "x"}}}}, "kind"),
    "evidence.entries.a.changes.prun": (
        {**SECTIONS, "evidence": {**EVIDENCE, "entries": {"a": {"changes": {"prun": {}}}}}},
        "prune",
    ),
}
NAMES = {
    "groups: method": ({"groups": {"method": "unifrm"}}, "uniform"),
    "groups: rule": ({"groups": {"method": "similarity", "rule": "stagez"}}, "stages"),
    "allocation": ({"allocation": {"rule": "linaer"}}, "linear"),
    "criterion": ({"prune": {"criterion": "Tailor"}}, "taylor"),
    "norm_mode": ({"prune": {"norm_mode": "evn"}}, "even"),
    "repair": ({"prune": {"repair": "least squares"}}, "least-squares"),
    "proposer": ({"prune": {"search": {"proposer": "gredy"}}}, "greedy"),
    "proxy": ({"prune": {"search": {"proxy": "recovry"}}}, "recovery"),
    "target_of": ({"prune": {"search": {"target_of": "latencies"}}}, "latency"),
    "constraints": ({"prune": {"constraints": {"head_mode_of": {"a": "hole"}}}}, "whole"),
    "precision": ({"finetune": {"train": {"mixed_precision": "bf-16"}}}, "bf16"),
    "loss_weight": ({"finetune": {"train": {"loss_weight": "min_snr"}}}, "min-snr"),
    "features": ({"evaluation": {"features": "digits_cnn"}}, "digits-cnn"),
    "noise schedule": ({"base": {**MODEL, "noise_schedule": {"kind": "cosin", "num_timesteps": 9}}}, "cosine"),
    "its keys": ({"base": {**MODEL, "noise_schedule": {"kind": "cosine", "timesteps": 9}}}, "num_timesteps"),
    "networks": ({"evaluation": {}, "multistage": {**MULTISTAGE, "networks": ["unifed"]}}, "unified"),
    "headline": ({**SECTIONS, "evidence": {"headline": "exprts", "entries": {"experts": {}}}}, "experts"),
    "entry": ({**SECTIONS, "evidence": {**EVIDENCE, "entries": {"a": {"kind": "experst"}}}}, "experts"),
    "option of an entry": (
        {"evaluation": {}, "curriculum": {"entries": {"a": {}, "b": {"wamup_steps": 1}}}},
        "warmup_steps",
    ),
    "value of an entry": ({"evaluation": {}, "curriculum": {"entries": {"a": {}, "b": {"loss_weight": "p"}}}}, "p2"),
}


@pytest.fixture
def refused(tmp_path):
    """The message, after the file's name and the line, which it returns too."""

    def said(data):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"name": "x", "base": MODEL, **data}, sort_keys=False))
        with pytest.raises(FileFormatError) as caught:
            load_recipe(path)
        assert "\n" not in str(caught.value)
        line, _, message = str(caught.value).removeprefix(f"{path}, line ").partition(": ")
        return path.read_text().splitlines()[int(line) - 1].strip(), message

    return said


@pytest.mark.parametrize(("place", "data", "meant"), [(place, *case) for place, case in KEYS.items()], ids=KEYS)
def test_an_unknown_key_is_compared_with_those_of_its_section(refused, place, data, meant):
    *way, key = place.split(".")
    where = f" in {'.'.join(way)}" if way else ""
    line, message = refused(data)
    assert message == f"{place}: Unknown key `{key}`{where}; did you mean `{meant}`?"
    assert line.removeprefix("- ").startswith(f"{key}:")


def test_a_key_that_is_like_no_other_gets_the_list(refused):
    _, message = refused({"finetune": {"distillation": {"zzz": 1}}})
    assert message == (
        "finetune.distillation.zzz: Unknown key `zzz` in finetune.distillation; expected one of weight, feature_weight, fade."
    )


def test_a_misspelt_key_of_an_entrys_changes_is_told_with_the_entry(refused):
    changes = {"prune": {"search": {"proposr": "greedy"}}}
    line, message = refused({**SECTIONS, "evidence": {**EVIDENCE, "entries": {"a": {"changes": changes}}}})
    assert line == "proposr: greedy"
    assert "Entry a: prune.search.proposr: Unknown key `proposr` in prune.search; did you mean `proposer`?" in message


def test_a_misspelt_section_is_told_rather_than_that_it_is_missing(refused):
    assert refused({"base": None, "bse": CHECKPOINT})[1] == "bse: Unknown key `bse`; did you mean `base`?"
    others = {name: {} for name in SECTIONS if name != "finetune"}
    assert "did you mean `finetune`?" in refused({**others, "fintune": {}, "evidence": EVIDENCE})[1]


@pytest.mark.parametrize(("data", "meant"), NAMES.values(), ids=NAMES)
def test_an_unknown_name_is_compared_with_the_known_ones(refused, data, meant):
    message = refused(data)[1]
    assert f" (did you mean {meant}?)" in message
    assert "; expected " in message
    assert message.endswith(".")


def test_what_is_no_section_gets_its_keys(refused):
    assert refused({"groups": [1]}) == (
        "groups:",
        "groups: Got [1]; expected a mapping with keys such as method, count, cuts.",
    )


def test_a_name_that_cannot_be_one_is_told_what_names_are_like(refused):
    told = refused({"name": "Mine!"})[1]
    assert told == "name: Got the name 'Mine!'; expected lower-case letters, digits and hyphens, at most 64."
    entries = {"weight 1/L": {}}
    others = {name: {} for name in SECTIONS}
    told = refused({**others, "evidence": {"headline": "weight 1/L", "entries": entries}})[1]
    assert "Got the name 'weight 1/L'; expected a letter or digit, then letters, digits, spaces" in told


def test_a_misspelt_argument_of_a_network_is_told_when_it_is_built():
    spec = ModelSpec.from_json({"class": "UNet2DModel", "config": {"block_out_chanels": [8, 8]}})
    with pytest.raises(InputError, match=r"\(did you mean block_out_channels\?\)\.$"):
        spec.build()


@pytest.mark.parametrize(("given", "found"), [("metod", "method"), ("METHOD", "method"), ("x", None), (3, None)])
def test_the_nearest_name_is_found_whatever_its_case(given, found):
    assert nearest(given, ["count", "method"]) == found
