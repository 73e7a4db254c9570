"""Noise schedules, what networks predict on them, and the timesteps that samplers visit."""

from prunekit.schedule.noise import NoiseSchedule
from prunekit.schedule.parameterization import PREDICTION_TYPES, READABLE_TYPES, Parameterization, Parameterized
from prunekit.schedule.steps import sampler_timesteps
from prunekit.schedule.time_unit import TimeUnit

__all__ = [
    "PREDICTION_TYPES",
    "READABLE_TYPES",
    "NoiseSchedule",
    "Parameterization",
    "Parameterized",
    "TimeUnit",
    "sampler_timesteps",
]
