"""Scripts that turn pictures into what recipes read."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from prunekit._json import read_json
from prunekit.data import load_images
from prunekit.errors import FileFormatError, MissingFileError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture
def script(monkeypatch):
    """Import a script of ``recipes/`` as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(RECIPES))

    def load(name: str) -> ModuleType:
        sys.modules.pop(name, None)
        return importlib.import_module(name)

    return load


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures of 12×10 in two classes; each has one colour of its own."""
    for index in range(10):
        folder = tmp_path / "in" / ("cat" if index % 2 else "ant")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 10, 3), 20 * index, np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "in"


def test_arrays_are_the_pictures_with_their_classes(script, pictures, tmp_path):
    out = tmp_path / "a" / "out"
    script("make_arrays").main([str(pictures), str(out), "--resolution", "8", "--share", "0.2"])
    split = load_images(str(out), 8, labels=True)
    assert (len(split.train), len(split.held_out)) == (8, 2)
    found = {}
    for part in (split.train, split.held_out):
        for image, label in zip(part.images, part.labels, strict=True):
            assert image.shape == (3, 8, 8)
            found[int(image[0, 0, 0])] = int(label)
    assert found == {20 * index: index % 2 for index in range(10)}
    assert read_json(out / "classes.json") == {"classes": ["ant", "cat"]}


def test_held_out_pictures_have_a_folder_of_their_own(script, pictures, tmp_path):
    out = tmp_path / "out"
    script("make_arrays").main([str(pictures), str(out), "--resolution", "8", "--held-out", str(pictures)])
    split = load_images(str(out), labels=True)
    assert (len(split.train), len(split.held_out)) == (10, 10)
    with pytest.raises(FileFormatError, match=r"has 1 classes and .* 2, or of other names; expected the same"):
        script("make_arrays").main(
            [str(pictures), str(tmp_path / "b"), "--resolution", "8", "--held-out", str(one_class(tmp_path))]
        )
    assert not (tmp_path / "b").exists()


def one_class(folder: Path) -> Path:
    (folder / "other" / "ant").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "other" / "ant" / "x.png")
    return folder / "other"


def test_without_classes_there_are_none(script, pictures, tmp_path):
    script("make_arrays").main([str(pictures), str(tmp_path / "out"), "--resolution", "8", "--no-labels"])
    assert load_images(str(tmp_path / "out")).train.labels is None
    with pytest.raises(MissingFileError, match="has no classes"):
        load_images(str(tmp_path / "out"), labels=True)


def test_latents_are_the_vaes_means_scaled(script, pictures, tmp_path):
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.5,
        ).eval()
    vae.save_pretrained(tmp_path / "vae")
    options = ["--resolution", "16", "--vae", str(tmp_path / "vae"), "--batch-size", "3"]
    script("make_latents").main([str(pictures), str(tmp_path / "out"), *options])
    split = load_images(str(tmp_path / "out"), 8, labels=True)
    assert split.train.latent
    assert split.train.images.shape[1:] == (4, 8, 8)
    assert len(split.train) + len(split.held_out) == 10
    by_colour = {}
    for index in range(10):
        flat = torch.full((1, 3, 16, 16), 20 * index / 127.5 - 1)
        with torch.no_grad():
            by_colour[index % 2, index] = (0.5 * vae.encode(flat).latent_dist.mean)[0]
    for part in (split.train, split.held_out):
        for latent, label in zip(part.images.float(), part.labels.tolist(), strict=True):
            nearest = min(by_colour, key=lambda key: float((by_colour[key] - latent).abs().max()))
            assert torch.allclose(by_colour[nearest], latent, atol=2e-3)
            assert nearest[0] == label
    assert read_json(tmp_path / "out" / "vae.json")["scaling_factor"] == 0.5
