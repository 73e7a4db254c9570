"""The recipe's section about trackers."""

from dataclasses import dataclass
from typing import ClassVar

from prunekit.choices import LocalTracker
from prunekit.recipe.fields import STRICT

__all__ = ["TrackingOptions"]


@dataclass(frozen=True)
class TrackingOptions:
    """What follows trainings and keeps samples. It changes no result, and no stage is made again for it.

    Args:
        report_to: a tracker of accelerate that writes to the run's folder ``logs``. Trackers that use the network are the user's to
            choose: ``prunekit run --report-to wandb``.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = STRICT

    report_to: LocalTracker = "tensorboard"
