"""Captions of pictures: metadata, text files, datasets; and pictures that are read some at a time."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunekit.data.captions import Captioned, captioned_pictures
from prunekit.errors import FileFormatError, InputError, MissingFileError


def picture(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), shade, np.uint8)).save(path)
    return path


def write_rows(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(source: Path | str, classes: bool = False, column: str | None = None) -> Captioned:
    with captioned_pictures(str(source), classes, column) as found:
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for row in range(12):
        picture(tmp_path / "pictures" / f"{row:02}.png", row * 20)
    return tmp_path / "pictures"


def both(found: Captioned) -> dict[str, str | int]:
    parts = (found.train, found.held_out)
    return {name: subject for part in parts for name, subject in zip(part.names(), part.subjects, strict=True)}


def test_captions_of_metadata_belong_to_their_pictures(folder: Path) -> None:
    write_rows(folder, [{"file_name": f"{row:02}.png", "text": f"shade {row}"} for row in reversed(range(12))])
    found = read(folder)
    assert both(found) == {f"{row:02}.png": f"shade {row}" for row in range(12)}
    assert (len(found.train), len(found.held_out)) == (10, 2)
    for row, caption in enumerate(found.train.subjects):
        pixels = found.train.pictures(row, row + 1, (4, 4))
        assert pixels.shape == (1, 3, 4, 4)
        assert int(pixels[0, 0, 0, 0]) == 20 * int(str(caption).split()[1])


def test_splits_have_metadata_of_their_own(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for row in range(count):
            picture(tmp_path / split / f"{row}.png", row)
        write_rows(tmp_path / split, [{"file_name": f"{row}.png", "text": f"{split} {row}"} for row in range(count)])
    found = read(tmp_path)
    assert list(found.train.subjects) == ["train 0", "train 1", "train 2"]
    assert list(found.held_out.subjects) == ["test 0", "test 1"]


def test_text_files_next_to_the_pictures_are_captions(folder: Path) -> None:
    for row in range(12):
        (folder / f"{row:02}.txt").write_text(f"a shade of {row}\n")
    assert both(read(folder))["03.png"] == "a shade of 3"


def test_text_files_are_captions_beside_metadata_that_has_none(folder: Path) -> None:
    write_rows(folder, [{"file_name": f"{row:02}.png", "label": row} for row in range(12)])
    for row in range(12):
        (folder / f"{row:02}.txt").write_text(f"a shade of {row}\n")
    assert both(read(folder))["03.png"] == "a shade of 3"
    (folder / "03.txt").unlink()
    with pytest.raises(InputError, match="no column text or caption but label"):
        read(folder)
    with pytest.raises(InputError, match="no column long but label"):
        read(folder, column="long")


def test_a_column_can_be_named(folder: Path) -> None:
    rows = [{"file_name": f"{row:02}.png", "text": "no", "long": f"long {row}"} for row in range(12)]
    write_rows(folder, rows)
    assert both(read(folder, column="long"))["07.png"] == "long 7"
    with pytest.raises(InputError, match=r"no column lon, did you mean long\?|no column lon"):
        read(folder, column="lon")


def test_classes_are_wanted_in_place_of_captions(tmp_path: Path) -> None:
    for row in range(6):
        picture(tmp_path / ("cat" if row % 2 else "dog") / f"{row}.png", row)
    assert set(both(read(tmp_path, classes=True)).items()) == {
        ("1.png", 0), ("3.png", 0), ("5.png", 0), ("0.png", 1), ("2.png", 1), ("4.png", 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: None, "no caption for .*00.png.* and 9 others"),
        (lambda folder: write_rows(folder, [{"file_name": "00.png", "text": ""}]), "Row 1 of .* expected a caption"),
        (lambda folder: write_rows(folder, [{"file_name": "00.png", "text": 3}]), "Row 1 of .* expected a caption"),
        (lambda folder: write_rows(folder, [{"text": "x"}]), "has no file_name"),
        (lambda folder: (folder / "00.txt").write_bytes(b"\xff\xfe\x00\xd8"), "no text in UTF-8"),
        (lambda folder: (folder / "metadata.jsonl").write_text("{"), "no readable .jsonl"),
    ],
)
def test_pictures_without_captions_are_named(folder: Path, spoil: Callable[[Path], object], words: str) -> None:
    spoil(folder)
    with pytest.raises(FileFormatError, match=words):
        read(folder)


def test_rows_about_missing_pictures_are_refused_as_with_labels(folder: Path) -> None:
    write_rows(folder, [{"file_name": f"{row:02}.png", "text": "x", "label": 0} for row in range(13)])
    for classes in (False, True):
        with pytest.raises(FileFormatError, match=r"metadata\.jsonl lists .*12\.png, which cannot be found"):
            read(folder, classes)


def test_a_caption_with_commas_is_never_cut(folder: Path) -> None:
    table = folder / "metadata.csv"
    table.write_text("file_name,text\n00.png,a cat, asleep\n")
    with pytest.raises(FileFormatError, match=r"Row 1 of .*csv has 3 values, its header 2: put texts with commas in"):
        read(folder)
    table.write_text("file_name,text\n00.png\n")
    with pytest.raises(FileFormatError, match=r"Row 1 of .*csv has 1 value, its header 2: write one for each column"):
        read(folder)
    table.write_text("file_name,text\n" + "".join(f'{row:02}.png,"a cat, asleep"\n' for row in range(12)))
    assert set(both(read(folder)).values()) == {"a cat, asleep"}


@pytest.mark.parametrize("spelt", ["./00.png", "../pictures/00.png", "{folder}/00.png"])
def test_two_spellings_of_a_path_are_one_picture(folder: Path, spelt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [spelt.format(folder=folder), *(f"{row:02}.png" for row in range(1, 12))]
    monkeypatch.chdir(folder.parent)
    rows = [{"file_name": name, "text": f"shade {row}"} for row, name in enumerate(names)]
    write_rows(folder, rows)
    assert both(read("pictures"))["00.png"] == "shade 0"
    write_rows(folder, [*rows, {"file_name": "00.png", "text": "another"}])
    with pytest.raises(FileFormatError, match=r"has two rows for 00\.png"):
        read("pictures")


def test_metadata_without_captions_names_its_columns(folder: Path) -> None:
    write_rows(folder, [{"file_name": "00.png", "score": 1}])
    with pytest.raises(InputError, match="no column text or caption but score"):
        read(folder)


def test_a_missing_source_and_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(InputError, match="expected a folder of pictures with captions"):
        read(tmp_path / "x.npz")


def test_broken_pictures_are_named_when_they_are_read(folder: Path) -> None:
    for row in range(12):
        (folder / f"{row:02}.txt").write_text("x")
    found = read(folder)
    next(iter(found.train.sources)).write_bytes(b"no picture")  # type: ignore[union-attr]
    with pytest.raises(FileFormatError, match="broken picture"):
        found.train.pictures(0, 2, (4, 4))


def test_parquet_files_have_captions(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [{"bytes": picture(tmp_path / f"{row}.png", row * 30).read_bytes(), "path": None} for row in range(6)]
    rows = {"image": pictures, "caption": [f"shade {row}" for row in range(6)]}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "x.parquet"))
    with captioned_pictures(str(tmp_path / "x.parquet")) as found:
        assert (len(found.train), len(found.held_out)) == (5, 1)
        pixels = found.train.pictures(0, 5, (4, 4))
        assert pixels[:, 0, 0, 0].tolist() == [30 * int(str(text).split()[1]) for text in found.train.subjects]
