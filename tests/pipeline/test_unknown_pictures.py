"""Runs on pictures that no feature extractor knows: the reported case was a claim of better FID on someone's colour pictures."""

import numpy as np
import pytest
import torch
from micro_recipe import micro
from tiny_comparison import TINY_MODEL, TINY_SCHEDULE, recipe_of

from prunekit._json import read_json
from prunekit.checkpoint import ModelSpec
from prunekit.data import load_images
from prunekit.errors import InputError
from prunekit.extractors import OwnExtractor
from prunekit.groups import TimestepGroups
from prunekit.recipe import AllocationOptions, EvaluationOptions
from prunekit.report import claim, read_run, write_all_reports
from prunekit.report.curriculum_page import curriculum_claim
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.steps.sample_quality import measure_samples
from prunekit.steps.setting import Setting
from prunekit.studies.kinds_of_runs import run_of

COLOUR = {"class": "UNet2DModel", "config": {**TINY_MODEL["config"], "in_channels": 3, "out_channels": 3}}
TRAIN = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 2, "log_every": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Colour pictures of 8×8."""
    path = tmp_path_factory.mktemp("pictures") / "colour.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (400, 8, 8, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def experts(pictures, tmp_path_factory):
    """A run of experts on them."""
    folder = tmp_path_factory.mktemp("reports")
    base = {"model": COLOUR, "noise_schedule": TINY_SCHEDULE, "train": TRAIN}
    run_of(micro(base=base, data={"source": str(pictures)}), folder / "colour").execute()
    return folder / "colour"


def test_colour_pictures_have_no_fid_and_the_claim_is_about_the_loss(experts):
    metrics = read_json(experts / "manifest.json")["metrics"]
    assert metrics["features"] is None
    assert "these are RGB 8×8" in metrics["no_features"]
    assert all(row["fid"] is None and row["kid"] is None and row["seconds_per_image"] > 0 for row in metrics["rows"])
    sentence = claim(read_run(experts))
    assert "the held-out denoising loss, averaged over the sampler's steps, is" in sentence
    assert "No FID was measured: no shipped feature extractor knows these pictures" in sentence


def test_the_page_says_why_there_is_no_fid(experts):
    write_all_reports(experts.parent)
    report = experts / "report"
    page = (report / "index.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert page.count("these are RGB 8×8") >= 2
    assert "OwnExtractor" in page
    assert "FID (features" not in page
    assert not (report / "pareto_fid.png").exists()
    assert (report / "samples.png").is_file()
    assert "fid" in (report / "metrics.csv").read_text().splitlines()[0]
    assert "No FID was measured" in (experts.parent / "index.html").read_text().replace("\N{NO-BREAK SPACE}", " ")


def test_an_extractor_that_was_named_is_refused_before_anything_is_made(pictures, tmp_path):
    base = {"model": COLOUR, "noise_schedule": TINY_SCHEDULE, "train": TRAIN}
    recipe = micro(base=base, data={"source": str(pictures)}, evaluation__features="fashion-cnn")
    with pytest.raises(InputError, match="fashion-cnn does not know these pictures"):
        run_of(recipe, tmp_path / "run").execute()
    assert not (tmp_path / "run" / "base.pt").exists()


def test_a_comparison_of_trainings_is_judged_by_the_loss(pictures, tmp_path):
    data = {
        "name": "colour-curriculum",
        "description": "Tiny.",
        "data": {"source": str(pictures)},
        "base": {"model": COLOUR, "noise_schedule": TINY_SCHEDULE, "train": TRAIN},
        "curriculum": {
            "entries": {"uniform": {}, "faster": {"learning_rate": 0.05}},
            "seeds": [0],
            "looks": 1,
            "sampling_steps": 2,
        },
        "evaluation": {"samples": 4, "seeds": [0], "loss_samples": 8},
    }
    run_of(recipe_of(tmp_path, data), tmp_path / "run").execute()
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert {look["fid"] for row in manifest["curriculum"] for look in row["curve"]} == {None}
    sentence = curriculum_claim(manifest)
    assert "is faster: held-out loss is" in sentence
    assert "unclear, since one seed gives no error" in sentence
    assert "these are RGB 8×8" in sentence
    page = (tmp_path / "run" / "report" / "index.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "No FID was measured" in page
    assert "share to the FID" not in page


def setting(images, extractor=None, seeds=(0,)):
    groups, options = TimestepGroups.from_cuts(50, []), EvaluationOptions(samples=8, seeds=seeds)
    sampling, schedule = AllocationOptions(steps=2), NoiseSchedule.from_config(TINY_SCHEDULE)
    return Setting(images, groups, Parameterization(schedule), sampling, options, extractor=extractor)


def networks(model, seeds=(0, 1)):
    made = {}
    for name, seed in zip(("base", "experts"), seeds, strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made[name] = ModelSpec.from_json(model).build().eval()
    return made


def test_ones_own_extractor_measures_colour_pictures(pictures):
    own = OwnExtractor("pixels", lambda images: images.flatten(1)[:, ::16].float() / 255)
    found = measure_samples(
        setting(load_images(str(pictures)), own), networks(COLOUR), {"base": 1.0, "experts": 1.0}
    ).metrics.to_json()
    assert found["features"] == {"name": "pixels", "own": True, "num_features": 12}
    assert all(row["fid"]["mean"] > 0 for row in found["rows"])


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_differences_are_paired_and_have_an_error_with_one_seed_too(seeds):
    models = networks(TINY_MODEL)
    found = measure_samples(
        setting(load_images("digits"), seeds=seeds), models, {"base": 1.0, "experts": 1.0}
    ).metrics.to_json()
    base, experts = found["rows"]
    assert "fid_difference" not in base
    differences = np.subtract(experts["by_seed"]["fid"], base["by_seed"]["fid"])
    assert len(differences) == len(seeds)
    assert experts["fid_difference"]["mean"] == pytest.approx(differences.mean())
    assert experts["fid_difference"]["se"] > 0
    if len(seeds) > 1:
        assert experts["fid_difference"]["se"] >= differences.std(ddof=1) / np.sqrt(len(seeds)) * (1 - 1e-9)
    assert found["features"]["fit"]["distance"] < found["features"]["fit"]["limit"]


def test_a_network_against_itself_differs_by_nothing():
    models = networks(TINY_MODEL, (0, 0))
    found = measure_samples(setting(load_images("digits")), models, {"base": 1.0, "experts": 1.0}).metrics.to_json()
    assert found["rows"][1]["fid_difference"] == {"mean": 0.0, "se": 0.0}
