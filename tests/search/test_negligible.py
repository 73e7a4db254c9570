"""Searches that end early, once what is left to measure can gain no more than is negligible."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_search import Tiny, searched_together, trained

from prunekit.errors import InputError
from prunekit.search import SearchOptions
from prunekit.search.sampled import _WINDOW, _last

LOSSES = st.lists(st.floats(0, 1), max_size=5 * _WINDOW)


def search_of(trials: int, slack: float):
    """What the early end reads of a task."""
    return SimpleNamespace(trials=trials, negligible=slack, slack=slack)


def finished(losses):
    return [SimpleNamespace(value=loss) for loss in losses]


@given(losses=LOSSES, slack=st.floats(0, 0.5, exclude_min=True), trials=st.integers(1, 100))
def test_trials_end_where_a_window_of_them_gained_nothing_and_more_trials_do_not_change_where(losses, slack, trials):
    task = search_of(trials, slack)
    last = _last(task, finished(losses))
    assert last <= trials
    if last < trials:
        assert min(losses[: last - _WINDOW]) - min(losses[:last]) <= slack
        assert all(_last(task, finished(losses[:count])) == last for count in range(last, len(losses)))
    else:
        ends = range(2 * _WINDOW, min(len(losses), trials - 1) + 1, _WINDOW)
        assert all(min(losses[: end - _WINDOW]) - min(losses[:end]) > slack for end in ends)


@pytest.mark.parametrize(("name", "rounds"), [("evolution", 2), ("tpe", 8)])
def test_a_sampling_search_ends_early_and_repeats_from_its_journal(tmp_path, name, rounds):
    tiny = trained()
    whole, early = (tiny.search(name, trials=80, negligible=share) for share in (0.0, 1e6))
    assert max(entry["round"] for entry in whole.measured) > rounds
    seen = [entry for entry in early.measured if entry["round"] > 0]  # round 0 is the whole network
    assert seen == [entry for entry in whole.measured if entry["round"] <= rounds]
    assert early.spent <= early.target
    journal = tmp_path / "search.jsonl"
    first = tiny.search(name, journal=journal, trials=80, negligible=1e6)
    asked = len(tiny.evaluated)
    again = tiny.search(name, journal=journal, trials=80, negligible=1e6)
    assert (again.plan, again.memory) == (first.plan, first.memory) == (early.plan, early.memory)
    assert len(tiny.evaluated) == asked


def test_a_gain_that_counts_lets_the_search_go_on():
    tiny = trained()
    strict, never = (tiny.search("tpe", trials=48, negligible=share) for share in (1e-12, 0.0))
    best = [min(entry["loss"] for entry in found.measured if any(entry["steps"])) for found in (strict, never)]
    assert best[0] >= best[1]
    assert len(strict.measured) <= len(never.measured) + 1


@pytest.mark.slow
def test_workers_that_share_a_study_end_at_one_plan_when_they_end_early(tmp_path):
    found = searched_together("tpe", study=str(tmp_path / "shared.log"), trials=64, negligible=1e6)
    assert found[0].plan == found[1].plan
    assert sum(len(result.measured) for result in found) <= 2 * _WINDOW + 2 + 2 + 1


def exchanges(found) -> list[float]:
    """Losses of the exchanges that were measured at the target."""
    return [entry["loss"] for entry in found.measured if entry["round"] == -1]


def test_exchanges_are_measured_until_one_costs_nothing_that_matters(bench):
    made = bench("unet")
    tiny = Tiny.of(made.model, made.graph, made.cost, made.inputs, torch.zeros(()))
    options = {"ratio": 0.6, "tolerance": 0.005, "shortlist": 6}
    exact, loose = (tiny.search("greedy", negligible=share, **options) for share in (0.0, 1e6))
    assert len(exchanges(exact)) > len(exchanges(loose)) == 1
    assert exchanges(exact)[0] == exchanges(loose)[0]
    assert exact.measured[: len(exact.measured) - len(exchanges(exact))] == loose.measured[:-1]
    assert max(exact.spent, loose.spent) <= exact.target == loose.target


@pytest.mark.parametrize("negligible", [-0.1, math.nan, math.inf])
def test_what_is_no_share_is_refused(negligible):
    with pytest.raises(InputError, match="share of the whole network's loss"):
        SearchOptions(negligible=negligible)
