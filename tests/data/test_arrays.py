"""Arrays, folders of them, and classes from every source."""

import pickle

import numpy as np
import pytest
import safetensors.torch as torch_file
import torch
from PIL import Image
from safetensors.numpy import save_file

from prunekit.data import ImageData, load_images
from prunekit.errors import FileFormatError, InputError, MissingFileError


def pictures(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def latents(count, dtype=np.float16):
    return np.random.default_rng(1).normal(size=(count, 4, 8, 8)).astype(dtype)


def write(path, images, labels=None):
    """Images with their classes as each kind of file keeps them."""
    if path.suffix == ".npy":
        np.save(path, images)
        if labels is not None:
            np.save(path.with_name(f"{path.stem}-labels.npy"), labels)
        return path
    arrays = {"images": images} | ({} if labels is None else {"labels": labels})
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_latents_stay_as_they_are_with_their_classes(tmp_path, suffix, dtype):
    array, labels = latents(12, dtype), np.arange(12) % 3
    split = load_images(str(write(tmp_path / f"x{suffix}", array, labels)), labels=True)
    assert split.train.latent
    assert split.about()["kind"] == "latents"
    assert (len(split.train), len(split.held_out), split.resolution) == (10, 2, 8)
    for part in (split.train, split.held_out):
        for image, label in zip(part.images.numpy(), part.labels.numpy(), strict=True):
            (place,) = (index for index in range(12) if np.array_equal(array[index], image))
            assert labels[place] == label


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_pictures_of_any_kind_of_file_are_the_same_images(tmp_path, suffix):
    array = pictures(12, 8, 8, 3)
    split = load_images(str(write(tmp_path / f"x{suffix}", array)))
    np.savez(tmp_path / "reference.npz", array)
    assert torch.equal(split.train.images, load_images(str(tmp_path / "reference.npz")).train.images)
    assert split.train.labels is None


def test_a_folder_of_arrays_is_mapped_and_not_read(tmp_path):
    """The tensors see what is written to the files later, so they are the files."""
    write(tmp_path / "train.npy", pictures(9, 8, 8, 3), np.arange(9))
    write(tmp_path / "held-out.npy", pictures(3, 8, 8, 3, seed=1), np.arange(3))
    split = load_images(str(tmp_path), labels=True)
    assert (len(split.train), len(split.held_out)) == (9, 3)
    assert split.train.images.shape == (9, 3, 8, 8)
    assert split.train.labels.tolist() == list(range(9))
    before = int(split.train.images[4, 2, 3, 5])
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r+")
    mapped[4, 3, 5, 2] = 255 - before
    mapped.flush()
    assert int(split.train.images[4, 2, 3, 5]) == 255 - before


def test_a_mapped_array_has_the_hash_of_the_same_images_in_memory(tmp_path):
    array = pictures(9, 8, 8, 3)
    write(tmp_path / "train.npy", array)
    write(tmp_path / "held-out.npy", array[:2])
    mapped = load_images(str(tmp_path)).train
    copied = ImageData(torch.from_numpy(array.transpose(0, 3, 1, 2).copy()), "")
    assert mapped.sha256 == copied.sha256
    assert ImageData(copied.images, "", torch.arange(9)).sha256 != copied.sha256


def test_arrays_are_not_resized(tmp_path):
    path = write(tmp_path / "x.npy", latents(6))
    with pytest.raises(InputError, match=r"x\.npy are 8×8 and stay as they are; expected 16×16"):
        load_images(str(path), 16)
    write(tmp_path / "train.npy", pictures(4, 8, 6, 3))
    write(tmp_path / "held-out.npy", pictures(2, 8, 6, 3))
    assert load_images(str(tmp_path)).resolution == (8, 6)
    with pytest.raises(InputError, match="are 8×6 and stay as they are; expected 8×8"):
        load_images(str(tmp_path), 8)


def test_a_folder_of_arrays_needs_images_that_are_held_out(tmp_path):
    write(tmp_path / "train.npy", pictures(4, 8, 8, 3))
    with pytest.raises(MissingFileError, match=r"has train\.npy and no held-out images; expected held-out\.npy"):
        load_images(str(tmp_path))
    write(tmp_path / "held-out.npy", latents(2))
    with pytest.raises(FileFormatError, match=r"held-out\.npy has images of another size or type"):
        load_images(str(tmp_path))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_missing_and_wrong_classes_are_told(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", pictures(4, 8, 8))
    with pytest.raises(MissingFileError, match="has no classes; expected them in"):
        load_images(str(path), labels=True)
    write(path, pictures(4, 8, 8), np.zeros(3, np.int64))
    with pytest.raises(FileFormatError, match=r"of shape \(3,\) for 4 images; expected a whole number"):
        load_images(str(path), labels=True)
    write(path, pictures(4, 8, 8), np.array([0, 1, -1, 2]))
    with pytest.raises(FileFormatError, match="expected a whole number from 0"):
        load_images(str(path), labels=True)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "x.npy", tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return mark.touch, ()

    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match=r"x\.npy holds Python objects"):
        load_images(str(path))
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileFormatError, match=r"x\.npy is no readable"):
        load_images(str(path))
    assert not mark.exists()


@pytest.mark.parametrize("array", [np.zeros((4, 8, 8), np.float32), np.zeros((4, 3, 8, 8), np.int32)])
def test_arrays_of_something_else_are_refused(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(FileFormatError, match=r"x\.npy is .* of shape .*; expected uint8 .* or latents"):
        load_images(str(tmp_path / "x.npy"))


def test_classes_of_a_folder_for_each(tmp_path):
    """Numbered in the order of their names; a picture deeper in its class's folder counts too."""
    values = {"zebra/a": 10, "ant/b": 20, "ant/deep/c": 30, "cat/d": 40, "cat/e": 50}
    for name, value in values.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
    split = load_images(str(tmp_path), labels=True)
    found = {
        int(image[0, 0, 0]): int(label)
        for part in (split.train, split.held_out)
        for image, label in zip(part.images, part.labels, strict=True)
    }
    assert found == {10: 2, 20: 0, 30: 0, 40: 1, 50: 1}
    assert split.about()["labels"] is True
    plain = load_images(str(tmp_path))
    assert torch.equal(plain.train.images, split.train.images)
    assert plain.train.labels is None
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "loose.png")
    with pytest.raises(FileFormatError, match=r"loose\.png lies in no class's folder"):
        load_images(str(tmp_path), labels=True)


def test_the_digits_have_their_classes():
    from sklearn.datasets import load_digits

    split = load_images("digits", labels=True)
    target = load_digits().target
    order = np.random.default_rng(0).permutation(len(target))
    assert split.train.labels.tolist() == target[np.sort(order[299:])].tolist()
    assert split.held_out.labels.tolist() == target[np.sort(order[:299])].tolist()
    assert split.train.first(5).labels.tolist() == split.train.labels[:5].tolist()


def test_idx_files_have_their_classes_beside_them(tmp_path):
    def idx(name, magic, sizes, content):
        head = b"".join(number.to_bytes(4, "big") for number in (magic, *sizes))
        (tmp_path / name).write_bytes(head + content)

    idx("train-images-idx3-ubyte", 0x803, (7, 2, 2), bytes(28))
    with pytest.raises(MissingFileError, match="expected train-labels-idx1-ubyte beside the images"):
        load_images(str(tmp_path), labels=True)
    idx("train-labels-idx1-ubyte", 0x801, (7,), bytes(range(7)))
    split = load_images(str(tmp_path), labels=True)
    assert sorted([*split.train.labels.tolist(), *split.held_out.labels.tolist()]) == list(range(7))
    idx("train-labels-idx1-ubyte", 0x801, (6,), bytes(range(6)))
    with pytest.raises(FileFormatError, match="has 6 classes for 7 images; expected one for each"):
        load_images(str(tmp_path), labels=True)
    idx("train-labels-idx1-ubyte", 0x803, (7,), bytes(range(7)))
    with pytest.raises(FileFormatError, match=r"expected an idx1 file \(magic 0x801\)"):
        load_images(str(tmp_path), labels=True)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((4, 3, 16, 16), 1.01, np.float32), "may be pictures from 0 to 1 or to 255; expected uint8"),
        (np.full((4, 16, 24, 3), -0.5, np.float32), "pictures with channels last; expected uint8"),
        (np.zeros((3, 16, 16), np.uint8), "a single picture of 3 channels or as many grey ones"),
    ],
)
def test_arrays_that_could_be_two_things_are_refused(tmp_path, array, said):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(FileFormatError, match=said):
        load_images(str(tmp_path / "x.npy"))


def test_an_empty_key_is_no_key(tmp_path):
    np.savez(tmp_path / "x.npz", images=pictures(4, 8, 8), labels=np.arange(4))
    for key in ("::", "::,labels"):
        with pytest.raises(InputError, match=r"has no array \'\'.*; expected one of"):
            load_images(f"{tmp_path / 'x.npz'}{key}")


def test_numbers_that_numpy_does_not_have_are_named(tmp_path):
    torch_file.save_file({"images": torch.zeros(4, 4, 8, 8, dtype=torch.bfloat16)}, tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match=r"images in .*x\.safetensors has numbers of type BF16; expected uint8"):
        load_images(str(tmp_path / "x.safetensors"))
