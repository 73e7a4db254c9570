"""Precision, recall and CLIP scores of several models, and extractors from a user's file."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from micro_recipe import Spy, micro
from torch.nn import functional

import prunekit.features
from prunekit._json import read_json
from prunekit.data import as_images, load_images
from prunekit.errors import InputError, MissingFileError
from prunekit.evaluation import image_metrics
from prunekit.extractors import Choice, OwnExtractor, choose_extractor, read_extractor
from prunekit.features import load_features
from prunekit.groups import TimestepGroups
from prunekit.recipe import AllocationOptions, EvaluationOptions
from prunekit.runs.experts_run import Run
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.steps.distances import Distances
from prunekit.steps.sample_quality import judges
from prunekit.steps.setting import Setting

SHIPPED = Path(prunekit.features.__file__).with_name("assets") / "features-digits-cnn.safetensors"


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").train.images


@dataclass(frozen=True)
class Brightness:
    """Scores a picture by its brightness where the prompt asks for light, and by its darkness otherwise."""

    name: str = "brightness"
    sha256: str = "0" * 64

    def score(self, images, prompts):
        light = images.float().flatten(1).mean(1) / 2.55
        wanted = torch.tensor([prompt == "light" for prompt in prompts])
        return float(torch.where(wanted, light, 100 - light).mean())


def test_every_measure_has_a_mean_over_seeds_and_a_paired_difference(digits):
    extractor = load_features("digits-cnn")
    distances = Distances(digits, Choice(extractor), Brightness())
    generator = torch.Generator().manual_seed(0)
    expected = {"base": [], "experts": []}
    for seed in range(2):
        for model, noise in (("base", 60), ("experts", 20)):
            part = digits[seed * 100 : seed * 100 + 100].float()
            images = (part + noise * torch.randn(part.shape, generator=generator)).clamp(0, 255).to(torch.uint8)
            distances.add(model, images, ["light"] * 100)
            expected[model].append(image_metrics(digits, images, extractor))
    base, experts = distances.row("base", "base"), distances.row("experts", "base")
    for measure in ("fid", "kid", "precision", "recall"):
        own, other = ([getattr(one, measure) for one in expected[model]] for model in ("experts", "base"))
        assert getattr(experts, measure).mean == pytest.approx(sum(own) / 2)
        assert experts.by_seed[measure] == own
        difference = getattr(experts, f"{measure}_difference")
        assert difference.mean == pytest.approx((sum(own) - sum(other)) / 2)
        assert difference.se is not None
    assert experts.precision.mean > base.precision.mean
    assert experts.clip_score_difference.mean == pytest.approx(experts.clip_score.mean - base.clip_score.mean)
    assert base.precision_difference is None
    assert distances.clip.to_json() == {"name": "brightness", "sha256": "0" * 64}


def test_features_of_the_real_images_are_computed_once_for_all_comparisons(digits):
    seen = []

    def features(images):
        seen.append(len(images))
        return images.flatten(1)[:, ::16].float()

    groups, schedule = (
        TimestepGroups.from_cuts(50, []),
        NoiseSchedule.from_config({"kind": "cosine", "num_timesteps": 50}),
    )
    images = as_images(digits[:60])
    own = OwnExtractor("pixels", features)
    options, sampling = EvaluationOptions(samples=8), AllocationOptions(steps=2)
    setting = Setting(images, groups, Parameterization(schedule), sampling, options, extractor=own)
    real = setting.images.train.images
    for model in ("a", "b"):
        Distances(real, setting.choice).add(model, digits[60:70])
    assert seen == [len(real), 10, 10]
    assert setting.choice.describe() == own.describe()


def test_a_clip_score_needs_no_extractor_but_prompts(digits):
    distances = Distances(digits, Choice(None, "none"), Brightness())
    distances.add("base", digits[:2], ["light", "dark"])
    row = distances.row("base", "base")
    assert (row.fid, row.precision) == (None, None)
    assert 0 < row.clip_score.mean < 100
    with pytest.raises(InputError, match="needs prompts"):
        distances.add("base", digits[:2])


def test_a_file_of_the_shipped_kind_is_ones_own_extractor(digits, tmp_path):
    path = shutil.copy(SHIPPED, tmp_path / "mine.safetensors")
    own = read_extractor(path)
    shipped = load_features("digits-cnn")
    assert isinstance(own, OwnExtractor)
    assert own.describe() == {"name": "digits-cnn", "own": True, "sha256": shipped.sha256}
    assert torch.equal(own.features(digits[:5]), shipped.features(digits[:5]))
    colour = torch.zeros(3, 3, 12, 12, dtype=torch.uint8)
    assert choose_extractor(colour, str(path)).extractor is not None  # whose fit nobody checks
    with pytest.raises(MissingFileError):
        choose_extractor(colour, str(tmp_path / "other.safetensors"))


def test_a_named_extractor_also_takes_larger_pictures_and_grey_ones_stored_as_colour():
    small = load_images("embedded:fashion").train.images[:2000]
    large = functional.interpolate(small.float(), (32, 32), mode="bicubic").round().clamp(0, 255).to(torch.uint8)
    coloured = large.expand(-1, 3, -1, -1)
    assert choose_extractor(coloured, "fashion-cnn").fit["distance"] < 2
    decoded = coloured.clone()
    decoded[:, 0] -= (decoded[:, 0] > 0).to(torch.uint8)  # as a codec of colour pictures leaves grey ones
    assert choose_extractor(decoded, "fashion-cnn").fit["distance"] < 2
    assert choose_extractor(coloured).extractor is None
    tinted = coloured.clone()
    tinted[:, 0] //= 2
    for pictures in (tinted, small[..., :12, :12], large[..., :16], 255 - large):
        with pytest.raises(InputError, match="fashion-cnn does not know these pictures"):
            choose_extractor(pictures, "fashion-cnn")


def test_the_hash_of_named_weights_counts_and_of_shipped_ones_does_not(tmp_path):
    path = Path(shutil.copy(SHIPPED, tmp_path / "mine.safetensors"))
    assert judges(EvaluationOptions(features="digits-cnn")) == judges(EvaluationOptions()) == {}
    before = judges(EvaluationOptions(features=str(path)))
    assert set(before) == {"features_sha256"}
    path.write_bytes(path.read_bytes() + b"\0")
    assert judges(EvaluationOptions(features=str(path))) != before


@pytest.mark.slow
def test_a_run_with_an_extractor_of_ones_own_measures_again_when_its_file_changes(tmp_path):
    path = Path(shutil.copy(SHIPPED, tmp_path / "mine.safetensors"))
    recipe = micro(
        finetune={"train": {"steps": 1, "batch_size": 4, "warmup_steps": 1}},
        prune={"samples": 8, "batch_size": 8, "search": {"proposer": "oneshot"}},
        allocation__steps=2,
        evaluation={"samples": 8, "seeds": [0], "loss_samples": 8, "features": str(path)},
    )
    Run(recipe, tmp_path / "run", Spy()).execute()
    metrics = read_json(tmp_path / "run" / "manifest.json")["metrics"]
    assert metrics["features"]["own"] is True
    assert set(metrics["rows"][0]["by_seed"]) == {"fid", "kid", "precision", "recall"}
    prunekit.features.save_features(
        load_features("digits-cnn").net, path, "other", 0.9, prunekit.features.FeatureTraining()
    )
    spy = Spy()
    Run(recipe, tmp_path / "run", spy).execute()
    assert spy.made == ["evaluate"]
    assert read_json(tmp_path / "run" / "manifest.json")["metrics"]["features"]["name"] == "other"
