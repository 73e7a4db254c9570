"""Opens a base from a user's checkpoint, or trains one from scratch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunekit._json import JsonDict
from prunekit.checkpoint import Asked, Base, ModelSpec, load_base, read_inputs
from prunekit.checkpoint.scheduler import read_scheduler
from prunekit.data import ImageSplit
from prunekit.errors import InputError
from prunekit.graph.copying import copied
from prunekit.recipe import BaseOptions
from prunekit.sampling import make_sampler, to_images
from prunekit.steps.image_choice import check_images
from prunekit.steps.objectives import objective_for, predicts_variance, variance_loss
from prunekit.training import (
    Reporter,
    TrainResult,
    timestep_sampler,
    train,
)

__all__ = [
    "complete_spec",
    "few_samples",
    "open_base",
    "sampled_by",
    "scheduler_file",
    "seeded_weights",
    "train_base",
    "trained_samples",
]

_FEW = 16
_FEW_STEPS = 20


def open_base(
    source: str, config: Path | str | None = None, inputs: Path | str | None = None, asked: Asked | None = None
) -> Base:
    """Open a base by path, or a shipped one (``embedded:digits``, ``embedded:fashion``).

    Args:
        source: file, folder, id on the Hugging Face Hub, or name of an embedded base.
        config: JSON of the architecture, for a bare state dict.
        inputs: JSON of a forward pass's arguments, see :mod:`prunekit.checkpoint.inputs`; derived from the config if missing.
        asked: which weights to read; and the noise schedule and prediction type, in place of those in the base's files.
    """
    own = {} if asked is None else vars(asked)
    return load_base(os.path.expanduser(source), config, inputs=None if inputs is None else read_inputs(inputs), **own)


def scheduler_file(pipeline: Path | str) -> Path:
    """The config of a pipeline's scheduler."""
    return Path(pipeline).expanduser() / "scheduler" / "scheduler_config.json"


def sampled_by(base: Base, pipeline: Path | str) -> Base:
    """A base with the settings of the scheduler that samples it, so that budgets are means over the pipeline's own steps.

    A base that has settings of its own keeps them.

    Args:
        base: the base.
        pipeline: folder of the pipeline.

    Raises:
        InputError: the pipeline's scheduler is for a network of another noise schedule, or with other predictions.
    """
    path = scheduler_file(pipeline)
    if not path.is_file():
        return base
    found, own = read_scheduler(path), base.schedule
    same = len(found.schedule.log_snr) == len(own.log_snr) and np.allclose(
        found.schedule.log_snr, own.log_snr, rtol=1e-3, atol=1e-3
    )
    if not same:
        ends = (f"{each.snr_db[0]:.1f} … {each.snr_db[-1]:.1f} dB" for each in (found.schedule, own))
        raise InputError(
            "The pipeline's scheduler has the noise of {} and the base was trained with {}; train the base with the pipeline's "
            "noise schedule, or name its own pipeline.".format(*ends)
        )
    if found.prediction_type != base.prediction_type:
        raise InputError(
            f"The pipeline's scheduler expects {found.prediction_type} and the base predicts {base.prediction_type}; expected the "
            "same of both."
        )
    if own.scheduler:
        return base
    return replace(base, parameterization=found.parameterization)


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Networks that are built within the block draw their initial weights with this seed."""
    with torch.random.fork_rng(devices=[]):  # modules initialise themselves from the global generator only
        torch.default_generator.manual_seed(seed)
        yield


def complete_spec(options: BaseOptions) -> ModelSpec:
    """The network to train, with the class's defaults for arguments that the options leave out.

    Raises:
        FileFormatError: it is larger than any that can be trained.
    """
    options.spec().check_size()
    with torch.device("meta"):
        return ModelSpec.of(options.spec().build())


def train_base(
    options: BaseOptions,
    data: ImageSplit,
    checkpoints: Path | str | None = None,
    report: Reporter | None = None,
    trained: Base | None = None,
) -> tuple[Base, TrainResult]:
    """Train a base from scratch, or one that is trained already for more steps.

    Initial weights come from the train options' seed. Variances that the network predicts are trained by the variational bound.

    Args:
        options: the network and its training.
        data: the images.
        checkpoints: folder for checkpoints.
        report: called with the progress.
        trained: a base to train on from its moving average, with a new optimizer; its network, noise schedule and prediction type
            are used. It is not changed.

    Returns:
        The base, whose provenance has the images of all its trainings as ``samples`` if that is known; and the result of this
        training.

    Raises:
        InputError: the network does not take the images, or ``trained`` has as many steps already.
        FileFormatError: it is larger than any that can be trained.
    """
    checkpoints = Path(checkpoints) if checkpoints is not None else None
    if trained is None:
        options.spec().check_size()
        with seeded_weights(options.train.seed):
            model = options.spec().build()
        spec, parameterization, start = ModelSpec.of(model), options.parameterization, 0  # with the class's defaults
    else:
        model, spec, parameterization = copied(trained.model), trained.spec, trained.parameterization
        start = _steps_before(trained, options.train.steps)
    check_images(data, spec)
    learned = variance_loss("vlb", None, parameterization) if predicts_variance(spec) else None  # L_hybrid of IDDPM
    objective = objective_for(
        data.train,
        spec,
        parameterization,
        options.train.label_dropout,
        own_dropout=options.train.condition_dropout,
        variance=learned,
    )
    sampler = timestep_sampler(options.train, parameterization)
    result = train(model, objective, sampler, options.train, checkpoints, report, start=start)
    made = {name: getattr(options.train, name) for name in ("steps", "batch_size", "seed")}
    before = 0 if trained is None else trained_samples(trained.provenance)
    provenance = {
        **made,
        **({} if before is None else {"samples": before + result.samples}),
        "data_sha256": data.train.sha256,
        **({"continued_from": start} if trained is not None else {}),
    }
    return Base(result.model, spec, parameterization, data.about(), provenance), result


def few_samples(base: Base, images: ImageSplit) -> Tensor | None:
    """A few samples of a base for people to look at, uint8 (count, C, H, W); None for latents and for networks with classes."""
    if images.train.latent or base.spec.num_classes is not None:
        return None
    channels, height, width = images.train.images.shape[1:]
    sampler = make_sampler(
        "ddim", min(_FEW_STEPS, base.schedule.num_timesteps), base.parameterization, (channels, height, width)
    )
    return to_images(sampler(base.model, _FEW, 0))


def trained_samples(provenance: JsonDict) -> int | None:
    """Images that went through a base in training, by its provenance; None if it does not say.

    Older files have no ``samples``; their steps are taken to have had the batch size of the last.
    """
    samples, *product = (provenance.get(name) for name in ("samples", "steps", "batch_size"))
    if isinstance(samples, int):
        return samples
    steps, batch_size = product
    return steps * batch_size if isinstance(steps, int) and isinstance(batch_size, int) else None


def _steps_before(trained: Base, steps: int) -> int:
    """Steps of an earlier training, which the new one continues.

    Raises:
        InputError: the new training would have no step.
    """
    before = trained.provenance.get("steps", 0)
    start = before if isinstance(before, int) else 0
    if steps <= start:
        raise InputError(f"Got steps {steps:,} for a base that has {start:,} already; expected more.")
    return start
