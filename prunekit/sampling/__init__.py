"""Sampling with diffusers' schedulers, from initial noise that is the same for every model."""

from prunekit.sampling.drawing import BATCH, Evaluation, Sampler, clean_prediction, ddim_step, make_sampler, to_images
from prunekit.sampling.schedulers import PIPELINE, SAMPLERS, make_scheduler, real_timesteps
from prunekit.sampling.variances import without_unused_variances

__all__ = [
    "BATCH",
    "PIPELINE",
    "SAMPLERS",
    "Evaluation",
    "Sampler",
    "clean_prediction",
    "ddim_step",
    "make_sampler",
    "make_scheduler",
    "real_timesteps",
    "to_images",
    "without_unused_variances",
]
