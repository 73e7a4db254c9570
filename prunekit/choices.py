"""The names that users choose by, on the command line, in recipes and in Python, each listed once.

They are here so that the command line can show them without importing torch; tests compare them with the registries of what they
stand for.
"""

from typing import Literal

__all__ = [
    "AllocationRule",
    "Cluster",
    "Compensation",
    "CriterionName",
    "CutRule",
    "ExpertsKind",
    "Fade",
    "GroupingName",
    "HeadMode",
    "LearningRates",
    "LocalTracker",
    "LossWeights",
    "Middle",
    "MomentumDecays",
    "NormMode",
    "Optimizers",
    "Pace",
    "Precision",
    "PredictionType",
    "ProposerName",
    "ProxyName",
    "RepairKind",
    "ScheduleName",
    "SensitivityMeasure",
    "Shrink",
    "StageDraw",
    "StoredPrecision",
    "TargetOf",
    "TimedPrecision",
    "TimestepSamplers",
    "VarianceKind",
    "Weights",
]

# bases
LocalTracker = Literal["tensorboard", "aim", "dvclive"]
ScheduleName = Literal["linear", "scaled_linear", "cosine", "sigmoid", "edm", "rectified_flow"]
PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "edm", "edm_v"]
Weights = Literal["ema", "raw"]

# timestep groups and their budgets
GroupingName = Literal["uniform", "snr", "similarity", "gradient"]
CutRule = Literal["stages", "dynamic"]
ExpertsKind = Literal["all", "noisy"]
AllocationRule = Literal["auto", "linear", "snr", "uniform", "measured"]
SensitivityMeasure = Literal["auto", "pixels", "latents", "features"]

# pruning
CriterionName = Literal[
    "activation", "diff-pruning", "fisher", "fpgm", "magnitude", "magnitude-l1", "proxy", "random", "taylor"
]
ProposerName = Literal["greedy", "evolution", "tpe", "llm", "oneshot", "uniform"]
ProxyName = Literal["loss", "bias", "least-squares", "recovery", "repaired-recovery"]
RepairKind = Literal["none", "bias", "least-squares"]
TargetOf = Literal["macs", "params", "latency"]
TimedPrecision = Literal["float32", "bfloat16", "float16"]
NormMode = Literal["even", "whole"]
HeadMode = Literal["whole", "even"]
Shrink = Literal["width", "depth", "both"]

# training
TimestepSamplers = Literal[
    "uniform",
    "logit-normal",
    "log-normal",
    "gaussian-curriculum",
    "noise-rate-curriculum",
    "asymmetric",
    "loss-second-moment",
]
LossWeights = Literal["none", "min-snr", "p2", "change-aware", "inverse-loss", "inverse-root-loss"]
LearningRates = Literal["cosine", "constant"]
MomentumDecays = Literal["none", "rational", "exponential"]
Optimizers = Literal["adamw", "sgd"]
Compensation = Literal["step", "gradient", "code", "none"]
Precision = Literal["no", "fp16", "bf16"]
StoredPrecision = Literal["float16", "float32"]
Middle = Literal["shared", "own"]
"""Where the middle block of a multi-decoder U-Net is."""
StageDraw = Literal["uniform", "proportional", "mixed"]
Pace = Literal["linear", "cosine"]
Fade = Literal["constant", "linear"]
VarianceKind = Literal["distill", "vlb", "none"]

# runs
Cluster = Literal["local", "slurm"]
