"""Unfinished encodings: a kill, damage before resuming, and rows that could not be read later are refused at once."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunekit.data import EncodedWriter, Encoding, load_images
from prunekit.errors import FileFormatError, InputError, MissingFileError, PrunekitError

CAPTIONS = {"train": ["a shirt", "a shoe", "a bag", "a coat"], "held-out": ["a dress"]}
HIDDEN = "encoder_hidden_states"


def encoding(**changes: object) -> Encoding:
    about = {
        "pipeline": {"class": "Tiny"},
        "image_size": (8, 8),
        "captions": CAPTIONS,
        "empty": {HIDDEN: torch.zeros(3, 2)},
    }
    return Encoding(**{**about, "fixed": {"img_ids": torch.ones(2, 3)}, **changes})


def rows(start: int, stop: int) -> tuple[Tensor, dict[str, Tensor]]:
    number = torch.arange(start + 1, stop + 1).float()
    ids = torch.arange(start, stop, dtype=torch.int32)
    return number.reshape(-1, 1, 1, 1).repeat(1, 4, 2, 2), {
        HIDDEN: number.reshape(-1, 1, 1).repeat(1, 3, 2),
        "ids": ids,
    }


def finished(folder: Path) -> Path:
    writer = EncodedWriter(folder, encoding())
    writer.append("train", *rows(writer.done("train"), 4))
    writer.append("held-out", *rows(writer.done("held-out"), 1))
    writer.finish()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def half(tmp_path: Path) -> Path:
    EncodedWriter(tmp_path / "data", encoding()).append("train", *rows(0, 2))
    return tmp_path / "data"


def test_a_kill_while_rows_are_written_loses_only_those_rows(tmp_path: Path) -> None:
    """The process ends between the files of its second chunk, with some of them already longer."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_row_files import EncodedWriter, encoding, rows
writer = EncodedWriter(Path({str(tmp_path / "cut")!r}), encoding())
writer.append("train", *rows(0, 2))
sync, calls = os.fsync, 0
def counted(handle):
    global calls
    calls += 1
    sync(handle)
    if calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = counted
writer.append("train", *rows(2, 4))
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, env=os.environ)  # noqa: S603 - the script above
    assert ended.returncode == -signal.SIGKILL
    assert EncodedWriter(tmp_path / "cut", encoding()).done("train") == 2
    assert (
        len((tmp_path / "cut/train/latents.npy").read_bytes()) > len((tmp_path / "cut/train/ids.npy").read_bytes()) + 8
    )
    assert files(finished(tmp_path / "cut")) == files(finished(tmp_path / "whole"))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    path.unlink()


def fill(path: Path) -> None:
    path.write_bytes(b"junk" * 60)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def retype(path: Path) -> None:
    np.save(path, np.zeros((4, 3, 2), np.float64))


@pytest.mark.parametrize(
    ("name", "damage", "error", "said"),
    [
        (f"train/{HIDDEN}.npy", shorten, FileFormatError, "has 23 bytes of rows, and 24 were written"),
        (f"train/{HIDDEN}.npy", flip, FileFormatError, "holds other numbers than were written; delete the folder"),
        ("train/ids.npy", flip, FileFormatError, "holds other numbers than were written"),
        (f"empty/{HIDDEN}.npy", flip, FileFormatError, "holds other numbers than were written"),
        ("fixed/img_ids.npy", flip, FileFormatError, "holds other numbers than were written"),
        ("train/latents.npy", remove, MissingFileError, "is missing, and 2 rows of it were written"),
        ("train/ids.npy", fill, FileFormatError, "is no readable array"),
        (f"train/{HIDDEN}.npy", retype, FileFormatError, "has float64 of shape .* expected float16"),
        (f"empty/{HIDDEN}.npy", remove, MissingFileError, "is missing"),
        ("fixed/img_ids.npy", remove, MissingFileError, "is missing"),
    ],
)
def test_an_encoding_does_not_resume_behind_lost_rows(
    half: Path, name: str, damage: Callable[[Path], None], error: type[PrunekitError], said: str
) -> None:
    damage(half / name)
    with pytest.raises(error, match=said):
        EncodedWriter(half, encoding())


@given(st.sampled_from(["latents", HIDDEN, "ids"]), st.data())
def test_any_unfinished_array_resumes_to_the_right_rows_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """Cut anywhere, or with bytes replaced."""
    folder = tmp_path_factory.mktemp("encodings") / "data"
    EncodedWriter(folder, encoding()).append("train", *rows(0, 2))
    path = folder / "train" / f"{name}.npy"
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        finished(folder)
    except PrunekitError:
        return
    assert load_images(folder).train.columns["ids"].tolist() == [0, 1, 2, 3]
    assert load_images(folder).train.images[:, 0, 0, 0].tolist() == [1, 2, 3, 4]


def test_an_encoding_of_an_earlier_version_resumes_without_hashes(half: Path) -> None:
    path = half / "encoding.json"
    told = json.loads(path.read_text())
    assert set(told["hashes"]["train"]) == {"latents", HIDDEN, "ids"}
    del told["hashes"]
    path.write_text(json.dumps(told))
    assert load_images(finished(half)).train.columns["ids"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"done": {"train": 99}}, "more rows than captions"),
        ({"done": {"elsewhere": 1}}, "more rows than captions"),
        ({"columns": {"../../x": {"shape": [1], "dtype": "float16"}}}, "names a condition"),
    ],
)
def test_a_hostile_description_is_refused_before_anything_is_written(
    half: Path, change: Mapping[str, object], said: str
) -> None:
    path = half / "encoding.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    before = files(half.parent)
    with pytest.raises(PrunekitError, match=said):
        EncodedWriter(half, encoding())
    assert files(half.parent) == before


@pytest.mark.parametrize(
    ("latents", "columns", "said"),
    [
        (torch.zeros(2, 4), {}, r"latents of float16 and shape \(2, 4\)"),
        (torch.zeros(2, 4, 2, 2, dtype=torch.int64), {}, "latents of int64"),
        (torch.zeros(2, 4, 2, 2), {"ids": torch.zeros(2, dtype=torch.int16)}, "an array of int16"),
        (torch.zeros(2, 4, 2, 2), {"guidance": torch.tensor(3.5)}, "guidance without rows"),
        (torch.zeros(2, 4, 2, 2), {"ids": torch.zeros(3)}, r"ids of shape \(3,\)"),
    ],
)
def test_rows_that_no_reader_takes_are_refused_at_once(
    tmp_path: Path, latents: Tensor, columns: Mapping[str, Tensor], said: str
) -> None:
    writer = EncodedWriter(tmp_path / "data", encoding(empty={}))
    with pytest.raises(InputError, match=said):
        writer.append("train", latents, columns)
    with pytest.raises(InputError, match="Got rows of 'test'"):
        writer.append("test", *rows(0, 1))


@pytest.mark.parametrize("value", [float("nan"), object(), [torch.zeros(2)], torch.tensor([1.0, float("inf")])])
def test_a_fixed_argument_that_cannot_be_stored_is_refused_at_once(tmp_path: Path, value: object) -> None:
    with pytest.raises(InputError, match="shift"):
        EncodedWriter(tmp_path / "data", encoding(fixed={"shift": value}))


def test_a_caption_that_is_no_text_is_refused_before_pictures_are_encoded() -> None:
    with pytest.raises(InputError, match="Caption 1 of train has half of a surrogate pair"):
        encoding(captions={**CAPTIONS, "train": ["a shoe", "\ud800"]})


def test_no_rows_change_nothing(half: Path) -> None:
    before = files(half)
    writer = EncodedWriter(half, encoding())
    writer.append("train", *rows(0, 0))
    assert writer.done("train") == 2
    assert files(half) == before


@pytest.mark.parametrize("value", [1e5, 0.1])
def test_float32_keeps_what_half_precision_cannot_hold(tmp_path: Path, value: float) -> None:
    writer = EncodedWriter(tmp_path / "data", encoding(precision="float32"))
    for part, count in (("train", 4), ("held-out", 1)):
        latents, columns = rows(0, count)
        writer.append(part, latents, {**columns, HIDDEN: torch.full((count, 3, 2), value)})
    writer.finish()
    train = load_images(tmp_path / "data").train
    assert torch.equal(train.columns[HIDDEN], torch.full((4, 3, 2), value))
    assert {train.images.dtype, train.empty[HIDDEN].dtype} == {torch.float32}
    assert train.columns["ids"].dtype == torch.int32
    with pytest.raises(InputError, match="was encoded in float32; expected a new folder"):
        EncodedWriter(tmp_path / "data", encoding())
    with pytest.raises(InputError, match="Got the precision 'float8'"):
        encoding(precision="float8")
