"""A run whose targets follow from its own searches."""

import pytest
from micro_recipe import Spy, StopError, micro

from prunekit._json import read_json
from prunekit.allocation import Allocation
from prunekit.errors import FileFormatError, InputError
from prunekit.recipe import AllocationOptions
from prunekit.report import write_report
from prunekit.runs import experts_run as runner
from prunekit.runs.experts_run import Run

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
    assert ledger["sensitivity"]["samples"] == (1 + 2 * used) * 4 * 3
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
