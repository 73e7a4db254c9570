"""A recipe that compares networks for stages at equal training MACs."""

import numpy as np
import pytest
from forking import ForkedJobs
from micro_recipe import Spy
from tiny_comparison import TINY_MODEL, TINY_SCHEDULE, recipe_of

from prunekit._json import read_json
from prunekit.errors import FileFormatError
from prunekit.ledger import LedgerRow
from prunekit.report import write_any_report
from prunekit.report.learning import reaching
from prunekit.report.multistage import entries_of
from prunekit.results.formats import MANIFEST
from prunekit.runs.publishing import publish
from prunekit.steps.bases import open_base
from prunekit.studies.multistage_study import MultistageRun
from prunekit.studies.recipe_costs import estimate

TINY = {
    "name": "tiny-multistage",
    "description": "Tiny.",
    "base": {
        "model": TINY_MODEL,
        "noise_schedule": TINY_SCHEDULE,
        "train": {"steps": 24, "batch_size": 8, "warmup_steps": 2, "checkpoint_every": 6, "log_every": 6},
    },
    "multistage": {
        "widths": [[12, 8], [8, 8]],
        "groupings": [
            {"method": "uniform", "count": 2},
            {"method": "gradient", "count": 2, "nodes": 6, "samples": 4},
            {"method": "similarity", "count": 2, "nodes": 8, "samples": 16},
        ],
        "seeds": [3],
        "looks": 2,
        "sampling_steps": 2,
    },
    "evaluation": {"samples": 8, "seeds": [0], "loss_samples": 16},
}


def recipe(folder, **changes):
    return recipe_of(folder, {**TINY, "multistage": {**TINY["multistage"], **changes}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multistage")
    MultistageRun(recipe(folder), folder / "run").execute()
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return read_json(folder / "run" / "manifest.json")


def test_all_networks_are_compared_on_the_first_grouping_and_tailored_ones_on_the_others(manifest):
    found = [(row["network"], row["grouping"]) for row in manifest["multistage"]]
    assert found == [
        ("unified", "explicit"),
        ("separate", "uniform"),
        ("equal", "uniform"),
        ("tailored", "uniform"),
        ("tailored", "gradient"),
        ("tailored", "similarity"),
    ]


def test_the_first_seeds_images_of_every_network_are_kept(folder, manifest):
    names = {"unified", "separate-networks-uniform", "equal-decoders-uniform"}
    names |= {f"tailored-decoders-{method}" for method in ("uniform", "gradient", "similarity")}
    assert {path.stem for path in (folder / "run" / "samples").glob("*.npz")} == names


def test_the_network_that_is_kept_is_the_one_that_was_measured(folder, manifest):
    run = MultistageRun(recipe(folder), folder / "run")
    kept = open_base(str(folder / "run" / "unified-3.pt")).model
    measured = next(row for row in manifest["multistage"] if row["network"] == "unified")
    assert run.contest.judge(kept, training_macs=1).loss == pytest.approx(measured["curve"][-1]["loss"], rel=1e-6)


def test_images_are_shown_under_the_way_that_their_stages_were_cut(tmp_path):
    run = MultistageRun(recipe(tmp_path, groupings=[{"cuts": [10]}, {"method": "uniform", "count": 2}]), tmp_path)
    (tmp_path / "images").mkdir()
    for grouping in range(2):
        (tmp_path / "images" / f"tailored-grouping-{grouping}-seed-3.npz").write_text(str(grouping))
    run._show_images()
    shown = {path.name: path.read_text() for path in (tmp_path / "samples").iterdir()}
    assert shown == {"tailored-decoders-explicit.npz": "0", "tailored-decoders-uniform.npz": "1"}


def test_training_macs_are_equal_and_rise_evenly(manifest):
    budget = manifest["unified"]["training_macs"]
    assert budget == 3 * manifest["unified"]["macs"] * 24 * 8
    for row in manifest["multistage"]:
        half, full = (look["training_macs"] for look in row["curve"])
        assert full == pytest.approx(
            budget, rel=0.15
        )  # tiny trainings are rounded to whole looks, stages drawn at random
        assert half == pytest.approx(full / 2, rel=0.01)


def test_every_network_has_its_rows_of_the_ledger(manifest):
    ledger = [LedgerRow.from_json(row) for row in manifest["ledger"]]
    spent = {(row.stage, row.kind): row for row in ledger if row.kind != "ema"}
    train, macs = manifest["config"]["base"]["train"], manifest["unified"]["macs"]
    images = train["steps"] * train["batch_size"]
    assert spent["unified, seed 3", "training"] == LedgerRow(
        "unified, seed 3", "training", images, 3 * images * macs, images * macs
    )
    averages = [row.macs for row in ledger if (row.stage, row.kind) == ("unified, seed 3", "ema")]
    assert averages == [train["steps"] * manifest["multistage"][0]["params"]]
    # two looks: 16 losses on all timesteps and 16 on its one group; 8 images of 2 steps
    assert spent["unified, seed 3", "evaluation"].macs == 2 * (16 + 16) * macs
    assert spent["unified, seed 3", "sampling"].macs == 2 * 8 * 2 * macs
    tailored = next(row for row in manifest["multistage"] if row["network"] == "tailored")
    own = spent["tailored, grouping 0, seed 3", "evaluation"]
    assert own.macs == 2 * (8 + 16) * sum(tailored["stage_macs"])  # half of the timesteps are either stage's
    assert own.samples == 2 * (16 + 32)
    assert spent["tailored, grouping 0, seed 3", "training"].macs == tailored["curve"][-1]["training_macs"]
    assert len([row for row in ledger if (row.stage, row.kind) == ("separate, grouping 0, seed 3", "ema")]) == 2
    assert spent["grouping 1", "grouping"].samples == 4 * 6


def test_an_estimate_counts_all_trainings_and_all_looks_at_them(folder, manifest):
    found = {row.kind: row.macs for row, _ in estimate(recipe(folder)).rows}
    for kind in ("training", "evaluation", "sampling"):
        spent = sum(row["macs"] for row in manifest["ledger"] if row["kind"] == kind)
        assert found[kind] == pytest.approx(spent, rel=0.25), kind  # tailored networks sample at other MACs


def test_what_is_measured_is_whole_and_finite(manifest):
    for row in manifest["multistage"]:
        stages = len(row["cuts"]) + 1
        assert len(row["stage_macs"]) in (1, stages)
        for look in row["curve"]:
            assert np.isfinite([look["loss"], look["fid"], look["kid"], *look["stage_losses"]]).all()
            assert len(look["stage_losses"]) == stages
    tailored = next(row for row in manifest["multistage"] if row["network"] == "tailored")
    assert tailored["stage_macs"][0] > tailored["stage_macs"][1]
    assert tailored["sampling_macs"] == pytest.approx(sum(tailored["stage_macs"]) / 2)


@pytest.mark.slow
def test_a_second_run_keeps_all_and_another_seed_trains_its_networks_only(folder, manifest):
    spy = Spy()
    MultistageRun(recipe(folder), folder / "run", spy).execute()
    assert spy.made == []
    MultistageRun(recipe(folder, seeds=[3, 4], networks=["unified", "equal"]), folder / "run", spy).execute()
    assert spy.made == ["unified, seed 4", "equal, grouping 0, seed 4"]


@pytest.mark.slow
def test_the_report_is_made_from_the_manifest_alone(folder, manifest, tmp_path):
    target = publish(folder / "run", tmp_path)
    text = (target / "report" / "multistage.md").read_text()
    assert all(entry.curve.title in text for entry in entries_of(read_json(target / "manifest.json")))
    assert (target / "report" / "multistage.png").stat().st_size > 10_000
    assert not list(target.rglob("*.pt"))
    networks = [entry.curve.title for entry in entries_of(read_json(target / "manifest.json"))]
    page = (target / "report" / "index.html").read_text()
    assert len(list((target / "samples").glob("*.npz"))) == len(networks)
    assert all(f"8 generated images of {name}." in page for name in networks)
    before = (target / "report" / "multistage.png").read_bytes()
    assert write_any_report(target) == target / "report" / "index.html"
    assert (target / "report" / "multistage.png").read_bytes() == before


def test_a_manifest_without_a_comparison_is_refused():
    with pytest.raises(FileFormatError, match=r"cannot be read \('multistage\[0\]\.grouping' is missing\)"):
        entries_of({"format": MANIFEST, "multistage": [{"network": "unified"}]})


def test_reaching_is_linear_between_looks():
    macs, values = np.array([1.0, 2.0, 4.0]), np.array([8.0, 4.0, 2.0])
    assert reaching(macs, values, 9) == 1
    assert reaching(macs, values, 6) == pytest.approx(1.5)
    assert reaching(macs, values, 2) == 4
    assert reaching(macs, values, 1.9) is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"widths": [[8, 8]] * 3}, "makes 2 stages; expected 3"),
        ({"networks": ["whole"]}, "networks"),
        ({"draw": "some"}, "draw"),
        ({"widths": [[8, 8]]}, "widths"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused_with_its_line(tmp_path, section, message):
    with pytest.raises(FileFormatError, match=message):
        recipe(tmp_path, **section)


def test_a_comparison_needs_a_model_to_train_and_an_evaluation(tmp_path):
    for change, message in (
        ({"base": {"checkpoint": "embedded:digits"}}, "tailored decoders needs a base with a model to train"),
        ({"evaluation": None}, "multistage section needs"),
        ({"allocation": {"budget": 0.8}}, "multistage section needs"),
    ):
        with pytest.raises(FileFormatError, match=message):
            recipe_of(tmp_path, {**TINY, **change})


@pytest.mark.slow
def test_stages_that_gain_nothing_are_stopped_and_what_they_took_is_told(tmp_path):
    stops = {"every": 4, "patience": 1, "improvement": 0.99}  # the second look always gains less than that
    section = {"groupings": [{"method": "uniform", "count": 2}], "early_stop": stops}
    MultistageRun(recipe(tmp_path, **section), tmp_path / "run").execute()
    found = read_json(tmp_path / "run" / "manifest.json")
    budget = found["unified"]["training_macs"]
    rows = {row["network"]: row for row in found["multistage"]}
    assert rows["unified"]["curve"][-1]["training_macs"] == budget
    for network in ("separate", "equal", "tailored"):
        macs = [look["training_macs"] for look in rows[network]["curve"]]
        assert 0 < macs[0] <= macs[1] < budget
        own = [row for row in found["ledger"] if row["stage"].startswith(network) and row["kind"] == "training"]
        watched = [row for row in own if row["macs"] == row["forward_macs"]]
        assert sum(row["macs"] for row in own if row not in watched) == macs[-1]
        assert sum(row["macs"] for row in watched) > 0


def test_an_early_stop_that_never_stops_changes_nothing_of_equal_decoders(manifest, tmp_path):
    stops = {"every": 6, "patience": 100, "improvement": 0.0}
    section = {"groupings": [{"method": "uniform", "count": 2}], "early_stop": stops, "networks": ["unified", "equal"]}
    MultistageRun(recipe(tmp_path, **section), tmp_path / "run").execute()
    found = read_json(tmp_path / "run" / "manifest.json")
    before = {row["network"]: row["curve"] for row in manifest["multistage"]}
    assert {row["network"]: row["curve"] for row in found["multistage"]} == {
        name: before[name] for name in ("unified", "equal")
    }
    checks = [row for row in found["ledger"] if row["kind"] == "training" and row["macs"] == row["forward_macs"] > 0]
    (told,) = [row for row, _ in estimate(recipe(tmp_path, **section)).rows if row.stage == "early stops"]
    assert [row["samples"] for row in checks] == [told.samples] == [24 // 6 * 2 * 16]


@pytest.mark.parametrize(("network", "checks"), [("separate", 12 // 5 * 2), ("tailored", 24 // 5 * 2)])
def test_the_estimate_counts_the_checks_of_early_stops(network, checks, tmp_path):
    section = {"groupings": [{"method": "uniform", "count": 2}], "networks": ["unified", network], "seeds": [0, 1]}
    stops = {"every": 5, "patience": 100, "improvement": 0.0}
    (told,) = [
        row for row, _ in estimate(recipe(tmp_path, **section, early_stop=stops)).rows if row.stage == "early stops"
    ]
    assert told.samples == 2 * checks * 16
    assert not [row for row, _ in estimate(recipe(tmp_path, **section)).rows if row.stage == "early stops"]


def test_a_trained_base_goes_on_whole_and_in_stages(tmp_path):
    section = {
        **TINY["multistage"],
        "networks": ["unified", "separate", "equal"],
        "groupings": TINY["multistage"]["groupings"][:1],
    }
    base = {"checkpoint": "embedded:digits", "train": {**TINY["base"]["train"], "learning_rate": 1e-9}}
    MultistageRun(recipe_of(tmp_path, {**TINY, "base": base, "multistage": section}), tmp_path / "run").execute()
    rows = read_json(tmp_path / "run" / "manifest.json")["multistage"]
    losses = [look["loss"] for row in rows for look in row["curve"]]
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-4)  # nothing was learnt: all are the base
    assert losses[0] < 0.1
    with pytest.raises(FileFormatError, match="tailored decoders"):
        recipe_of(tmp_path, {**TINY, "base": base})


@pytest.mark.slow
def test_networks_in_processes_of_their_own_give_the_same(manifest, tmp_path):
    """Of the whole network, and of stages that train together; one grouping instead of three."""
    names = ("unified", "tailored")
    fewer = recipe(tmp_path, networks=list(names), groupings=TINY["multistage"]["groupings"][:1])
    MultistageRun(fewer, tmp_path / "run", executor=ForkedJobs(2)).execute()
    other = read_json(tmp_path / "run" / "manifest.json")
    alike = [
        row for row in manifest["multistage"] if row["network"] in names and row["grouping"] in ("explicit", "uniform")
    ]
    assert other["multistage"] == alike
    stages = {row["stage"] for row in other["ledger"]}
    assert {"unified, seed 3", "tailored, grouping 0, seed 3"} <= stages
    alike = [row for row in manifest["ledger"] if row["stage"] in stages]
    assert sorted(map(str, other["ledger"])) == sorted(map(str, alike))
