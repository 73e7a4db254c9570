"""Training: timestep samplers, the denoising objective, the loop, its checkpoints."""

from prunekit.training.loop import TrainResult, train
from prunekit.training.objective import PREDICTION_TYPES, DenoisingObjective, Objective, predict, to_unit_range
from prunekit.training.options import Progress, Reporter, TrainOptions
from prunekit.training.snapshots import Snapshots
from prunekit.training.stages import EarlyStop, StageDraw, StageTimesteps
from prunekit.training.timesteps import ObservingSampler, RangeTimesteps, TimestepSampler, group_timesteps

__all__ = [
    "PREDICTION_TYPES",
    "DenoisingObjective",
    "EarlyStop",
    "Objective",
    "ObservingSampler",
    "Progress",
    "RangeTimesteps",
    "Reporter",
    "Snapshots",
    "StageDraw",
    "StageTimesteps",
    "TimestepSampler",
    "TrainOptions",
    "TrainResult",
    "group_timesteps",
    "predict",
    "to_unit_range",
    "train",
]
