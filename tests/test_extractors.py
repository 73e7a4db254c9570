"""An extractor judges only pictures that it knows."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import prunekit
from prunekit import features as features_module
from prunekit.data import load_images
from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.evaluation import image_metrics
from prunekit.extractors import (
    LIMIT,
    OwnExtractor,
    choose_extractor,
    distance_to_training,
    load_statistics,
    misfit,
    statistics_path,
)
from prunekit.features import SHIPPED, FeatureExtractor, load_features

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").train.images


def noise(count=400, channels=1, side=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def test_digits_are_judged_by_the_digits_extractor_and_the_fit_is_recorded(digits):
    choice = choose_extractor(digits)
    assert choice.extractor is not None
    assert choice.why_none == ""
    described = choice.describe()
    assert described is not None
    assert described["name"] == "digits-cnn"
    assert described["fit"]["distance"] < described["fit"]["limit"] == LIMIT
    assert json.loads(json.dumps(described)) == described


def test_a_part_of_the_digits_that_no_training_saw_is_known_too(digits):
    part = torch.cat([load_images("digits").held_out.images, digits[:200]])
    assert misfit(load_features("digits-cnn"), part)[0] == ""


@pytest.mark.fashion
@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_is_judged_by_the_fashion_extractor_as_it_is_only():
    images = load_images(str(FASHION / "t10k-images-idx3-ubyte.gz"), 16).train.images
    choice = choose_extractor(images)
    assert choice.extractor is not None
    assert choice.extractor.describe()["name"] == "fashion-cnn"
    assert choose_extractor(images[:320]).extractor is not None
    for other in (255 - images, images.flip(3), images // 2):
        assert choose_extractor(other).extractor is None


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (noise(channels=3), "trained on grey 16×16 pictures and these are RGB 16×16"),
        (noise(side=28), "these are grey 28×28"),
        (noise(), "fashion-cnn: the Fréchet distance from its training pictures is 6"),
        (noise(side=8), "digits-cnn: the Fréchet distance from its training pictures is 6"),
        (torch.zeros(400, 1, 16, 16, dtype=torch.uint8), "fashion-cnn: the Fréchet distance"),
        (noise(count=319, side=8), "319 real pictures and at least 320 are needed"),
    ],
)
def test_pictures_that_no_extractor_knows_have_none_with_the_reason(images, reason):
    choice = choose_extractor(images)
    assert choice.extractor is None
    assert choice.describe() is None
    assert reason in choice.why_none
    assert "OwnExtractor" in choice.why_none
    for name in SHIPPED:
        assert name in choice.why_none


@pytest.mark.parametrize("change", ["inverted", "mirrored", "upside down", "half brightness", "another data set"])
def test_other_grey_pictures_of_the_same_size_are_not_digits(digits, change):
    changed = {
        "inverted": 255 - digits,
        "mirrored": digits.flip(3),
        "upside down": digits.flip(2),
        "half brightness": digits // 2,
        "another data set": noise(side=4).repeat_interleave(2, 2).repeat_interleave(2, 3),
    }[change]
    assert distance_to_training(load_features("digits-cnn"), changed) > 4 * LIMIT
    assert choose_extractor(changed).extractor is None


@pytest.mark.parametrize("name", SHIPPED)
def test_an_extractor_that_was_named_for_other_pictures_is_refused(name):
    with pytest.raises(InputError, match=f"{name} does not know these pictures.*auto.*OwnExtractor"):
        choose_extractor(noise(channels=3), name)
    with pytest.raises(InputError, match="Unknown feature extractor"):
        choose_extractor(noise(), "inception")


def test_an_extractor_that_cannot_tell_its_classes_apart_is_not_used(digits):
    good = load_features("digits-cnn")
    bad = FeatureExtractor(good.name, good.net, 0.4, good.sha256, good.resolution)
    assert misfit(bad, digits)[0] == "it tells only 40 % of its held-out pictures apart"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_record_says_which_pictures_are_told_apart(name):
    path = statistics_path(features_module._ASSETS, name)
    assert path.stat().st_size < 25_000
    with safe_open(path, framework="pt") as handle:
        distances = json.loads(handle.metadata()["prunekit"])["distances"]
    own = {"held-out", "320 own, the farthest of 50 draws"}
    assert max(distances[kind] for kind in own) < 0.7 * LIMIT
    kinds = ("inverted", "mirrored", "upside down", "data set", " noise", "half brightness")
    others = [kind for kind in distances if any(each in kind for each in kinds) and "noise of" not in kind]
    assert len(others) == 9
    assert min(distances[kind] for kind in others) > 1.3 * LIMIT


def test_ones_own_extractor_gives_fid_and_says_whose_it_is(digits):
    own = OwnExtractor("pixels", lambda images: images.flatten(1).float() / 255)
    assert own.describe() == {"name": "pixels", "own": True}
    near, far = (image_metrics(digits[:400], other, own).fid for other in (digits[400:800], 255 - digits[400:800]))
    assert 0 < near < far
    with pytest.raises(InputError, match="expected \\(images, features\\)"):
        OwnExtractor("wrong", lambda images: images.float()).features(digits[:4])


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """A copy of the digits' files, to be spoilt."""
    for path in features_module._ASSETS.glob("features-digits-cnn*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(features_module, "_ASSETS", tmp_path)
    return tmp_path


def test_statistics_of_another_version_or_none_are_refused(assets):
    extractor, path = load_features("digits-cnn"), statistics_path(assets, "digits-cnn")
    with safe_open(path, framework="pt") as handle:
        about = json.loads(handle.metadata()["prunekit"])
    tensors = load_file(path)
    for changes, values in (
        ({"extractor_sha256": "ab" * 32}, tensors),
        ({}, {**tensors, "mean": torch.zeros(3)}),
        ({}, {**tensors, "mean": torch.full((64,), torch.nan)}),
    ):
        save_file(values, path, metadata={"prunekit": json.dumps(about | changes)})
        with pytest.raises(FileFormatError, match="another version"):
            load_statistics(extractor)
    for content in (b"", b"nothing"):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="no feature statistics"):
            load_statistics(extractor)
    path.unlink()
    with pytest.raises(MissingFileError, match="make_features"):
        load_statistics(extractor)


@pytest.mark.slow
def test_the_call_on_the_page_compares_experts_with_their_base_by_ones_own_extractor(tmp_path):
    base = prunekit.load_base("embedded:digits")
    groups, counted = (
        prunekit.make_groups(base.schedule, 2),
        prunekit.count_macs(base.model, base.spec.example_inputs()),
    )
    plan = prunekit.PruningPlan({}, prunekit.trace(base.model, base.spec.example_inputs()).fingerprint)
    about = {"noise_schedule": base.schedule.to_config(), "prediction_type": "epsilon"}
    sizes = (counted.macs, counted.params)
    slims = [prunekit.SlimModel(base.model, base.spec, plan, {}, group, 1000, *sizes, about) for group in groups]
    prunekit.save_experts(slims, groups, tmp_path / "experts")
    page = (Path(__file__).resolve().parents[1] / "docs" / "quality.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    short = {
        "my-pipeline": "embedded:digits",
        "my-images": "digits",
        "1024, seeds=(0, 1, 2)": "8, seeds=(0,)",
        "50": "2",
    }
    for said, quick in short.items():
        assert said in example
        example = example.replace(said, quick)
    names = {"network": lambda images: images.flatten(1).float()[:, :4]}
    with contextlib.chdir(tmp_path):
        exec(compile(example, "quality.md", "exec"), names)  # noqa: S102 - the example is the test
    rows = names["evaluation"].metrics.rows
    assert [row.model for row in rows] == ["base", "expert"]
    assert rows[0].fid.mean == pytest.approx(rows[1].fid.mean, rel=1e-4)
    assert names["evaluation"].metrics.features.name == "mine"
