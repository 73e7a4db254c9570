"""Noise schedules, what networks predict on them, and the timesteps that samplers visit."""

from prunekit.schedule.noise import NoiseSchedule
from prunekit.schedule.parameterization import EDM, FLOW, PREDICTION_TYPES, Parameterization, Parameterized
from prunekit.schedule.steps import sampler_timesteps
from prunekit.schedule.time_unit import TimeUnit
from prunekit.schedule.timeline import Timeline

__all__ = [
    "EDM",
    "FLOW",
    "PREDICTION_TYPES",
    "NoiseSchedule",
    "Parameterization",
    "Parameterized",
    "TimeUnit",
    "Timeline",
    "sampler_timesteps",
]
