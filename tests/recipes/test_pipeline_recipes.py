"""Recipes for pipelines with captions: their comments are what the cost model says, and every stage runs on a tiny pipeline."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_configs import CONFIGS
from tiny_pipelines import saved_pipeline

from prunekit._json import read_json
from prunekit.checkpoint import ModelSpec
from prunekit.checkpoint.shaped_inputs import at_shapes
from prunekit.conditions import flat
from prunekit.cost import StepCost
from prunekit.data import load_images
from prunekit.recipe import ExpertsRecipe, load_recipe
from prunekit.runs.experts_run import Run
from prunekit.steps.encoding import EncodeOptions, encode
from prunekit.studies.recipe_costs import estimate

ROOT = Path(__file__).resolve().parents[2]
TINY = {"sd15": "sd", **{name: name for name in ("sdxl", "sd3", "flux", "wan")}}


def recipe_of(name: str) -> ExpertsRecipe:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    assert isinstance(recipe, ExpertsRecipe)
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_the_comments_are_what_the_cost_model_says_of_the_real_network(name: str) -> None:
    lines = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("# "))
    found = estimate(recipe_of(name), None, CONFIGS[name])
    for sentence in found.sentences():
        assert sentence in comment
    (sampled,) = [stage["macs"] for stage in found.to_json()["stages"] if stage["stage"] == "sampling"]
    passes, macs = 1 if name == "flux" else 2, found.step.count.macs
    assert sampled == 5000 * 50 * passes * (macs + round(0.8 * macs))
    assert f"prunekit run recipes/{name}.yaml" in comment
    assert f"prunekit encode pipelines/{name} pictures --output data/{name}" in comment


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_stage_runs_on_a_tiny_pipeline(name: str, tmp_path: Path) -> None:
    pipeline, pictures = saved_pipeline(TINY[name], tmp_path / "pipelines"), tmp_path / "pictures"
    pictures.mkdir()
    for row in range(12):
        shades = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(shades).save(pictures / f"{row}.png")
        (pictures / f"{row}.txt").write_text("a cat" if row % 2 else "some dogs")
    encode(pipeline, str(pictures), tmp_path / "data", EncodeOptions((32, 32)))
    recipe = recipe_of(name)
    assert recipe.prune is not None
    assert recipe.finetune is not None
    assert recipe.evaluation is not None
    train = replace(
        recipe.finetune.train,
        steps=2,
        batch_size=4,
        gradient_accumulation_steps=2,
        warmup_steps=1,
        log_every=1,
        use_8bit_adam=False,  # by an extra that is not installed here
    )
    tiny = recipe.model_copy(
        update={
            "data": replace(recipe.data, source=str(tmp_path / "data")),
            "base": replace(recipe.base, checkpoint=str(pipeline)),
            "allocation": replace(recipe.allocation, steps=5),
            "prune": replace(recipe.prune, samples=8, search=replace(recipe.prune.search, rounds=1, shortlist=2)),
            "finetune": replace(recipe.finetune, train=train),
            "evaluation": replace(
                recipe.evaluation, samples=4, loss_samples=8, features="auto", pipeline=str(pipeline), grid=2
            ),
        }
    )
    Run(tiny, tmp_path / "run").execute()
    found = read_json(tmp_path / "run" / "evaluation.json")
    assert {row["model"] for row in found["metrics"]["rows"]} == {"base", "experts"}
    assert len(found["losses"]) == 5
    told = read_json(tmp_path / "run" / "experts" / "group-0" / "config.json")
    assert (told["prediction_type"] == "flow_prediction") == (name in ("sd3", "flux", "wan"))
    inputs = flat(ModelSpec.from_json(told["model"]).example_inputs())
    images = load_images(tmp_path / "data").train
    for key, values in images.columns.items():
        assert inputs[key].shape[1:] == values.shape[1:]  # costs are those of the data


@pytest.mark.slow
def test_stable_diffusion_at_77_tokens_costs_what_its_attentions_say() -> None:
    """The real network without weights: 16 cross-attentions by width and positions, counted by hand."""
    spec = CONFIGS["sd15"]
    found = [
        StepCost.of(each.build, each.example_inputs).count.macs
        for each in (at_shapes(spec, {"encoder_hidden_states": (tokens, 768)}) for tokens in (8, 77))
    ]
    attentions = [(320, 64**2)] * 5 + [(640, 32**2)] * 5 + [(1280, 16**2)] * 5 + [(1280, 8**2)]
    assert found[1] - found[0] == sum(69 * (2 * 768 + 2 * positions) * width for width, positions in attentions)


def test_stated_shapes_decide_no_result() -> None:
    recipe = recipe_of("flux")
    bare = recipe.model_copy(update={"data": replace(recipe.data, shapes=None)})
    assert recipe.deciding(("data", "base")) == bare.deciding(("data", "base"))
