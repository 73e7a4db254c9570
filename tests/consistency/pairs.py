"""Two tiny models and experts of copies of one: what the tests of consistency compare."""

import copy
from typing import Any

import torch
from networks import unet
from torch import nn
from true_figures import figures

from prunekit.checkpoint import ModelSpec
from prunekit.consistency import Consistency, ConsistencyOptions, Denoiser, measure_consistency
from prunekit.graph import PruningPlan, trace
from prunekit.groups import TimestepGroups
from prunekit.nets import TimestepExperts
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.slim import SlimModel

T = 100
SCHEDULE = NoiseSchedule.linear(T)
GROUPS = TimestepGroups.from_cuts(T, [20, 50, 80])
SHAPE = (1, 8, 8)


def whole_slims(
    model: nn.Module, schedule: NoiseSchedule = SCHEDULE, groups: TimestepGroups = GROUPS
) -> list[SlimModel]:
    """An unpruned copy for each timestep group."""
    spec = ModelSpec.of(model)
    plan = PruningPlan({}, trace(model, spec.example_inputs()).fingerprint)
    about = {"noise_schedule": schedule.to_config(), "prediction_type": "epsilon"}
    macs, params = figures(model, spec.example_inputs())
    total = schedule.num_timesteps
    return [SlimModel(copy.deepcopy(model), spec, plan, {}, group, total, macs, params, about) for group in groups]


def damage(model: nn.Module, amount: float = 0.5) -> None:
    """Shift what a network predicts."""
    with torch.no_grad():
        model.conv_out.bias += amount  # type: ignore[union-attr, operator]


def experts(base: nn.Module, *damaged: int) -> TimestepExperts:
    """Experts that are the base, but for the damaged ones."""
    made = TimestepExperts(GROUPS, whole_slims(base)).eval()
    for index in damaged:
        damage(made.experts[index])
    return made


def other_unet() -> nn.Module:
    """Another architecture with other weights."""
    return unet(block_out_channels=(4, 8), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)


class OptimalDenoiser(nn.Module):
    """The mean of four images, weighed by how likely x_t comes from each; predicts x0, mixed with another image."""

    def __init__(self, spoiled: float = 0.0) -> None:
        super().__init__()
        self.images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(5)).sign()
        self.spoiled = spoiled

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal, noise = float(SCHEDULE.signal[int(t)]), float(SCHEDULE.noise[int(t)])
        distances = (x[:, None] - signal * self.images).square().flatten(2).sum(2)
        weights = torch.softmax(-distances / (2 * noise**2), 1)
        mean = torch.einsum("bk,kchw->bchw", weights, self.images)
        return (1 - self.spoiled) * mean + self.spoiled * self.images[0].flip(-1)


def compared(a: Any, b: Any, prediction_types: tuple[str, str] = ("epsilon", "epsilon"), **options: Any) -> Consistency:
    """Two models on ten steps and six pairs unless told otherwise."""
    pair = (
        Denoiser(model, Parameterization(SCHEDULE, kind)) for model, kind in zip((a, b), prediction_types, strict=True)
    )
    return measure_consistency(*pair, SHAPE, ConsistencyOptions(**{"steps": 10, "count": 6, **options}))
