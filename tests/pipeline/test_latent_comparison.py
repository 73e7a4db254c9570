"""Experts of a latent network with captions beside baselines: sampled through the pipeline, at several scales of guidance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from encoding_captions import encoded_pictures
from micro_recipe import Spy, StopError
from tiny_pipelines import saved_pipeline

from prunekit._json import read_json
from prunekit.checkpoint import save_base
from prunekit.errors import InputError, PrunekitError
from prunekit.features import FeatureNet, FeatureTraining, save_features
from prunekit.recipe import EntryOptions, EvaluationOptions, load_recipe
from prunekit.runs.experts_run import Run
from prunekit.runs.publishing import publish
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.steps.bases import open_base, sampled_by
from prunekit.steps.captioned_sampling import captioned_sampler
from prunekit.studies.evidence_study import EvidenceRun
from prunekit.studies.kinds_of_runs import run_of

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
ONE = {"groups": {"count": 1}, "allocation": {"budget": 1.0, "rule": "uniform"}}
WHOLE = {"prune": {"criterion": "magnitude", "search": {"proposer": "uniform"}}}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return saved_pipeline("sd", tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def base(pipeline, tmp_path_factory):
    """The pipeline's own U-Net as a base that was trained for a while."""
    return trained_base(pipeline, tmp_path_factory.mktemp("base") / "base.safetensors")


def trained_base(pipeline, path):
    """A pipeline's own denoiser, with a schedule that has no settings of a scheduler."""
    found = open_base(str(pipeline))
    plain = replace(found.parameterization, schedule=NoiseSchedule.from_config({**found.schedule.config}))
    trained = {"steps": 400, "batch_size": 8}
    save_base(replace(found, parameterization=plain, provenance=trained), path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """One's own classifier of two classes."""
    path = tmp_path_factory.mktemp("features") / "pets.safetensors"
    torch.manual_seed(0)
    save_features(FeatureNet(16, 4, 2, 2), path, "pets", 0.9, FeatureTraining(), ["cat", "dog"])
    return path


def recipe_of(folder, pipeline, base, classifier, evaluation=None):
    data = {
        "name": "tiny-latent",
        "data": {"source": str(encoded_pictures(pipeline, folder))},
        "base": {"checkpoint": str(base)},
        "groups": {"count": 2},
        "allocation": {"budget": 0.8, "rule": "uniform", "sampler": "pipeline", "steps": 3},
        "prune": {"samples": 4, "batch_size": 4, "search": {"rounds": 1, "shortlist": 1}},
        "finetune": {"train": {"batch_size": 2, "warmup_steps": 1, "label_dropout": 0.1}},
        "evaluation": {
            "samples": 6,
            "seeds": [0],
            "loss_samples": 8,
            "grid": 4,
            "features": str(classifier),
            "pipeline": str(pipeline),
            "guidance_scale": 1.0,
            "other_guidance_scales": [4.0],
            **(evaluation or {}),
        },
        "evidence": {
            "entries": {"experts 0.8": {}, "base on": {"kind": "baseline", "changes": {**ONE, **WHOLE}}},
            "headline": "experts 0.8",
            "training": 0.02,
            "seeds": [0],
            "loss_groups": 2,
            "timed_images": 1,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return load_recipe(path)


@pytest.mark.slow
def test_a_comparison_of_experts_of_a_latent_network_goes_through_its_pipeline(pipeline, base, classifier, tmp_path):
    run_of(recipe_of(tmp_path, pipeline, base, classifier), tmp_path / "run").execute()
    manifest = read_json(tmp_path / "run" / "manifest.json")
    trained = 3 * 400 * 8 * manifest["base"]["macs"]
    assert manifest["base"]["training"]["macs"] == trained
    assert manifest["metrics"]["captions"] == ["a cat", "two dogs", "a cat", "two dogs"]
    assert manifest["metrics"]["subjects"] == ["cat", "dog", "cat", "dog"]
    assert 0 <= manifest["metrics"]["agreement_real"] <= 1
    first, *others = manifest["evidence"]
    assert first["training_macs"] == {"base": trained, "search": 0, "fine-tuning": 0}
    for row in (first, *others):
        (guided,) = row["guided"]
        assert guided["guidance_scale"] == 4.0
        for found in (row, guided):
            assert np.isfinite([found["fid"], found["agreement"], found["ssim"]]).all()
    for row in others:
        assert row["training_macs"]["base"] == trained
        assert 1.01 * trained < sum(row["training_macs"].values()) <= 1.02 * trained
        assert {"fid_difference", "agreement_difference"} <= set(row["guided"][0])
    sampled = [row for row in manifest["ledger"] if row["kind"] == "sampling" and row["stage"] == "base"]
    assert [row["macs"] for row in sampled] == [6 * 3 * (1 + 2) * manifest["base"]["macs"]]
    schedule = open_base(str(tmp_path / "run" / "base" / "base.pt")).schedule
    assert (
        schedule.scheduler["_class_name"] == read_json(pipeline / "scheduler" / "scheduler_config.json")["_class_name"]
    )

    published = publish(tmp_path / "run", tmp_path / "reports")
    page = (published / "report" / "index.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "Images by caption at guidance 4" in page
    assert "Guidance and agreement with captions" in page
    assert (published / "samples" / "experts-0-8-guidance-4.npz").is_file()
    assert (published / "report" / "guidance.csv").is_file()

    (tmp_path / "run" / "base" / "images-guidance-4.npz").unlink()
    spy = Spy()
    run_of(recipe_again(tmp_path), tmp_path / "run", spy).execute()
    assert spy.made == ["base"]
    assert (tmp_path / "run" / "base" / "images-guidance-4.npz").is_file()


def recipe_again(folder):
    return load_recipe(folder / "recipe.yaml")


def test_what_the_base_is_measured_by_at_every_scale_are_outputs_of_its_stage(
    pipeline, base, classifier, tmp_path, monkeypatch
):
    planned = []

    def noted(run, name, inputs, outputs, *_, **__):
        planned.append((name, outputs))
        raise StopError

    monkeypatch.setattr(Run, "make_all", lambda run: run.folder)
    monkeypatch.setattr(EvidenceRun, "_stage", noted)
    scales = {"other_guidance_scales": [4.0, 2.5]}
    with pytest.raises(StopError):
        run_of(recipe_of(tmp_path, pipeline, base, classifier, scales), tmp_path / "run").execute()
    files = ["samples/base", "base/images", "samples/base-guidance-4", "base/images-guidance-4"]
    files += ["samples/base-guidance-2-5", "base/images-guidance-2.5"]
    assert planned == [("base", [f"{name}.npz" for name in files])]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("fashion-latent", "sd"), ("fashion-flow", "sd3")])
def test_every_entry_of_a_recipe_runs_on_a_tiny_pipeline(name, kind, classifier, tmp_path):
    recipe, pipeline = load_recipe(RECIPES / f"{name}.yaml"), saved_pipeline(kind, tmp_path / "pipelines")
    base = trained_base(pipeline, tmp_path / "base.safetensors")
    tiny = recipe_of(tmp_path, pipeline, base, classifier)
    search = replace(recipe.prune.search, rounds=1, shortlist=1)
    evaluation = {name: getattr(tiny.evaluation, name) for name in ("samples", "loss_samples", "grid", "features")}
    run = recipe.model_copy(
        update={
            "data": tiny.data,
            "base": tiny.base,
            "allocation": replace(recipe.allocation, steps=5),
            "prune": replace(recipe.prune, samples=4, batch_size=4, search=search),
            "finetune": replace(recipe.finetune, train=replace(recipe.finetune.train, batch_size=2, warmup_steps=1)),
            "evaluation": replace(recipe.evaluation, pipeline=str(pipeline), **evaluation),
            "evidence": replace(recipe.evidence, training=0.04, seeds=(0,), timed_images=1),
        }
    )
    run_of(run, tmp_path / "run").execute()
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert [row["entry"] for row in manifest["evidence"]] == ["base", *recipe.evidence.entries]
    ratios = [row["sampling_macs"] / manifest["base"]["macs"] for row in manifest["evidence"]]
    assert (ratios[0], ratios[3]) == (1.0, 1.0)
    assert 0 < ratios[1] <= 0.8
    assert 0 < ratios[2] <= 0.6


@pytest.mark.slow
def test_an_entrys_sensitivity_is_that_of_the_pipeline_with_its_guidance(pipeline, base, classifier, tmp_path):
    measured = {"rule": "measured", "frontier_floor": 0.5, "sensitivity": True, "sensitivity_samples": 2}
    recipe = recipe_of(tmp_path, pipeline, base, classifier, {"guidance_scale": 4.0, "other_guidance_scales": []})
    entries = {"experts 0.8": EntryOptions(changes={"allocation": measured})}
    evidence = replace(recipe.evidence, entries=entries, training=0.1)
    run_of(recipe.model_copy(update={"evidence": evidence}), tmp_path / "run").execute()
    found = read_json(tmp_path / "run" / "entries" / "experts-0-8" / "sensitivity.json")
    assert found["measured_in"] == "pixels"  # decoded
    rows = read_json(tmp_path / "run" / "manifest.json")["ledger"]
    (row,) = [row for row in rows if row["stage"] == "experts 0.8, seed 0: sensitivity"]
    runs = 1 + sum(group["evaluations"] > 0 for group in found["groups"])
    assert row["samples"] == runs * 2 * 2 * 3  # samples, with and without the condition, steps


@pytest.mark.slow
def test_a_base_of_unknown_training_is_refused_with_the_reason(pipeline, classifier, tmp_path):
    recipe = recipe_of(tmp_path, pipeline, pipeline, classifier)
    with pytest.raises(InputError, match="does not say how long it was trained"):
        run_of(recipe, tmp_path / "run").execute()


def test_a_comparison_of_latents_needs_the_pipeline_that_decodes_them(pipeline, base, classifier, tmp_path):
    without = {"pipeline": None, "guidance_scale": None, "other_guidance_scales": []}
    recipe = recipe_of(tmp_path, pipeline, base, classifier, evaluation=without)
    with pytest.raises(InputError, match=r"latents that evaluation\.pipeline decodes"):
        run_of(recipe, tmp_path / "run").execute()


def test_a_base_takes_the_settings_of_the_scheduler_that_samples_it(pipeline, base):
    found = open_base(str(base))
    assert not found.schedule.scheduler
    sampled = sampled_by(found, pipeline)
    assert sampled.schedule.scheduler == open_base(str(pipeline)).schedule.scheduler
    assert np.allclose(sampled.schedule.log_snr, found.schedule.log_snr, rtol=1e-3, atol=1e-3)
    assert sampled_by(sampled, pipeline) is sampled


def test_a_pipeline_for_a_network_of_another_kind_is_refused(pipeline, base):
    found = open_base(str(base))
    other = replace(found, parameterization=Parameterization(NoiseSchedule.linear(1000, 0.01, 0.02)))
    with pytest.raises(InputError, match=r"has the noise of .* dB and the base was trained with .* dB"):
        sampled_by(other, pipeline)
    other = replace(found, parameterization=Parameterization(found.schedule, "v_prediction"))
    with pytest.raises(InputError, match="expects epsilon and the base predicts v_prediction"):
        sampled_by(other, pipeline)


def test_guidance_adds_a_pass_of_the_empty_condition(pipeline):
    sampler = captioned_sampler(pipeline, ["a cat"], 2, guidance_scale=1.0)
    assert [sampler.passes, sampler.guided_by(4.0).passes, sampler.guided_by(None).passes] == [1, 2, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guidance_scale": 2.0}, "without a pipeline"),
        ({"other_guidance_scales": (2.0,)}, "without a pipeline"),
        ({"pipeline": "sd", "guidance_scale": 2.0, "other_guidance_scales": (2.0,)}, "each of them once"),
    ],
)
def test_scales_of_guidance_are_of_a_pipeline_and_differ(options, said):
    with pytest.raises(PrunekitError, match=said):
        EvaluationOptions(**options)
