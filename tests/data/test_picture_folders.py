"""Which pictures of a folder are read, with which classes, and how their pixels become plain colours."""

import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from prunekit.data import load_images
from prunekit.data.pictures import read_picture
from prunekit.errors import FileFormatError, InputError, LimitError, MissingFileError


def put(path, value=0, size=(4, 4), mode="RGB", **options):
    """A picture of one colour, which identifies it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * len(mode) if mode in ("RGB", "RGBA") else value).save(path, **options)
    return path


def values(part):
    """Class by the colour of each picture."""
    labels = [None] * len(part) if part.labels is None else part.labels.tolist()
    return {int(image[0, 0, 0]): label for image, label in zip(part.images, labels, strict=True)}


def everything(split):
    return values(split.train) | values(split.held_out)


def test_links_to_folders_are_followed(tmp_path):
    put(tmp_path / "elsewhere" / "x.png", 10)
    put(tmp_path / "p" / "real" / "y.png", 20)
    (tmp_path / "p" / "linked").symlink_to(tmp_path / "elsewhere")
    assert everything(load_images(tmp_path / "p", labels=True)) == {10: 0, 20: 1}


def test_links_in_a_circle_and_to_nothing_are_refused_by_name(tmp_path):
    put(tmp_path / "p" / "a" / "x.png")
    (tmp_path / "p" / "a" / "up").symlink_to(tmp_path / "p")
    with pytest.raises(FileFormatError, match=r"a/up is a link to a folder that it is in"):
        load_images(tmp_path / "p")
    (tmp_path / "p" / "a" / "up").unlink()
    (tmp_path / "p" / "a" / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(FileFormatError, match=r"gone\.png is a link to nothing"):
        load_images(tmp_path / "p")


def test_a_picture_that_is_a_link_to_itself_is_refused_by_name_and_another_file_passed_over(tmp_path):
    put(tmp_path / "p" / "x.png", 10)
    put(tmp_path / "p" / "y.png", 20)
    (tmp_path / "p" / "notes").symlink_to(tmp_path / "p" / "notes")
    assert everything(load_images(tmp_path / "p")) == {10: None, 20: None}
    (tmp_path / "p" / "self.png").symlink_to(tmp_path / "p" / "self.png")
    with pytest.raises(FileFormatError, match=r"self\.png is a link to nothing or to itself; mend or remove it"):
        load_images(tmp_path / "p")


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "PNG", "WebP", "TIF"])
def test_every_suffix_is_read_together_with_the_others(tmp_path, suffix):
    put(tmp_path / "p" / "a.png", 100)
    put(tmp_path / "p" / f"b.{suffix}", 200)
    found = sorted(everything(load_images(tmp_path / "p")))
    assert found[0] == 100
    assert abs(found[1] - 200) < 4


def test_hidden_files_are_no_pictures_and_no_classes_and_are_counted(tmp_path):
    put(tmp_path / "p" / "cat" / "x.png", 10)
    put(tmp_path / "p" / "dog" / "y.png", 20)
    put(tmp_path / "p" / ".ipynb_checkpoints" / "x.png")
    put(tmp_path / "p" / "__MACOSX" / "cat" / "z.png")
    (tmp_path / "p" / "cat" / "._x.png").write_bytes(b"no picture")
    (tmp_path / "p" / "cat" / "Thumbs.db").write_bytes(b"no picture")
    (tmp_path / "p" / "cat" / "film.gif").write_bytes(b"not looked at")
    split = load_images(tmp_path / "p", labels=True)
    assert everything(split) == {10: 0, 20: 1}
    assert split.report == f"{tmp_path / 'p'}: 2 pictures, in 2 classes; skipped: 3 hidden, 1 .gif."


@pytest.mark.parametrize(
    ("held_out", "split_of"), [("validation", "validation"), ("val", "validation"), ("test", "test")]
)
def test_a_split_is_held_out_and_is_no_class(tmp_path, held_out, split_of):
    for index, kind in enumerate(("cat", "dog")):
        put(tmp_path / "p" / "train" / kind / "x.png", 10 + index)
        put(tmp_path / "p" / held_out / kind / "x.png", 20 + index)
    put(tmp_path / "p" / "overview.png", 99)
    split = load_images(tmp_path / "p", labels=True)
    assert values(split.train) == {10: 0, 11: 1}
    assert values(split.held_out) == {20: 0, 21: 1}
    assert f"2 training pictures and 2 of {split_of} held out" in split.report
    assert "1 outside the splits" in split.report


def test_another_split_is_used_by_its_path(tmp_path):
    for name, value in (("train", 10), ("test", 20)):
        for index in range(2):
            put(tmp_path / "p" / name / f"{index}.png", value + index)
    assert set(everything(load_images(tmp_path / "p" / "test"))) == {20, 21}


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train", "cats"), r"train/, the name of a split, next to cats/"),
        (("test", "validation"), r"has the splits test, validation and no train/; name the one to use"),
        (("train", "val", "dev"), r"two folders for one split among dev, train, val"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_not_guessed(tmp_path, folders, said):
    for name in folders:
        put(tmp_path / "p" / name / "x.png")
    with pytest.raises(InputError, match=said):
        load_images(tmp_path / "p")


def test_a_held_out_class_that_training_pictures_lack_is_refused(tmp_path):
    put(tmp_path / "p" / "train" / "cat" / "x.png")
    put(tmp_path / "p" / "test" / "dog" / "x.png")
    with pytest.raises(FileFormatError, match="has the class dog, which the training pictures do not have"):
        load_images(tmp_path / "p", labels=True)


def write_metadata(folder, suffix, rows):
    if suffix == "jsonl":
        text = "\n".join(json.dumps(row) for row in rows)
    else:
        text = "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)])
    (folder / f"metadata.{suffix}").write_text(text)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize(("labels", "expected"), [((7, 3), {10: 7, 20: 3}), (("dog", "cat"), {10: 1, 20: 0})])
def test_labels_of_metadata_are_the_classes_and_captions_are_named(tmp_path, suffix, labels, expected):
    put(tmp_path / "p" / "x.png", 10)
    put(tmp_path / "p" / "deep" / "y.png", 20)
    names = ("x.png", "deep/y.png")
    rows = [{"file_name": name, "text": "a pet", "label": label} for name, label in zip(names, labels, strict=True)]
    write_metadata(tmp_path / "p", suffix, rows)
    split = load_images(tmp_path / "p", labels=True)
    assert everything(split) == expected
    assert split.report.endswith("in 2 classes; the metadata's text is not used.")
    write_metadata(tmp_path / "p", suffix, rows[:1])
    with pytest.raises(FileFormatError, match=r"has no label for .*y\.png"):
        load_images(tmp_path / "p", labels=True)
    write_metadata(tmp_path / "p", suffix, [*rows, rows[0] | {"file_name": "gone.png"}])
    with pytest.raises(FileFormatError, match=r"lists .*gone\.png, which cannot be found"):
        load_images(tmp_path / "p", labels=True)
    write_metadata(tmp_path / "p", suffix, [{"file_name": name, "text": "a pet"} for name in names])
    with pytest.raises(FileFormatError, match="has no column label but text"):
        load_images(tmp_path / "p", labels=True)


def test_pictures_are_turned_as_their_exif_says(tmp_path):
    left_dark = Image.fromarray(np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 8, 0), 4, 1))
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90° clockwise
    for index in range(2):
        (tmp_path / "p").mkdir(exist_ok=True)
        left_dark.save(tmp_path / "p" / f"{index}.png", exif=exif)
    assert (read_picture(tmp_path / "p" / "0.png")[..., 0] == np.repeat([[0], [255]], 4, 0)).all()
    assert "2 pictures turned upright by EXIF" in load_images(tmp_path / "p").report


def test_colours_under_alpha_are_never_trained_on(tmp_path):
    pixels = np.full((4, 4, 4), (200, 10, 10, 255), np.uint8)
    pixels[:2, :, :3] = np.random.default_rng(0).integers(0, 255, (2, 4, 3))
    pixels[:2, :, 3] = 0
    (tmp_path / "p").mkdir()
    Image.fromarray(pixels).save(tmp_path / "p" / "a.png")
    put(tmp_path / "p" / "b.png", 5, mode="RGBA")  # alpha 5
    read = read_picture(tmp_path / "p" / "a.png")
    assert (read[:2] == 255).all()
    assert (read[2:] == (200, 10, 10)).all()
    assert "2 transparent pictures laid over white" in load_images(tmp_path / "p").report


def test_a_palette_with_a_transparent_colour_is_laid_over_white(tmp_path):
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([1, 2, 3, 50, 60, 70])
    picture.putpixel((0, 0), 1)
    picture.save(tmp_path / "p.png", transparency=0)
    read = read_picture(tmp_path / "p.png")
    assert read[0, 0].tolist() == [50, 60, 70]
    assert (read[1:] == 255).all()


def test_all_broken_pictures_are_named_together(tmp_path):
    put(tmp_path / "p" / "a.png")
    for index in range(5):
        (tmp_path / "p" / f"broken{index}.png").write_bytes(b"\x89PNG")
    with pytest.raises(
        FileFormatError, match=r"5 pictures cannot be read: .*broken0\.png.* and 2 others; mend or remove"
    ):
        load_images(tmp_path / "p")


def test_pictures_need_not_be_square(tmp_path):
    middle = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    wide = np.zeros((8, 20, 3), np.uint8)
    wide[:, 4:16] = np.kron(middle, np.ones((2, 2, 1)))
    (tmp_path / "p").mkdir()
    for index in range(2):
        Image.fromarray(wide).save(tmp_path / "p" / f"{index}.png")
    split = load_images(tmp_path / "p", (4, 6))
    assert (split.train.images[0].numpy() == middle.transpose(2, 0, 1)).all()
    assert (split.resolution, split.about()["resolution"]) == ((4, 6), [4, 6])
    assert load_images(tmp_path / "p", [5, 5]).resolution == 5


def test_a_zip_is_read_like_its_folder(tmp_path, monkeypatch):
    for kind, value in (("cat", 10), ("dog", 20)):
        put(tmp_path / "p" / kind / "x.png", value)
    put(tmp_path / "p" / "__MACOSX" / "cat" / "._x.png")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for file in (tmp_path / "p").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path))
    split = load_images(tmp_path / "p.zip", labels=True)
    assert everything(split) == everything(load_images(tmp_path / "p", labels=True)) == {10: 0, 20: 1}
    assert split.report == f"{tmp_path / 'p.zip'}: 2 pictures, in 2 classes."
    monkeypatch.setenv("PRUNEKIT_LIMITS", "unpacked-bytes=50")
    with pytest.raises(LimitError, match="unpacked-bytes"):
        load_images(tmp_path / "p.zip")


def test_a_zip_without_pictures_and_a_broken_one_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.txt", "hello")
    with pytest.raises(MissingFileError, match=r"a\.zip has no pictures"):
        load_images(tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(b"PK")
    with pytest.raises(FileFormatError, match=r"b\.zip is no readable archive"):
        load_images(tmp_path / "b.zip")


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    for index in range(2):
        put(tmp_path / "pics" / f"{index}.png", index)
    assert set(everything(load_images("~/pics"))) == {0, 1}


def test_whole_numbers_that_a_spreadsheet_wrote_with_a_point_are_numbers(tmp_path):
    rows = []
    for place, label in enumerate(("10.0", "2.", "0.0")):
        put(tmp_path / "p" / f"{place}.png", 10 * place)
        rows.append({"file_name": f"{place}.png", "label": label})
    write_metadata(tmp_path / "p", "csv", rows)
    assert everything(load_images(tmp_path / "p", labels=True)) == {0: 10, 10: 2, 20: 0}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_picture_with_two_rows_of_metadata_is_refused(tmp_path, suffix):
    put(tmp_path / "p" / "x.png", 10)
    put(tmp_path / "p" / "y.png", 20)
    rows = [{"file_name": name, "label": label} for name, label in (("x.png", 0), ("y.png", 1), ("x.png", 7))]
    write_metadata(tmp_path / "p", suffix, rows)
    with pytest.raises(FileFormatError, match=r"has two rows for x\.png; expected one for each picture"):
        load_images(tmp_path / "p", labels=True)


@pytest.mark.parametrize("trained_on", ["names", "numbers"])
def test_held_out_classes_are_numbered_as_the_training_pictures_are(tmp_path, trained_on):
    for split, place in (("train", 0), ("validation", 100)):
        for number, name in enumerate(("cat", "dog")):
            put(tmp_path / "p" / split / name / "x.png", place + number)
    other = "validation" if trained_on == "names" else "train"
    rows = [{"file_name": f"{name}/x.png", "label": 1 - number} for number, name in enumerate(("cat", "dog"))]
    write_metadata(tmp_path / "p" / other, "jsonl", rows)
    mine, others = ("numbers", "names") if trained_on == "names" else ("names", "numbers")
    with pytest.raises(FileFormatError, match=f"validation are {mine}, and those of the training pictures {others}"):
        load_images(tmp_path / "p", labels=True)
    write_metadata(
        tmp_path / "p" / other, "jsonl", [{"file_name": f"{name}/x.png", "label": name} for name in ("cat", "dog")]
    )
    assert everything(load_images(tmp_path / "p", labels=True)) == {0: 0, 1: 1, 100: 0, 101: 1}


def test_two_metadata_files_of_one_folder_are_refused(tmp_path):
    put(tmp_path / "p" / "x.png")
    put(tmp_path / "p" / "y.png")
    for suffix in ("jsonl", "csv"):
        write_metadata(tmp_path / "p", suffix, [{"file_name": "x.png", "label": 1}])
    with pytest.raises(FileFormatError, match=r"has metadata\.jsonl and metadata\.csv; expected one: remove the other"):
        load_images(tmp_path / "p")


def test_labels_that_are_not_wanted_may_be_of_any_kind(tmp_path):
    put(tmp_path / "p" / "x.png")
    put(tmp_path / "p" / "y.png", 10)
    write_metadata(tmp_path / "p", "jsonl", [{"file_name": f"{name}.png", "label": [0.5, 0.5]} for name in "xy"])
    assert everything(load_images(tmp_path / "p")) == {0: None, 10: None}
    with pytest.raises(
        FileFormatError, match=r"Row 1 of .* has the label '\[0.5, 0.5\]'; expected a whole number or a name"
    ):
        load_images(tmp_path / "p", labels=True)


def test_two_members_of_a_zip_at_one_place_are_refused(tmp_path):
    put(tmp_path / "x.png", 10)
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("a/x.png", "/a/x.png"):
            archive.writestr(zipfile.ZipInfo(name), (tmp_path / "x.png").read_bytes())
    with pytest.raises(FileFormatError, match=r"p\.zip has x\.png twice at one place"):
        load_images(tmp_path / "p.zip")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("a/x.png", "../a/y.png"):
            archive.write(tmp_path / "x.png", name)
    with pytest.raises(FileFormatError, match=r"p\.zip has '\.\./a/y\.png', a place outside of the archive"):
        load_images(tmp_path / "p.zip")


def test_pixels_of_32_bits_have_no_known_range(tmp_path):
    (tmp_path / "p").mkdir()
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "p" / "x.tif")
    put(tmp_path / "p" / "y.png", 20)
    with pytest.raises(FileFormatError, match=r"x\.tif.* 32 bits"):
        load_images(tmp_path / "p")
    deep = Image.fromarray(np.full((4, 4), 257 * 200, np.uint16))
    deep.save(tmp_path / "p" / "x.tif")
    deep.save(tmp_path / "p" / "z.png")
    assert {int(image[0, 0, 0]) for image in load_images(tmp_path / "p").train.images} <= {200, 20}


@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
def test_the_first_of_several_frames_is_used_and_the_report_says_so(tmp_path, suffix):
    put(tmp_path / "p" / "x.png", 10)
    frames = [Image.new("RGB", (4, 4), (value,) * 3) for value in (20, 30)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / "p" / f"y.{suffix}", save_all=True, append_images=frames[1:], **options)
    split = load_images(tmp_path / "p")
    assert set(everything(split)) == {10, 20}
    assert "; 1 picture with several frames, of which the first is used." in split.report


def test_16_bit_pictures_that_are_nearly_black_are_told(tmp_path):
    (tmp_path / "p").mkdir()
    for name, value in (("x", 4095), ("y", 1000)):
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / "p" / f"{name}.png")
    assert "no 16-bit pixel is above 4,095 of 65,535" in load_images(tmp_path / "p").report
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "p" / "z.png")
    assert "16-bit" not in load_images(tmp_path / "p").report
