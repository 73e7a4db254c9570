"""A run whose targets follow from its own searches."""

import pytest
from micro_recipe import Spy, StopError, micro

from prunekit._json import read_json
from prunekit.allocation import Allocation, Recoveries, Sensitivity, read_frontier, shared_steps
from prunekit.errors import FileFormatError, InputError
from prunekit.recipe import AllocationOptions
from prunekit.report import write_report
from prunekit.runs import planned_run as runner
from prunekit.runs.experts_run import Run
from prunekit.steps.bench import slack_of
from prunekit.studies.recipe_costs import estimate, work_by_stage

MEASURED = {"allocation__rule": "measured", "allocation__frontier_floor": 0.5, "finetune": None, "evaluation": None}
FRONTIERS = ["frontier group 0", "frontier group 1"]
BEFORE = ["base", "groups", "importance", *FRONTIERS, "allocate"]
PRUNE = ["prune group 0", "prune group 1"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_measured_run_searches_first_ends_and_is_kept(tmp_path, execute):
    assert execute(micro(**MEASURED), tmp_path).made == [*BEFORE, *PRUNE]
    allocation = Allocation.from_json(read_json(tmp_path / "allocation.json"))
    manifest = read_json(tmp_path / "manifest.json")
    assert (allocation.rule, len(allocation.frontiers)) == ("measured", 2)
    assert allocation.mean_mac_ratio == pytest.approx(0.8, abs=1e-6)
    for group, frontier, expert in zip(allocation.groups, allocation.frontiers, manifest["experts"], strict=True):
        assert frontier.base_macs == manifest["base"]["macs"]
        assert frontier.macs[0] <= 0.6 * frontier.base_macs
        assert expert["macs"] <= group.target_macs == expert["target_macs"]
    stages = [row["stage"] for row in manifest["ledger"]]
    assert stages == [
        "importance",
        *(f"frontier, group {i}" for i in range(2)),
        *(f"search, group {i}" for i in range(2)),
    ]
    assert all(row["samples"] > 0 and row["macs"] > 0 for row in manifest["ledger"])

    assert execute(micro(**MEASURED), tmp_path).made == []
    again = execute(micro(**MEASURED | {"allocation__budget": 0.7}), tmp_path).made
    assert again == ["allocate", *PRUNE]  # what was searched serves every budget
    (tmp_path / "frontier" / "group-1.jsonl").unlink()
    assert execute(micro(**MEASURED | {"allocation__budget": 0.7}), tmp_path).made == ["frontier group 1"]
    deeper = micro(**MEASURED | {"allocation__budget": 0.7, "allocation__frontier_floor": 0.45})
    assert execute(deeper, tmp_path).made == [*FRONTIERS, "allocate", *PRUNE]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_measured_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    calls = []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise StopError
        return real(*arguments)

    real = runner.prune_group
    with monkeypatch.context() as patch:
        patch.setattr(runner, "prune_group", stops)
        with pytest.raises(StopError):
            Run(micro(**MEASURED), tmp_path, Spy()).execute()
    spy = Spy()
    Run(micro(**MEASURED), tmp_path, spy).execute()
    assert spy.made == ["frontier group 1", "allocate", *PRUNE]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_sensitivity_says_what_is_negligible_in_every_groups_search(tmp_path, monkeypatch, execute):
    asked, real = [], runner.prune_group

    def noted(*arguments):
        asked.append((arguments[3].index, arguments[-1]))
        return real(*arguments)

    monkeypatch.setattr(runner, "prune_group", noted)
    weighed = MEASURED | {"allocation__sensitivity": True, "allocation__sensitivity_samples": 2}
    recipe = micro(**weighed, prune__search__negligible=0.01)
    assert execute(recipe, tmp_path).made == [
        "base",
        "groups",
        "sensitivity",
        "importance",
        *FRONTIERS,
        "allocate",
        *PRUNE,
    ]
    sensitivity = Sensitivity.from_json(read_json(tmp_path / "sensitivity.json"))
    run = Run(recipe, tmp_path, Spy())
    slack = slack_of(run.bench, run.images.train, sensitivity, recipe.prune)
    assert len(set(slack)) == 2
    assert asked == [*enumerate(slack), *enumerate(slack)]
    samples = {row["stage"]: row["samples"] for row in read_json(tmp_path / "manifest.json")["ledger"]}
    assert execute(micro(**weighed), tmp_path).made == ["importance", *FRONTIERS, "allocate", *PRUNE]
    assert asked[-1] == (1, 1.0)
    assert samples["frontier, group 0"] >= 2 * recipe.prune.samples  # both groups' losses are part of the cost


@pytest.mark.usefixtures("quick")
def test_a_proposer_that_measures_nothing_is_refused(tmp_path, execute):
    with pytest.raises(FileFormatError, match="such as greedy's"):
        execute(micro(**MEASURED, prune__search__proposer="oneshot"), tmp_path)


def test_a_recipe_that_cannot_measure_is_refused():
    with pytest.raises(InputError, match="lower frontier_floor"):
        AllocationOptions(budget=0.2, rule="measured")
    assert AllocationOptions(budget=0.2).frontier_floor == 0.3  # of no concern to other rules
    for change in ({"prune": None}, {"prune__search__target_of": "params"}):
        with pytest.raises(ValueError, match="needs a prune section whose search has target_of macs"):
            micro(**MEASURED | change)


SENSITIVE = MEASURED | {"allocation__sensitivity": True, "allocation__sensitivity_samples": 4}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_sensitivity_is_a_stage_that_is_kept_and_decides_the_allocation(tmp_path, execute):
    made = execute(micro(**SENSITIVE), tmp_path).made
    assert made == ["base", "groups", "sensitivity", "importance", *FRONTIERS, "allocate", *PRUNE]
    allocation = Allocation.from_json(read_json(tmp_path / "allocation.json"))
    assert allocation.sensitivity is not None
    assert allocation.sensitivity.to_json() == read_json(tmp_path / "sensitivity.json")
    assert sum(group.evaluations for group in allocation.sensitivity.groups) == 3
    assert (tmp_path / "sensitivity.png").is_file()
    ledger = {row["stage"]: row for row in read_json(tmp_path / "manifest.json")["ledger"]}
    used = sum(1 for group in allocation.sensitivity.groups if group.evaluations)
    assert ledger["sensitivity"]["samples"] == (1 + used) * 4 * 3
    write_report(tmp_path)
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "weighed each timestep group&#39;s loss by its amplification" in page.replace("'s loss", "&#39;s loss")
    assert (tmp_path / "report" / "sensitivity.csv").is_file()

    assert execute(micro(**SENSITIVE), tmp_path).made == []
    lower = SENSITIVE | {"allocation__budget": 0.7}
    assert execute(micro(**lower), tmp_path).made == ["allocate", *PRUNE]
    more = lower | {"allocation__sensitivity_samples": 5}
    assert execute(micro(**more), tmp_path).made[:2] == ["sensitivity", "allocate"]
    (tmp_path / "sensitivity.json").unlink()
    assert execute(micro(**more), tmp_path).made == ["sensitivity"]


def test_a_sensitivity_without_rule_measured_is_refused():
    with pytest.raises(InputError, match="expected rule measured"):
        AllocationOptions(sensitivity=True)


RECOVERED = SENSITIVE | {"allocation__recoveries": 2, "allocation__recovery_steps": 3}
TUNED = {key: value for key, value in RECOVERED.items() if key != "finetune"} | {"finetune__share_steps": True}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_recoveries_correct_the_frontiers_and_steps_are_shared(tmp_path, execute):
    recoveries = ["recovery group 0", "recovery group 1"]
    made = execute(micro(**TUNED), tmp_path).made
    tuned = [*PRUNE, "finetune group 0", "finetune group 1"]
    assert made == [
        "base",
        "groups",
        "sensitivity",
        "importance",
        *FRONTIERS,
        *recoveries,
        "allocate",
        *tuned,
        "assemble",
    ]
    allocation = Allocation.from_json(read_json(tmp_path / "allocation.json"))
    for index, frontier in enumerate(allocation.frontiers):
        found = Recoveries.from_json(read_json(tmp_path / "recovery" / f"group-{index}.json"))
        points = found.groups[0].points
        assert frontier.recoveries == points
        assert [point.macs for point in points][-1] == frontier.base_macs
        own = read_frontier(tmp_path / "frontier" / f"group-{index}.jsonl")
        at = points[0].macs / own.base_macs
        assert own.macs[0] <= points[0].macs <= 1.01 * own.macs[0]
        assert points[0].before == pytest.approx(own.loss_at(at), rel=0.01)  # the searches' loss, on the same draws
        assert points[1].after != points[1].before
        assert frontier.loss_at(at) == pytest.approx(points[0].after, rel=0.01)
    manifest = read_json(tmp_path / "manifest.json")
    kinds = [row["kind"] for row in manifest["ledger"] if row["stage"] == "recovery, group 0"]
    assert kinds == ["search", "training", "ema", "search", "search", "training", "ema"]
    steps = shared_steps(allocation, 4)
    shared = [
        row["samples"]
        for row in manifest["ledger"]
        if row["stage"].startswith("fine-tuning") and row["kind"] == "training"
    ]
    assert shared == [8 * count for count in steps]
    assert len(set(steps)) > 1
    macs = [expert["target_macs"] for expert in manifest["experts"]]
    assert sum(n * c for n, c in zip(steps, macs, strict=True)) <= 4 * sum(macs)
    expected = {(row.stage, row.kind): row.samples for row, _ in estimate(micro(**TUNED)).rows}
    recovering = [
        row for row in manifest["ledger"] if row["stage"].startswith("recovery") and row["kind"] == "training"
    ]
    assert sum(row["samples"] for row in recovering) == expected["recovery", "training"]
    assert {stage for stage, kind in expected if kind == "search"} == {"frontier", "recovery", "search"}
    assert {name for name in work_by_stage(micro(**TUNED)) if name.startswith("recovery")} == set(recoveries)
    write_report(tmp_path)
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "loss after a short fine-tuning" in page
    assert "4 steps for each group, shared by the sensitivity" in page

    assert execute(micro(**TUNED), tmp_path).made == []
    lower = execute(micro(**TUNED | {"allocation__budget": 0.7}), tmp_path).made
    assert lower[:2] == ["allocate", "prune group 0"]  # what was recovered serves every budget
    more = execute(micro(**TUNED | {"allocation__budget": 0.7, "allocation__recovery_steps": 2}), tmp_path).made
    assert more[:3] == [*recoveries, "allocate"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_an_interrupted_recovery_loses_no_training_that_ended(tmp_path, monkeypatch, execute):
    real, asked = runner.recover, []

    def stops(slim, *arguments):
        asked.append(slim.macs)
        if len(asked) == 2:
            raise StopError
        return real(slim, *arguments)

    recipe = micro(**MEASURED | {"allocation__recoveries": 2, "allocation__recovery_steps": 3})
    execute(recipe, tmp_path / "whole")
    monkeypatch.setattr(runner, "recover", stops)
    with pytest.raises(StopError):
        execute(recipe, tmp_path / "run")
    assert execute(recipe, tmp_path / "run").made[:2] == ["recovery group 0", "recovery group 1"]
    assert len(asked) == 2 + 1 + 2  # the first size of group 0 was not trained again
    for name in ("recovery/group-0.json", "allocation.json"):
        assert read_json(tmp_path / "run" / name) == read_json(tmp_path / "whole" / name)
    ledgers = [read_json(tmp_path / name / "manifest.json")["ledger"] for name in ("run", "whole")]
    assert ledgers[0] == ledgers[1]
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_network_that_fine_tuning_leaves_alone_recovers_nothing(tmp_path, execute):
    execute(micro(**RECOVERED | {"finetune": {"only_pruned": True, "train": {"steps": 4, "batch_size": 8}}}), tmp_path)
    points = Recoveries.from_json(read_json(tmp_path / "recovery" / "group-0.json")).groups[0].points
    assert points[1].before == points[1].after
    assert points[0].before != points[0].after


def test_recoveries_that_cannot_be_used_are_refused():
    with pytest.raises(InputError, match="Got recoveries with rule auto"):
        AllocationOptions(recoveries=2)
    with pytest.raises(InputError, match="2 or more"):
        AllocationOptions(rule="measured", recoveries=1)
    with pytest.raises(ValueError, match="recoveries train pruned weights"):
        micro(**TUNED | {"finetune__from_scratch": True})
    with pytest.raises(ValueError, match=r"share_steps without allocation\.sensitivity"):
        micro(finetune__share_steps=True)
