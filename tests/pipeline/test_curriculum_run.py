"""A recipe that compares ways to train one network."""

import html

import numpy as np
import pytest
from forking import ForkedJobs
from micro_recipe import Spy
from tiny_comparison import TINY_MODEL, TINY_SCHEDULE, recipe_of

from prunekit._json import read_json
from prunekit.errors import FileFormatError, PrunekitError
from prunekit.report import write_any_report
from prunekit.report.curriculum_page import training_curves
from prunekit.report.wording import estimate_text
from prunekit.results.estimate import Estimate
from prunekit.results.formats import MANIFEST
from prunekit.runs.publishing import publish
from prunekit.studies.kinds_of_runs import run_of

ENTRIES = {
    "uniform": {},
    "CLTS + MDLRC": {
        "timestep_sampler": "gaussian-curriculum",
        "momentum_decay": "rational",
        "momentum_compensation": "code",
    },
    "second moment": {"timestep_sampler": "loss-second-moment", "loss_weight": "min-snr"},
}
TINY = {
    "name": "tiny-curriculum",
    "description": "Tiny.",
    "base": {
        "model": TINY_MODEL,
        "noise_schedule": TINY_SCHEDULE,
        "train": {"steps": 23, "batch_size": 8, "warmup_steps": 2, "checkpoint_every": 6, "log_every": 6},
    },
    "curriculum": {"entries": ENTRIES, "seeds": [3, 4], "looks": 2, "sampling_steps": 2},
    "evaluation": {"samples": 8, "seeds": [0], "loss_samples": 16},
}


def recipe(folder, **changes):
    return recipe_of(folder, {**TINY, "curriculum": {**TINY["curriculum"], **changes}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curriculum")
    run_of(recipe(folder), folder / "run").execute()
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return read_json(folder / "run" / "manifest.json")


def test_every_entry_is_trained_from_every_seed_and_looked_at_evenly(manifest):
    rows = manifest["curriculum"]
    assert [(row["entry"], row["seed"]) for row in rows] == [(name, seed) for name in ENTRIES for seed in (3, 4)]
    for row in rows:
        assert [look["steps"] for look in row["curve"]] == [12, 24]  # 23 steps are no whole number of looks
        assert [look["training_macs"] for look in row["curve"]] == [
            3 * manifest["base"]["macs"] * 8 * steps for steps in (12, 24)
        ]
        assert np.isfinite([[look["loss"], look["fid"], look["kid"]] for look in row["curve"]]).all()


def test_the_ledger_counts_every_training_and_every_look(manifest):
    macs, rows = manifest["base"]["macs"], manifest["ledger"]
    own = {row["kind"]: row for row in rows if row["stage"] == "uniform, seed 3"}
    assert own["training"]["macs"] == 3 * macs * 8 * 24
    assert own["sampling"]["macs"] == macs * 8 * 2 * 2  # images, sampling steps, looks
    assert own["evaluation"]["macs"] % (2 * macs) == 0
    assert sum(row["kind"] == "ema" for row in rows) == 6


def test_entries_differ_and_seeds_too(manifest):
    assert len({row["curve"][-1]["loss"] for row in manifest["curriculum"]}) == 6


@pytest.mark.slow
def test_a_second_run_trains_only_what_is_new(folder):
    spy = Spy()
    run_of(recipe(folder), folder / "run", spy).execute()
    assert spy.made == []
    changed = {**ENTRIES, "second moment": {"loss_weight": "p2"}}
    run_of(recipe(folder, entries=changed, seeds=[3]), folder / "run", spy).execute()
    assert spy.made == ["second moment, seed 3"]
    run_of(recipe(folder), folder / "run").execute()  # as it was, for the other tests


@pytest.mark.slow
def test_another_first_seed_trains_nothing_again_and_its_images_are_shown(folder):
    spy = Spy()
    run_of(recipe(folder, seeds=[4, 3]), folder / "run", spy).execute()
    assert spy.made == []
    shown, kept = folder / "run" / "samples" / "uniform.npz", folder / "run" / "images"
    assert shown.read_bytes() == (kept / "uniform-seed-4.npz").read_bytes()
    run_of(recipe(folder), folder / "run", spy).execute()
    assert spy.made == []
    assert shown.read_bytes() == (kept / "uniform-seed-3.npz").read_bytes()


def test_the_report_is_made_from_the_manifest_alone(folder, manifest, tmp_path):
    target = publish(folder / "run", tmp_path)
    text = (target / "report" / "curriculum.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row[0].removeprefix("| ") for row in rows] == list(ENTRIES)
    reached = "share to the" in text
    assert rows[0][-2].startswith("1.00 (1.0×)") == reached
    assert ("None reaches the final mean loss or FID of " in text) != reached
    assert r"momentum\_decay rational" in rows[1][-1]
    curves = training_curves(manifest)
    assert rows[1][1] == estimate_text(Estimate.over(curves[1].losses[:, -1]))
    assert (target / "report" / "curriculum.png").stat().st_size > 10_000
    assert not list(target.rglob("*.pt"))
    page = html.unescape((target / "report" / "index.html").read_text())
    assert all(f"generated images of {name}." in page for name in ENTRIES)
    assert write_any_report(target) == target / "report" / "index.html"


def test_a_manifest_without_a_comparison_is_refused():
    with pytest.raises(FileFormatError, match=r"cannot be read \('curriculum\[0\]\.curve' is missing\)"):
        training_curves({"format": MANIFEST, "curriculum": [{"entry": "uniform"}]})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"entries": {"uniform": {}}}, "entries"),
        ({"entries": {"uniform": {}, "longer": {"steps": 100}}}, "Entry longer changes steps"),
        ({"entries": {"uniform": {}, "odd": {"stepz": 100}}}, "Entry odd changes stepz"),
        ({"entries": {"uniform": {}, "odd": {"loss_weight": "snr"}}}, "loss_weight"),
        ({"entries": {"uniform": {}, "../odd": {}}}, "odd"),
        ({"looks": 0}, "looks"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(tmp_path, section, message):
    with pytest.raises(PrunekitError, match=message):
        recipe(tmp_path, **section)


def test_a_comparison_of_stages_trains_uniformly(tmp_path):
    train = {**TINY["base"]["train"], "timestep_sampler": "asymmetric"}
    both = {key: value for key, value in TINY.items() if key != "curriculum"}
    both |= {"base": {**TINY["base"], "train": train}, "multistage": {"widths": [[8, 8], [8, 8]]}}
    both["multistage"]["groupings"] = [{"method": "uniform", "count": 2}]
    with pytest.raises(PrunekitError, match="timestep_sampler uniform"):
        recipe_of(tmp_path, both)


@pytest.mark.slow
def test_trainings_in_processes_of_their_own_give_the_same(manifest, tmp_path):
    two = {name: ENTRIES[name] for name in ("uniform", "second moment")}
    run_of(recipe(tmp_path, entries=two, seeds=[4]), tmp_path / "run", executor=ForkedJobs(2)).execute()
    other = read_json(tmp_path / "run" / "manifest.json")
    names = [f"{name}, seed 4" for name in two]
    assert other["curriculum"] == [row for row in manifest["curriculum"] if row["seed"] == 4 and row["entry"] in two]
    assert [row for row in other["ledger"] if row["stage"] in names] == [
        row for row in manifest["ledger"] if row["stage"] in names
    ]
    assert {row["stage"] for row in other["ledger"]} <= {row["stage"] for row in manifest["ledger"]}
