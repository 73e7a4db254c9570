"""Measures several models alike: denoising losses on fixed noise, samples from the same noise, and time, taken in turn."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from prunekit import nets
from prunekit._files import atomic_path, json_hash, sha256_file
from prunekit._json import read_json
from prunekit._progress import as_part
from prunekit.clip_scores import clip_hash, load_clip
from prunekit.data import ImageSplit
from prunekit.errors import InputError
from prunekit.evaluation import GroupLoss as Losses
from prunekit.evaluation import group_losses, paired_difference
from prunekit.extractors import choose_extractor, is_file
from prunekit.inception import INCEPTION, cached_inception
from prunekit.recipe import EvaluationOptions
from prunekit.results.estimate import Estimate, LossEstimate
from prunekit.results.expert_results import Evaluation, GroupLoss, Metrics
from prunekit.results.formats import EVALUATION
from prunekit.sampling import BATCH, Sampler, to_images
from prunekit.steps.distances import Distances
from prunekit.steps.objectives import objective_for
from prunekit.steps.placing import placed
from prunekit.steps.setting import Setting

if TYPE_CHECKING:  # they import diffusers, which takes seconds
    from prunekit.pipelines import PipelineSampler

__all__ = [
    "Measured",
    "check_extractor",
    "judges",
    "loss_draws",
    "measure_all",
    "measure_losses",
    "measure_samples",
    "save_images",
    "save_samples",
]

_LOSS_BATCH = 256
_PLACE = "_name_or_path"  # diffusers notes in configs where a part was read from
_ROUNDS = 5  # of timing a single image


@dataclass(frozen=True, eq=False)
class Measured:
    """Image metrics of several models, and the first images of each model, uint8 (count, C, H, W)."""

    metrics: Metrics
    grids: dict[str, Tensor]


def measure_losses(setting: Setting, models: Mapping[str, nn.Module]) -> list[GroupLoss]:
    """Held-out denoising loss of every model per timestep group, and the paired difference of the expert from the base.

    Args:
        setting: see :class:`Setting`.
        models: by the fields of :class:`prunekit.results.expert_results.GroupLoss`.
    """
    held_out = setting.images.held_out
    objective = objective_for(held_out, setting.spec, setting.parameterization)
    batches, batch_size = loss_draws(setting.options)
    losses = {
        name: group_losses(model, objective, setting.groups, batches=batches, batch_size=batch_size, seed=0)
        for name, model in models.items()
    }
    rows = []
    for group in setting.groups:
        own = {name: found[group.index] for name, found in losses.items()}
        row: dict[str, Estimate] = {
            name: LossEstimate(mean=loss.mean, se=loss.standard_error) for name, loss in own.items()
        }
        if "expert" in own and "base" in own:
            mean, error = paired_difference(own["base"], own["expert"])
            row["difference"] = Estimate(mean=mean, se=error)
        bounds = _bounds(own)
        rows.append(GroupLoss.joined(group=group.index, **row, **({"bounds": bounds} if bounds else {})))
    return rows


def _bounds(losses: Mapping[str, Losses]) -> dict[str, Estimate]:
    """Mean term of the variational bound of every model that predicts variances, and the paired difference from the base."""
    known = {name: bound for name, loss in losses.items() if (bound := loss.bound) is not None}
    found = {name: Estimate(mean=bound.mean, se=bound.standard_error) for name, bound in known.items()}
    if "expert" in known and "base" in known:
        mean, error = paired_difference(known["base"], known["expert"])
        found["difference"] = Estimate(mean=mean, se=error)
    return found


def loss_draws(options: EvaluationOptions) -> tuple[int, int]:
    """Number and size of the batches on which losses are measured in every timestep group."""
    batches = -(-options.loss_samples // _LOSS_BATCH)
    return batches, max(2, -(-options.loss_samples // batches))  # a standard error needs two


def measure_samples(
    setting: Setting,
    models: Mapping[str, nn.Module],
    macs: Mapping[str, float],
    report: Callable[[str, int, int], None] | None = None,
) -> Measured:
    """Sample every model from the same initial noise, in turn within each seed, and compare the images with the real ones.

    Args:
        setting: see :class:`Setting`.
        models: by name; ratios are relative to the one named ``base``.
        macs: mean MACs per sampling step of each model.
        report: called with (model name, samples done, total samples).

    Raises:
        InputError: the images are latents, for which there is no feature extractor.
    """
    if setting.images.train.latent and setting.pipeline is None:
        raise InputError("Latents have no FID; name the `pipeline` that decodes them, and measure the pictures.")
    options, allocation = setting.options, setting.allocation
    count = len(models) * len(options.seeds) * options.samples
    drawn = _draw(setting, setting.sampler, models, report, (0, count * (1 + len(options.other_guidance_scales))))
    alone = _seconds_alone(setting.sampler, models)
    rows = [
        drawn.distances.row(model_name, "base").model_copy(
            update={
                "seconds_per_image": float(np.median(taken)),
                "seconds_alone": alone[model_name],
                **_parameters(models[model_name]),
                "mean_macs": macs[model_name],
                "mac_ratio": macs[model_name] / macs["base"] if "base" in macs else None,
            }
        )
        for model_name, taken in drawn.seconds.items()
    ]
    guided = []
    for place, scale in enumerate(options.other_guidance_scales):
        whole = (count * (1 + place), count * (1 + len(options.other_guidance_scales)))
        found = _draw(setting, setting.sampler_at(scale), models, report, whole).distances
        guided += [found.row(name, "base").model_copy(update={"guidance_scale": scale}) for name in models]
    extra = {
        "no_features": drawn.distances.no_features,
        "clip": drawn.distances.clip,
        "scheduler": dict(setting.schedule.scheduler) or None,
        "guidance_scale": options.guidance_scale,
        "agreement_real": setting.agreement_real,
        **setting.captions(),
        "guided": guided or None,
    }
    metrics = Metrics.joined(
        **{name: value for name, value in extra.items() if value is not None},
        features=drawn.distances.features,
        count=options.samples,
        count_real=len(setting.real),
        sampler=allocation.sampler,
        steps=allocation.steps,
        batch_size=min(BATCH, options.samples),
        seeds=list(options.seeds),
        threads=torch.get_num_threads(),
        rows=rows,
    )
    return Measured(metrics, drawn.grids)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """All models at one scale of guidance: their images' distances, seconds per image for each seed, and first images."""

    distances: Distances
    seconds: dict[str, list[float]]
    grids: dict[str, Tensor]


def _draw(
    setting: Setting,
    sampler: "Sampler | PipelineSampler",
    models: Mapping[str, nn.Module],
    report: Callable[[str, int, int], None] | None,
    progress: tuple[int, int],
) -> _Drawn:
    """Sample every model, in turn within each seed; ``progress`` has the images done before, and those of all calls together."""
    options, drawn = setting.options, _Drawn(setting.distances, {model: [] for model in models}, {})
    done, total = progress
    for seed in options.seeds:
        prompts = setting.asked(options.samples, seed)
        for name, model in models.items():
            with as_part("sampling", done // options.samples, total // options.samples):
                started = time.perf_counter()
                images = to_images(sampler(model, options.samples, seed))
            drawn.seconds[name].append((time.perf_counter() - started) / options.samples)
            drawn.distances.add(name, images, prompts)
            drawn.grids.setdefault(name, images[: options.grid])
            done += options.samples
            if report is not None:
                report(name, done, total)
    return drawn


def _seconds_alone(sampler: "Sampler | PipelineSampler", models: Mapping[str, nn.Module]) -> dict[str, float]:
    """Wall time of one image at batch size 1 for each model: the median of several, which the models take in turn."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(_ROUNDS):
        for place, (name, model) in enumerate(models.items()):
            with as_part("timing single images", turn * len(models) + place, _ROUNDS * len(models)):
                started = time.perf_counter()
                sampler(model, 1, 0)
            taken[name].append(time.perf_counter() - started)
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


def _parameters(model: nn.Module) -> dict[str, int]:
    """Parameters that are stored, and in memory at a time."""
    if isinstance(model, nets.TimestepExperts):
        return {"params": model.stored_params, "params_resident": model.resident_params}
    number = sum(parameter.numel() for parameter in model.parameters())
    return {"params": number, "params_resident": number}


def check_extractor(images: ImageSplit, options: EvaluationOptions | None) -> None:
    """Refuse an extractor that does not know the pictures, and weights that cannot be read, before anything is trained.

    Raises:
        InputError: the named extractor does not fit; see :func:`prunekit.extractors.choose_extractor`.
        MissingFileError: a file is missing; the message says where to get it.
        FileFormatError: a file is broken, or holds another network.
    """
    if options is not None and options.clip is not None:
        load_clip(options.clip)
    if options is not None and options.features != "auto" and not images.train.latent:
        choose_extractor(images.train.images, options.features)


def judges(options: EvaluationOptions) -> dict[str, str]:
    """Hashes of the weights that the options name and that do not ship with the package; measurements depend on them."""
    found = {}
    if options.features == INCEPTION or is_file(options.features):
        path = cached_inception() if options.features == INCEPTION else Path(options.features).expanduser()
        found["features_sha256"] = sha256_file(path)
    if options.clip is not None:
        found["clip_sha256"] = clip_hash(options.clip)
    if options.pipeline is not None:
        found["pipeline_sha256"] = _parts_hash(Path(options.pipeline).expanduser())
    return found


def _parts_hash(pipeline: Path) -> str:
    """Hash of the files of a pipeline's parts, without its denoisers, which are replaced."""
    from prunekit.pipelines import DENOISERS  # noqa: PLC0415 - imports diffusers, which takes seconds

    files = [path for path in sorted(pipeline.glob("*/*")) if path.parent.name not in DENOISERS]
    configs = {path: read_json(path, infinities=True) for path in files if path.name.endswith("config.json")}
    said = {path: {key: value for key, value in found.items() if key != _PLACE} for path, found in configs.items()}
    hashes = {path: sha256_file(path) for path in files if path.suffix in (".safetensors", ".bin")}
    return json_hash([[str(path.relative_to(pipeline)), found] for path, found in {**said, **hashes}.items()])


def measure_all(
    setting: Setting,
    models: Mapping[str, nn.Module],
    sampled: Mapping[str, nn.Module],
    macs: Mapping[str, float],
    report: Callable[[str, int, int], None] | None = None,
) -> tuple[Evaluation, Mapping[str, Tensor]]:
    """Measure losses of some models and samples of others, on the GPU if there is one. For latents, only losses are measured.

    Args:
        setting: see :class:`Setting`.
        models: for the losses, see :func:`measure_losses`.
        sampled: for the samples, see :func:`measure_samples`.
        macs: mean MACs per sampling step.
        report: see :func:`measure_samples`.

    Returns:
        Losses and, for pictures, metrics; and the first images of each model, uint8 (count, C, H, W).
    """
    with placed(*models.values(), *sampled.values()):
        if setting.pipeline is None:
            check_extractor(setting.images, setting.options if setting.extractor is None else None)
        losses = measure_losses(setting, models)
        if setting.images.train.latent and setting.pipeline is None:
            return Evaluation(format=EVALUATION, losses=losses), {}
        measured = measure_samples(setting, sampled, macs, report)
    return Evaluation(format=EVALUATION, losses=losses, metrics=measured.metrics), measured.grids


def save_images(images: Tensor, path: Path) -> None:
    """Write uint8 images (count, C, H, W) as an ``.npz`` with ``images`` (count, H, W, C)."""
    save_samples(images, path)


def save_samples(samples: Tensor, path: Path, labels: Tensor | None = None) -> None:
    """Write samples (count, C, H, W) as an ``.npz``, with their classes if there are some.

    uint8 images are written as ``images`` (count, H, W, C), latents unchanged as ``latents``.
    """
    if samples.is_floating_point():
        arrays = {"latents": samples.numpy()}
    else:
        arrays = {"images": samples.permute(0, 2, 3, 1).contiguous().numpy()}
    if labels is not None:
        arrays["labels"] = labels.numpy()
    with atomic_path(path) as part, part.open("wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)
