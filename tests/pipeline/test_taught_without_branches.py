"""Fine-tuning with the base as the teacher, where layers whose outputs are learnt went with removed branches."""

from typing import Any

import numpy as np
import pytest
import torch
from networks import unet
from torch import nn

from prunekit.checkpoint import Base, ModelSpec
from prunekit.data import ImageSplit, load_images
from prunekit.errors import InputError
from prunekit.graph import PruningPlan, apply, attributes
from prunekit.graph.branch import Output, Stub
from prunekit.graph.stubs import put_stubs
from prunekit.groups import TimestepGroups
from prunekit.recipe import DistillationOptions, FinetuneOptions
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.slim import SlimModel
from prunekit.steps import finetuning
from prunekit.steps.bench import Bench
from prunekit.steps.finetuning import finetune_slim
from prunekit.training import DenoisingObjective, Distillation, TrainOptions, TrainResult, feature_layers

GROUP = TimestepGroups.from_cuts(1000, [300]).groups[0]
OPTIONS = FinetuneOptions(
    distillation=DistillationOptions(0.5, 1.0), train=TrainOptions(steps=2, batch_size=4, warmup_steps=1, log_every=1)
)


@pytest.fixture(scope="module")
def images() -> ImageSplit:
    return load_images("digits")


@pytest.fixture(scope="module")
def bench() -> Bench:
    model = unet()
    base = Base(model, ModelSpec.of(model), Parameterization(NoiseSchedule.linear()))
    return Bench.of(base, shrink="both")


def slim_without(bench: Bench, *removed: str) -> SlimModel:
    """A slim model of the base that lost some branches, and half of every channel group."""
    halves = {one.name: int(one.widths[one.widths <= one.size / 2].max(initial=0)) for one in bench.graph}
    kept = {one.name: tuple(range(halves[one.name])) for one in bench.graph if one.branch is None and halves[one.name]}
    widths = PruningPlan(kept, bench.graph.fingerprint, removed).widths(bench.graph)
    plan = PruningPlan.from_widths(
        bench.graph, widths, {one.name: np.random.default_rng(0).random(one.size) for one in bench.graph}
    )
    net = bench.base.model
    macs, params = int(bench.cost.macs(widths)), int(bench.cost.params(widths))
    about: dict[str, Any] = bench.base.about()
    sizes = attributes(net, bench.graph, plan)
    return SlimModel(apply(net, bench.graph, plan), bench.base.spec, plan, sizes, GROUP, 1000, macs, params, about)


def objective_of(slim: SlimModel, images: ImageSplit, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Distillation:
    """What a fine-tuning would minimise."""
    seen: list[Distillation] = []

    def spy(model: nn.Module, objective: Distillation, *_: object) -> TrainResult:
        seen.append(objective)
        return TrainResult(model, [(1, 0.0)], 1, 0.0, torch.zeros(1000, dtype=torch.int64))

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "train", spy)
        finetune_slim(slim, images.train, OPTIONS, teacher=bench)
    return seen[0]


def test_a_layer_that_went_with_its_branch_is_not_learnt_and_the_others_are(bench, images, monkeypatch):
    last = {
        name: one
        for name in feature_layers(bench.base.model)
        for one in bench.graph.switches
        if one.branch.removes(name)
    }
    layer, switch = next(iter(last.items()))
    slim = slim_without(bench, switch.name)
    aim = objective_of(slim, images, bench, monkeypatch)
    assert layer not in aim.features
    assert aim.features.keys() == {name for name in feature_layers(bench.base.model) if not switch.branch.removes(name)}
    for name, kept in aim.features.items():
        wide = bench.base.model.get_submodule(name).weight.shape[0]
        assert slim.model.get_submodule(name).weight.shape[0] == (wide if kept is None else len(kept))
    tuned, result = finetune_slim(slim, images.train, OPTIONS, teacher=bench)
    assert result.losses[-1][1] > 0
    assert tuned.plan.removed == (switch.name,)


def test_the_loss_is_that_of_the_layers_that_stay(bench, images, monkeypatch):
    """A student that lost one branch, and no channels, is held against the loss written out for it."""
    switch = next(one for one in bench.graph.switches if any(map(one.branch.removes, feature_layers(bench.base.model))))
    plan = PruningPlan({}, bench.graph.fingerprint, (switch.name,))
    student = apply(bench.base.model, bench.graph, plan).eval()
    slim = SlimModel(student, bench.base.spec, plan, {}, GROUP, 1000, 0, 0, bench.base.about())
    aim = objective_of(slim, images, bench, monkeypatch)
    timesteps = torch.tensor([5, 200])
    clean, noise = aim.draw(timesteps, torch.Generator().manual_seed(1))
    found = aim.per_sample(student, clean, noise, timesteps)

    def outputs(model: nn.Module, noisy: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        seen: dict[str, torch.Tensor] = {}
        handles = [
            model.get_submodule(name).register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))
            for name in aim.features
        ]
        prediction = model(noisy, timesteps).sample
        for handle in handles:
            handle.remove()
        return prediction, seen

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().flatten(1).mean(1)

    noisy, target = aim.objective.pair(clean, noise, timesteps)
    (own, ours), (taught, theirs) = outputs(student, noisy), outputs(bench.base.model.eval(), noisy)
    terms = [distance(ours[name], theirs[name]) / theirs[name].square().flatten(1).mean(1) for name in aim.features]
    wanted = 0.5 * distance(own, target) + 0.5 * distance(own, taught) + torch.stack(terms).mean(0)
    torch.testing.assert_close(found, wanted)


def test_a_student_without_any_of_these_layers_learns_the_predictions_alone(bench, images, monkeypatch, caplog):
    monkeypatch.setattr(finetuning, "feature_layers", lambda model: ["mid_block.attentions.0.to_out.0"])
    slim = slim_without(bench, "branch:mid_block.attentions.0")
    aim = objective_of(slim, images, bench, monkeypatch)
    assert (aim.weight, aim.feature_weight, dict(aim.features)) == (0.5, 0.0, {})
    assert "removed branches" in caplog.text


def test_a_layer_that_the_student_lost_is_refused_in_a_sentence(bench, images, monkeypatch):
    slim = slim_without(bench, "branch:mid_block.attentions.0")
    aim = objective_of(slim, images, bench, monkeypatch)
    asked = Distillation(aim.objective, bench.base.model, 0.5, 1.0, {"mid_block.attentions.0.to_q": None})
    timesteps = torch.tensor([5])
    with pytest.raises(InputError, match=r"no layer mid_block.attentions.0.to_q.*removed branches"):
        asked.per_sample(slim.model, *aim.draw(timesteps, torch.Generator()), timesteps)


def test_zeros_in_place_of_a_layer_are_nothing_to_learn(bench):
    student = unet()
    put_stubs(student, [Stub("mid_block.attentions.0.to_out.0", "void", (Output("input", 0),))])
    objective = DenoisingObjective(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), Parameterization(NoiseSchedule.linear()))
    aim = Distillation(objective, bench.base.model, 0.5, 1.0, {"mid_block.attentions.0.to_out.0": None})
    timesteps = torch.tensor([5])
    with pytest.raises(InputError, match=r"no layer mid_block.attentions.0.to_out.0"):
        aim.per_sample(student, *aim.draw(timesteps, torch.Generator()), timesteps)
