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
from prunekit.recipe.comparisons import slug
from prunekit.results.evidence_results import EvidenceMetrics, Figures, Guided, Quality
from prunekit.sampling import to_images
from prunekit.steps.placing import placed
from prunekit.steps.sample_quality import measure_losses, save_images
from prunekit.steps.setting import Setting
from prunekit.steps.spending import spent_on_losses, spent_on_sampling
from prunekit.training import to_unit_range

__all__ = ["SideBySide", "at_scale", "shown_at_scale"]

_ROUNDS = 5
_PAIRS = 500
_MEANS = ("fid", "kid", "agreement")
_DIFFERENCES = ("fid_difference", "agreement_difference")


def at_scale(images: Path, scale: float) -> Path:
    """The file of the base's images at another scale of guidance, beside that of its images at the setting's own."""
    return images.with_stem(f"{images.stem}-guidance-{scale:g}")


def shown_at_scale(shown: Path, scale: float) -> Path:
    """The same for a network's first images, as the report looks for them."""
    return shown.with_stem(slug(at_scale(shown, scale).stem))


class SideBySide:
    """Measures one network after the other with the same draws and the same noise.

    Args:
        setting: the settings; its first seed is the seed of the noise.
        images: file for the base's images; the base must be measured first, which writes it, and one :func:`at_scale` for each
            other scale of guidance.
    """

    def __init__(self, setting: Setting, images: Path) -> None:
        self._setting, self._images = setting, images

    def of(
        self, name: str, model: nn.Module, macs: Sequence[int], mean_macs: float, shown: Path
    ) -> tuple[Figures, list[LedgerRow]]:
        """Figures of a network, and the cost of measuring them, as rows of a ledger.

        Args:
            name: the network's; ``base`` for the base.
            model: the network.
            macs: MACs per sample in each timestep group.
            mean_macs: mean MACs of an evaluation while sampling.
            shown: file for its first images, for the report; those at other scales of guidance are written beside it.
        """
        setting = self._setting
        options, guided = setting.options, list[Guided]()
        with placed(model):
            measured = measure_losses(setting, {"model": model})
            images = to_images(setting.sampler(model, options.samples, options.seeds[0]))
            for scale in options.other_guidance_scales:
                others = to_images(setting.sampler_at(scale)(model, options.samples, options.seeds[0]))
                guided.append(Guided.joined(self._quality(name, others, scale), guidance_scale=scale))
                self._keep(shown_at_scale(shown, scale), others)
        self._keep(shown, images)
        losses = [row.model for row in measured if row.model is not None]
        figures = Figures.joined(
            self._quality(name, images),
            losses=losses,
            loss=statistics.fmean(loss.mean for loss in losses),
            **({"guided": guided} if guided else {}),
        )
        return figures, [spent_on_losses(name, setting, [macs]), spent_on_sampling(name, setting, {name: mean_macs})]

    def describe(self) -> EvidenceMetrics:
        """How images were made and compared."""
        setting = self._setting
        distances = setting.distances
        extra = {
            "no_features": distances.no_features,
            "guidance_scale": setting.options.guidance_scale,
            "agreement_real": setting.agreement_real,
            **setting.captions(),
        }
        return EvidenceMetrics.joined(
            **{name: value for name, value in extra.items() if value is not None},
            features=distances.features,
            count=setting.options.samples,
            count_real=len(setting.real),
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

    def _keep(self, path: Path, images: Tensor) -> None:
        """Write the first images, for the report."""
        save_images(images[: self._setting.options.grid], path)

    def _quality(self, name: str, images: Tensor, scale: float | None = None) -> Quality:
        """What images show of a network, and the paired differences from the base, whose images are kept when they come first.

        Args:
            name: of the network.
            images: uint8, shape (count, C, H, W).
            scale: of guidance, in place of the setting's.
        """
        setting = self._setting
        kept = self._images if scale is None else at_scale(self._images, scale)
        if name == "base":
            save_images(images, kept)
        distances, prompts = setting.distances, setting.asked(len(images), setting.options.seeds[0])
        base = _read(kept)
        distances.add(name, images, prompts)
        if name != "base":
            distances.add("base", base, prompts)
        row = distances.row(name, "base")
        means = {measure: found.mean for measure in _MEANS if (found := getattr(row, measure)) is not None}
        differences = {measure: found for measure in _DIFFERENCES if (found := getattr(row, measure)) is not None}
        alike = float(_likeness(base, images).values["ssim"].mean())  # defined for any pair
        error = distances.sampling_error(name)
        errors = {} if error is None else {"fid_sampling_error": error}
        return Quality(fid=None, kid=None, ssim=alike).model_copy(update=means | differences | errors)


def _read(path: Path) -> Tensor:
    """Kept images, uint8, shape (count, C, H, W)."""
    with np.load(path, allow_pickle=False) as kept:
        return torch.from_numpy(kept["images"]).permute(0, 3, 1, 2)


def _likeness(base: Tensor, images: Tensor) -> Likeness:
    """Similarity of images to the base's from the same noise."""
    pairs = zip(base.split(_PAIRS), images.split(_PAIRS), strict=True)
    return Likeness.joined([image_likeness(to_unit_range(a), to_unit_range(b)) for a, b in pairs])
