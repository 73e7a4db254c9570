"""Run folders whose files were changed behind the run's back: what was changed is found, told, and made again to the same bytes."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from chain_run import ChainRun
from micro_recipe import STAGES, Spy, micro
from test_parallel import Inline

from prunekit._files import json_hash, sha256_file, write_json
from prunekit._json import read_json
from prunekit.errors import FileFormatError
from prunekit.runs import records
from prunekit.runs.executors import Executor
from prunekit.runs.experts_run import Run
from prunekit.runs.publishing import publish

ALL = ["one", "two", "apart", "three"]


class Listener(Spy):
    """An observer that is told what a user should know."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def note(self, sentence: str) -> None:
        self.told.append(sentence)


def started(
    folder: Path, executor: Executor | None = None, words: str = "words", peers: Sequence[Path] = ()
) -> Listener:
    listener = Listener()
    run = ChainRun(micro(), folder, listener, executor, peers)
    run.words = words
    run.execute()
    return listener


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    started(tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all that stages and the run wrote, but for the records, which tell times."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "stages"]
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def put(path: Path, content: str, like_before: bool = True) -> None:
    """Change a file, and put its time back as somebody would who hides it."""
    before = path.stat()
    path.write_text(content)
    if like_before:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit_record(folder: Path, **changes: Any) -> None:
    path = folder / "stages" / "one.json"
    path.write_text(json.dumps(read_json(path) | changes))


SMALL: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a changed letter": (
        lambda folder: put(folder / "one.json", (folder / "one.json").read_text().replace("words", "sword")),
        "one",
        "one.json was changed since stage one finished; one is made again",
    ),
    "a file cut short": (lambda folder: put(folder / "one.json", "{"), "one", "one.json was changed"),
    "an empty file": (lambda folder: put(folder / "three.json", ""), "three", "three.json was changed"),
    "a file that is gone": (lambda folder: (folder / "three.json").unlink(), "three", "three.json was deleted"),
    "a file of a folder that is gone": (
        lambda folder: (folder / "two" / "b.json").unlink(),
        "two",
        "two/b.json was deleted since stage two finished",
    ),
    "files of a folder that are swapped": (
        lambda folder: [
            (folder / "two" / old).rename(folder / "two" / new)
            for old, new in (("a.json", "c"), ("b.json", "a.json"), ("c", "b.json"))
        ],
        "two",
        "two/a.json was changed, two/b.json was changed",
    ),
    "a picture": (lambda folder: put(folder / "one.png", "another"), "one", "one.png was changed"),
    "an edited record": (lambda folder: edit_record(folder, facts={"length": 7}), "one", "stages/one.json is damaged"),
    "a record with other hashes": (lambda folder: edit_record(folder, outputs={}), "one", "stages/one.json is damaged"),
    "a record cut short": (
        lambda folder: put(folder / "stages" / "one.json", "{"),
        "one",
        "stages/one.json is damaged",
    ),
}


@pytest.mark.parametrize("executor", [None, Inline()], ids=["in turn", "in jobs"])
@pytest.mark.parametrize(("tamper", "stage", "words"), SMALL.values(), ids=SMALL.keys())
def test_what_was_changed_is_told_and_made_again(folder, executor, tamper, stage, words):
    before = contents(folder)
    tamper(folder)
    listener = started(folder, executor)
    assert listener.made == [stage]
    (sentence,) = listener.told
    assert sentence.startswith(words)
    assert contents(folder) == before
    again = started(folder, executor)
    assert (again.made, again.told) == ([], [])


@pytest.mark.parametrize("executor", [None, Inline()], ids=["in turn", "in jobs"])
def test_what_comes_out_different_has_everything_after_it_made_again(folder, executor):
    """The second start computes something else, as another version of torch does."""
    put(folder / "one.json", "{}")
    listener = started(folder, executor, words="other words")
    assert listener.made == ["one", "two", "three"]
    assert listener.told[1:] == [
        "Stage two was made from other files of one; two is made again.",
        "Stage three was made from other files of one, two; three is made again.",
    ]
    assert read_json(folder / "three.json") == {"b": {"words": "other words"}}


def test_a_file_that_is_added_and_one_that_is_touched_change_nothing(folder):
    (folder / "two" / "notes.txt").write_text("mine")
    (folder / "one.png").unlink()  # a picture that a user may throw away
    for path in folder.rglob("*.json"):
        os.utime(path, ns=(1, 1))
    listener = started(folder)
    assert (listener.made, listener.told) == ([], [])
    put(folder / "two" / "a.json", "{}")
    assert started(folder).made[0] == "two"
    assert (folder / "two" / "notes.txt").read_text() == "mine"


def test_a_picture_that_nobody_reads_has_no_later_stage_made_again(folder, monkeypatch):
    real = ChainRun._one

    def other_picture(run: ChainRun) -> dict[str, Any]:
        facts = real(run)
        (run.folder / "one.png").write_bytes(b"the same by another library")
        return facts

    monkeypatch.setattr(ChainRun, "_one", other_picture)
    (folder / "one.json").unlink()
    assert started(folder).made == ["one"]
    assert (folder / "one.png").read_bytes() == b"the same by another library"


def as_before(folder: Path) -> None:
    """Have the records' inputs be hashed as earlier versions did it: with the pictures."""
    hashed = json_hash({path: sha256_file(folder / path) for path in ("one.json", "one.png")})
    for name in ("two", "three"):
        file = folder / "stages" / f"{name}.json"
        _, record = records.read_record(file) or ("", None)
        assert record is not None
        assert record.inputs is not None
        assert hashed not in record.inputs.values()
        records.write_record(file, name, record.model_copy(update={"inputs": {**record.inputs, "one": hashed}}))


def test_a_run_of_a_version_that_hashed_pictures_is_kept_and_taken(folder, tmp_path):
    as_before(folder)
    assert started(tmp_path / "other", peers=[folder]).made == []
    listener = started(folder)
    assert (listener.made, listener.told) == ([], [])


def test_a_stage_is_taken_without_a_picture_that_was_deleted(folder, tmp_path):
    (folder / "one.png").unlink()
    assert started(tmp_path / "other", peers=[folder]).made == []
    assert not (tmp_path / "other" / "one.png").exists()
    assert set(read_json(tmp_path / "other" / "stages" / "one.json")["outputs"]) == {"one.json"}
    assert started(tmp_path / "other").made == []


def test_jobs_take_what_a_peer_has_made(folder, tmp_path):
    assert started(tmp_path / "other", Inline(), peers=[tmp_path / "nothing there", folder]).made == []


def test_an_output_that_changes_while_the_run_goes_on_ends_it_in_one_sentence(folder, tmp_path):
    class Editing(Listener):
        def stage(self, name: str, kept: bool) -> None:
            super().stage(name, kept)
            if name == "apart":
                put(tmp_path / "other" / "two" / "b.json", "{}")

    run = ChainRun(micro(), tmp_path / "other", Editing())
    with pytest.raises(FileFormatError, match=r"two/b\.json was changed while the run was going on, after stage two"):
        run.execute()
    assert started(tmp_path / "other").made == ["two", "three"]
    assert contents(tmp_path / "other") == contents(folder)


def test_large_files_are_read_where_size_or_time_differ(folder, monkeypatch):
    """So a change that hides itself behind size and time is believed, which the documentation says."""
    monkeypatch.setattr(records, "_ALWAYS_READ", 0)
    text = (folder / "three.json").read_text()
    put(folder / "three.json", text.replace("words", "sword"))
    assert started(folder).made == []
    put(folder / "three.json", text.replace("words", "sword"), like_before=False)
    assert started(folder).made == ["three"]
    os.utime(folder / "three.json", ns=(1, 1))
    assert started(folder).made == []


def forget_hashes(folder: Path) -> None:
    """As an earlier version wrote records."""
    for path in (folder / "stages").glob("*.json"):
        record = read_json(path)
        old = {key: record[key] for key in ("name", "key", "seconds", "threads", "facts")}
        write_json(path, {"format": "prunekit-stage/1", **old})


@pytest.mark.parametrize("executor", [None, Inline()], ids=["in turn", "in jobs"])
def test_a_folder_of_an_earlier_version_is_kept_and_checked_from_then_on(folder, executor):
    forget_hashes(folder)
    listener = started(folder, executor)
    assert listener.made == []
    (sentence,) = listener.told
    assert sentence.endswith("recorded no hashes; its files are taken as they are now, and checked from now on.")
    assert started(folder).told == []
    put(folder / "two" / "a.json", "{}")
    assert started(folder).made == ["two"]


def test_other_versions_and_threads_are_told_once_and_recorded(folder, monkeypatch):
    assert read_json(folder / "stages" / "one.json")["versions"] == records.versions()
    before = records.versions()["torch"]
    monkeypatch.setattr(records.torch, "__version__", "99.0")
    listener = started(folder)
    assert listener.made == []
    (sentence,) = listener.told
    assert sentence == (
        f"Stage one was made with torch {before}, and this is torch 99.0; it is kept, so {folder} holds results of both."
    )


def test_what_a_peer_holds_is_compared_before_it_is_taken(folder, tmp_path):
    taken = started(tmp_path / "taken", peers=[folder])
    assert (taken.made, taken.told) == ([], [])
    assert contents(tmp_path / "taken") == contents(folder)
    before = contents(folder)
    put(folder / "two" / "a.json", "{}")
    assert started(tmp_path / "own", peers=[folder]).made == ["two"]
    assert contents(tmp_path / "own") == before


def test_a_peers_stage_that_was_made_from_other_files_is_not_taken(folder, tmp_path):
    started(tmp_path / "own", words="other words")
    shutil.rmtree(tmp_path / "own" / "two")
    assert started(tmp_path / "own", words="other words", peers=[folder]).made == ["two"]
    assert read_json(tmp_path / "own" / "two" / "a.json") == {"a": {"words": "other words"}}


# a run of a recipe


def replace_weights(folder: Path, other: str) -> None:
    """Slim folders that are whole in themselves, of another timestep group."""
    parts = folder / other
    (parts / "group-0").rename(parts / "swapped")
    (parts / "group-1").rename(parts / "group-0")
    (parts / "swapped").rename(parts / "group-1")


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = read_json(path)
    change(content)
    path.write_text(json.dumps(content))


def edit_importance(content: dict[str, Any]) -> None:
    content["seed"] = 7


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


TAMPERED: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "importance.json edited": (lambda f: change_json(f / "importance.json", edit_importance), ["importance"]),
    "slim weights cut short": (lambda f: cut(f / "slim/group-0/model.safetensors"), ["finetune group 0"]),
    "slim groups swapped": (lambda f: replace_weights(f, "slim"), ["finetune group 0", "finetune group 1"]),
    "a file of a pruned folder gone": (lambda f: (f / "pruned/group-1/config.json").unlink(), ["prune group 1"]),
    "groups.json edited": (
        lambda f: change_json(f / "groups.json", lambda c: c.update(method="mine")),
        ["groups"],
    ),
    "allocation.json edited": (
        lambda f: change_json(f / "allocation.json", lambda c: c["groups"][0].update(target_macs=1)),
        ["allocate"],
    ),
    "a plan in a slim config edited": (
        lambda f: change_json(f / "pruned/group-0/config.json", lambda c: c.update(plan={"graph": "", "kept": {}})),
        ["prune group 0"],
    ),
    "experts' weights replaced": (lambda f: replace_weights(f, "experts"), ["assemble"]),
    "a stage's record edited": (
        lambda f: change_json(f / "stages/assemble.json", lambda c: c["facts"]["assembled"].update(mean_macs=1)),
        ["assemble"],
    ),
    "evaluation.json edited": (
        lambda f: change_json(f / "evaluation.json", lambda c: c.update(losses=[])),
        ["evaluate"],
    ),
    "a search's journal edited": (lambda f: cut(f / "search/group-0.jsonl"), ["prune group 0"]),
    "a manifest of another run": (
        lambda f: change_json(f / "manifest.json", lambda c: c.update(recipe="other", experts=[], created="1999")),
        [],
    ),
}


def results(folder: Path) -> dict[str, str]:
    """Hashes of every result; of the manifest, of what does not tell times."""
    left_out = ("stages", "report")
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in left_out]
    found = {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}
    manifest = {
        key: value
        for key, value in read_json(folder / "manifest.json").items()
        if key not in ("created", "seconds", "metrics", "threads")
    }
    return found | {"manifest.json": json_hash(manifest), "evaluation.json": ""}


@pytest.mark.slow
@pytest.mark.parametrize(("tamper", "again"), TAMPERED.values(), ids=TAMPERED.keys())
def test_a_tampered_run_ends_as_an_untouched_one(own_copy, finished, quick, tamper, again):
    assert set(again) <= set(STAGES)
    tamper(own_copy)
    listener = Listener()
    Run(micro(), own_copy, listener).execute()
    assert listener.made == again
    assert len(listener.told) == len(again)
    ours, theirs = results(own_copy), results(finished)
    assert ours == theirs
    assert read_json(own_copy / "evaluation.json")["losses"] == read_json(finished / "evaluation.json")["losses"]


@pytest.mark.slow
def test_an_edited_importance_is_published_as_it_was_made(own_copy, finished, quick, tmp_path):
    """The later stages are kept: they were made from what importance.json says again."""
    change_json(own_copy / "importance.json", edit_importance)
    listener = Listener()
    manifest = Run(micro(), own_copy, listener).execute()
    assert listener.made == ["importance"]
    published = publish(manifest.parent, tmp_path / "reports")
    assert sha256_file(published / "importance.json") == sha256_file(finished / "importance.json")
