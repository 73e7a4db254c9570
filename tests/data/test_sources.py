import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prunekit.data import load_images
from prunekit.errors import FileFormatError, InputError, MissingFileError

FASHION = Path("/usr/share/datasets/fashion-mnist")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def together(split):
    return torch.cat([split.train.images, split.held_out.images])


def save_pictures(folder, arrays, suffix=".png"):
    folder.mkdir(exist_ok=True)
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index:02}{suffix}")
    return folder


def idx_bytes(images, magic=0x803):
    return struct.pack(">IIII", magic, *images.shape) + images.tobytes()


def test_digits_are_all_there_in_full_range():
    split = load_images("digits")
    assert split.train.images.shape == (1498, 1, 8, 8)
    assert split.held_out.images.shape == (299, 1, 8, 8)
    for part in (split.train, split.held_out):
        assert part.images.dtype == torch.uint8
        assert (part.images.min(), part.images.max()) == (0, 255)
    assert split.about() == {"source": "digits", "resolution": 8}
    assert (split.train.name, split.held_out.name) == ("digits/train", "digits/held-out")


@given(count=st.integers(2, 60))
@settings(max_examples=25, deadline=None)
def test_a_split_is_disjoint_complete_and_the_same_every_time(tmp_path_factory, count):
    path = tmp_path_factory.getbasetemp() / "numbered.npz"
    np.savez(path, np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8))
    split, again = load_images(str(path)), load_images(str(path))
    train, held_out = ({int(image[0, 0, 0]) for image in part.images} for part in (split.train, split.held_out))
    assert not train & held_out
    assert train | held_out == set(range(count))
    assert len(held_out) == max(1, count // 6)
    assert torch.equal(split.train.images, again.train.images)
    assert torch.equal(split.held_out.images, again.held_out.images)
    assert split.train.sha256 == again.train.sha256 != split.held_out.sha256


def test_the_hash_knows_shape_and_pixels(tmp_path):
    def hash_of(array):
        np.savez(tmp_path / "x.npz", array)
        return load_images(str(tmp_path / "x.npz")).train.sha256

    images = noise(6, 4, 4)
    one_pixel = images.copy()
    one_pixel[:, 0, 0] ^= 1
    assert len({hash_of(images), hash_of(one_pixel), hash_of(images.reshape(6, 2, 8)[:, :, :2])}) == 3
    assert hash_of(images) == hash_of(images)


def test_the_first_images_are_a_part():
    train = load_images("digits").train
    assert torch.equal(train.first(10).images, train.images[:10])
    assert train.first(None) is train


@pytest.mark.parametrize("channels", [1, 3])
def test_halving_averages_areas_exactly(tmp_path, channels):
    coarse = noise(5, 4, 4, channels)
    spread = np.array([[-3, 1], [2, 0]])[None, :, :, None]
    fine = np.kron(np.clip(coarse, 3, 250), np.ones((1, 2, 2, 1))) + np.tile(spread, (5, 4, 4, channels))
    np.savez(tmp_path / "x.npz", fine.astype(np.uint8))
    split = load_images(str(tmp_path / "x.npz"), 4)
    assert split.resolution == 4
    expected = np.sort(np.clip(coarse, 3, 250).transpose(0, 3, 1, 2).reshape(5, -1), axis=0)
    assert np.array_equal(np.sort(together(split).numpy().reshape(5, -1), axis=0), expected)


def test_an_image_that_is_no_square_is_cropped_in_its_middle(tmp_path):
    wide = np.zeros((3, 4, 8), np.uint8)
    wide[:, :, 2:6] = noise(4, 4)
    np.savez(tmp_path / "x.npz", wide)
    assert (together(load_images(str(tmp_path / "x.npz"))).numpy() == noise(4, 4)).all()


@pytest.mark.parametrize("colour", [False, True])
def test_a_folder_of_different_sizes_becomes_squares_of_the_firsts_side(tmp_path, colour):
    channels = (3,) if colour else ()
    middle = noise(6, 6, *channels)
    wide, tall = np.zeros((6, 10, *channels), np.uint8), np.zeros((12, 6, *channels), np.uint8)
    wide[:, 2:8], tall[3:9] = middle, middle
    big = np.kron(middle, np.ones((2, 2, *(1,) * len(channels)))).astype(np.uint8)
    split = load_images(str(save_pictures(tmp_path / "p", [middle, wide, tall, big])))
    images = together(split)
    assert images.shape == (4, 3 if colour else 1, 6, 6)
    expected = middle.transpose(2, 0, 1) if colour else middle[None]
    assert (images.numpy() == expected).all()
    assert split.about() == {"source": "p", "resolution": 6, "sha256": split.sha256}


def test_resolution_reduces_a_folder_by_area_averages(tmp_path):
    middle = noise(4, 4)
    big = np.kron(middle, np.ones((2, 2))).astype(np.uint8)
    bigger = np.kron(middle, np.ones((3, 3))).astype(np.uint8)
    split = load_images(str(save_pictures(tmp_path / "p", [big, bigger])), 4)
    assert (together(split).numpy() == middle).all()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpegs_are_read_wherever_they_lie_in_the_folder(tmp_path, suffix):
    smooth = np.full((16, 16, 3), 90, np.uint8)
    save_pictures(tmp_path / "p", [smooth], suffix)
    save_pictures(tmp_path / "p" / "inner", [smooth, smooth], suffix)
    (tmp_path / "p" / "notes.txt").write_text("no picture")
    images = together(load_images(str(tmp_path / "p")))
    assert images.shape == (3, 3, 16, 16)
    assert (images.int() - 90).abs().max() <= 2


def test_sixteen_bit_grey_keeps_its_contrast(tmp_path):
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    images = together(load_images(str(save_pictures(tmp_path / "p", [ramp, ramp]))))
    assert images[0, 0].flatten().tolist() == list(range(0, 256, 17))


def test_grey_with_transparency_is_still_grey(tmp_path):
    folder = save_pictures(tmp_path / "p", [noise(4, 4), np.stack([noise(4, 4), np.full((4, 4), 255, np.uint8)], -1)])
    assert together(load_images(str(folder))).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("first", ["grey", "colour"])
def test_grey_pictures_among_colour_ones_become_colour_and_are_counted(tmp_path, first):
    grey, colour = [noise(4, 4), noise(4, 4, seed=1)], [noise(4, 4, 3)]
    split = load_images(str(save_pictures(tmp_path / "p", grey + colour if first == "grey" else colour + grey)))
    images = {image.numpy().tobytes() for image in together(split)}
    assert images == {np.repeat(array[None], 3, 0).tobytes() for array in grey} | {
        colour[0].transpose(2, 0, 1).tobytes()
    }
    assert split.report == f"{tmp_path / 'p'}: 3 pictures; 2 grey pictures made colour."


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("keep", [0, 20, 0.6])
def test_a_truncated_picture_is_refused_with_its_name(tmp_path, suffix, keep):
    folder = save_pictures(tmp_path / "p", [noise(32, 32, 3), noise(32, 32, 3)], suffix)
    broken = folder / f"01{suffix}"
    content = broken.read_bytes()
    broken.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(FileFormatError, match=rf"01\{suffix} is a broken picture .*; mend or remove it"):
        load_images(str(folder))


def test_a_text_that_is_called_a_picture_is_refused_with_its_name(tmp_path):
    folder = save_pictures(tmp_path / "p", [noise(4, 4)])
    (folder / "a.png").write_text("hello")
    with pytest.raises(FileFormatError, match=r"a\.png is a broken picture"):
        load_images(str(folder))


def test_missing_and_empty_sources_are_told(tmp_path):
    with pytest.raises(
        MissingFileError, match="nowhere does not exist; expected 'digits', 'embedded:fashion', a folder"
    ):
        load_images("nowhere")
    with pytest.raises(MissingFileError, match=r"has no \.png, \.jpg, \.webp, .* pictures"):
        load_images(str(tmp_path))
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(FileFormatError, match="is not a kind that is read"):
        load_images(str(tmp_path / "x.csv"))
    with pytest.raises(FileFormatError, match="holds 1 image; expected at least 2"):
        load_images(str(save_pictures(tmp_path / "one", [noise(4, 4)])))


@pytest.mark.parametrize("resolution", [-8, 0, 1, 4097])
def test_an_impossible_resolution_is_refused(resolution):
    with pytest.raises(InputError, match=rf"Got `resolution` {resolution}; expected 2 … 4096"):
        load_images("digits", resolution)


@pytest.mark.parametrize(("shape", "channels"), [((7, 4, 4), 1), ((7, 4, 4, 1), 1), ((7, 4, 4, 3), 3)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_bit_for_bit(tmp_path, shape, channels, save):
    images = noise(*shape)
    save(tmp_path / "x.npz", images=images, labels=np.arange(7))
    split = load_images(str(tmp_path / "x.npz"))
    assert split.train.images.shape == (6, channels, 4, 4)
    read = together(split).permute(0, 2, 3, 1).reshape(shape).numpy()
    assert {image.tobytes() for image in read} == {image.tobytes() for image in images}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 4)),
        np.zeros((4, 4, 4), np.int64),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4, 2), np.uint8),
        np.zeros((4, 3, 4, 4), np.uint8),
        np.zeros((0, 4, 4), np.uint8),
        np.zeros((4, 0, 4), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_npz_of_something_else_is_refused(tmp_path, array):
    np.savez(tmp_path / "x.npz", array)
    with pytest.raises(FileFormatError, match=r"x\.npz is .* of shape .*; expected uint8"):
        load_images(str(tmp_path / "x.npz"))


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_an_npz_with_a_pickle_is_refused_and_not_run(tmp_path):
    np.savez(tmp_path / "x.npz", np.array([Trap(tmp_path / "sprung")], dtype=object))
    with pytest.raises(FileFormatError, match=r"x\.npz holds Python objects"):
        load_images(str(tmp_path / "x.npz"))
    assert not (tmp_path / "sprung").exists()


def broken_archives():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, noise(20, 8, 8))
    whole = buffer.getvalue()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    plain = io.BytesIO()
    np.save(plain, noise(4, 4, 4))
    empty = io.BytesIO()
    np.savez(empty)
    return {
        "empty file": b"",
        "text": b"hello",
        "truncated": whole[: len(whole) // 2],
        "truncated at its end": whole[:-4],
        "a flipped byte": bytes(flipped),
        "an npy": plain.getvalue(),
        "no arrays": empty.getvalue(),
    }


@pytest.mark.parametrize("kind", broken_archives())
def test_a_broken_npz_is_refused(tmp_path, kind):
    (tmp_path / "x.npz").write_bytes(broken_archives()[kind])
    with pytest.raises(FileFormatError, match=r"x\.npz is no readable"):
        load_images(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_is_read_bit_for_bit(tmp_path, suffix):
    images = noise(12, 5, 5)
    path = tmp_path / f"some-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(images)) if suffix else idx_bytes(images))
    read = together(load_images(str(path)))
    assert read.shape == (12, 1, 5, 5)
    assert {image.numpy().tobytes() for image in read} == {image.tobytes() for image in images}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["{}-idx3-ubyte", "{}.idx3-ubyte"])
def test_a_folder_of_idx_files_has_its_own_test_part(tmp_path, suffix, name):
    pack = gzip.compress if suffix else bytes
    for stem, seed, count in (("train-images", 0, 9), ("t10k-images", 1, 4)):
        (tmp_path / (name.format(stem) + suffix)).write_bytes(pack(idx_bytes(noise(count, 6, 6, seed=seed))))
    split = load_images(str(tmp_path))
    assert (split.train.images[:, 0].numpy() == noise(9, 6, 6)).all()  # in the order of the file
    assert (split.held_out.images[:, 0].numpy() == noise(4, 6, 6, seed=1)).all()
    assert load_images(str(tmp_path), 3).held_out.images.shape == (4, 1, 3, 3)
    assert split.held_out.name.endswith("/test")


def test_a_folder_with_training_images_only_is_split(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(noise(12, 4, 4)))
    split = load_images(str(tmp_path))
    assert (len(split.train), len(split.held_out)) == (10, 2)


def test_idx_parts_of_different_sizes_are_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(noise(4, 6, 6)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(noise(4, 5, 5)))
    with pytest.raises(FileFormatError, match="t10k-images-idx3-ubyte has images of another size"):
        load_images(str(tmp_path))
    assert load_images(str(tmp_path), 4).resolution == 4


WHOLE = idx_bytes(noise(12, 5, 5))
PACKED = gzip.compress(WHOLE)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x-idx3", b"", "is no readable idx file"),
        ("x-idx3", WHOLE[:10], "is no readable idx file"),
        ("x-idx3", WHOLE[:-1], "has magic 0x803 and 299 bytes of pixels for 12×5×5"),
        ("x-idx3", WHOLE + b"0", "301 bytes of pixels"),
        ("x-idx3", idx_bytes(noise(12, 5, 5), 0x801), "has magic 0x801"),
        ("x-idx3", struct.pack(">IIII", 0x803, 0, 5, 5), "0 bytes of pixels"),
        ("x-idx3", PACKED, "expected an idx3 file of unsigned bytes"),
        ("x-idx3.gz", PACKED[:-12], "is no readable idx file"),
        ("x-idx3.gz", WHOLE, "is no readable idx file"),
        ("x-idx3.gz", PACKED[:10] + b"\xff\xff" + PACKED[12:], "is no readable idx file"),
        ("x-idx3.gz", gzip.compress(WHOLE[:-1]), "299 bytes of pixels"),
    ],
)
def test_a_broken_idx_file_is_refused_with_its_name(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"{name} {said}|{name} .*{said}"):
        load_images(str(tmp_path / name))


@pytest.mark.fashion
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read():
    split = load_images(str(FASHION))
    assert split.train.images.shape == (60_000, 1, 28, 28)
    assert split.held_out.images.shape == (10_000, 1, 28, 28)
    assert (split.train.images.min(), split.train.images.max()) == (0, 255)
    assert split.about() == {"source": "fashion-mnist", "resolution": 28, "sha256": split.sha256}
