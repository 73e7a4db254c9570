"""Training: timestep samplers, loss weights, momentum decay, the denoising objective, the loop, its checkpoints."""

from prunekit.training.asymmetric import AsymmetricTimesteps
from prunekit.training.callbacks import Callback, Snapshots, with_weights
from prunekit.training.checkpoints import weights_hash
from prunekit.training.choosing import TIMESTEP_SAMPLERS, timestep_sampler
from prunekit.training.columns import CLASSES, Columns
from prunekit.training.counted import CountedObjective, Tally
from prunekit.training.curriculum import GaussianCurriculum, NoiseRateCurriculum, Pace
from prunekit.training.distillation import Distillation, Fade, feature_layers
from prunekit.training.early_stop import EarlyStop
from prunekit.training.inverse_loss import LEARNT_WEIGHTS, InverseLoss
from prunekit.training.learned_variance import (
    BoundedVariance,
    DistilledVariance,
    Halves,
    VarianceLoss,
    VariationalBound,
    mean_half,
    split_output,
)
from prunekit.training.log_normal import LogNormalTimesteps
from prunekit.training.loop import TrainResult, train
from prunekit.training.loss_weights import LOSS_WEIGHTS, LossWeight, Weighted, change_aware, min_snr, p2, unweighted
from prunekit.training.momentum import (
    Compensation,
    ExponentialMomentum,
    FallingMomentum,
    MomentumDecay,
    RationalMomentum,
)
from prunekit.training.objective import (
    DenoisingObjective,
    Objective,
    predict,
    to_unit_range,
)
from prunekit.training.options import Progress, Reporter, TrainOptions
from prunekit.training.second_moment import LossSecondMoment
from prunekit.training.stages import StageDraw, StageTimesteps
from prunekit.training.timesteps import (
    LearningSampler,
    RangeTimesteps,
    StatedSampler,
    StatefulSampler,
    TimestepSampler,
    described,
    group_timesteps,
)

__all__ = [
    "CLASSES",
    "LEARNT_WEIGHTS",
    "LOSS_WEIGHTS",
    "TIMESTEP_SAMPLERS",
    "AsymmetricTimesteps",
    "BoundedVariance",
    "Callback",
    "Columns",
    "Compensation",
    "CountedObjective",
    "DenoisingObjective",
    "Distillation",
    "DistilledVariance",
    "EarlyStop",
    "ExponentialMomentum",
    "Fade",
    "FallingMomentum",
    "GaussianCurriculum",
    "Halves",
    "InverseLoss",
    "LearningSampler",
    "LogNormalTimesteps",
    "LossSecondMoment",
    "LossWeight",
    "MomentumDecay",
    "NoiseRateCurriculum",
    "Objective",
    "Pace",
    "Progress",
    "RangeTimesteps",
    "RationalMomentum",
    "Reporter",
    "Snapshots",
    "StageDraw",
    "StageTimesteps",
    "StatedSampler",
    "StatefulSampler",
    "Tally",
    "TimestepSampler",
    "TrainOptions",
    "TrainResult",
    "VarianceLoss",
    "VariationalBound",
    "Weighted",
    "change_aware",
    "described",
    "feature_layers",
    "group_timesteps",
    "mean_half",
    "min_snr",
    "p2",
    "predict",
    "split_output",
    "timestep_sampler",
    "to_unit_range",
    "train",
    "unweighted",
    "weights_hash",
    "with_weights",
]
