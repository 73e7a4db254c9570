"""Pipelines of diffusers: what they tell their denoiser, pictures and captions as they tell them, samples through them."""

from prunekit.pipelines.conditioning import Conditioning, TimeUnit, conditioning_of, conditions_for
from prunekit.pipelines.encoder import Encoder, identity
from prunekit.pipelines.latents import check_latents, decoded, default_size, encoded
from prunekit.pipelines.listening import Subject, record
from prunekit.pipelines.loading import DENOISERS, denoisers_of, is_pipeline, open_pipeline
from prunekit.pipelines.own_arguments import check_own_arguments, parse_own_arguments
from prunekit.pipelines.pipeline_sampler import PipelineSampler, with_denoiser
from prunekit.pipelines.prompts import read_prompts
from prunekit.pipelines.signatures import takes
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
    "check_own_arguments",
    "conditioning_of",
    "conditions_for",
    "decoded",
    "default_size",
    "denoisers_of",
    "encoded",
    "identity",
    "is_pipeline",
    "open_pipeline",
    "parse_own_arguments",
    "read_prompts",
    "record",
    "takes",
    "with_denoiser",
]
