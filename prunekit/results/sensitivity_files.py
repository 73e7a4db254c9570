"""How a sampler carries an error of each timestep group into the sample, ``sensitivity.json``."""

from typing import Annotated, Literal

from prunekit._json import Amount, Bounded, Many, Number, Positive, Unchanged, Whole
from prunekit.results.formats import SENSITIVITY
from prunekit.results.model import Free, Is, Model, NotNull

__all__ = ["DisturbedModel", "SensitivityFile", "SensitivityPart"]

_Amplification = Annotated[float, Bounded(ge=0, le=1e15), Unchanged()]
_Size = Annotated[float, Bounded(gt=0), Unchanged()]


class SensitivityPart(Model):
    """A timestep group's sensitivity.

    Args:
        index: its index, 0 = cleanest.
        start: first timestep.
        stop: one past the last timestep.
        evaluations: the sampler's evaluations in it.
        error: mean square of the noise that was added to the prediction of one evaluation; 0 without evaluations.
        amplification: mean square change of the sample, divided by `error`; 0 without evaluations.
        se: its standard error over the samples; None for one sample.
        linearity: `amplification` with noise of `checked_size` divided by `amplification`; 1 if changes are proportional to errors;
            None if it was not measured, or is undefined.
    """

    index: Whole
    start: Whole
    stop: Whole
    evaluations: Whole
    error: Amount
    amplification: _Amplification
    se: Amount | None
    linearity: Amount | None


class DisturbedModel(Model):
    """The model that was sampled.

    Args:
        name: its name.
        architecture: class of its network.
        prediction_type: what the network predicts.
        weights_sha256: hash of its weights.
    """

    name: str
    architecture: str
    prediction_type: str
    weights_sha256: str


class SensitivityFile(Model):
    """How the sampler carries an error of the prediction, made in one timestep group, into the sample, `sensitivity.json`.

    Args:
        format: name and version of the format.
        prunekit: version of prunekit that measured it.
        model: the model that was sampled.
        noise_schedule: its noise schedule.
        num_timesteps: number of timesteps T.
        sampler: name of the sampler.
        steps: the sampler's number of steps.
        guidance_scale: of classifier-free guidance; None for the pipeline's default, 1 for none.
        measured_in: where the change of the sample was measured.
        features: the feature extractor; None unless it was measured in features.
        count: number of samples.
        seed: seed of the samples and of the added noise.
        size: size of the added noise, relative to the prediction's root mean square.
        checked_size: size of the noise with which linearity was checked; None if it was not.
        clamped: whether the sampler clamped predictions of the clean sample.
        groups: the timestep groups, cleanest first.
    """

    format: Annotated[str, Is(SENSITIVITY)]
    prunekit: Annotated[str | None, NotNull()] = None
    model: Annotated[DisturbedModel | None, NotNull()] = None
    noise_schedule: Annotated[Free | None, NotNull()] = None
    num_timesteps: Whole
    sampler: str
    steps: Positive
    guidance_scale: Number | None
    measured_in: Literal["pixels", "latents", "features"]
    features: Free | None
    count: Positive
    seed: int
    size: _Size
    checked_size: _Size | None
    clamped: bool
    groups: Many[SensitivityPart]
