"""The measurements of every network of a comparison, at every look."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from prunekit.data import ImageSplit
from prunekit.groups import TimestepGroups
from prunekit.recipe import AllocationOptions, EvaluationOptions
from prunekit.results.expert_results import GroupLoss
from prunekit.results.learning_results import Look
from prunekit.schedule import Parameterization, Parameterized
from prunekit.steps.placing import placed
from prunekit.steps.sample_quality import measure_losses, measure_samples, save_images
from prunekit.steps.setting import Setting

__all__ = ["Judge"]


@dataclass(frozen=True, eq=False)
class Judge(Parameterized):
    """Measures all networks in the same way.

    Args:
        images: held-out images for the losses, training images for FID and KID.
        parameterization: the noise schedule, and what the networks predict.
        sampler: sampler of the images for FID, see :mod:`prunekit.sampling`.
        sampling_steps: the sampler's number of steps.
        evaluation: counts, seeds and features.
    """

    images: ImageSplit
    parameterization: Parameterization
    sampler: str
    sampling_steps: int
    evaluation: EvaluationOptions

    @cached_property
    def setting(self) -> Setting:
        """The settings for losses on all timesteps as one group."""
        whole = TimestepGroups.from_cuts(self.schedule.num_timesteps, [])
        sampling = AllocationOptions(sampler=self.sampler, steps=self.sampling_steps)
        return Setting(self.images, whole, self.parameterization, sampling, self.evaluation)

    def __call__(
        self, model: nn.Module, groups: TimestepGroups | None = None, *, images: Path | None = None, **known: int
    ) -> Look:
        """Held-out losses on all timesteps and on every group; FID and KID if an extractor knows the pictures.

        Args:
            model: the network.
            groups: the timestep groups; None for none.
            images: where its first images are kept for the report; None not to keep them.
            known: ``training_macs`` and, if counted, ``steps`` of the network.
        """
        setting = self.setting
        with placed(model):
            (loss,) = measure_losses(setting, {"model": model})
            stages = measure_losses(replace(setting, groups=groups), {"model": model}) if groups else []
            measured = measure_samples(setting, {"model": model}, {"model": 0.0})
        metrics = measured.metrics
        (row,) = metrics.rows
        if images is not None:
            save_images(measured.grids["model"], images)
        return Look.joined(
            **known,
            loss=_mean(loss),
            stage_losses=[_mean(stage) for stage in stages],
            fid=row.fid and row.fid.mean,
            kid=row.kid and row.kid.mean,
            features=metrics.features,
            **({} if metrics.no_features is None else {"no_features": metrics.no_features}),
            count=metrics.count,
            count_real=metrics.count_real,
        )


def _mean(loss: GroupLoss) -> float:
    """The loss of the one network that was measured."""
    if loss.model is None:
        raise AssertionError("the network's loss was not measured")
    return loss.model.mean
