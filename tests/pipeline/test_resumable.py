"""Stages of a run: kept, made, or taken from another run's folder."""

from pathlib import Path
from typing import Any

import pytest
from micro_recipe import Spy, micro

from prunekit._json import read_json
from prunekit.errors import InputError
from prunekit.recipe import Recipe
from prunekit.runs.resumable import ResumableRun
from prunekit.studies.kinds_of_runs import check_run_folder
from prunekit.training.checkpoints import save_checkpoint


class Writing(ResumableRun):
    """Writes a text and tells its length, as two files of one stage."""

    text = "text"
    made = 0

    def execute(self) -> Path:
        self._stage("write", {"text": self.text}, ["a.txt", "deep/b.txt"], self._write_text)
        return self.folder / "a.txt"

    def _write_text(self) -> dict[str, Any]:
        self.made += 1
        (self.folder / "deep").mkdir(exist_ok=True)
        for name in ("a.txt", "deep/b.txt"):
            (self.folder / name).write_text(self.text)
        return {"length": len(self.text)}


@pytest.fixture
def recipe() -> Recipe:
    return micro()


@pytest.fixture
def peer(recipe: Recipe, tmp_path: Path) -> Path:
    Writing(recipe, tmp_path / "peer").execute()
    return tmp_path / "peer"


def test_what_a_peer_has_made_of_the_same_inputs_is_taken_with_its_facts(
    recipe: Recipe, peer: Path, tmp_path: Path
) -> None:
    spy = Spy()
    run = Writing(recipe, tmp_path / "own", spy, peers=[tmp_path / "nothing there", peer])
    assert run.execute().read_text() == (tmp_path / "own" / "deep" / "b.txt").read_text() == "text"
    assert run.made == 0
    assert spy.made == []
    assert run.done["write"].facts == {"length": 4}
    assert read_json(tmp_path / "own" / "stages" / "write.json") == read_json(peer / "stages" / "write.json")


def test_other_inputs_are_made(recipe: Recipe, peer: Path, tmp_path: Path) -> None:
    run = Writing(recipe, tmp_path / "own", peers=[peer])
    run.text = "longer text"
    assert run.execute().read_text() == "longer text"
    assert run.made == 1


def test_what_a_peer_has_lost_is_made(recipe: Recipe, peer: Path, tmp_path: Path) -> None:
    (peer / "deep" / "b.txt").unlink()
    run = Writing(recipe, tmp_path / "own", peers=[peer])
    run.execute()
    assert run.made == 1
    assert (tmp_path / "own" / "deep" / "b.txt").read_text() == "text"


def test_a_stage_that_is_taken_over_an_older_one_is_nobodys_while_it_is_copied(
    recipe: Recipe, peer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Writing(recipe, tmp_path / "own")
    older.text = "old"
    older.execute()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("prunekit.runs.book.shutil.copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            Writing(recipe, tmp_path / "own", peers=[peer]).execute()
    again = Writing(recipe, tmp_path / "own")
    again.text = "old"
    again.execute()
    assert again.made == 1


class Interrupted(Writing):
    """Is interrupted in its first stage, a training that saves its state."""

    def _write_text(self) -> dict[str, Any]:
        (self.folder / "checkpoints" / "base-0123456789abcdef").mkdir(parents=True)
        raise KeyboardInterrupt


@pytest.mark.parametrize("place", [".", "base"])
def test_a_folder_whose_first_training_was_interrupted_is_gone_on_with(
    recipe: Recipe, tmp_path: Path, place: str
) -> None:
    """Its own, or the base's of a comparison."""
    with pytest.raises(KeyboardInterrupt):
        Interrupted(recipe, tmp_path / "run" / place).execute()
    check_run_folder(tmp_path / "run")
    assert Writing(recipe, tmp_path / "run" / place).execute().read_text() == "text"


class Training(ResumableRun):
    """Trains two networks in one stage, and remembers which checkpoints it found."""

    found: tuple[str, ...] = ()

    def execute(self) -> Path:
        self._stage("train", {}, ["a.txt"], self._train)
        return self.folder / "a.txt"

    def _train(self) -> dict[str, Any]:
        for name in ("one", "two"):
            folder = self._checkpoints(name)
            self.found += tuple(path.name for path in folder.glob("*"))
            save_checkpoint(folder, 5, {"step": 5})
            folder.with_suffix(".json").write_text("finished")
        (self.folder / "a.txt").write_text("text")
        return {}


def test_checkpoints_are_kept_until_the_stage_is_recorded(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("prunekit.runs.book.write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            Training(recipe, tmp_path).execute()
    again = Training(recipe, tmp_path)
    again.execute()
    assert len(again.found) == 2
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_first_stage_that_made_nothing_leaves_nothing(recipe: Recipe, tmp_path: Path) -> None:
    class Mistaken(Writing):
        def _write_text(self) -> dict[str, Any]:
            raise InputError("Got nonsense; expected sense.")

    with pytest.raises(InputError):
        Mistaken(recipe, tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()
