"""Sampling with diffusers' schedulers, from initial noise that is the same for every model."""

from prunekit.sampling.disturbances import Disturbance, Disturbed, Measure, SensitivityOptions, elements, sensitivities
from prunekit.sampling.drawing import BATCH, Evaluation, Sampler, clean_prediction, ddim_step, make_sampler, to_images
from prunekit.sampling.schedulers import PIPELINE, SAMPLERS, make_scheduler, real_timesteps
from prunekit.sampling.variances import without_unused_variances

__all__ = [
    "BATCH",
    "PIPELINE",
    "SAMPLERS",
    "Disturbance",
    "Disturbed",
    "Evaluation",
    "Measure",
    "Sampler",
    "SensitivityOptions",
    "clean_prediction",
    "ddim_step",
    "elements",
    "make_sampler",
    "make_scheduler",
    "real_timesteps",
    "sensitivities",
    "to_images",
    "without_unused_variances",
]
