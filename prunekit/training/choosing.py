"""The timestep sampler that the options select."""

from collections.abc import Callable, Mapping

from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.training.asymmetric import AsymmetricTimesteps
from prunekit.training.curriculum import GaussianCurriculum, NoiseRateCurriculum
from prunekit.training.inverse_loss import LEARNT_WEIGHTS, InverseLoss
from prunekit.training.log_normal import LogNormalTimesteps
from prunekit.training.loss_weights import LOSS_WEIGHTS, Weighted
from prunekit.training.options import TrainOptions
from prunekit.training.second_moment import LossSecondMoment
from prunekit.training.timesteps import RangeTimesteps, TimestepSampler

__all__ = ["TIMESTEP_SAMPLERS", "timestep_sampler"]


def _target(options: TrainOptions) -> int:
    """Train step at which a curriculum reaches its final distribution."""
    return max(1, round(options.curriculum_share * options.steps))


TIMESTEP_SAMPLERS: Mapping[str, Callable[[TrainOptions, NoiseSchedule, RangeTimesteps], TimestepSampler]] = {
    "uniform": lambda options, schedule, within: within,
    "logit-normal": lambda options, schedule, within: LogNormalTimesteps.of_flow(schedule, within),
    "log-normal": lambda options, schedule, within: LogNormalTimesteps.of_edm(schedule, within),
    "gaussian-curriculum": lambda options, schedule, within: GaussianCurriculum(
        schedule.num_timesteps, _target(options), options.curriculum_center, options.curriculum_width, within=within
    ),
    "noise-rate-curriculum": lambda options, schedule, within: NoiseRateCurriculum(
        schedule, _target(options), within=within
    ),
    "asymmetric": lambda options, schedule, within: AsymmetricTimesteps(schedule.num_timesteps, within=within),
    "loss-second-moment": lambda options, schedule, within: LossSecondMoment(within),
}


def timestep_sampler(
    options: TrainOptions, parameterization: Parameterization, within: RangeTimesteps | None = None
) -> TimestepSampler:
    """The timestep sampler for ``options.timestep_sampler``, with the weights of ``options.loss_weight``.

    Args:
        options: options of the training; a curriculum needs the number of steps.
        parameterization: the noise schedule, and the prediction type that the loss refers to.
        within: the timesteps to train on; all if missing.
    """
    schedule = parameterization.schedule
    everything = RangeTimesteps(0, schedule.num_timesteps, schedule.num_timesteps)
    sampler = TIMESTEP_SAMPLERS[options.timestep_sampler](options, schedule, within or everything)
    if options.loss_weight == "none":
        return sampler
    if (power := LEARNT_WEIGHTS.get(options.loss_weight)) is not None:
        return InverseLoss(sampler, schedule.num_timesteps, power)
    return Weighted(sampler, LOSS_WEIGHTS[options.loss_weight](parameterization))
