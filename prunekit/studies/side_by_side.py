"""Measures networks and the base in the same way: held-out losses, images from the same noise, wall time taken in turn."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.consistency import Likeness, image_likeness
from prunekit.ledger import LedgerRow
from prunekit.results.estimate import Estimate
from prunekit.results.evidence_results import EvidenceMetrics, Figures
from prunekit.sampling import to_images
from prunekit.steps.distances import Distances
from prunekit.steps.placing import placed
from prunekit.steps.sample_quality import Setting, measure_losses, save_images
from prunekit.steps.spending import spent_on_losses, spent_on_sampling
from prunekit.training import to_unit_range

__all__ = ["SideBySide"]

_ROUNDS = 5
_PAIRS = 500


class SideBySide:
    """Measures one network after the other with the same draws and the same noise.

    Args:
        setting: the settings; its first seed is the seed of the noise.
        images: file for the base's images; the base must be measured first, which writes it.
    """

    def __init__(self, setting: Setting, images: Path) -> None:
        self._setting, self._images = setting, images

    def of(
        self, name: str, model: nn.Module, macs: Sequence[int], mean_macs: float, *, keep: bool = True
    ) -> tuple[Figures, list[LedgerRow]]:
        """Figures of a network, and the cost of measuring them, as rows of a ledger.

        Args:
            name: name of the file of images.
            model: the network.
            macs: MACs per sample in each timestep group.
            mean_macs: mean MACs of an evaluation while sampling.
            keep: whether to write its first images, for the report.
        """
        setting = self._setting
        with placed(model):
            measured = measure_losses(setting, {"model": model})
            images = to_images(setting.sampler(model, setting.options.samples, setting.options.seeds[0]))
        if keep:
            save_images(images[: setting.options.grid], self._images.parent.parent / "samples" / f"{name}.npz")
        if name == "base":
            save_images(images, self._images)
        losses = [row.model for row in measured if row.model is not None]
        figures = Figures.joined(
            losses=losses,
            loss=statistics.fmean(loss.mean for loss in losses),
            **self._distances(name, images),
            ssim=self._likeness(images).mean("ssim"),
        )
        return figures, [spent_on_losses(name, setting, [macs]), spent_on_sampling(name, setting, {name: mean_macs})]

    def describe(self) -> EvidenceMetrics:
        """How images were made and compared."""
        setting = self._setting
        distances = Distances(setting.images.train.images, setting.choice)
        none = {} if distances.no_features is None else {"no_features": distances.no_features}
        return EvidenceMetrics.joined(
            **none,
            features=distances.features,
            count=setting.options.samples,
            count_real=len(setting.images.train.images),
            sampler=setting.allocation.sampler,
            steps=setting.allocation.steps,
            seed=setting.options.seeds[0],
            threads=torch.get_num_threads(),
        )

    def seconds(self, networks: Mapping[str, nn.Module], count: int) -> dict[str, float]:
        """Seconds per image of every network: the median over rounds, each of which times every network once."""
        taken: dict[str, list[float]] = {name: [] for name in networks}
        with placed(*networks.values()):
            for _ in range(_ROUNDS):
                for name, model in networks.items():
                    started = time.perf_counter()
                    self._setting.sampler(model, count, 0)
                    taken[name].append((time.perf_counter() - started) / count)
        return {name: statistics.median(own) for name, own in taken.items()}

    def _distances(self, name: str, images: Tensor) -> dict[str, float | Estimate | None]:
        """FID and KID, and the paired difference of FID from the base; all None if no extractor knows the pictures."""
        distances = Distances(self._setting.images.train.images, self._setting.choice)
        distances.add(name, images)
        if name != "base":
            distances.add("base", self._of_the_base())
        row = distances.row(name, "base")
        figures = {"fid": row.fid and row.fid.mean, "kid": row.kid and row.kid.mean}
        return figures if row.fid_difference is None else {**figures, "fid_difference": row.fid_difference}

    def _of_the_base(self) -> Tensor:
        """The base's images, uint8, shape (count, C, H, W)."""
        with np.load(self._images, allow_pickle=False) as kept:
            return torch.from_numpy(kept["images"]).permute(0, 3, 1, 2)

    def _likeness(self, images: Tensor) -> Likeness:
        """Similarity of images to the base's images from the same noise."""
        pairs = zip(self._of_the_base().split(_PAIRS), images.split(_PAIRS), strict=True)
        return Likeness.joined([image_likeness(to_unit_range(a), to_unit_range(b)) for a, b in pairs])
