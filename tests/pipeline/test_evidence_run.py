"""Experts beside baselines at equal training MACs."""

import copy

import numpy as np
import pytest
import torch
from forking import ForkedJobs
from micro_recipe import Spy
from tiny_comparison import TINY_MODEL, TINY_SCHEDULE, recipe_of

from prunekit._json import read_json
from prunekit.errors import BudgetError, FileFormatError, InputError
from prunekit.recipe import FinetuneOptions
from prunekit.report.evidence import evidence_claim
from prunekit.runs.publishing import publish
from prunekit.slim import load_slim
from prunekit.steps.finetuning import finetune_slim
from prunekit.studies.kinds_of_runs import run_of
from prunekit.studies.study_costs import passes_of_entries
from prunekit.training import TrainOptions

ONE_NETWORK = {"groups": {"count": 1}, "allocation": {"rule": "uniform"}}
PLAIN = {"criterion": "magnitude", "search": {"proposer": "uniform"}}
ENTRIES = {
    "experts 0.8": {},
    "base on": {
        "kind": "baseline",
        "changes": {**ONE_NETWORK, "allocation": {"budget": 1.0, "rule": "uniform"}, "prune": PLAIN},
    },
    "small anew": {
        "kind": "baseline",
        "changes": {**ONE_NETWORK, "prune": PLAIN, "finetune": {"from_scratch": True}},
    },
    "taught": {"kind": "ablation", "changes": {"finetune": {"distillation": {"weight": 0.5}}}},
}
TINY = {
    "name": "tiny-evidence",
    "base": {
        "model": TINY_MODEL,
        "noise_schedule": TINY_SCHEDULE,
        "train": {"steps": 20, "batch_size": 8, "warmup_steps": 2, "checkpoint_every": 10, "log_every": 5},
    },
    "groups": {"count": 2},
    "allocation": {"budget": 0.8, "rule": "uniform", "steps": 3},
    "prune": {"samples": 4, "batch_size": 4, "search": {"rounds": 1, "shortlist": 1}},
    "finetune": {"train": {"batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1}},
    "evaluation": {"samples": 12, "seeds": [0], "loss_samples": 16, "grid": 4},
    "evidence": {
        "entries": ENTRIES,
        "headline": "experts 0.8",
        "training": 0.4,
        "seeds": [0],
        "loss_groups": 3,
        "timed_images": 2,
    },
}


def recipe(folder, change=lambda data: None):
    data = copy.deepcopy(TINY)
    change(data)
    return recipe_of(folder, data)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with a run, and who watched it."""
    folder, spy = tmp_path_factory.mktemp("evidence"), Spy()
    run_of(recipe(folder), folder / "run", spy).execute()
    return folder, spy


@pytest.fixture(scope="module")
def folder(ran):
    return ran[0]


@pytest.fixture(scope="module")
def manifest(folder):
    return read_json(folder / "run" / "manifest.json")


def test_every_entry_is_measured_for_every_seed_beside_the_base(manifest):
    rows = manifest["evidence"]
    expected = [("base", None), *((name, 0) for name in ENTRIES)]
    assert [(row["entry"], row["seed"]) for row in rows] == expected
    for row in rows:
        assert len(row["losses"]) == 3
        assert row["loss"] == pytest.approx(np.mean([loss["mean"] for loss in row["losses"]]))
        assert np.isfinite([row["loss"], row["fid"], row["kid"]]).all()
        assert row["seconds_per_image"] > 0
    base, *others = rows
    assert base["ssim"] == pytest.approx(1)
    assert all(row["ssim"] < 1 for row in others)


def test_all_spend_the_same_but_for_less_than_a_step(manifest):
    base, *others = manifest["evidence"]
    own = base["training_macs"]["base"]
    assert own == 3 * 20 * 8 * manifest["base"]["macs"]
    for row in others:
        spent = row["training_macs"]
        step = 3 * 2 * sum(expert["macs"] for expert in row["experts"])
        step += 2 * len(row["experts"]) * manifest["base"]["macs"] * (row["entry"] == "taught")
        total = sum(spent.values())
        assert 0 <= 1.4 * own - total < step
        assert spent["base"] == (0 if row["entry"] == "small anew" else own)


def test_entries_that_search_alike_search_once_and_each_pays_for_it(ran, manifest):
    folder, spy = ran
    made = {name.removeprefix("taught, seed 0: ") for name in spy.made if name.startswith("taught, seed 0: ")}
    assert made == {"finetune group 0", "finetune group 1", "assemble"}
    for group in range(2):
        one, other = (
            folder / "run" / "entries" / name / "pruned" / f"group-{group}" for name in ("experts-0-8", "taught")
        )
        assert [file.name for file in sorted(other.iterdir())] == [file.name for file in sorted(one.iterdir())]
        assert all((other / file.name).read_bytes() == file.read_bytes() for file in one.iterdir())
    searching = {row["entry"]: row["training_macs"]["search"] for row in manifest["evidence"]}
    assert searching["taught"] == searching["experts 0.8"] > 0


def test_a_study_takes_what_another_has_measured_on_the_same_base(ran, manifest, tmp_path):
    folder, spy = ran[0], Spy()
    data = recipe(
        tmp_path, lambda data: data["evidence"].update(entries={name: ENTRIES[name] for name in list(ENTRIES)[:2]})
    )
    run_of(data, tmp_path / "run", spy, peers=[folder / "run"]).execute()
    assert spy.made == ["wall time"]
    rows = {row["entry"]: {**row, "seconds_per_image": None} for row in manifest["evidence"]}
    own = read_json(tmp_path / "run" / "manifest.json")["evidence"]
    assert [{**row, "seconds_per_image": None} for row in own] == [rows[name] for name in ("base", *list(ENTRIES)[:2])]


def test_cost_is_the_experts_own(manifest):
    by_entry = {row["entry"]: row for row in manifest["evidence"]}
    whole = manifest["base"]["macs"]
    assert by_entry["base on"]["sampling_macs"] == whole
    assert by_entry["base on"]["params"] == by_entry["base"]["params"] == manifest["base"]["params"]
    for name in ("experts 0.8", "small anew", "taught"):
        assert 0.7 * whole < by_entry[name]["sampling_macs"] <= 0.8 * whole


@pytest.mark.slow
def test_a_second_run_keeps_everything(folder, manifest):
    spy = Spy()
    run_of(recipe(folder), folder / "run", spy).execute()
    assert spy.made == []
    assert read_json(folder / "run" / "manifest.json")["evidence"] == manifest["evidence"]


@pytest.mark.slow
def test_recoveries_are_measured_once_with_the_entrys_own_options_and_are_paid_for(tmp_path):
    def recovered(data):
        recovering = {"rule": "measured", "frontier_floor": 0.5, "recoveries": 2, "recovery_steps": 2}
        data["evidence"] |= {"entries": {"experts 0.8": {"changes": {"allocation": recovering}}}, "seeds": [3, 4]}

    spy = Spy()
    run_of(recipe(tmp_path, recovered), tmp_path / "run", spy).execute()
    made = [name for name in spy.made if "recovery" in name]
    assert made == [f"experts 0.8, seed 3: recovery group {group}" for group in range(2)]
    manifest = read_json(tmp_path / "run" / "manifest.json")
    trained = [row for row in manifest["ledger"] if "recovery" in row["stage"] and row["kind"] == "training"]
    assert {row["samples"] for row in trained} == {2 * 2}  # steps and the recipe's batch size
    base, *others = manifest["evidence"]
    for row in others:
        step = 3 * 2 * sum(expert["macs"] for expert in row["experts"])
        assert 0 <= 1.4 * base["training_macs"]["base"] - sum(row["training_macs"].values()) < step


@pytest.mark.slow
def test_other_seeds_fine_tune_what_one_search_found_and_processes_give_the_same(manifest, tmp_path):
    def other(data):
        data["evidence"] |= {"entries": {name: ENTRIES[name] for name in ("experts 0.8", "taught")}, "seeds": [0, 1]}

    spy = Spy()
    run_of(recipe(tmp_path, other), tmp_path / "run", executor=ForkedJobs(2)).execute()
    other_manifest = read_json(tmp_path / "run" / "manifest.json")
    rows = {(row["entry"], row["seed"]): {**row, "seconds_per_image": 0} for row in other_manifest["evidence"]}
    for row in manifest["evidence"]:
        if row["entry"] in ("base", "experts 0.8", "taught"):
            assert rows[row["entry"], row["seed"]] == {**row, "seconds_per_image": 0}
    first, second = (rows["experts 0.8", seed] for seed in (0, 1))
    assert first["loss"] != second["loss"]
    assert first["experts"] == second["experts"]
    assert first["training_macs"] == second["training_macs"]

    stages = [row["stage"] for row in other_manifest["ledger"] if row["kind"] in ("training", "search", "importance")]
    assert stages.count("base training") == 1
    assert stages.count("experts 0.8, seed 0: search, group 1") == 1
    assert stages.count("experts 0.8, seed 1: search, group 1") == 0
    assert stages.count("experts 0.8, seed 1: fine-tuning, group 1") == 1

    def one(data):
        other(data)
        data["evidence"]["seeds"] = [0]

    shown, own = tmp_path / "run" / "samples" / "taught.npz", tmp_path / "run" / "entries" / "taught"
    for change, last in ((one, 0), (other, 1)):
        run_of(recipe(tmp_path, change), tmp_path / "run", spy).execute()
        assert shown.read_bytes() == (own / f"images-{last}" / "taught.npz").read_bytes()
    assert set(spy.made) <= {"wall time"}

    def fewer(data):
        data["evidence"] |= {"entries": {"taught": ENTRIES["taught"] | {"seeds": [1]}}, "headline": "taught"}

    run_of(recipe(tmp_path, fewer), tmp_path / "run", spy).execute()
    assert set(spy.made) <= {"wall time"}  # the others are in nobody's way
    left = read_json(tmp_path / "run" / "manifest.json")["evidence"]
    assert [(row["entry"], row["seed"]) for row in left] == [("base", None), ("taught", 1)]


def test_images_come_from_the_same_noise_and_the_grids_are_kept(folder):
    grids = {path.stem: np.load(path)["images"] for path in (folder / "run" / "samples").glob("*.npz")}
    assert set(grids) == {"base", "experts-0-8", "base-on", "small-anew", "taught"}
    assert {grid.shape for grid in grids.values()} == {(4, 8, 8, 1)}


def test_the_report_is_there_and_is_published_with_its_samples(folder, manifest, tmp_path):
    page = (folder / "run" / "report" / "index.html").read_text()
    for title in ("From the base to experts 0.8", "Noise and targets", "Importance", "Widths before and after"):
        assert f">{title}" in page
    assert all(f"4 generated images of {name}." in page for name in ("base", *ENTRIES))
    target = publish(folder / "run", tmp_path)
    assert (target / "report" / "index.html").read_text() == page
    assert evidence_claim(manifest).split(" (")[0].replace("'", "&#39;") in (tmp_path / "index.html").read_text()
    assert not list(target.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "needs"),
    [
        ({}, False),
        ({"finetune": {"from_scratch": True, "distillation": {"weight": 0.5}}}, True),
        ({"prune": {"criterion": "magnitude", "search": {"proposer": "oneshot"}}}, True),
        ({"groups": {"count": 1, "method": "gradient"}}, True),
        ({"finetune": {"from_scratch": False}}, True),
    ],
    ids=["alone", "taught", "widths by the base's weights", "groups by the base's gradients", "from the base"],
)
def test_only_a_network_that_uses_no_base_may_spend_its_training(tmp_path, changes, needs):
    def change(data):
        data["evidence"]["entries"]["small anew"]["changes"] |= changes

    own = recipe(tmp_path, change)
    assert own.entry("small anew").needs_base is needs
    base, share = 20 * 8, 0.4  # samples of its training; of all four entries
    ((training, _), *_) = passes_of_entries(own, 1_000, own.base.model)
    assert training.macs == 3_000 * base * (4 * share + (not needs))


def test_a_small_network_from_scratch_forgets_the_base(folder):
    slim = load_slim(folder / "run" / "entries" / "small-anew" / "pruned" / "group-0")
    options = FinetuneOptions(from_scratch=True, train=TrainOptions(steps=1, batch_size=2, learning_rate=1e-12))
    images = run_of(recipe(folder), folder / "run").images.train
    one, again = (finetune_slim(slim, images, options)[0].model for _ in range(2))
    other = finetune_slim(slim, images, FinetuneOptions(train=options.train))[0].model
    weights = [model.conv_in.weight for model in (slim.model, one, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert torch.allclose(weights[3], weights[0], atol=1e-6)
    assert not torch.allclose(weights[1], weights[0], atol=1e-2)
    assert [w.shape for w in weights] == [weights[0].shape] * 4


@pytest.mark.slow
def test_a_specialist_spends_what_the_others_spend(tmp_path):
    def noisy(data):
        specialist = {"groups": {"count": 5, "experts": "noisy"}, "allocation": {"budget": 0.9, "rule": "auto"}}
        data["evidence"] |= {"entries": {"specialist": {"changes": specialist}}, "headline": "specialist"}

    run_of(recipe(tmp_path, noisy), tmp_path / "run").execute()
    base, row = read_json(tmp_path / "run" / "manifest.json")["evidence"]
    own = base["training_macs"]["base"]
    assert row["experts"][0]["macs"] == base["sampling_macs"]
    step = 3 * 2 * row["experts"][1]["macs"]  # the base beside it is not trained
    assert 0 <= 1.4 * own - sum(row["training_macs"].values()) < step


def test_a_budget_that_cannot_be_met_is_refused_before_the_base_is_trained(tmp_path):
    def tight(data):
        data["evidence"]["entries"]["tight"] = {"changes": {"allocation": {"rule": "linear", "budget": 0.5}}}

    with pytest.raises(BudgetError, match=r"0\.5 cannot be met"):
        run_of(recipe(tmp_path, tight), tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()


def test_a_search_that_leaves_no_step_is_refused_by_its_name(folder):
    def poor(data):
        data["evidence"] |= {"training": 1e-3, "entries": {"experts 0.8": {}}}

    with pytest.raises(InputError, match=r"Entry experts 0\.8 may spend .* leaves no step"):
        run_of(recipe(folder, poor), folder / "run").execute()


MISTAKES = {
    "unknown key": (
        lambda e: e["entries"]["taught"]["changes"]["finetune"].update(speed=1),
        r"Entry taught: finetune.*speed",
    ),
    "steps": (
        lambda e: e["entries"]["taught"]["changes"]["finetune"].update(train={"steps": 3}),
        r"taught changes finetune\.train\.steps",
    ),
    "headline": (lambda e: e.update(headline="nothing"), r"headline 'nothing'; expected one of the entries"),
    "base": (lambda e: e["entries"].update(base={}), r"Got entry 'base', which is the name of the base's row"),
    "alike": (lambda e: e["entries"].update({"Experts 0,8".replace(",", "-"): {}}), r"differ in signs or case only"),
    "base's name": (lambda e: e["entries"].update({"Base": {}}), r"'base' and 'Base'"),
    "section": (lambda e: e["entries"].update({"x": {"changes": {"base": {}}}}), r"evidence\.entries\.x\.changes"),
}


@pytest.mark.parametrize(("mistake", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_the_section_is_said_with_its_line(tmp_path, mistake, said):
    with pytest.raises(FileFormatError, match=rf"recipe\.yaml, line \d+: .*{said}"):
        recipe(tmp_path, lambda data: mistake(data["evidence"]))


@pytest.mark.parametrize("section", ["groups", "allocation", "prune", "finetune", "evaluation"])
def test_every_section_is_needed(tmp_path, section):
    with pytest.raises(
        FileFormatError, match="An evidence section needs groups, allocation, prune, finetune and evaluation sections"
    ):
        recipe(tmp_path, lambda data: data.pop(section))
