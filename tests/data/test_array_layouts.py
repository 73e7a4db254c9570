"""Which array of a file has the images, and arrays in the forms that other programs write."""

import numpy as np
import pytest
import torch

from prunekit.data import load_images
from prunekit.errors import FileFormatError, InputError, MissingFileError


def pictures(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def together(split):
    return torch.cat([split.train.images, split.held_out.images])


def test_kerass_test_part_is_held_out(tmp_path):
    train, test = pictures(6, 8, 8, 3), pictures(3, 8, 8, 3, seed=1)
    numbers = {"y_train": np.arange(6)[:, None], "y_test": np.arange(3)[:, None]}  # CIFAR has a column of them
    np.savez(tmp_path / "x.npz", x_test=test, x_train=train, **numbers)
    split = load_images(tmp_path / "x.npz", labels=True)
    assert np.array_equal(split.train.images.permute(0, 2, 3, 1).numpy(), train)
    assert np.array_equal(split.held_out.images.permute(0, 2, 3, 1).numpy(), test)
    assert split.train.labels.tolist() == [*range(6)]
    assert split.held_out.labels.tolist() == [*range(3)]
    assert "x_train is trained on and x_test is held out" in split.report


@pytest.mark.parametrize("part", ["train", "test"])
def test_classes_that_kerass_layout_lacks_are_named(tmp_path, part):
    arrays = {
        "x_train": pictures(6, 8, 8),
        "x_test": pictures(3, 8, 8),
        "y_train": np.arange(6),
        "y_test": np.arange(3),
    }
    del arrays[f"y_{part}"]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(MissingFileError, match=rf"has no classes of x_{part}; expected them in the key y_{part}, or a"):
        load_images(tmp_path / "x.npz", labels=True)


def test_samples_of_guided_diffusion_have_their_classes(tmp_path):
    array = pictures(12, 8, 8, 3)
    np.savez(tmp_path / "x.npz", array, np.arange(12) % 5)
    split = load_images(tmp_path / "x.npz", labels=True)
    assert sorted([*split.train.labels.tolist(), *split.held_out.labels.tolist()]) == sorted(i % 5 for i in range(12))
    assert "arr_0 has the images and arr_1 the classes" in split.report
    np.savez(tmp_path / "x.npz", array, mu=np.zeros(3), sigma=np.zeros(3))  # a reference batch
    assert len(together(load_images(tmp_path / "x.npz"))) == 12


@pytest.mark.parametrize(
    "arrays",
    [
        {"arr_0": pictures(4, 8, 8), "arr_1": pictures(4, 8, 8)},
        {"first": pictures(4, 8, 8), "second": pictures(4, 8, 8)},
        {"x_train": pictures(4, 8, 8), "x_other": pictures(4, 8, 8)},
        {"labels": np.arange(4), "first": pictures(4, 8, 8), "second": pictures(4, 8, 8)},
    ],
    ids=lambda arrays: "-".join(arrays),
)
def test_several_arrays_in_no_known_layout_are_not_guessed(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=r"x\.npz has the arrays .*; expected .* name the key .* as x\.npz::"):
        load_images(tmp_path / "x.npz")


def test_the_user_names_the_keys(tmp_path):
    wanted = pictures(4, 8, 8, seed=1)
    np.savez(tmp_path / "x.npz", first=pictures(5, 8, 8), second=wanted, kinds=np.array([3, 1, 4, 1]))
    split = load_images(f"{tmp_path}/x.npz::second,kinds", labels=True)
    found = {
        image.numpy().tobytes(): int(label)
        for part in (split.train, split.held_out)
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == {image.tobytes(): label for image, label in zip(wanted, (3, 1, 4, 1), strict=True)}
    assert split.about()["source"] == "x.npz::second,kinds"
    with pytest.raises(InputError, match=r"has no array 'secnd' \(did you mean second\?\); expected one of first"):
        load_images(f"{tmp_path}/x.npz::secnd")


@pytest.mark.parametrize(("scale", "said"), [(1 / 255, "from 0 to 1"), (1.0, "from 0 to 255")])
@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8, 3), (8, 8)])
def test_floats_of_pictures_are_no_latents(tmp_path, scale, said, shape):
    array = pictures(6, *shape)
    np.save(tmp_path / "x.npy", (array * scale).astype(np.float32))
    split = load_images(tmp_path / "x.npy")
    assert split.train.images.dtype == torch.uint8
    first = array[:, None] if array.ndim == 3 else array if shape[0] == 3 else array.transpose(0, 3, 1, 2)
    assert {image.numpy().tobytes() for image in together(split)} == {image.tobytes() for image in first}
    assert f"is float32 {said}, read as pictures and not as latents" in split.report


@pytest.mark.parametrize(("channels", "said"), [(1, True), (3, True), (4, False)])
def test_floats_that_may_be_pictures_from_minus_1_to_1_are_told(tmp_path, channels, said):
    array = np.random.default_rng(0).uniform(-1, 1, (6, channels, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", array)
    split = load_images(tmp_path / "x.npy")
    assert split.train.images.dtype == torch.float32
    assert (
        "read as latents and not as pictures; if they are pictures from -1 to 1, write them as uint8" in split.report
    ) == said


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_latents_that_float32_cannot_hold_are_refused(tmp_path, value):
    array = np.random.default_rng(0).normal(size=(6, 4, 8, 8))
    array[2, 0, 0, 0] = value
    np.savez(tmp_path / "x.npz", array)
    with pytest.raises(FileFormatError, match=r"Row 2 of .* is not finite in float32"):
        load_images(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", array)  # mapped, and so checked where rows are used
    with pytest.raises(InputError, match=r"1 of 6 rows of .* are not finite, row 2 the first"):
        load_images(tmp_path / "x.npy")


def test_floats_that_are_neither_pictures_nor_latents_are_refused(tmp_path):
    random = np.random.default_rng(0)
    for channels, most in ((4, 1), (1, 4095), (3, 65535), (4, 300)):  # such as pictures of 12 and 16 bits
        np.save(tmp_path / "x.npy", most * random.random((6, channels, 8, 8), dtype=np.float32))
        with pytest.raises(
            FileFormatError, match=r"expected latents of both signs: subtract their mean.*uint8, scaled"
        ):
            load_images(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", random.normal(size=(6, 8, 8, 3)).astype(np.float32))
    with pytest.raises(FileFormatError, match="pictures with channels last; expected uint8"):
        load_images(tmp_path / "x.npy")
    late = np.full((3000, 3, 8, 8), 0.5, np.float32)
    late[1501, 0, 0, 0] = -0.5  # between the images that are looked at first
    np.save(tmp_path / "x.npy", late)
    with pytest.raises(FileFormatError, match=r"has values from -0\.5 to 0\.5 among pictures from 0 to 1"):
        load_images(tmp_path / "x.npy")


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first_are_read(tmp_path, channels):
    array = pictures(6, channels, 8, 10)
    np.save(tmp_path / "x.npy", array)
    split = load_images(tmp_path / "x.npy", (8, 10))
    assert {image.numpy().tobytes() for image in together(split)} == {image.tobytes() for image in array}


@pytest.mark.parametrize("axis", [1, 3])
def test_alpha_of_arrays_is_laid_over_white(tmp_path, axis):
    array = pictures(6, 8, 8, 4)
    array[:, :4, :, 3], array[:, 4:, :, 3] = 0, 255
    np.save(tmp_path / "x.npy", np.moveaxis(array, 3, axis))
    split = load_images(tmp_path / "x.npy")
    assert (together(split)[:, :, :4] == 255).all()
    below = {image[4:, :, :3].transpose(2, 0, 1).tobytes() for image in array}
    assert {image[:, 4:].numpy().tobytes() for image in together(split)} == below
    assert "laid over white" in split.report


def test_latents_need_not_be_square(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(6, 4, 8, 12)).astype(np.float16))
    split = load_images(tmp_path / "x.npy")
    assert split.train.latent
    assert (split.size, split.resolution) == ((8, 12), (8, 12))


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 6, 1), (16, 12, 4)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_single_picture_is_not_taken_for_many_narrow_ones(tmp_path, shape, kind):
    np.save(tmp_path / "x.npy", np.ones(shape, kind))
    with pytest.raises(FileFormatError, match=rf"a single picture of {shape[2]} channels; expected several"):
        load_images(tmp_path / "x.npy")
