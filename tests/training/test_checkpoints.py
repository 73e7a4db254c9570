import hashlib
import io
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch

from prunekit.training.checkpoints import latest_checkpoint, save_checkpoint


def state(step: int) -> dict[str, object]:
    return {"step": step, "weights": torch.full((3,), float(step)), "losses": [[1, 0.5]], "name": "a run"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_state_comes_back_bit_for_bit(tmp_path):
    for step in (5, 10):
        save_checkpoint(tmp_path / "made", step, state(step))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = latest_checkpoint(tmp_path / "made")
    assert found is not None
    assert torch.equal(found.pop("weights"), state(10).pop("weights"))
    assert found == {"step": 10, "losses": [[1, 0.5]], "name": "a run"}


def test_the_name_says_step_and_hash_of_the_content(tmp_path):
    path = save_checkpoint(tmp_path, 123, state(123))
    assert path.name == f"step-00000123-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.pt"


def test_equal_states_are_equal_files(tmp_path):
    assert save_checkpoint(tmp_path / "a", 1, state(1)).name == save_checkpoint(tmp_path / "b", 1, state(1)).name


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path, keep):
    for step in (2, 4, 100, 1000):
        save_checkpoint(tmp_path, step, state(step), keep)
        assert len(names(tmp_path)) <= keep
    assert [int(name[5:13]) for name in names(tmp_path)] == [2, 4, 100, 1000][-keep:]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, empty, flip])
def test_a_damaged_one_is_passed_over_with_its_name(tmp_path, damage):
    save_checkpoint(tmp_path, 5, state(5))
    newest = save_checkpoint(tmp_path, 10, state(10))
    damage(newest)
    with pytest.warns(UserWarning, match=re.escape(newest.name)):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found["step"] == 5


def test_nothing_is_found_where_everything_is_damaged_or_absent(tmp_path):
    assert latest_checkpoint(tmp_path / "absent") is None
    truncate(save_checkpoint(tmp_path, 5, state(5)))
    with pytest.warns(UserWarning, match="damaged"):
        assert latest_checkpoint(tmp_path) is None


def test_files_of_other_names_are_neither_read_nor_removed(tmp_path):
    others = [
        "notes.txt",
        "step-1.pt",
        ".step-00000099-0123456789abcdef.pt.7.part",
        "step-00000099-0123456789abcdef.pt.bak",
    ]
    for name in others:
        (tmp_path / name).write_bytes(b"?")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step))
    assert set(others) < set(names(tmp_path))
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found["step"] == 3


class Trap:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (Path("sprung"),)


def test_code_in_a_checkpoint_of_the_right_hash_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path, 1, state(1))
    for step, content in ((2, pickle.dumps(Trap(), protocol=2)), (3, _saved(Trap()))):
        (tmp_path / f"step-{step:08d}-{hashlib.sha256(content).hexdigest()[:16]}.pt").write_bytes(content)
    with pytest.warns(UserWarning, match="passed over"):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found["step"] == 1
    assert not (tmp_path / "sprung").exists()


def _saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_write_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 5, state(5))
    before = names(tmp_path)
    whole = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        whole(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 10, state(10))
    assert names(tmp_path) == before
