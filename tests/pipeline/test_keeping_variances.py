"""Networks that predict variances are pruned, repaired and fine-tuned with both halves of their output."""

from dataclasses import replace
from pathlib import Path

import networks
import pytest
import torch
from diffusers import UNet2DModel
from torch import Generator, Tensor, nn

from prunekit.checkpoint import Base, ModelSpec
from prunekit.data import ImageSplit, load_images
from prunekit.errors import InputError
from prunekit.evaluation import group_losses
from prunekit.graph import apply
from prunekit.groups import TimestepGroups
from prunekit.importance import Probe
from prunekit.nets import TimestepExperts
from prunekit.recipe import DistillationOptions, FinetuneOptions, PruneOptions
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.search import Repair, SearchOptions
from prunekit.slim import SlimModel, load_slim, save_slim
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.finetuning import finetune_slim, needs_teacher
from prunekit.steps.image_choice import check_comparison
from prunekit.steps.objectives import objective_for, predicts_variance
from prunekit.training import TrainOptions

T = 40
KIND = Parameterization(NoiseSchedule.linear(T))
GROUPS = TimestepGroups.from_cuts(T, [20])
OPTIONS = PruneOptions(samples=16, batch_size=16, search=SearchOptions(rounds=1, shortlist=2))
SHORT = TrainOptions(steps=2, batch_size=4, warmup_steps=1)


PLAIN = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}


def unet(out_channels: int = 2) -> UNet2DModel:
    return networks.unet(out_channels=out_channels, block_out_channels=(16, 32), **PLAIN)


@pytest.fixture(scope="module")
def images() -> ImageSplit:
    return load_images("digits")


@pytest.fixture(scope="module")
def bench(images: ImageSplit) -> Bench:
    net = unet()
    return Bench.of(Base(net, ModelSpec.of(net), KIND, images.about()))


@pytest.fixture(scope="module")
def slims(bench: Bench, images: ImageSplit) -> list[SlimModel]:
    scores = score_groups(bench, images.train, GROUPS, OPTIONS)
    return [prune_group(bench, images.train, scores, group, 0.6, OPTIONS)[0] for group in GROUPS]


def output(model: nn.Module, timestep: int = 5) -> Tensor:
    noisy = torch.randn(8, 1, 8, 8, generator=Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = model(noisy, torch.full((8,), timestep)).sample
    return found


def test_scores_do_not_depend_on_the_variances(bench: Bench, images: ImageSplit) -> None:
    other = unet()
    with torch.no_grad():
        other.conv_out.weight[1:].mul_(10)
    changed = Bench(replace(bench.base, model=other), bench.graph, bench.cost, bench.macs)
    found, wanted = (score_groups(each, images.train, GROUPS, OPTIONS) for each in (changed, bench))
    for group in GROUPS:
        for name, scores in wanted.of(group.index).items():
            torch.testing.assert_close(torch.as_tensor(found.of(group.index)[name]), torch.as_tensor(scores))


def test_slim_models_and_experts_give_both_halves_after_saving(slims: list[SlimModel], tmp_path: Path) -> None:
    for slim in slims:
        assert slim.macs <= 0.6 * slim.about["provenance"]["base_macs"]
        save_slim(slim, tmp_path / f"group-{slim.group.index}")
    loaded = [load_slim(tmp_path / f"group-{slim.group.index}") for slim in slims]
    assert all(predicts_variance(slim.spec) for slim in loaded)
    experts = TimestepExperts(GROUPS, loaded).eval()
    for timestep, slim in ((5, slims[0]), (30, slims[1])):
        both = output(experts, timestep)
        assert both.shape == (8, 2, 8, 8)
        torch.testing.assert_close(both, output(slim.model, timestep))


def test_repair_brings_both_halves_nearer_to_the_base(bench: Bench, slims: list[SlimModel], images: ImageSplit) -> None:
    objective = objective_for(images.train, bench.base.spec, KIND)
    probe = Probe(objective, GROUPS[0], samples=64, batch_size=64)
    plan, wanted = slims[0].plan, output(bench.base.model)
    cut = output(apply(bench.base.model, bench.graph, plan).eval())
    mended = output(Repair.of(bench.base.model, bench.graph, probe).apply(plan).eval())
    before, after = ((each - wanted).square().mean((0, 2, 3)) for each in (cut, mended))
    assert bool((after < 0.85 * before).all()), (before, after)


def test_distilled_variances_stay_with_the_base_and_others_drift(
    bench: Bench, slims: list[SlimModel], images: ImageSplit
) -> None:
    wanted, distances = output(bench.base.model), {}
    for kind in ("distill", "none"):
        train = replace(SHORT, steps=40, batch_size=16, learning_rate=2e-3)
        options = FinetuneOptions(train=train, variance=kind, variance_weight=1.0)  # type: ignore[arg-type]
        tuned, _ = finetune_slim(slims[0], images.train, options, teacher=bench)
        distances[kind] = float((output(tuned.model) - wanted)[:, 1].square().mean())
    assert distances["distill"] < 0.5 * distances["none"]


def test_who_needs_the_base(slims: list[SlimModel], images: ImageSplit) -> None:
    assert needs_teacher(slims[0], FinetuneOptions())
    assert not needs_teacher(slims[0], FinetuneOptions(variance="vlb"))
    assert needs_teacher(slims[0], FinetuneOptions(distillation=DistillationOptions(), variance="none"))
    with pytest.raises(InputError, match="`variance` distill keeps them by the base; give the base as the teacher"):
        finetune_slim(slims[0], images.train, FinetuneOptions(train=SHORT))
    for kind in ("vlb", "none"):
        finetune_slim(slims[0], images.train, FinetuneOptions(train=SHORT, variance=kind))  # type: ignore[arg-type]


def test_held_out_losses_have_the_bound_of_networks_with_variances_alone(images: ImageSplit) -> None:
    objective = objective_for(images.held_out, None, KIND)
    found = group_losses(unet(), objective, GROUPS, batches=1, batch_size=16, seed=0)
    bounds = [loss.bound for loss in found]
    assert all(
        bound is not None and bound.count == 16 and bound.draw == loss.draw
        for bound, loss in zip(bounds, found, strict=True)
    )
    plain = group_losses(unet(1), objective, GROUPS, batches=1, batch_size=16, seed=0)
    assert [loss.bound for loss in plain] == [None, None]


def test_comparisons_are_for_networks_without_variances(images: ImageSplit) -> None:
    with pytest.raises(InputError, match=r"predicts variances too \(out_channels 2 for 1\)"):
        check_comparison(images, ModelSpec.of(unet()))


def test_networks_of_the_callers_own_are_recognised_by_their_output() -> None:
    class Own(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.last = nn.Conv2d(1, channels, 1)

        def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
            found: Tensor = self.last(noisy)
            return found

    for channels in (1, 2, 3):
        inputs = (torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.long))
        spec = ModelSpec("Own", {}).with_factory(Own(channels), inputs)
        assert predicts_variance(spec, Own(channels)) is (channels == 2)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_options_refuse_weights_that_are_no_weights(weight: float) -> None:
    with pytest.raises(InputError, match="variance_weight"):
        FinetuneOptions(variance_weight=weight)
    with pytest.raises(InputError, match="expected one of distill, vlb, none"):
        FinetuneOptions(variance="learned")  # type: ignore[arg-type]
