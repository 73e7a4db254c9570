"""Parquet files and dataset folders as the datasets library writes them."""

import builtins
import io

import pytest
from PIL import Image

from prunekit.data import load_images
from prunekit.errors import FileFormatError, InputError


def encoded(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def made():
    """Makes a dataset of pictures of one colour each, with classes."""
    datasets = pytest.importorskip("datasets")

    def make(values, **columns):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        if columns:
            features |= {name: datasets.Value("string") for name in columns}
        rows = {"image": [encoded(value) for value in values], "label": [value % 2 for value in values], **columns}
        return datasets.Dataset.from_dict(rows, features)

    return make


def values(part):
    labels = [None] * len(part) if part.labels is None else part.labels.tolist()
    return {int(image[0, 0, 0]): label for image, label in zip(part.images, labels, strict=True)}


def test_a_parquet_file_is_read_with_its_classes(tmp_path, made):
    made([10, 11, 12], text=["a", "b", "c"]).to_parquet(tmp_path / "x.parquet")
    split = load_images(tmp_path / "x.parquet", labels=True)
    assert values(split.train) | values(split.held_out) == {10: 0, 11: 1, 12: 0}
    assert split.report == f"{tmp_path / 'x.parquet'}: 3 pictures of split train, in 2 classes."
    assert load_images(tmp_path / "x.parquet").train.labels is None


@pytest.mark.parametrize("saved", [True, False])
def test_the_splits_of_a_folder_are_kept_apart(tmp_path, made, saved):
    datasets = pytest.importorskip("datasets")
    parts = {"train": made([10, 11]), "test": made([20, 21, 22])}
    if saved:
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    else:
        (tmp_path / "d" / "data").mkdir(parents=True)
        for name, part in parts.items():
            part.to_parquet(tmp_path / "d" / "data" / f"{name}-00000-of-00001.parquet")
    split = load_images(tmp_path / "d", labels=True)
    assert values(split.train) == {10: 0, 11: 1}
    assert values(split.held_out) == {20: 0, 21: 1, 22: 0}
    other = load_images(f"{tmp_path}/d::test")
    assert set(values(other.train)) | set(values(other.held_out)) == {20, 21, 22}
    with pytest.raises(InputError, match=r"has no split 'tset' \(did you mean test\?\)"):
        load_images(f"{tmp_path}/d::tset")


def test_a_dataset_without_pictures_or_classes_and_a_broken_one_are_refused(tmp_path, made):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match="has no column of pictures but text; expected one of type Image"):
        load_images(tmp_path / "x.parquet")
    made([1, 2]).remove_columns("label").to_parquet(tmp_path / "x.parquet")
    with pytest.raises(FileFormatError, match="has no classes but image; expected a column label"):
        load_images(tmp_path / "x.parquet", labels=True)
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(FileFormatError, match="cannot be read by the datasets library"):
        load_images(tmp_path / "x.parquet")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name, *args, **values):
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return real(name, *args, **values)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs the datasets library .*pip install 'prunekit\[datasets\]'"):
        load_images(tmp_path / "x.parquet")
