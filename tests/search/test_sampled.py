"""What Optuna brings: shared studies, and what is said where it is not installed."""

import sys

import pytest
from tiny_search import searched_together, trained

from prunekit.errors import InputError
from prunekit.search import check_available, ranks


@pytest.mark.parametrize("name", ["evolution", "tpe"])
def test_without_optuna_the_extra_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"prunekit\[search\]"):
        trained().search(name)
    with pytest.raises(InputError, match=r"pip install 'prunekit\[search\]'"):
        check_available(name)
    check_available("greedy")


@pytest.mark.slow_but("tpe")
@pytest.mark.parametrize("name", ["evolution", "tpe"])
def test_workers_that_share_a_study_share_its_trials_and_end_at_one_plan(tmp_path, name):
    study = str(tmp_path / "deep" / "shared.log")
    found = searched_together(name, study=study, trials=24)
    assert found[0].plan == found[1].plan
    shares = [len(result.measured) for result in found]
    assert all(shares)
    assert sum(shares) <= 24 + 2 + 1  # both may begin with the same two, and one may end late


def test_one_worker_alone_is_deterministic_and_a_second_finds_the_study_done(tmp_path):
    tiny = trained()
    first, second = (tiny.search("tpe", study=str(tmp_path / f"{i}.log")) for i in range(2))
    assert (first.plan, first.memory) == (second.plan, second.memory)
    late = tiny.search("tpe", study=str(tmp_path / "0.log"))
    assert late.plan == first.plan
    assert late.measured == []


@pytest.mark.slow
def test_another_search_in_the_same_file_is_another_study(tmp_path):
    tiny, study = trained(), str(tmp_path / "shared.log")
    tiny.search("tpe", 0.6, study=study)
    other = tiny.search("tpe", 0.8, study=study)
    assert other.memory == tiny.search("tpe", 0.8, study=str(tmp_path / "own.log")).memory


def test_ranks_need_no_shared_study(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "place", lambda: (0, 2))
    monkeypatch.setattr(ranks, "same", lambda value: value)
    with pytest.raises(InputError, match="ranks"):
        trained().search("tpe", study=str(tmp_path / "shared.log"))


def test_optuna_says_nothing_and_its_level_stays(capsys):
    optuna = pytest.importorskip("optuna")
    before = optuna.logging.get_verbosity()
    trained().search("evolution")
    assert optuna.logging.get_verbosity() == before
    assert capsys.readouterr().err == ""
