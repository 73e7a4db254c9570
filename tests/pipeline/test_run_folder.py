"""A run writes inside its own folder, whatever the recipe's names and the folder's links say."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro_recipe import Spy, micro
from tiny_comparison import TINY_MODEL, TINY_SCHEDULE

from prunekit.errors import InputError
from prunekit.recipe import PruneOptions, Recipe
from prunekit.runs.experts_run import Run
from prunekit.runs.publishing import publish
from prunekit.runs.run_folder import check_links, inside, own_or_elsewhere
from prunekit.search import SearchOptions
from prunekit.studies.curriculum_study import CurriculumRun
from prunekit.studies.kinds_of_runs import run_of

LATENCY = {"prune__search__target_of": "latency", "finetune": None, "evaluation": None}


@pytest.fixture
def place(tmp_path):
    """A run's folder with links of all kinds, beside a folder of somebody else's."""
    run, other = tmp_path / "run", tmp_path / "other"
    (run / "own").mkdir(parents=True)
    other.mkdir()
    (other / "file.txt").write_text("precious")
    (run / "own" / "file.txt").write_text("own")
    (run / "in").symlink_to("own")
    return run


def listing(folder):
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


OUTWARD = {
    "a file": "../other/file.txt",
    "a folder": "../other",
    "nothing yet": "../other/new.txt",
    "by its full path": "/etc/hostname",
    "by way of itself": "own/../../other",
    "home": "/home/somebody/.bashrc",
}


@pytest.mark.parametrize("target", OUTWARD.values(), ids=OUTWARD)
def test_links_that_lead_out_are_refused_wherever_they_are(place, target):
    check_links(place)
    (place / "deep" / "er").mkdir(parents=True)
    (place / "deep" / "er" / "link").symlink_to(target if target.startswith("/") else f"../../{target}")
    with pytest.raises(InputError, match=r"deep/er/link is a symbolic link that leads out of the run's folder"):
        check_links(place)


def test_links_in_a_circle_and_links_to_links_are_refused(place):
    (place / "one").symlink_to("two")
    (place / "two").symlink_to("one")
    with pytest.raises(InputError, match="symbolic link"):
        check_links(place)
    (place / "one").unlink()
    (place / "one").symlink_to("../other")
    with pytest.raises(InputError, match="symbolic link"):
        check_links(place)


def test_links_within_the_folder_and_a_link_to_the_folder_are_fine(place, tmp_path):
    (place / "again").symlink_to(place / "own")
    (tmp_path / "named").symlink_to(place)
    check_links(tmp_path / "named")
    check_links(tmp_path / "not there yet")
    assert inside(tmp_path / "named", "own/x.log", "study") == tmp_path / "named" / "own" / "x.log"


_PIECES = st.sampled_from(
    ["..", ".", "", "own", "in", "out", "up", "loop", "new", "file.txt", "~", "/", "a\0", "sqlite:"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_PIECES, max_size=5).map("/".join) | st.text(max_size=12))
def test_no_name_leads_out_of_the_folder(place, name):
    for link, target in {"out": "../other", "up": "..", "loop": "loop"}.items():
        if not (place / link).is_symlink():
            (place / link).symlink_to(target)
    try:
        path = inside(place, name, "study")
    except InputError:
        return
    assert os.path.realpath(path).startswith(os.path.realpath(place) + os.sep)
    assert not Path(name).is_absolute()


def test_a_table_elsewhere_is_read_and_a_new_one_is_the_runs_own(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("other/file.txt", "../" + tmp_path.name + "/other/file.txt", str(tmp_path / "other" / "file.txt")):
        assert own_or_elsewhere(place, name, "latency_table") == (Path(name), False)
    assert own_or_elsewhere(place, "tables/new.json", "latency_table") == (place / "tables" / "new.json", True)
    assert own_or_elsewhere(place, "own/file.txt", "latency_table") == (place / "own" / "file.txt", True)
    for name in ("../new.json", str(tmp_path / "new.json"), "~/new.json", "other/../new.json"):
        with pytest.raises(InputError, match="inside its run's folder only"):
            own_or_elsewhere(place, name, "latency_table")


@pytest.mark.parametrize("name", ["../../table.json", "/tmp/table.json", "~/table.json"])  # noqa: S108 - refused
def test_a_run_that_would_write_its_table_elsewhere_does_not_begin(tmp_path, name):
    before = listing(tmp_path)
    with pytest.raises(InputError, match="latency_table"):
        Run(micro(**LATENCY, prune__latency_table=name), tmp_path / "run")
    assert listing(tmp_path) == before


def test_a_study_that_python_code_names_outside_is_refused_as_well(tmp_path):
    prune = PruneOptions(search=SearchOptions(proposer="tpe", study=str(tmp_path / "study.log")))
    recipe = micro().model_copy(update={"prune": prune})
    with pytest.raises(InputError, match="study"):
        Run(recipe, tmp_path / "run")
    assert listing(tmp_path) == {}


def test_a_run_does_not_begin_in_a_folder_with_links_that_lead_out(place, tmp_path):
    (place / "stages").symlink_to("../other")
    before = listing(tmp_path)
    curriculum = {
        "name": "ways",
        "base": {"model": TINY_MODEL, "noise_schedule": TINY_SCHEDULE},
        "evaluation": {},
        "curriculum": {"entries": {"a": {}, "b": {"loss_weight": "p2"}}},
    }
    for start in (
        lambda: Run(micro(), place, Spy()),
        lambda: CurriculumRun(Recipe.model_validate(curriculum), place),
        lambda: run_of(micro(), place),
        lambda: publish(place, tmp_path / "reports"),
    ):
        with pytest.raises(InputError, match="symbolic link that leads out"):
            start()
    assert listing(tmp_path) == before


def test_a_comparison_checks_the_places_of_its_entries_before_it_trains(tmp_path):
    changes = {"prune": {"search": {"target_of": "latency"}, "latency_table": "../../out.json"}}
    entries = {"plain": {}, "timed": {"kind": "ablation", "changes": changes}}
    data = {
        "name": "compares",
        "base": {"model": TINY_MODEL, "noise_schedule": TINY_SCHEDULE},
        "groups": {"count": 2},
        "allocation": {"rule": "uniform"},
        "prune": {},
        "finetune": {},
        "evaluation": {},
        "evidence": {"entries": entries, "headline": "plain"},
    }
    with pytest.raises(InputError, match="latency_table"):
        run_of(Recipe.model_validate(data), tmp_path / "run").execute()
    assert listing(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_study_is_written_into_the_runs_folder(tmp_path, monkeypatch, execute):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    search = {"proposer": "tpe", "trials": 2, "study": "studies/one.log"}
    recipe = micro(prune__search=search, prune__samples=4, prune__batch_size=4, finetune=None, evaluation=None)
    execute(recipe, tmp_path / "run")
    lines = (tmp_path / "run" / "studies" / "one.log").read_text().splitlines()
    assert all("op_code" in json.loads(line) for line in lines)
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_table_is_measured_once_into_the_runs_folder_and_read_from_elsewhere(tmp_path, monkeypatch, execute):
    monkeypatch.chdir(tmp_path)
    recipe = micro(**LATENCY, prune__latency_table="tables/times.json", prune__search__rounds=1)
    assert "prune group 1" in execute(recipe, tmp_path / "first").made
    own = tmp_path / "first" / "tables" / "times.json"
    assert json.loads(own.read_text())["format"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first"]

    before = listing(tmp_path / "first")
    execute(micro(**LATENCY, prune__latency_table="first/tables/times.json"), tmp_path / "second")
    assert not list((tmp_path / "second").rglob("times.json"))
    assert listing(tmp_path / "first") == before

    assert execute(recipe, tmp_path / "first").made == []
    own.write_text(json.dumps(json.loads(own.read_text()), indent=1))
    assert execute(recipe, tmp_path / "first").made == ["allocate", "prune group 0", "prune group 1"]
