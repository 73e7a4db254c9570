"""Pipelines of diffusers: what they tell their denoiser, pictures and captions as they tell them, samples through them."""

from prunekit.pipelines.conditioning import Conditioning, TimeUnit, conditioning_of, conditions_for
from prunekit.pipelines.encoder import Encoder, identity
from prunekit.pipelines.latents import check_latents, decoded, default_size, encoded
from prunekit.pipelines.listening import Subject, record, takes
from prunekit.pipelines.loading import DENOISERS, denoisers_of, is_pipeline, open_pipeline
from prunekit.pipelines.pipeline_sampler import PipelineSampler, with_denoiser
from prunekit.pipelines.prompts import read_prompts
from prunekit.pipelines.stand_in import StandIn

__all__ = [
    "DENOISERS",
    "Conditioning",
    "Encoder",
    "PipelineSampler",
    "StandIn",
    "Subject",
    "TimeUnit",
    "check_latents",
    "conditioning_of",
    "conditions_for",
    "decoded",
    "default_size",
    "denoisers_of",
    "encoded",
    "identity",
    "is_pipeline",
    "open_pipeline",
    "read_prompts",
    "record",
    "takes",
    "with_denoiser",
]
