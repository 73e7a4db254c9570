"""Class-conditional networks and latents go the whole way: trained, scored, pruned, fine-tuned, assembled, measured and sampled."""

import copy

import numpy as np
import pytest
import torch
from micro_recipe import MICRO, Spy
from networks import UNET_CONFIG
from torch import Generator
from typer.testing import CliRunner

from prunekit._json import read_json
from prunekit.checkpoint import ModelSpec
from prunekit.cli.app import app
from prunekit.data import ImageData, load_images
from prunekit.errors import InputError
from prunekit.nets import load_experts
from prunekit.recipe import Recipe
from prunekit.runs.experts_run import Run
from prunekit.schedule import Parameterization
from prunekit.steps import placing
from prunekit.steps.image_choice import check_comparison, check_images, sampled_classes
from prunekit.steps.objectives import columns_for
from prunekit.steps.opening import open_model

CONDITIONAL = {**UNET_CONFIG, "num_class_embeds": 11}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}
TRAIN = {"steps": 6, "batch_size": 8, "warmup_steps": 1, "log_every": 2}


def recipe(model, config, data, **train):
    changed = copy.deepcopy(MICRO)
    changed["base"] = {"model": {"class": model, "config": config}, "train": {**TRAIN, **train}}
    changed["data"] = {**data, "labels": True}
    return Recipe.model_validate(changed)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional") / "run"
    made = recipe("UNet2DModel", CONDITIONAL, {"source": "digits"}, label_dropout=0.2)
    Run(made, folder, Spy()).execute()
    return folder


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent")
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("held-out", 8)):
        np.save(folder / f"{name}.npy", rng.normal(size=(count, 4, 8, 8)).astype(np.float16))
        np.save(folder / f"{name}-labels.npy", rng.integers(0, 10, count))
    made = recipe("DiTTransformer2DModel", DIT, {"source": str(folder)})
    Run(made, folder / "run", Spy()).execute()
    return folder / "run"


def test_a_class_conditional_recipe_gives_experts_that_listen_to_the_class(conditional):
    experts = load_experts(conditional / "experts")
    noisy, times = torch.randn(4, 1, 8, 8), torch.tensor([10, 400, 600, 990])
    with torch.no_grad():
        both = [experts(noisy, times, class_labels=torch.full((4,), label)).sample for label in (0, 7)]
        alone = experts(noisy[2:3], times[2:3], class_labels=torch.tensor([7])).sample
    assert not torch.allclose(*both, rtol=1e-4)
    assert torch.allclose(alone, both[1][2:3], atol=1e-5)
    manifest = read_json(conditional / "manifest.json")
    assert manifest["metrics"]["rows"]
    assert manifest["base"]["data"] == {"source": "digits", "resolution": 8, "labels": True}


def test_a_recipe_of_latents_measures_losses_and_samples_latents(latent):
    manifest = read_json(latent / "manifest.json")
    assert "metrics" not in manifest
    assert len(manifest["losses"]) == 2
    assert not (latent / "samples").exists()
    assert (latent / "report" / "index.html").is_file()
    opened = open_model(str(latent / "experts"))
    assert opened.latent
    samples = opened.sampler("ddim", 3)(opened.model, 5, 0)
    assert samples.shape == (5, 4, 8, 8)
    assert not opened.sampler("ddim", 3).scheduler.config.clip_sample


def test_the_class_is_drawn_by_the_seed_and_changes_no_noise(conditional):
    opened = open_model(str(conditional / "experts"))
    sampler = opened.sampler("ddim", 2)
    assert torch.equal(sampler.labels(9, 4), sampler.labels(9, 4))
    assert not torch.equal(sampler.labels(9, 4), sampler.labels(9, 5))
    one = opened.sampler("ddim", 2, label=3)
    assert one.labels(9, 4).tolist() == [3] * 9
    assert torch.equal(one.noise(9, 4), sampler.noise(9, 4))
    together, apart = (one(opened.model, 6, 1, batch_size=size) for size in (6, 2))
    assert torch.allclose(together, apart, atol=1e-5)
    with pytest.raises(InputError, match="Got class 11; expected 0 … 10"):
        opened.sampler("ddim", 2, label=11)


def test_labels_stay_with_their_images():
    images = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1).expand(40, 1, 8, 8)
    spec = ModelSpec("UNet2DModel", {**UNET_CONFIG, "num_class_embeds": 41})
    from prunekit.schedule import NoiseSchedule
    from prunekit.training import DenoisingObjective, to_unit_range

    data = ImageData(images, "numbered", torch.arange(40))
    timesteps = torch.arange(64)
    for dropout in (0.0, 0.25):
        objective = DenoisingObjective(
            images, Parameterization(NoiseSchedule.linear()), columns_for(data, spec, dropout)
        )
        clean, _, labels = objective.draw(timesteps, Generator().manual_seed(0))
        told = labels != 40
        assert torch.equal(clean[told], to_unit_range(images[labels[told]]))
        assert bool(told.all()) == (dropout == 0)
    plain = DenoisingObjective(images, Parameterization(NoiseSchedule.linear()))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            plain.draw(timesteps, Generator().manual_seed(0)),
            objective.draw(timesteps, Generator().manual_seed(0)),
            strict=False,
        )
    )
    assert plain.fingerprint() != objective.fingerprint()


@pytest.mark.parametrize(
    ("labels", "dropout", "config", "said"),
    [
        (None, 0.0, CONDITIONAL, "takes classes and the images of x came without; set labels: true"),
        ([0, 11], 0.0, CONDITIONAL, "classes up to 11 and the model takes 11; expected room for 12"),
        ([0, 10], 0.1, CONDITIONAL, "expected room for 11, and one more for label_dropout"),
        ([0, 1], 0.1, UNET_CONFIG, "label_dropout 0.1 and a model without classes"),
    ],
    ids=["none", "high", "spare", "plain"],
)
def test_classes_that_a_model_cannot_take_are_refused(labels, dropout, config, said):
    own = None if labels is None else torch.tensor(labels)
    with pytest.raises(InputError, match=said):
        columns_for(
            ImageData(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "x", own), ModelSpec("UNet2DModel", config), dropout
        )


def test_what_is_not_supported_is_said():
    digits = load_images("digits", labels=True)
    spec = ModelSpec("UNet2DModel", CONDITIONAL)
    check_images(digits, spec)
    with pytest.raises(InputError, match="The model takes classes; recipes that compare"):
        check_comparison(digits, spec)
    dit = ModelSpec("DiTTransformer2DModel", DIT)
    with pytest.raises(InputError, match="leaves out a tenth of its classes by itself"):
        columns_for(digits.train, dit, 0.1)
    assert sampled_classes(ModelSpec("UNet2DModel", UNET_CONFIG)) == ()
    assert sampled_classes(dit) == tuple(range(10))
    assert sampled_classes(spec, digits.train) == tuple(range(10))


def test_networks_are_on_the_gpu_while_they_are_measured_and_afterwards_where_they_were(monkeypatch):
    """Also after an error; on a machine without a GPU nothing moves. The meta device stands for the GPU."""

    class Movable(torch.nn.Module):
        def __init__(self, device):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2, device=device))

        def to(self, device):
            return self.to_empty(device=device)

    here, there = Movable("cpu"), Movable("meta")

    def devices():
        return [model.weight.device.type for model in (here, there)]

    def measure():
        with placing.placed(here, there, here):
            inside.extend(devices())
            raise InputError("Got nonsense; expected sense.")

    for gpu, wanted in (("cpu", ["cpu", "meta"]), ("meta", ["meta", "meta"])):
        inside = []
        monkeypatch.setattr(placing, "compute_device", lambda gpu=gpu: torch.device(gpu))
        with pytest.raises(InputError):
            measure()
        assert inside == wanted
        assert devices() == ["cpu", "meta"]


def test_evaluating_experts_of_latents_gives_their_losses(latent, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = ["evaluate", str(latent / "experts"), "--count", "4", "--seeds", "1", "--loss-samples", "8"]
    told = CliRunner().invoke(app, [*line, "--num-inference-steps", "2"])
    assert told.exit_code == 0, told.output
    results = read_json(tmp_path / "evaluation.json")
    assert len(results["losses"]) == 2
    assert "metrics" not in results
    sampled = CliRunner().invoke(
        app, ["sample", str(latent / "experts"), "--count", "2", "--num-inference-steps", "2", "--output", "x.npz"]
    )
    assert sampled.exit_code == 0, sampled.output
    with np.load("x.npz", allow_pickle=False) as found:
        assert found["latents"].shape == (2, 4, 8, 8)
        assert found["latents"].dtype == np.float32
        assert found["labels"].shape == (2,)
    assert not (tmp_path / "x.png").exists()
