"""Folders of encoded images: what is written is read, an interrupted encoding resumes, and damage is named."""

import json
import re
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunekit.data import EncodedWriter, Encoding, ImageSplit, as_images, load_images
from prunekit.data.encoded import read_captions
from prunekit.errors import FileFormatError, InputError, LimitError, MissingFileError, PrunekitError
from prunekit.training.columns import in_parts

SHAPES = {"encoder_hidden_states": (5, 8), "added_cond_kwargs.text_embeds": (6,), "mask": (5,)}
COUNTS = {"train": 7, "held-out": 3}


def encoding(**changes: object) -> Encoding:
    about: dict[str, object] = {
        "pipeline": {"class": "TinyPipeline"},
        "image_size": (16, 24),
        "captions": {part: [f"{part} {row}" for row in range(count)] for part, count in COUNTS.items()},
        "fixed": {"img_ids": torch.arange(12.0).reshape(4, 3), "height": 16, "added_cond_kwargs.resolution": None},
        "empty": {"encoder_hidden_states": torch.full((5, 8), 0.5)},
    }
    return Encoding(**{**about, **changes})


def rows(part: str, start: int, stop: int, latents: tuple[int, ...] = (4, 2, 3)) -> tuple[Tensor, dict[str, Tensor]]:
    def some(row: int, shape: tuple[int, ...], number: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * number + 10 * row + len(part))
        return torch.randn(shape, generator=generator)

    made = {
        name: torch.stack([some(row, shape, number) for row in range(start, stop)])
        for number, (name, shape) in enumerate(SHAPES.items())
    }
    made["mask"] = made["mask"] > 0
    return torch.stack([some(row, latents, 9) for row in range(start, stop)]), made


def write(folder: Path, about: Encoding | None = None, chunk: int = 2, latents: tuple[int, ...] = (4, 2, 3)) -> str:
    writer = EncodedWriter(folder, about or encoding())
    for part, count in COUNTS.items():
        for start in range(writer.done(part), count, chunk):
            writer.append(part, *rows(part, start, min(start + chunk, count), latents))
    return writer.finish()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data")
    return tmp_path / "data"


def check_content(split: ImageSplit, latents: tuple[int, ...] = (4, 2, 3)) -> None:
    for part, data in (("train", split.train), ("held-out", split.held_out)):
        images, columns = rows(part, 0, COUNTS[part], latents)
        assert torch.equal(data.images, images.half())
        assert list(data.columns) == list(SHAPES)
        for name, values in columns.items():
            assert torch.equal(data.columns[name], values.half() if values.is_floating_point() else values)


def test_what_is_written_is_read(folder: Path) -> None:
    split = load_images(folder)
    check_content(split)
    assert split.train.latent
    assert split.resolution == (2, 3)
    assert split.train.labels is None
    assert torch.equal(split.train.empty["encoder_hidden_states"], torch.full((5, 8), 0.5).half())
    assert torch.equal(split.train.fixed["img_ids"], torch.arange(12.0).reshape(4, 3))
    assert {name: value for name, value in split.train.fixed.items() if name != "img_ids"} == {
        "height": 16,
        "added_cond_kwargs.resolution": None,
    }
    assert read_captions(folder, "held-out") == ["held-out 0", "held-out 1", "held-out 2"]
    assert split.about()["sha256"] == json.loads((folder / "encoded.json").read_text())["sha256"]
    assert "7 rows" not in split.report
    assert "10 encoded images" in split.report


@pytest.mark.parametrize(("latents", "resolution"), [((6, 4), (16, 24)), ((4, 3, 2, 2), 2)], ids=["tokens", "videos"])
def test_latents_may_be_tokens_or_videos(
    tmp_path: Path, latents: tuple[int, ...], resolution: int | tuple[int, int]
) -> None:
    write(tmp_path / "data", latents=latents)
    split = load_images(tmp_path / "data")
    check_content(split, latents)
    assert split.resolution == resolution


@given(st.integers(0, 9), st.integers(1, 4))
def test_an_interrupted_encoding_resumes_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, kept: int, chunk: int
) -> None:
    place = tmp_path_factory.mktemp("encodings")
    write(place / "whole", chunk=3)
    writer, left = EncodedWriter(place / "cut", encoding()), kept
    for part, count in COUNTS.items():
        for row in range(min(left, count)):
            writer.append(part, *rows(part, row, row + 1))
        left -= min(left, count)
    if 0 < kept < COUNTS["train"]:
        with (place / "cut" / "train" / "mask.npy").open("ab") as file:
            file.write(b"a write that was interrupted")
    write(place / "cut", chunk=chunk)
    files = sorted(path.relative_to(place / "whole") for path in (place / "whole").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(place / "cut") for path in (place / "cut").rglob("*") if path.is_file())
    assert all((place / "whole" / name).read_bytes() == (place / "cut" / name).read_bytes() for name in files)


def test_a_finished_folder_is_left_as_it_is(folder: Path) -> None:
    before = (folder / "encoded.json").read_bytes()
    writer = EncodedWriter(folder, encoding())
    assert writer.is_finished
    assert writer.done("train") == 7
    assert writer.finish() == json.loads(before)["sha256"]
    assert (folder / "encoded.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pipeline": {"class": "Other"}}, "another pipeline"),
        ({"captions": {"train": ["x"] * 7, "held-out": ["y"] * 3}}, "another captions"),
        ({"image_size": (16, 16)}, "another image_size"),
    ],
)
def test_an_encoding_is_not_mixed_with_another(folder: Path, changes: Mapping[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EncodedWriter(folder, encoding(**changes))


def test_other_files_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        EncodedWriter(tmp_path, encoding())


def test_an_unfinished_folder_says_how_far_it_is(tmp_path: Path) -> None:
    writer = EncodedWriter(tmp_path / "data", encoding())
    writer.append("train", *rows("train", 0, 4))
    with pytest.raises(InputError, match="3 rows of train and 3 of held-out are missing"):
        writer.finish()
    with pytest.raises(InputError, match=r"is not finished \(4 of 10 images\)"):
        load_images(tmp_path / "data")


def test_rows_that_half_precision_cannot_hold_are_refused(tmp_path: Path) -> None:
    writer = EncodedWriter(tmp_path / "data", encoding())
    latents, columns = rows("train", 0, 2)
    for value, said in ((1e5, "values up to 1e\\+05"), (float("nan"), "values that are not finite")):
        broken = {**columns, "encoder_hidden_states": columns["encoder_hidden_states"] + value}
        with pytest.raises(InputError, match=f"encoder_hidden_states with {said}"):
            writer.append("train", latents, broken)


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    writer = EncodedWriter(tmp_path / "data", encoding())
    writer.append("train", *rows("train", 0, 2))
    latents, columns = rows("train", 2, 4)
    with pytest.raises(InputError, match=r"mask of shape \(2, 4\)"):
        writer.append("train", latents, {**columns, "mask": columns["mask"][:, :4]})
    with pytest.raises(InputError, match="expected latents, encoder_hidden_states"):
        writer.append("train", latents, {})
    with pytest.raises(InputError, match="Got 8 rows after 2"):
        writer.append("train", *rows("train", 0, 8))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def retype(path: Path) -> None:
    np.save(path, np.load(path).astype(np.float32))


def remove(path: Path) -> None:
    path.unlink()


def no_number(path: Path) -> None:
    row = np.load(path)
    row[0] = np.nan
    np.save(path, row)


@pytest.mark.parametrize(
    ("name", "damage", "error", "said"),
    [
        ("train/latents.npy", shorten, FileFormatError, "latents.npy has .* bytes for an array"),
        ("held-out/encoder_hidden_states.npy", retype, FileFormatError, "has float32 of shape .* expected float16"),
        ("train/mask.npy", remove, MissingFileError, "mask.npy is missing"),
        ("empty/encoder_hidden_states.npy", no_number, FileFormatError, "is not finite"),
        ("fixed/img_ids.npy", remove, MissingFileError, "img_ids.npy is missing"),
    ],
)
def test_damage_is_named(folder: Path, name: str, damage: object, error: type[Exception], said: str) -> None:
    assert callable(damage)
    damage(folder / name)
    with pytest.raises(error, match=said):
        load_images(folder)


def test_other_numbers_than_were_written_are_noticed_when_they_are_hashed(folder: Path) -> None:
    path = folder / "train" / "encoder_hidden_states.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="holds other numbers"):
        load_images(folder).about()


@pytest.mark.parametrize("name", ["../train", "a.npy/b", "latents", "a..b", "x" * 300])
def test_a_condition_cannot_name_a_file_elsewhere(folder: Path, name: str) -> None:
    data = json.loads((folder / "encoded.json").read_text())
    data["columns"][name] = {"shape": [3], "dtype": "float16"}
    (folder / "encoded.json").write_text(json.dumps(data))
    with pytest.raises(FileFormatError, match="names a condition"):
        load_images(folder)


def test_classes_are_labels_and_a_condition(tmp_path: Path) -> None:
    about = Encoding({"class": "P"}, (8, 8), {"train": [1, 2, 0], "held-out": [1]})
    writer = EncodedWriter(tmp_path / "data", about)
    for part, classes in about.captions.items():
        labels = torch.tensor([int(each) for each in classes])
        writer.append(part, torch.zeros(len(classes), 4, 2, 2), {"class_labels": labels})
    writer.finish()
    split = load_images(tmp_path / "data", labels=True)
    assert split.train.labels is not None
    assert split.train.labels.tolist() == split.train.columns["class_labels"].tolist() == [1, 2, 0]


def test_missing_classes_and_another_size_are_refused(folder: Path) -> None:
    with pytest.raises(MissingFileError, match="has no classes"):
        load_images(folder, labels=True)
    with pytest.raises(InputError, match="are 2×3 and stay as they are; expected 4×4"):
        load_images(folder, 4)
    with pytest.raises(InputError, match="leave ::x out"):
        load_images(f"{folder}::x")


def test_columns_stay_on_the_disk(tmp_path: Path) -> None:
    count, shape = 64, (77, 512)
    writer = EncodedWriter(tmp_path / "data", Encoding({}, (8, 8), {"train": ["a"] * count, "held-out": ["b"]}))
    for part, number in (("train", count), ("held-out", 1)):
        writer.append(part, torch.zeros(number, 4, 2, 2), {"encoder_hidden_states": torch.ones(number, *shape)})
    writer.finish()
    tracemalloc.start()
    split = load_images(tmp_path / "data")
    drawn = split.train.columns["encoder_hidden_states"][torch.tensor([3, 60, 3])]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn.shape == (3, *shape)
    assert peak < 2**20 < split.train.columns["encoder_hidden_states"].nbytes


def test_the_pages_example_writes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    made: dict[str, ImageSplit] = {}
    exec(source, {}, made)  # noqa: S102 - the example is the test
    assert made["images"].train.columns["encoder_hidden_states"].shape == (2, 77, 768)


def test_captions_stay_with_their_rows(folder: Path) -> None:
    split = load_images(folder)
    assert list(split.held_out.captions) == ["held-out 0", "held-out 1", "held-out 2"]
    assert list(split.train.first(2).captions) == ["train 0", "train 1"]
    assert len(split.train.first(2).columns["mask"]) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('["only one"]', "has 1 captions; expected 3"),
        ('["a", "b", "c"]', "are not those that were encoded"),
        ('{"a": 1}', "is no list of captions"),
        ("[null, 1, 2]", "is no list of captions"),
        ("[", "is not readable JSON"),
    ],
)
def test_other_captions_are_refused(folder: Path, content: str, said: str) -> None:
    (folder / "held-out" / "captions.json").write_text(content)
    with pytest.raises(FileFormatError, match=said):
        load_images(folder)
    (folder / "held-out" / "captions.json").unlink()
    with pytest.raises(MissingFileError, match=r"captions\.json is missing"):
        load_images(folder)


def test_captions_larger_than_the_limit_are_refused_before_rows_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNEKIT_LIMITS", "metadata-bytes=20")
    with pytest.raises(LimitError, match="The list of captions of train"):
        encoding()


def test_many_captions_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the limits of other JSON files allow."""
    monkeypatch.setenv("PRUNEKIT_LIMITS", "json-values=2000,json-bytes=20000")
    captions = {"train": ["a"] * 3000, "held-out": ["b"]}
    writer = EncodedWriter(tmp_path / "data", Encoding({}, (8, 8), captions))
    writer.append("train", torch.zeros(3000, 1, 1, 1), {})
    writer.append("held-out", torch.zeros(1, 1, 1, 1), {})
    writer.finish()
    assert len(load_images(tmp_path / "data").train.captions) == 3000


def test_images_that_are_split_again_keep_what_belongs_to_them(folder: Path) -> None:
    """Each row of the new parts has the columns and the caption of the same old row."""
    before = load_images(folder).train
    split = as_images(before)
    assert len(split.train) + len(split.held_out) == len(before)
    for part in (split.train, split.held_out):
        for row, caption in enumerate(part.captions):
            old = list(before.captions).index(caption)
            assert torch.equal(part.images[row], before.images[old])
            assert all(torch.equal(part.columns[name][row], before.columns[name][old]) for name in SHAPES)
        assert (part.fixed, part.empty, part.time_unit) == (before.fixed, before.empty, before.time_unit)


def test_videos_can_be_split_again_and_tokens_say_what_to_give(tmp_path: Path) -> None:
    write(tmp_path / "video", latents=(4, 3, 2, 5))
    assert as_images(load_images(tmp_path / "video").train).resolution == (2, 5)
    write(tmp_path / "tokens", latents=(6, 4))
    with pytest.raises(InputError, match="tokens without height and width; give an ImageSplit"):
        as_images(load_images(tmp_path / "tokens").train)


def test_hashing_reads_some_megabytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are larger than the bytes of a part are read one by one, and the hash does not depend on it."""
    write(tmp_path / "data")
    whole = load_images(tmp_path / "data").sha256
    monkeypatch.setattr("prunekit.training.columns._BYTES", 1)
    again = load_images(tmp_path / "data")
    assert again.sha256 == whole
    assert [len(part) for part in again.train.chunks()] == [1] * 7
    assert [rows.tolist() for _, rows in in_parts(again.train.images)] == [[row] for row in range(7)]


@given(st.data())
def test_damaged_files_end_in_a_sentence_or_in_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("encodings") / "data"
    write(folder, chunk=7)
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        split = load_images(folder)
        split.about()
    except PrunekitError:
        return
    check_content(split)
