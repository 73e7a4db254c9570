"""Measures the sensitivity of a model's sampler for the command and for runs: the sampler, and where changes are measured."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

import prunekit
from prunekit import report
from prunekit._files import write_json
from prunekit._json import JsonDict, JsonObject
from prunekit.allocation import Sensitivity
from prunekit.checkpoint import Base, ModelSpec
from prunekit.choices import SensitivityMeasure
from prunekit.errors import InputError
from prunekit.extractors import Extractor, choose_extractor, named_extractor
from prunekit.groups import TimestepGroups
from prunekit.nets.drop_in import Router
from prunekit.recipe import EvaluationOptions
from prunekit.results.model import plain
from prunekit.sampling import Sampler
from prunekit.sampling.disturbances import Measure, SensitivityOptions, elements, router_of, sensitivities
from prunekit.sampling.feature_changes import features_of
from prunekit.schedule import Parameterization
from prunekit.steps.budgets import evaluations
from prunekit.steps.image_choice import check_told_nothing
from prunekit.steps.placing import placed
from prunekit.steps.sample_quality import judges
from prunekit.steps.setting import Setting
from prunekit.training import weights_hash

if TYPE_CHECKING:  # they import diffusers, which takes seconds
    from prunekit.pipelines import PipelineSampler
    from prunekit.steps.opening import Opened

__all__ = [
    "Sampled",
    "chosen_measure",
    "measure_sensitivity",
    "measured_in_a_run",
    "passes_of",
    "sampled_as",
    "write_sensitivity",
]


@dataclass(frozen=True, eq=False)
class Sampled:
    """A model and the sampler that draws its samples.

    Args:
        model: a network or experts.
        name: its name, for the record.
        spec: the (unpruned) architecture.
        parameterization: noise schedule, and what the model predicts.
        sampler: draws the samples.
        sampler_name: its name, as the allocation has it.
        latent: whether the samples are latents.
    """

    model: nn.Module
    name: str
    spec: ModelSpec
    parameterization: Parameterization
    sampler: "Sampler | PipelineSampler"
    sampler_name: str
    latent: bool

    @classmethod
    def alone(cls, opened: "Opened", name: str, sampler: str, steps: int, label: int | None = None) -> "Sampled":
        """A model without a pipeline, sampled for all classes or one.

        Args:
            opened: the model.
            name: its name, for the record.
            sampler: as for :func:`prunekit.sampling.make_sampler`.
            steps: number of sampling steps.
            label: the class; None for all classes.

        Raises:
            InputError: the sampler cannot be used or take this number of steps, or the network takes other conditions.
        """
        evaluations(opened.schedule, sampler, steps)  # refuses a sampler that cannot take this number of steps
        drawn = opened.sampler(sampler, steps, label)
        return cls(opened.model, name, opened.spec, opened.parameterization, drawn, sampler, opened.latent)

    @classmethod
    def through(cls, opened: "Opened", name: str, sampler: "PipelineSampler", sampler_name: str) -> "Sampled":
        """A model as its pipeline's denoiser; the samples are what the pipeline makes of its latents.

        Args:
            opened: the model.
            name: its name, for the record.
            sampler: runs the pipeline.
            sampler_name: name of its scheduler.
        """
        from prunekit.steps.captioned_sampling import with_unit  # noqa: PLC0415 - see above

        return cls(
            with_unit(opened.model, sampler),
            name,
            opened.spec,
            opened.parameterization,
            sampler,
            sampler_name,
            latent=True,
        )

    @cached_property
    def about(self) -> JsonDict:
        """Where the sensitivity comes from: what its file says of the model."""
        model = {
            "name": self.name,
            "architecture": self.spec.class_name,
            "prediction_type": self.parameterization.prediction_type,
            "weights_sha256": weights_hash(self.model),
        }
        schedule = plain(self.parameterization.schedule.to_config())
        return {"prunekit": prunekit.__version__, "model": model, "noise_schedule": schedule}

    def router(self, groups: TimestepGroups) -> Router:
        """The router that knows the unit in which the sampler tells the timestep."""
        router = Router(groups, timeline=self.parameterization.timeline)
        if isinstance(self.sampler, Sampler):
            return router_of(self.sampler, router)
        from prunekit.pipelines import conditioning_of  # noqa: PLC0415 - see above

        found = conditioning_of(self.sampler.pipeline, self.sampler.size, self.sampler.arguments)
        return Router(groups, found.unit, router.timeline)


def chosen_measure(
    name: SensitivityMeasure | str, latent: bool, decoded: bool, features: str, real: Callable[[], Tensor]
) -> tuple[Measure, Extractor | None]:
    """Where changes of the sample are measured.

    ``auto`` takes pixels for pictures, and for latents that a pipeline decodes; latents for others.

    Args:
        name: ``auto``, ``pixels``, ``latents`` or ``features``.
        latent: whether the network makes latents.
        decoded: whether a pipeline decodes them.
        features: the extractor's name or file; ``auto`` for the shipped one that knows the real pictures.
        real: the model's real pictures, uint8, shape (N, C, H, W); only called for a shipped extractor.

    Raises:
        InputError: the samples are not of that kind, or no extractor suits the pictures.
    """
    pictures = decoded or not latent
    name = ("pixels" if pictures else "latents") if name == "auto" else name
    if name == "latents" and not latent:
        raise InputError("Got the measure latents for a network of pictures; expected pixels or features.")
    if name != "latents" and not pictures:
        raise InputError(
            f"Got the measure {name} for a network of latents; expected latents, or the `pipeline` that decodes them."
        )
    if name != "features":
        return elements(name), None
    if features != "auto":
        own = named_extractor(features)
        return features_of(own), own
    choice = choose_extractor(real())
    if choice.extractor is None:
        raise InputError(f"The change cannot be measured in features: {choice.why_none}")
    return features_of(choice.extractor), choice.extractor


def measure_sensitivity(
    sampled: Sampled,
    groups: TimestepGroups,
    options: SensitivityOptions,
    measure: tuple[Measure, Extractor | None],
) -> Sensitivity:
    """Measure how a model's sampler carries an error of each timestep group into the sample, on the GPU if there is one.

    Args:
        sampled: the model and its sampler.
        groups: the timestep groups.
        options: number of samples, and size of the noise.
        measure: see :func:`chosen_measure`.

    Raises:
        InputError: see :func:`prunekit.sampling.disturbances.sensitivities`.
    """
    how, extractor = measure
    about, sampler = sampled.about, sampled.sampler
    if how.name == "latents":
        sampler = sampler.for_latents()
    sampler = sampler if options.clamped else sampler.unclamped()
    router = sampled.router(groups)
    with placed(sampled.model):
        found = sensitivities(sampler, sampled.model, router, how, options)
    if not any(group.amplification for group in found):
        raise InputError(
            f"Noise of size {options.size:g} changes no sample: it is lost in rounding; expected a larger size, such as 0.002."
        )
    return Sensitivity(
        groups.num_timesteps,
        sampled.sampler_name,
        sampler.steps,
        sampler.guidance_scale,
        how.name,
        options.count,
        options.seed,
        options.size,
        options.checked_size,
        sampler.clamps,
        found,
        None if extractor is None else plain(extractor.describe()),
        about,
    )


def measured_in_a_run(base: Base, setting: Setting) -> Sensitivity:
    """Measure the sensitivity of a run's base with the sampler of its allocation, in what its allocation section asks for.

    Args:
        base: the run's base.
        setting: how the run measures all models; its options name the feature extractor.

    Raises:
        InputError: the network takes captions and no pipeline gives them; see also :func:`chosen_measure`.
    """
    allocation, latent, piped = setting.allocation, setting.images.train.latent, setting.pipeline is not None
    if setting.pipeline is None:
        check_told_nothing(base.spec, "name the `pipeline` that samples in the evaluation section")
    else:
        setting.pipeline.fit(base.model)
    sampler = setting.sampler if piped or not latent else setting.sampler.for_latents()
    sampled = Sampled(
        base.model, "base", base.spec, base.parameterization, sampler, allocation.sampler, latent=latent or piped
    )
    measure = chosen_measure(
        allocation.sensitivity_in, sampled.latent, piped, setting.options.features, lambda: setting.real
    )
    clamped = allocation.sensitivity_clamped
    options = SensitivityOptions(
        allocation.sensitivity_samples,
        size=allocation.sensitivity_size,
        check=clamped,  # twice the passes, for what is proportional without clamping
        clamped=clamped,
    )
    return measure_sensitivity(sampled, setting.groups, options, measure)


def sampled_as(evaluation: EvaluationOptions | None, measured_in: str) -> JsonObject:
    """What of a recipe's evaluation a sensitivity depends on, for the key of its stage.

    Args:
        evaluation: the section; None if the recipe has none.
        measured_in: see :func:`chosen_measure`.
    """
    if evaluation is None:
        return {}
    names = ["pipeline", "guidance_scale", "pipeline_arguments", *(["features"] if measured_in == "features" else [])]
    hashes = judges(evaluation)
    kept = [name for name in ("pipeline_sha256", "features_sha256") if name.partition("_")[0] in names]
    return {name: getattr(evaluation, name) for name in names} | {name: hashes[name] for name in kept if name in hashes}


def passes_of(found: Sensitivity, passes: float) -> int:
    """Passes of samples through the network that a measurement took: one undisturbed run, and one or two for each group with steps.

    Args:
        found: what was measured.
        passes: of the sampler, for each evaluation of one sample.
    """
    runs = 1 + (1 + (found.checked_size is not None)) * sum(1 for group in found.groups if group.evaluations)
    return round(runs * found.count * passes * sum(group.evaluations for group in found.groups))


def write_sensitivity(found: Sensitivity, path: Path) -> None:
    """Write ``sensitivity.json``, and the picture next to it."""
    write_json(path, found.to_json())
    report.sensitivity_png(found, path.with_suffix(".png"))
