"""What a run makes, keeps, makes again, and goes on with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from micro_recipe import STAGES, Spy, StopError, micro

from prunekit._files import sha256_file, write_json
from prunekit._json import read_json
from prunekit.data import load_images
from prunekit.errors import BudgetError, FileFormatError
from prunekit.groups import make_groups
from prunekit.nets import load_experts
from prunekit.runs import based_run, planned_run
from prunekit.runs import experts_run as runner
from prunekit.runs.experts_run import Run
from prunekit.steps.presets import small_unet


def weight_files(folder: Path) -> dict[str, str]:
    """Hashes of all weights and of the files with the plans."""
    files = [*folder.rglob("*.safetensors"), *folder.rglob("config.json"), folder / "base.pt"]
    return {str(file.relative_to(folder)): sha256_file(file) for file in files}


def test_a_first_run_makes_every_stage_once_and_in_order(finished_run):
    _, spy = finished_run
    assert spy.stages == [(name, False) for name in [*STAGES, "report"]]
    assert ("group 1", 4, 4) in spy.progressed
    assert ("sampling", 32, 32) in spy.progressed


def test_a_second_run_keeps_every_stage(own_copy, execute, monkeypatch):
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    for name in ("train_base", "finetune_slim", "score_groups", "prune_group", "measure_all"):
        having = [module for module in (based_run, planned_run, runner) if hasattr(module, name)]
        assert having, name
        for module in having:
            monkeypatch.setattr(module, name, never)
    before = {path: path.stat().st_mtime_ns for path in own_copy.rglob("*.safetensors")}
    first = read_json(own_copy / "manifest.json")
    shutil.rmtree(own_copy / "report")
    spy = execute(micro(), own_copy)
    assert spy.stages == [*((name, True) for name in STAGES), ("report", False)]
    assert spy.progressed == []
    assert {path: path.stat().st_mtime_ns for path in own_copy.rglob("*.safetensors")} == before
    second = read_json(own_copy / "manifest.json")
    assert {key for key in first if first[key] != second[key]} <= {"created", "commit", "threads"}
    assert (own_copy / "report" / "index.html").is_file()


@pytest.mark.usefixtures("quick")
def test_groups_and_allocation_are_read_once_and_again_when_they_are_made(tmp_path, monkeypatch):
    recipe = micro(prune=None, finetune=None, evaluation=None)
    run = Run(recipe, tmp_path)
    run.execute()
    write_json(tmp_path / "groups.json", make_groups(run.base.schedule, count=3).to_json())
    write_json(tmp_path / "allocation.json", read_json(tmp_path / "allocation.json") | {"sampler": "euler"})
    again = Run(recipe, tmp_path)
    assert (len(again.groups), again.allocation.sampler) == (3, "euler")
    assert again.groups is again.groups
    assert again.allocation is again.allocation
    again.execute()
    assert (len(again.groups), again.allocation.sampler) == (2, "ddim")


AFTER_PRUNE = STAGES[STAGES.index("finetune group 0") :]
CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "words": ({"name": "other", "description": "other words"}, []),
    "what is so by default": ({"prune__criterion": "taylor", "evaluation__features": "auto"}, []),
    "evaluation": ({"evaluation__seeds": [1]}, ["evaluate"]),
    "finetune": ({"finetune__overlap": 5}, AFTER_PRUNE),
    "budget": ({"allocation__budget": 0.7}, ["allocate", "prune group 0", "prune group 1", *AFTER_PRUNE]),
    "prune": ({"prune__samples": 8}, ["importance", "prune group 0", "prune group 1", *AFTER_PRUNE]),
    "groups": ({"groups__cuts": [400]}, STAGES[1:]),
}


@pytest.mark.parametrize(("change", "again"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_runs_its_stage_and_what_follows_again(own_copy, monkeypatch, quick, change, again):
    """What is decided, not what is computed: the actions give back what they gave before."""
    known = {record["name"]: record for record in map(read_json, (own_copy / "stages").glob("*.json"))}
    for stage in STAGES:
        word, *rest = stage.split()
        given = {"allocate": "_allocate", "assemble": "_assemble"}.get(word, f"_{word}")
        if rest:
            facts = [known[f"{word} group {i}"]["facts"] for i in range(2)]
            monkeypatch.setattr(Run, given, lambda self, index, *_, facts=facts: facts[index])
        else:
            monkeypatch.setattr(Run, given, lambda self, *_, facts=known[stage]["facts"]: facts)
    spy = Spy()
    Run(micro(**change), own_copy, spy).execute()
    assert spy.made == again
    spy = Spy()
    Run(micro(**change), own_copy, spy).execute()
    assert spy.made == []


@pytest.mark.slow
def test_other_finetuning_leaves_the_pruned_models_and_changes_the_tuned(own_copy, execute, quick):
    before = weight_files(own_copy)
    spy = execute(micro(finetune__overlap=5, evaluation=None), own_copy)
    assert spy.made == ["finetune group 0", "finetune group 1", "assemble"]
    changed = {name.split("/")[0] for name, digest in weight_files(own_copy).items() if before[name] != digest}
    assert changed == {"slim", "experts"}


@pytest.mark.slow
def test_another_budget_prunes_to_it(own_copy, execute, quick):
    spy = execute(micro(allocation__budget=0.6, finetune=None, evaluation=None), own_copy)
    assert spy.made == ["allocate", "prune group 0", "prune group 1"]
    manifest = read_json(own_copy / "manifest.json")
    assert [expert["macs"] / manifest["base"]["macs"] for expert in manifest["experts"]] == pytest.approx(
        [0.6] * 2, abs=0.01
    )
    assert "assembled" not in manifest  # an earlier run's results are not this run's


DELETED = {
    "base.pt": "base",
    "groups.json": "groups",
    "allocation.json": "allocate",
    "importance.json": "importance",
    "pruned/group-0/model.safetensors": "prune group 0",
    "slim/group-1": "finetune group 1",
    "experts/experts.json": "assemble",
    "experts/group-1/model.safetensors": "assemble",
    "samples/experts.npz": "evaluate",
}


@pytest.mark.slow_cases("experts/*", "samples/*")
@pytest.mark.parametrize(("path", "stage"), DELETED.items(), ids=DELETED.keys())
def test_a_deleted_output_is_made_again_byte_by_byte(own_copy, finished, execute, quick, path, stage):
    deleted = own_copy / path
    shutil.rmtree(deleted) if deleted.is_dir() else deleted.unlink()
    assert execute(micro(), own_copy).made == [stage]
    assert weight_files(own_copy) == weight_files(finished)
    if deleted.is_file():
        assert deleted.read_bytes() == (finished / path).read_bytes()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped_to_the_same_bytes(finished, tmp_path, quick):
    """Stopped at the third train step of the second expert, in another folder."""

    class Stopping(Spy):
        def progress(self, label: str, done: int, total: int, note: str) -> None:
            super().progress(label, done, total, note)
            if (label, done) == ("group 1", 3):
                raise StopError

    folder, stopped, spy = tmp_path / "elsewhere", Stopping(), Spy()
    with pytest.raises(StopError):
        Run(micro(), folder, stopped).execute()
    assert stopped.made == STAGES[: STAGES.index("finetune group 1") + 1]
    assert not (folder / "manifest.json").exists()
    assert not (folder / "slim" / "group-1").exists()
    Run(micro(), folder, spy).execute()
    assert spy.made == STAGES[STAGES.index("finetune group 1") :]
    assert [entry for entry in spy.progressed if entry[0] == "group 1"] == [("group 1", 3, 4), ("group 1", 4, 4)]
    assert weight_files(folder) == weight_files(finished)
    assert list((folder / "checkpoints").iterdir()) == []
    ours, theirs = (read_json(place / "manifest.json") for place in (folder, finished))
    for key in ("experts", "assembled", "losses", "ledger", "base", "allocation", "config_hash"):
        assert ours[key] == theirs[key]
    for name in ("base", "experts"):
        assert (folder / f"samples/{name}.npz").read_bytes() == (finished / f"samples/{name}.npz").read_bytes()


@pytest.mark.slow
def test_a_stage_that_stops_midway_is_kept_by_no_recipe(own_copy, finished, monkeypatch, execute, quick):
    """The other recipe's output is there when it stops, and must not pass for this one's."""

    save = runner.save_slim

    def stops(*args: Any) -> None:
        save(*args)
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(runner, "save_slim", stops)
        with pytest.raises(StopError):
            execute(micro(allocation__budget=0.7, finetune=None, evaluation=None), own_copy)
    assert weight_files(own_copy) != weight_files(finished)
    spy = execute(micro(finetune=None, evaluation=None), own_copy)
    assert spy.made == ["allocate", "prune group 0"]
    assert weight_files(own_copy) == weight_files(finished)


@pytest.mark.slow
def test_a_recipe_with_fewer_groups_in_the_same_folder_takes_its_own_only(own_copy, execute, quick):
    spy = execute(micro(groups__count=1, evaluation=None), own_copy)
    assert spy.made == ["groups", "allocate", "importance", "prune group 0", "finetune group 0", "assemble"]
    assert len(load_experts(own_copy / "experts").groups) == 1
    assert [expert["group"] for expert in read_json(own_copy / "manifest.json")["experts"]] == [0]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": "prunekit-state/2", "stages": {}}', '{"format": "prunekit-state/1"}']
)
def test_a_broken_state_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"state\.json"):
        Run(micro(), tmp_path)


def test_a_record_of_a_later_version_is_refused_by_its_name(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "prune-group-1.json").write_text('{"format": "prunekit-stage/3"}')
    with pytest.raises(FileFormatError, match=r"stages/prune-group-1\.json has format 'prunekit-stage/3'"):
        Run(micro(), tmp_path)


@pytest.mark.slow
def test_a_folder_from_when_all_stages_were_in_one_file_is_gone_on_with(own_copy, execute, quick):
    records = [read_json(file) for file in sorted((own_copy / "stages").glob("*.json"))]
    stages = {r["name"]: {key: r[key] for key in ("key", "seconds", "facts")} for r in records}
    write_json(own_copy / "state.json", {"format": "prunekit-state/1", "stages": stages})
    shutil.rmtree(own_copy / "stages")
    assert execute(micro(), own_copy).made == []
    assert execute(micro(evaluation__seeds=[1]), own_copy).made == ["evaluate"]
    assert execute(micro(evaluation__seeds=[1]), own_copy).made == []


def test_an_allocation_without_targets_is_refused_with_the_way_to_mend_it(own_copy):
    run = Run(micro(), own_copy)
    allocation = read_json(own_copy / "allocation.json")
    allocation["base_macs"] = None
    for group in allocation["groups"]:
        group["target_macs"] = None
    write_json(own_copy / "allocation.json", allocation)
    options = micro().prune
    with pytest.raises(FileFormatError, match=r"allocation\.json has no target_macs for group 1; delete it"):
        run._prune(1, options)


def test_a_run_that_ends_with_a_plan_has_a_report(tmp_path):
    spy = Spy()
    Run(micro(prune=None, finetune=None, evaluation=None), tmp_path / "run", spy).execute()
    assert spy.made == ["base", "groups", "allocate"]
    assert "Timestep groups" in (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")


def test_a_budget_that_cannot_be_met_is_refused_before_the_base_is_trained(tmp_path):
    untrained = {"model": small_unet(load_images("digits", None)), "train": {"steps": 4}}
    recipe = micro(base=untrained, allocation__rule="linear", allocation__budget=0.7)
    with pytest.raises(BudgetError, match=r"0\.7 cannot be met by rule 'linear' with 2 groups; expected 0\.83"):
        Run(recipe, tmp_path / "run", Spy()).execute()
    assert not (tmp_path / "run" / "base.pt").exists()
