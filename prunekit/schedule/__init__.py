"""Noise schedules, and the timesteps that samplers visit on them."""

from prunekit.schedule.noise import NoiseSchedule
from prunekit.schedule.steps import sampler_timesteps

__all__ = ["NoiseSchedule", "sampler_timesteps"]
