"""The Fashion-MNIST base with other seeds: each file is of the recipe's training, and of the seed that its name says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prunekit.groups import make_groups
from prunekit.importance import Probe
from prunekit.recipe import load_recipe
from prunekit.steps.bases import complete_spec, open_base
from prunekit.steps.image_choice import images_of
from prunekit.steps.objectives import objective_for

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LATENT = RECIPES / "fashion-latent-base.yaml"
FILES = sorted((RECIPES / "fashion-bases").glob("seed-*.safetensors"))
DIT = RECIPES / "fashion-bases" / "dit.safetensors"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_base_is_of_the_recipes_training_and_of_its_own_seed(path: Path) -> None:
    base, shipped = open_base(str(path)), open_base("embedded:fashion")
    train = load_recipe(RECIPES / "fashion-base.yaml").base.train
    seed = int(path.stem.removeprefix("seed-"))
    assert (base.provenance["steps"], base.provenance["batch_size"]) == (train.steps, train.batch_size)
    assert base.provenance["seed"] == seed != train.seed
    assert base.spec == shipped.spec
    assert base.provenance["data_sha256"] == shipped.provenance["data_sha256"]
    assert not torch.equal(next(base.model.parameters()), next(shipped.model.parameters()))


def test_there_are_some() -> None:
    assert FILES


def test_the_transformer_is_of_its_recipes_training_and_has_the_loss_that_it_states() -> None:
    base, options = open_base(str(DIT)), load_recipe(RECIPES / "fashion-dit-base.yaml").base
    assert (base.provenance["steps"], base.provenance["seed"]) == (options.train.steps, options.train.seed)
    assert base.spec == complete_spec(options)
    assert np.array_equal(base.schedule.log_snr, options.schedule.log_snr)
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    loss = objective_for(images_of(base).held_out, base.spec, base.parameterization)
    found = [Probe(loss, group, 256, 256, 0).mean(base.model) for group in make_groups(base.schedule, count=2)]
    assert found == pytest.approx(base.provenance["held_out_loss"], rel=1e-4)
    assert DIT.stat().st_size < 2_000_000


def test_the_latent_base_is_of_its_recipes_training() -> None:
    base, options = open_base(str(RECIPES / "latent-bases" / "unet.safetensors")), load_recipe(LATENT).base
    assert base.provenance["steps"] == options.train.steps
    assert (base.provenance["batch_size"], base.provenance["seed"]) == (options.train.batch_size, options.train.seed)
    assert base.spec == complete_spec(options)
    assert np.array_equal(base.schedule.log_snr, options.schedule.log_snr)
