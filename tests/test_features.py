import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prunekit import features as module
from prunekit.data import load_images
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.features import (
    SHIPPED,
    FeatureNet,
    FeatureTraining,
    load_features,
    read_features,
    save_features,
    train_features,
)

FASHION = Path("/usr/share/datasets/fashion-mnist")


def held_out_digits():
    from sklearn.datasets import load_digits

    labels = load_digits().target
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = np.sort(order[: len(labels) // 6])
    return load_images("digits").held_out.images, torch.from_numpy(labels[chosen]).long()


def some_images(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 3


def test_stated_accuracy_of_the_digits_extractor_is_measured_again_on_images_it_was_not_trained_on():
    extractor = load_features("digits-cnn")
    images, labels = held_out_digits()
    # another processor may round an image on the border to the other side
    assert extractor.net.accuracy(images, labels) == pytest.approx(extractor.accuracy, abs=1.5 / len(images))
    assert extractor.accuracy > 0.97


@pytest.mark.slow
@pytest.mark.fashion
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_stated_accuracy_of_the_fashion_extractor_is_measured_again_on_the_test_part():
    import gzip

    extractor = load_features("fashion-cnn")
    content = gzip.decompress((FASHION / "t10k-labels-idx1-ubyte.gz").read_bytes())
    assert struct.unpack(">II", content[:8]) == (0x801, 10_000)
    labels = torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=8).astype(np.int64))
    images = load_images(str(FASHION), extractor.resolution).held_out.images
    assert extractor.net.accuracy(images, labels) == pytest.approx(extractor.accuracy, abs=5 / len(images))
    assert extractor.accuracy > 0.88


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_small_and_says_how_it_was_trained(name):
    path = module._ASSETS / f"features-{name}.safetensors"
    assert path.stat().st_size < 300_000
    with safe_open(path, framework="pt") as handle:
        about = json.loads(handle.metadata()["prunekit"])
    assert about["name"] == name
    FeatureTraining(**about["training"])
    extractor = load_features(name)
    assert extractor.describe() == json.loads(json.dumps(extractor.describe()))
    assert set(extractor.describe()) == {"name", "sha256", "accuracy", "resolution", "num_features"}
    assert extractor.net(some_images()[0]).shape == (24, extractor.net.num_features)
    assert not any(parameter.requires_grad for parameter in extractor.net.parameters())


def test_features_of_the_training_images_are_centred_of_unit_size_and_of_full_rank():
    values = load_features("digits-cnn").features(load_images("digits").train.images)
    torch.testing.assert_close(values.mean(0), torch.zeros(64).double(), atol=1e-4, rtol=0)
    assert values.var(0).mean().item() == pytest.approx(1, rel=1e-2)
    assert torch.linalg.matrix_rank(torch.cov(values.T)) == values.shape[1]


def test_digits_enlarged_and_in_colour_are_still_recognised():
    net = load_features("digits-cnn").net
    images, labels = held_out_digits()
    large = images.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat(1, 3, 1, 1)
    assert large.shape[1:] == (3, 32, 32)
    assert net.accuracy(large, labels) > 0.95


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_prepare_keeps_a_plain_image_plain_at_any_size_and_channel_count(count, channels, height, width, value):
    images = torch.full((count, channels, height, width), value, dtype=torch.uint8)
    prepared = FeatureNet(8).prepare(images)
    assert prepared.shape == (count, 1, 8, 8)
    torch.testing.assert_close(prepared, torch.full_like(prepared, value / 127.5 - 1))


def test_features_do_not_depend_on_the_batch_or_the_mode():
    net = load_features("digits-cnn").net
    images = load_images("digits").held_out.images[:40]
    together = net(images)
    torch.testing.assert_close(torch.cat([net(image[None]) for image in images]), together)
    assert torch.equal(net.train()(images), together)


@pytest.mark.slow
def test_training_learns_repeats_exactly_and_leaves_the_global_generator_alone():
    images, labels = some_images()
    training = FeatureTraining(width=4, num_features=8, epochs=60, batch_size=8)
    before = torch.get_rng_state()
    first, second = train_features(images, labels, training), train_features(images, labels, training)
    other = train_features(images, labels, FeatureTraining(width=4, num_features=8, epochs=60, batch_size=8, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    assert first.accuracy(images, labels) > 0.9  # chance is one third
    assert first.num_classes == 3
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_saved_network_is_read_back_bit_equal(tmp_path):
    images, labels = some_images()
    training = FeatureTraining(width=4, num_features=8, epochs=1)
    net = train_features(images, labels, training)
    for name in ("a", "b"):
        save_features(net, tmp_path / name, "mine", 0.5, training)
    before = torch.get_rng_state()
    extractor = read_features(tmp_path / "a")
    assert torch.equal(before, torch.get_rng_state())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert torch.equal(extractor.net(images), net(images))
    assert (extractor.name, extractor.accuracy, extractor.resolution) == ("mine", 0.5, 8)


def test_a_name_that_is_not_shipped_is_refused():
    with pytest.raises(InputError, match="expected one of digits-cnn, fashion-cnn"):
        load_features("inception")


def test_an_installation_without_the_file_says_how_to_mend_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ASSETS", tmp_path)
    with pytest.raises(MissingFileError, match=r"features-digits-cnn.*does not exist.*make_features"):
        load_features("digits-cnn")


@pytest.fixture
def shipped(tmp_path):
    """A copy of the digits' file with its header and tensors, to be spoilt."""
    path = tmp_path / "features.safetensors"
    shutil.copy(module._ASSETS / "features-digits-cnn.safetensors", path)
    with safe_open(path, framework="pt") as handle:
        about = json.loads(handle.metadata()["prunekit"])
    return path, about, load_file(path)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_truncated_file_is_refused(shipped, keep):
    path, _, _ = shipped
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match="install it again"):
        read_features(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "prunekit-features/2"},
        {"width": 23},
        {"width": 10**6},
        {"resolution": -8},
        {"num_features": None},
        {"num_features": float("inf")},
        {"accuracy": 1.5},
        {"accuracy": "good"},
    ],
)
def test_a_header_that_does_not_fit_is_refused(shipped, change):
    path, about, state = shipped
    save_file(state, path, metadata={"prunekit": json.dumps({**about, **change})})
    with pytest.raises(FileFormatError, match="install it again"):
        read_features(path)


@pytest.mark.parametrize("header", ["[]", "{", "{}", "[" * 100_000])
def test_a_header_of_another_kind_is_refused(shipped, header):
    path, _, state = shipped
    save_file(state, path, metadata={"prunekit": header})
    with pytest.raises(FileFormatError, match="install it again"):
        read_features(path)


def test_tensors_of_another_type_or_name_are_refused(shipped):
    path, about, state = shipped
    metadata = {"prunekit": json.dumps(about)}
    save_file({**state, "head.bias": state["head.bias"].half()}, path, metadata=metadata)
    with pytest.raises(FileFormatError, match="not finite float32"):
        read_features(path)
    save_file({**state, "head.bias": state["head.bias"] * torch.nan}, path, metadata=metadata)
    with pytest.raises(FileFormatError, match="not finite float32"):
        read_features(path)
    save_file({**state, "more": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(FileFormatError, match="disagree"):
        read_features(path)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, 0, 8, 8).byte()]
)
def test_images_of_another_type_or_shape_are_refused(images):
    with pytest.raises(InputError, match="expected uint8"):
        FeatureNet(8)(images)


def test_labels_that_do_not_fit_are_refused():
    images, labels = some_images()
    for wrong in (labels[:-1], labels.int(), labels - 1):
        with pytest.raises(InputError, match="one int64 label"):
            train_features(images, wrong, FeatureTraining())
    with pytest.raises(InputError, match="expected at least 1 and 1"):
        FeatureTraining(epochs=0)
    with pytest.raises(InputError, match="4 … 4096"):
        FeatureNet(resolution=3)
