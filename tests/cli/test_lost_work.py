"""Trainings that share an output or resume with other options, runs in another recipe's folder, and images that changed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import done, listing, typed
from filelock import FileLock

from prunekit.checkpoint import load_base
from prunekit.data import ImageSplit, load_images
from prunekit.errors import InputError
from prunekit.recipe import DataOptions
from prunekit.steps.bases import open_base
from prunekit.steps.image_choice import images_for
from prunekit.studies.kinds_of_runs import check_run_folder

STEP = "--train-batch-size 2 --max-train-steps"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_a_second_training_to_one_output_is_refused_at_once(tmp_path):
    with FileLock(tmp_path / "work" / ".b.pt.lock"):
        refused = typed(f"prunekit train --data digits --output b.pt {STEP} 1")
        assert refused.code == 2
        assert "Another training is writing to b.pt" in refused.sentence
        assert not Path("b.pt").exists()
    done(f"prunekit train --data digits --output b.pt {STEP} 1")
    assert listing(tmp_path / "work").keys() >= {"b.pt"}
    assert not Path(".b.pt.lock").exists()


def test_an_output_that_appeared_during_the_training_is_kept(monkeypatch):
    import prunekit.steps.bases as bases

    real = bases.train_base

    def slow(*args, **values):
        made = real(*args, **values)
        Path("b.pt").write_text("mine")
        return made

    monkeypatch.setattr(bases, "train_base", slow)
    refused = typed(f"prunekit train --data digits --output b.pt {STEP} 1")
    assert refused.code == 2
    assert "b.pt was written by something else during the training; the trained state is in" in refused.sentence
    assert Path("b.pt").read_text() == "mine"
    Path("b.pt").unlink()
    monkeypatch.undo()


def test_a_finished_base_is_trained_on_for_more_steps(tmp_path):
    done(f"prunekit train --data digits --output {tmp_path}/a.pt {STEP} 2")
    done(f"prunekit train --resume-from-checkpoint {tmp_path}/a.pt --output {tmp_path}/b.pt {STEP} 3")
    first, second = load_base(tmp_path / "a.pt"), load_base(tmp_path / "b.pt")
    assert (second.provenance["steps"], second.provenance["continued_from"]) == (3, 2)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    changes = [float((one - other).detach().abs().max()) for one, other in pairs]
    assert 0 < max(changes) < 0.01  # one step from the first base's weights, not from new ones
    again = typed(f"prunekit train --resume-from-checkpoint {tmp_path}/b.pt --output {tmp_path}/c.pt {STEP} 3")
    assert again.code == 2
    assert "for a base that has 3 already; expected more" in again.err
    wrong = typed(f"prunekit train --resume-from-checkpoint maybe {STEP} 3")
    assert "expected latest, no, or the file of a finished base" in wrong.sentence


def test_a_run_does_not_replace_another_recipes_results(tmp_path):
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "run" / "stages" / ".base.lock").touch()
    (tmp_path / "run" / "manifest.json").write_text('{"recipe": "first"}')
    with pytest.raises(InputError, match="has the results of recipe first; expected a folder of recipe second"):
        check_run_folder(tmp_path / "run", "second")
    check_run_folder(tmp_path / "run", "first")


def save(path: Path, seed: int) -> ImageSplit:
    path.parent.mkdir(exist_ok=True)
    np.save(path, np.random.default_rng(seed).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8))
    return load_images(path)


def test_other_images_of_the_same_name_are_refused_and_the_same_images_are_found_anywhere(tmp_path):
    spec = open_base("embedded:digits").spec
    about = save(tmp_path / "one" / "x.npy", 1).about()
    save(tmp_path / "two" / "x.npy", 2)
    with pytest.raises(
        InputError, match=r"two/x\.npy has other images .* than the x\.npy that the model was trained on"
    ):
        images_for(about, spec, DataOptions(f"{tmp_path}/two/x.npy"))
    shutil.copy(tmp_path / "one" / "x.npy", tmp_path / "two" / "moved.npy")
    same = images_for(about, spec, DataOptions(f"{tmp_path}/two/moved.npy"))
    assert same.sha256 == about["sha256"]
    save(tmp_path / "work" / "x.npy", 3)  # here, but with another content
    with pytest.raises(InputError, match=r"x\.npy holds other ones\); name them by `data`"):
        images_for(about, spec, None, tmp_path / "work" / "base.pt")
    shutil.copy(tmp_path / "one" / "x.npy", tmp_path / "work" / "x.npy")
    assert images_for(about, spec, None, tmp_path / "work" / "base.pt").sha256 == about["sha256"]
    other = save(tmp_path / "two" / "other.npy", 4)  # other images are allowed if they are named so
    assert images_for(about, spec, DataOptions(f"{tmp_path}/two/other.npy")).sha256 == other.sha256
