"""Training: timestep samplers, the denoising objective, the loop, its checkpoints."""

from prunekit.training.loop import Progress, Reporter, TrainOptions, TrainResult, train
from prunekit.training.objective import PREDICTION_TYPES, DenoisingObjective, predict, to_unit_range
from prunekit.training.timesteps import RangeTimesteps, TimestepSampler, group_timesteps

__all__ = [
    "PREDICTION_TYPES",
    "DenoisingObjective",
    "Progress",
    "RangeTimesteps",
    "Reporter",
    "TimestepSampler",
    "TrainOptions",
    "TrainResult",
    "group_timesteps",
    "predict",
    "to_unit_range",
    "train",
]
