"""Recipes for GPUs: as far as a small machine goes, they work, and their comments are what the cost model says."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prunekit._json import read_json
from prunekit.checkpoint import Base, ModelSpec
from prunekit.cost import count_macs
from prunekit.data import ImageData, ImageSplit
from prunekit.errors import InputError
from prunekit.recipe import Recipe, load_recipe
from prunekit.schedule import Parameterization
from prunekit.steps.bases import seeded_weights
from prunekit.steps.bench import Bench
from prunekit.steps.image_choice import check_images
from prunekit.steps.objectives import columns_for
from prunekit.studies.machines import Gpus, Machine, ThisMachine, this_machine
from prunekit.studies.recipe_costs import Estimate, estimate, work_by_stage
from prunekit.training import DenoisingObjective, timestep_sampler, train

ROOT = Path(__file__).resolve().parents[2]
CIFAR = ModelSpec(
    "UNet2DModel",  # google/ddpm-cifar10-32, as its config.json says
    {
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 32,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
)
NARROW = {
    "ddpm-cifar10": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8},
    "imagenet64": {
        "block_out_channels": [32, 32, 64, 64],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 16,
    },
    "latent-dit": {"num_layers": 2, "num_attention_heads": 4, "attention_head_dim": 16},
}
NAMES = sorted(NARROW)


def path_of(name: str) -> Path:
    return ROOT / "recipes" / f"{name}.yaml"


def spec_of(recipe: Recipe) -> ModelSpec:
    """The recipe's own network; that of a checkpoint which is not here by its config."""
    return CIFAR if recipe.base.checkpoint else recipe.base.spec()


def estimated(name: str, machine: Machine | None = None) -> Estimate:
    recipe = load_recipe(path_of(name))
    return estimate(recipe, machine, spec_of(recipe))


def data_for(recipe: Recipe, count: int = 4) -> ImageSplit:
    """Random images of the shape and the classes that the recipe's are of."""
    config, rng = spec_of(recipe).config, np.random.default_rng(0)
    shape = (count, config["in_channels"], config["sample_size"], config["sample_size"])
    pictures = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    images = pictures if shape[1] == 3 else torch.from_numpy(rng.normal(size=shape).astype(np.float16))
    labels = torch.from_numpy(rng.integers(0, 1000, count)) if recipe.data.labels else None
    part = ImageData(images, recipe.name, labels)
    return ImageSplit(part, part, recipe.name, shape[-1])


@pytest.mark.slow_but("ddpm*")
@pytest.mark.parametrize("name", NAMES)
def test_the_comments_are_what_the_cost_model_says(name: str) -> None:
    text = path_of(name).read_text(encoding="utf-8")
    comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    for sentence in estimated(name).sentences():
        assert sentence in comment
    assert f"prunekit estimate recipes/{name}.yaml" in comment


@pytest.mark.parametrize("name", NAMES)
def test_the_model_builds_without_memory_and_takes_the_recipes_images(name: str) -> None:
    recipe = load_recipe(path_of(name))
    with torch.device("meta"):
        model = spec_of(recipe).build()
    assert sum(parameter.numel() for parameter in model.parameters()) == estimated(name).step.count.params
    data = data_for(recipe)
    assert recipe.data.resolution == data.resolution
    check_images(data, spec_of(recipe))


@pytest.mark.slow_but("latent-dit")
@pytest.mark.parametrize("name", NAMES)
def test_a_narrow_version_is_traced_counted_and_can_be_pruned(name: str) -> None:
    """The structure is the recipe's; widths and depth are those of a test."""
    recipe = load_recipe(path_of(name))
    spec = ModelSpec(spec_of(recipe).class_name, {**spec_of(recipe).config, **NARROW[name]})
    with seeded_weights(0):
        base = Base(spec.build().eval(), spec, Parameterization(recipe.base.schedule))
    assert recipe.prune is not None
    bench = Bench.of(
        base, recipe.prune.norm_mode, recipe.prune.head_mode
    )  # refuses costs that differ from the counter's
    assert bench.macs == count_macs(base.model, spec.example_inputs()).macs
    smallest = np.array([group.widths[-1] for group in bench.graph])
    assert bench.cost.macs(smallest) < 0.5 * bench.macs
    assert sum(len(group.widths) > 1 for group in bench.graph) > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_one_step_of_the_recipes_own_model(name: str) -> None:
    """The whole network on random images with their classes: the loss is finite, and all that is asked of it moves."""
    recipe, spec = load_recipe(path_of(name)), spec_of(load_recipe(path_of(name)))
    options = recipe.base.train if recipe.base.model else recipe.finetune.train
    options = replace(
        options, steps=1, batch_size=1, gradient_accumulation_steps=1, warmup_steps=0, mixed_precision="no", log_every=1
    )
    data, schedule = data_for(recipe).train, recipe.base.schedule
    prediction_type = recipe.base.prediction_type or "epsilon"  # a checkpoint brings its own
    objective = DenoisingObjective(
        data.images, Parameterization(schedule, prediction_type), columns_for(data, spec, options.label_dropout)
    )
    with seeded_weights(0):
        model = spec.build()
    watched = next(parameter for key, parameter in model.named_parameters() if key.endswith("bias"))
    before = watched.detach().clone()
    result = train(model, objective, timestep_sampler(options, Parameterization(schedule, prediction_type)), options)
    ((step, loss),) = result.losses
    assert step == 1
    assert np.isfinite(loss)
    assert 0.1 < loss < 10
    assert not torch.equal(before, watched)


@pytest.mark.slow
def test_more_gpus_share_the_batch_and_not_the_hours() -> None:
    one, eight = estimated("imagenet64"), estimated("imagenet64", Gpus("A100", 8))
    assert eight.memory("base")["activations"] * 8 == one.memory("base")["activations"]
    assert eight.memory("base")["moments"] == one.memory("base")["moments"]
    assert eight.hours() == one.hours()
    half = estimated("imagenet64", Gpus("A100", 1, 0.15)).hours()
    assert all(half[stage] == pytest.approx(2 * hours) for stage, hours in one.hours().items())


@pytest.mark.slow
def test_the_figures_in_the_comments_add_up() -> None:
    """By hand: three passes' worth of MACs for each image of each step, at 0.3 of 312 TFLOP/s."""
    found = estimated("latent-dit")
    train_, count = load_recipe(path_of("latent-dit")).base.train, found.step.count
    by_hand = 2 * 3 * count.macs * train_.steps * train_.batch_size / (0.3 * 312e12 * 3600)
    assert found.hours()["base"] == pytest.approx(by_hand, rel=0.01)
    with pytest.raises(InputError, match="Got GPU 'abacus'"):
        estimated("latent-dit", Gpus("abacus")).hours()


def test_hours_on_this_machine_are_of_a_rate_that_is_measured_here() -> None:
    recipe = load_recipe(ROOT / "recipes" / "digits-demo.yaml")
    found = estimate(recipe)
    here = this_machine(found.spec, found.step.count)
    assert here is not None
    assert 1e8 < here.rate < 1e14
    hours = replace(found, machine=ThisMachine(2e9)).hours()
    assert sum(hours.values()) == pytest.approx(sum(row.macs for row, _ in found.rows) / 2e9 / 3600)
    said = replace(found, machine=ThisMachine(2e9)).sentences()[-1]
    assert said.startswith(f"About {60 * sum(hours.values()):.1f} min on this machine, which reaches 2 GMAC/s")
    assert re.match(r"About [\d.]+ (h|days) on this machine", replace(found, machine=ThisMachine(2e6)).sentences()[-1])
    assert this_machine(found.spec, replace(found.step.count, params=10**10)) is None


@pytest.mark.parametrize("name", ["digits-curriculum", "fashion-tdc"])
def test_a_comparison_is_estimated_with_all_its_trainings_and_samples(name: str) -> None:
    """As the published run counted them; the searches of entries are a part of their training."""
    ledger = read_json(ROOT / "reports" / name / "manifest.json")["ledger"]
    found = estimate(load_recipe(ROOT / "recipes" / f"{name}.yaml"))
    for kinds in (("training", "teacher", "search", "importance", "grouping"), ("evaluation",), ("sampling",)):
        spent = sum(row["macs"] for row in ledger if row["kind"] in kinds)
        expected = sum(row.macs for row, _ in found.rows if row.kind in kinds)
        assert expected == pytest.approx(spent, rel=0.1), kinds


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_the_comments_exist(name: str) -> None:
    text = path_of(name).read_text(encoding="utf-8")
    for script in re.findall(r"python (recipes/\w+\.py)", text):
        assert (ROOT / script).is_file()
    assert f"prunekit run recipes/{name}.yaml" in text


@pytest.mark.parametrize("name", ["digits-curriculum", "digits-multistage", "fashion-tdc", "fashion-demo"])
def test_work_is_known_of_every_stage_that_takes_long(name: str) -> None:
    """The stages have the names of a real run, or a bar over them would not move."""
    work = work_by_stage(load_recipe(ROOT / "recipes" / f"{name}.yaml"))
    took = read_json(ROOT / "reports" / name / "manifest.json")["seconds"]
    assert set(work) <= set(took)
    assert all(macs > 0 for macs in work.values())
    unknown = sum(seconds for stage, seconds in took.items() if stage not in work)
    assert unknown < 0.1 * sum(took.values())
