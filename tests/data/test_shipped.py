"""The pictures that come with the package, and the base that was trained on the whole set."""

import json
from pathlib import Path

import pytest
import torch

from prunekit.checkpoint import load_base
from prunekit.data import load_images
from prunekit.errors import InputError
from prunekit.extractors import choose_extractor
from prunekit.steps.bases import open_base
from prunekit.steps.image_choice import images_of

ASSETS = Path(__file__).parents[2] / "prunekit" / "assets"


def test_fashion_comes_with_the_package():
    split = load_images("embedded:fashion", labels=True)
    assert split.train.images.shape == (8192, 1, 16, 16)
    assert split.held_out.images.shape == (1024, 1, 16, 16)
    assert split.train.labels is not None
    assert torch.bincount(split.train.labels).min() > 700  # of ten classes
    assert split.about() == {"source": "embedded:fashion", "resolution": 16, "labels": True}
    assert not split.report  # no path of the installation is told


def test_the_pictures_take_less_than_two_megabytes():
    assert (ASSETS / "fashion-pictures.npz").stat().st_size < 2 * 2**20


def test_fashion_is_resized_and_known_to_its_feature_extractor():
    assert load_images("embedded:fashion", 8).train.images.shape == (8192, 1, 8, 8)
    choice = choose_extractor(load_images("embedded:fashion").train.images)
    assert choice.extractor is not None
    assert choice.extractor.name == "fashion-cnn"


def test_the_embedded_base_finds_its_pictures():
    base = open_base("embedded:fashion")
    assert images_of(base).train.images.shape == (8192, 1, 16, 16)
    told = base.provenance["trained_on"]
    assert (told["count"], base.provenance["steps"]) == (60_000, 24_000)


def test_the_embedded_base_predicts_noise_better_than_nothing():
    base, images = open_base("embedded:fashion"), load_images("embedded:fashion").held_out.images[:64]
    clean = images.float() / 127.5 - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    signal, level = base.schedule.signal[300], base.schedule.noise[300]
    with torch.no_grad():
        found = base.model(signal * clean + level * noise, torch.tensor(300)).sample
    assert (found - noise).square().mean() < 0.08


def test_the_digits_have_both_names():
    assert load_images("embedded:digits").train.sha256 == load_images("digits").train.sha256
    assert load_images("embedded:digits").source == "digits"


@pytest.mark.parametrize("name", ["embedded:cats", "embedded:", "embedded:../x", "embedded:fashion::x_train"])
def test_other_embedded_names_are_refused(name):
    with pytest.raises(InputError, match="no shipped pictures"):
        load_images(name)


def test_a_folder_named_like_the_pictures_is_still_a_folder(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("fashion").mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(f"fashion/{index}.png")
    assert load_images("fashion").train.images.shape[1] == 3


def test_the_shipped_base_is_the_recipes():
    """Its manifest says how it was trained."""

    about = json.loads((ASSETS / "fashion-base.json").read_text())
    base = load_base(ASSETS / "fashion-base.safetensors")
    assert about["recipe"] == "fashion-base"
    assert about["config"]["base"]["train"]["steps"] == base.provenance["steps"]
