"""What a recipe may not say, whatever the key: it is refused before anything is run, in one printable line that says where."""

import math
import ntpath
import posixpath
import re

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prunekit.errors import FileFormatError, InputError
from prunekit.recipe import Recipe, check_inner_name, load_recipe
from prunekit.recipe.bounds import unsafe_values
from prunekit.recipe.schema import inner, schema_of
from prunekit.steps.bases import complete_spec

BASE = {"checkpoint": "embedded:digits"}
UNET = {"class": "UNet2DModel", "config": {"in_channels": 1}}
ENTRIES = {"a": {"train": {}}, "b": {}}


def refused(tmp_path, data):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "hostile", "base": BASE, **data}))
    with pytest.raises(FileFormatError) as caught:
        load_recipe(path)
    said = str(caught.value)
    assert "\n" not in said
    return said.removeprefix(str(path))


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"data": {"resolution": 10**30}}, "data.resolution"),
        ({"groups": {"count": 2**20 + 1}}, "groups.count"),
        ({"groups": {"method": "gradient", "samples": 10**18}}, "groups.samples"),
        ({"groups": {"method": "similarity", "memory_mib": 10**18}}, "groups.memory_mib"),
        ({"groups": {"seed": 2**32}}, "groups.seed"),
        ({"groups": {"eta": math.inf}}, "groups.eta"),
        ({"allocation": {"budget": math.nan}}, "allocation.budget"),
        ({"allocation": {"steps": 10**18}}, "allocation.steps"),
        ({"prune": {"samples": 10**18}}, "prune.samples"),
        ({"prune": {"seed": -1}}, "prune.seed"),
        ({"prune": {"search": {"rounds": 10**18}}}, "prune.search"),
        ({"prune": {"search": {"proposer": "tpe", "trials": 10**18}}}, "prune.search"),
        ({"prune": {"width_multiples": {10**18: 1}}}, "prune.width_multiples"),
        ({"finetune": {"overlap": 10**18}}, "finetune.overlap"),
        ({"finetune": {"train": {"steps": 10**10}}}, "finetune.train"),
        ({"finetune": {"train": {"batch_size": 10**9}}}, "finetune.train"),
        ({"finetune": {"train": {"seed": -1}}}, "finetune.train"),
        ({"finetune": {"train": {"learning_rate": math.inf}}}, "finetune.train.learning_rate"),
        ({"base": {"model": UNET, "noise_schedule": {"kind": "linear", "num_timesteps": 10**12}}}, "base"),
        ({"evaluation": {"samples": 10**18}}, "evaluation.samples"),
        ({"evaluation": {"grid": 10**18}}, "evaluation.grid"),
        ({"evaluation": {"seeds": [0, 2**40]}}, "evaluation.seeds.1"),
        ({"description": "a\x1b[2Jb"}, "description"),
        ({"description": "see \u202egpj.exe"}, "description"),
        ({"description": "x" * 10_001}, "description"),
        ({"data": {"source": "pictures\x1b[31m"}}, "data.source"),
        ({"data": {"source": "pictures\0"}}, "data.source"),
        ({"data": {"source": "two\nlines"}}, "data.source"),
        ({"data": {"source": "x" * 5000}}, "data.source"),
        ({"base": {"checkpoint": "a\x07.pt"}}, "base.checkpoint"),
        ({"allocation": {"sampler": "ddim\x1b"}}, "allocation.sampler"),
    ],
)
def test_harmful_values_are_refused_with_their_place(tmp_path, data, where):
    said = refused(tmp_path, data)
    assert f": {where}" in said
    assert said.isprintable()


def test_numbers_that_no_comparison_can_hold_are_refused_in_entries_too(tmp_path):
    curriculum = {"entries": {"a": {}, "b": {"learning_rate": math.nan}}}
    said = refused(tmp_path, {"base": {"model": UNET}, "evaluation": {}, "curriculum": curriculum})
    assert "curriculum.entries.b.learning_rate: Got nan" in said
    curriculum = {"entries": {"a": {}, "b": {"log_every": 10**12}}}
    said = refused(tmp_path, {"base": {"model": UNET}, "evaluation": {}, "curriculum": curriculum})
    assert "Got log_every 1000000000000" in said


def test_a_description_may_have_lines_and_any_alphabet():
    words = "Zeile eins,\n\tZeile zwei: ΔFID ≤ 0.5 — 图像 👩\u200d🔬"
    assert Recipe.model_validate({"name": "x", "base": BASE, "description": words}).description == words


def test_a_key_with_control_characters_is_not_repeated(tmp_path):
    said = refused(tmp_path, {"data": {"sour\x1b[2Jce": 1}})
    assert "a key has a control character" in said
    assert said.isprintable()


def test_a_network_that_no_machine_holds_is_refused_before_it_is_made():
    from prunekit.steps.bases import train_base

    config = {**UNET["config"], "block_out_channels": [2**20, 2**20], "norm_num_groups": 1}
    blocks = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    recipe = Recipe.model_validate(
        {"name": "x", "base": {"model": {"class": "UNet2DModel", "config": {**config, **blocks}}}}
    )
    with pytest.raises(FileFormatError, match="parameters"):
        train_base(recipe.base, None)


@pytest.mark.parametrize(
    "study",
    [
        "../study.log",
        "a/../../study.log",
        "a/..",
        "..",
        ".",
        "",
        "/etc/cron.d/job",
        "//host/share",
        "~/.bashrc",
        "~root/x",
        "C:\\x",
        "C:x",
        "a\\..\\b",
        "sqlite:///study.db",
        "mysql+pymysql://u:p@h/db",
        "redis://h",
        "file:x",
        "a//b",
        "a/",
        "./a",
        ".ssh/authorized_keys",
        "a/.git/config",
        "-rf",
        "a\0b",
        "a\nb",
        "a\u2215b",
        "a/" * 9 + "b",
        "a" * 300,
        "nul. ",
        "x.",
    ],
)
def test_a_study_outside_the_runs_folder_is_refused(tmp_path, study):
    said = refused(tmp_path, {"prune": {"search": {"proposer": "tpe", "study": study}}})
    assert ": prune.search" in said
    assert said.isprintable()


_PIECES = st.sampled_from(
    ["..", ".", "", "/", "\\", "~", "a", "b c", "C:", "sqlite://", "\0", "x.log", "\n", "é", "%2e%2e"]
)
_NAMES = st.one_of(
    st.text(max_size=30), st.lists(_PIECES, max_size=6).map("/".join), st.lists(_PIECES, max_size=4).map("".join)
)


@given(_NAMES)
def test_a_name_that_is_accepted_stays_below_any_folder(name):
    try:
        check_inner_name(name, "study")
    except InputError:
        return
    for module, root in ((posixpath, "/runs/one"), (ntpath, "C:\\runs\\one")):
        place = module.normpath(module.join(root, name))
        assert place.startswith(root + module.sep)
    assert not any(part.startswith((".", "~", "-")) for part in name.split("/"))


@given(
    st.recursive(
        st.one_of(st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=6,
    )
)
def test_what_passes_is_finite_printable_and_fits_64_bits(value):
    def leaves(found):
        return [leaf for each in found for leaf in leaves(each)] if isinstance(found, list) else [found]

    wrong = [
        leaf
        for leaf in leaves(value)
        if (isinstance(leaf, float) and not math.isfinite(leaf))
        or (isinstance(leaf, int) and not -(2**63) <= leaf < 2**63)
        or (
            isinstance(leaf, str) and any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in leaf)
        )
    ]
    found = list(unsafe_values({"key": value}))
    assert len(found) >= len(wrong)
    assert bool(found) >= bool(wrong)


def numbers(schema, node, place=()):
    """Places of a recipe where its schema wants a number and no switch."""
    for form in inner(schema, node):
        for key, below in form.get("properties", {}).items():
            yield from numbers(schema, below, (*place, key))
        if "items" in form:
            yield from numbers(schema, form["items"], (*place, 0))
    kinds = {form.get("type") for form in inner(schema, node)}
    if kinds & {"integer", "number"} and not kinds & {"boolean", None}:
        yield place


def at(place, value):
    """The value in the mappings and lists that lead to it."""
    for part in reversed(place):
        value = [value] if part == 0 else {part: value}
    return value


@pytest.mark.parametrize("switch", [True, False])
def test_yes_and_no_are_refused_wherever_a_number_belongs(switch):
    schema = schema_of(Recipe)
    places = list(dict.fromkeys(numbers(schema, schema)))
    assert {("groups", "count"), ("allocation", "recoveries"), ("evaluation", "seeds", 0)} < set(places)
    assert len(places) > 100
    for place in places:
        with pytest.raises(ValidationError) as caught:
            Recipe.model_validate({"name": "switched", "base": BASE, **at(place, switch)})
        first = caught.value.errors()[0]
        assert (first["loc"], first["msg"].split(";")[0]) == (place, f"Got {str(switch).lower()}"), place


def test_a_switch_in_an_entrys_changes_is_refused_with_its_place(tmp_path):
    sections = {"groups": {"count": 2}, "allocation": {}, "prune": {}, "finetune": {"train": {"steps": 2}}}
    changes = {"allocation": {"recovery_steps": True}}
    evidence = {"headline": "a", "training": 0.1, "entries": {"a": {}, "b": {"changes": changes}}}
    said = refused(tmp_path, {**sections, "evaluation": {}, "evidence": evidence})
    assert said.endswith(": evidence.entries.b.changes.allocation.recovery_steps: Got true; expected a whole number.")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("count: 010", 10),
        ("count: 0o10", 8),
        ("count: 0x10", 16),
        ("count: 1_0", 10),
        ("eta: 1e-3", 0.001),
        ("eta: 1.0E-3", 0.001),
        ("eta: .5", 0.5),
        ("cuts: [0100, 0200]", (100, 200)),
    ],
)
def test_plain_numbers_are_those_of_yaml_1_2(tmp_path, line, value):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: plain\nbase: {{checkpoint: embedded:digits}}\nallocation: {{}}\ngroups: {{{line}}}\n")
    assert getattr(load_recipe(path).groups, line.partition(":")[0]) == value


@pytest.mark.parametrize(
    ("word", "value"), [("yes", True), ("on", True), ("true", True), ("no", False), ("off", False)]
)
def test_words_for_true_and_false_are_read_where_one_belongs_and_stay_texts_elsewhere(tmp_path, word, value):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: words\nbase: {{checkpoint: {word if word != 'true' else 'x'}}}\ndata: {{labels: {word}}}\n")
    recipe = load_recipe(path)
    assert recipe.data.labels is value
    assert recipe.base.checkpoint == (word if word != "true" else "x")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("prune: {width_multiples: {32: yes}}", "prune.width_multiples.32: Got 'yes'; expected a whole number."),
        ("prune: {width_multiples: {yes: 8}}", "prune.width_multiples.yes: Got 'yes'; expected a whole number."),
        (
            "prune: {width_multiples: {true: 8}}",
            "prune.width_multiples: Got the key true; expected a text or a whole number.",
        ),
        ("prune: {width_multiples: {1: 8, 1.0: 9}}", "1.0: given twice; keep one of them."),
        ("prune: {width_multiples: {1: 8, 0x1: 9}}", "0x1: given twice; keep one of them."),
        ('prune: {width_multiples: {"1": 8, 1: 9}}', "1: given twice; keep one of them."),
        ("prune: {width_multiples: [8]}", "prune.width_multiples: Got [8]; expected a whole number or a mapping."),
        (
            "prune: {width_multiples: {32: 0}}",
            "prune.width_multiples.32: Got 0; expected a number greater than or equal to 1.",
        ),
        ('prune: {samples: "3"}', "prune.samples: Got '3'; expected a whole number."),
        ("prune: {samples: 1:30}", "prune.samples: Got '1:30'; expected a whole number."),
        ('prune: {constraints: {limit: {a: "1.0"}}}', "prune.constraints.limit.a: Got '1.0'; expected a number."),
        (
            "prune: {constraints: {limit: {int: null}}}",
            "prune.constraints.limit.int: Got None; expected a whole number or a number.",
        ),
        ("data: {labels: 1}", "data.labels: Got 1; expected true or false."),
        ("finetune: {from_scratch: 1.0, train: {}}", "finetune.from_scratch: Got 1.0; expected true or false."),
        ("groups: {cuts: [500, 100]}", "groups: Got cuts [500, 100]; expected rising timesteps from 1."),
        ("groups: {cuts: [0]}", "groups: Got cuts [0]; expected rising timesteps from 1."),
        ("groups: {eta: -1}", "groups.eta: Got -1; expected a number greater than 0."),
    ],
)
def test_what_would_be_read_as_something_else_is_refused_with_its_key(tmp_path, section, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: misread\nbase: {{checkpoint: embedded:digits}}\n{section}\n")
    with pytest.raises(FileFormatError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}, line 3: {said}"


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"kind": "edm", "sigma_min": True}, "base.noise_schedule.sigma_min: Got true; expected a number."),
        ({"kind": "linear", "beta_end": "2e-2x"}, "base.noise_schedule.beta_end: Got '2e-2x'; expected a number."),
        (
            {"kind": "explicit"},
            "base.noise_schedule: Noise schedule 'explicit' needs betas, or signal and noise; got neither",
        ),
        ({"kind": "explicit", "betas": [0.1, "0.2"]}, "base.noise_schedule.betas.1: Got '0.2'; expected a number."),
    ],
)
def test_a_noise_schedule_takes_numbers_alone(tmp_path, schedule, said):
    found = refused(tmp_path, {"base": {**BASE, "noise_schedule": schedule}})
    assert said in found


def test_cuts_beyond_the_noise_schedule_are_refused_before_anything_is_trained(tmp_path):
    base = {"model": UNET, "noise_schedule": {"kind": "linear", "num_timesteps": 100}}
    said = refused(tmp_path, {"base": base, "allocation": {}, "groups": {"cuts": [50, 100]}})
    assert "Got groups.cuts up to 100 and a noise schedule of 100 timesteps; expected less." in said


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"dropout": True}, "the dropout true; expected a number such as 0.0"),
        ({"layers_per_block": "two"}, "the layers_per_block 'two'; expected a number such as 2"),
        ({"add_attention": "no"}, "the add_attention 'no'; expected true or false"),
    ],
)
def test_a_networks_config_has_numbers_where_its_class_has_them(config, said):
    recipe = Recipe.model_validate({"name": "typed", "base": {"model": {**UNET, "config": config}}})
    with pytest.raises(InputError, match=re.escape(f"The config of UNet2DModel has {said}.")):
        complete_spec(recipe.base)


def test_numbers_of_numpy_are_numbers():
    data = {"groups": {"count": 2}, "allocation": {"budget": np.float64(0.7), "steps": np.int64(10)}}
    recipe = Recipe.model_validate({"name": "numpy", "base": BASE, **data})
    assert (recipe.allocation.budget, recipe.allocation.steps) == (0.7, 10)


TRAINED = {"class": "UNet2DModel", "config": {"in_channels": 1, "block_out_channels": [8, 16]}}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"evaluation": {"grid": 0}}, "evaluation.grid: Got 0; expected a number greater than or equal to 1."),
        ({"evaluation": {"samples": 1}}, "evaluation.samples: Got 1; expected a number greater than or equal to 2."),
        (
            {"groups": {"count": 101}, "allocation": {}},
            "Got a groups.count of 101 and a noise schedule of 100 timesteps",
        ),
        (
            {"curriculum": {"entries": {"a": {}, "b": {}}, "looks": 7}, "evaluation": {}},
            "Got 7 looks and 6 train steps",
        ),
        (
            {"multistage": {"widths": [[8, 16]] * 3, "looks": 7}, "evaluation": {}},
            "Got 7 looks and 6 train steps; expected at most one look a step.",
        ),
        (
            {"multistage": {"widths": [[8, 16], [8], [4, 8]]}, "evaluation": {}},
            "Got decoder widths [8] in multistage.widths; expected 2 widths, as block_out_channels has.",
        ),
        (
            {"multistage": {"widths": [[8, 16], [8, 16], []]}, "evaluation": {}},
            "Got decoder widths [] in multistage.widths",
        ),
        (
            {"multistage": {"widths": [[8, 16]] * 3, "groupings": [{"cuts": [50, 100]}]}, "evaluation": {}},
            "Got multistage.groupings.0.cuts up to 100 and a noise schedule of 100 timesteps; expected less.",
        ),
        (
            {"curriculum": {"entries": {"a": {}, "b": {"curriculum_width": 1e-9}}, "looks": 2}, "evaluation": {}},
            "a width in [1e-6, 10].",
        ),
    ],
)
def test_what_fails_after_a_training_is_refused_before_it(tmp_path, sections, said):
    train = {"steps": 6, "warmup_steps": 0}
    base = {"model": TRAINED, "noise_schedule": {"kind": "linear", "num_timesteps": 100}, "train": train}
    assert said in refused(tmp_path, {"base": base, **sections})
