"""The measurements of every network of a comparison, at every look."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from prunekit.data import ImageSplit
from prunekit.groups import TimestepGroups
from prunekit.recipe import AllocationOptions, EvaluationOptions
from prunekit.schedule import Parameterization, Parameterized
from prunekit.steps.sample_quality import Setting, measure_losses, measure_samples

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

    def __call__(self, model: nn.Module, groups: TimestepGroups | None = None) -> dict[str, Any]:
        """Held-out losses on all timesteps and on every group; FID and KID if an extractor knows the pictures. JSON-able."""
        setting = self.setting
        (loss,) = measure_losses(setting, {"model": model})
        stages = measure_losses(replace(setting, groups=groups), {"model": model}) if groups else []
        metrics = measure_samples(setting, {"model": model}, {"model": 0.0}).metrics
        row = metrics["rows"][0]
        return {
            "loss": loss["model"]["mean"],
            "stage_losses": [stage["model"]["mean"] for stage in stages],
            **{measure: row[measure] and row[measure]["mean"] for measure in ("fid", "kid")},
            **{key: metrics[key] for key in ("features", "no_features", "count", "count_real") if key in metrics},
        }
