"""The comparison of two models from the same noise, ``consistency.json``."""

from typing import Annotated, Literal

from prunekit._json import Amount, Many, Named, Number, Pair, Positive, Whole
from prunekit.results.formats import CONSISTENCY
from prunekit.results.model import Free, Is, Model

__all__ = [
    "ComparedModel",
    "ComparedStep",
    "ComparisonSettings",
    "ConsistencyFile",
    "ImageLikeness",
    "SeamPart",
    "SsimSettings",
    "Summary",
]


class Summary(Model):
    """A measure over pairs of images.

    Args:
        mean: the mean; None if it is undefined for every pair.
        se: its standard error.
        undefined: number of pairs for which the measure is undefined, and which are left out.
    """

    mean: Number | None
    se: Amount | None
    undefined: Whole


class ImageLikeness(Model):
    """How similar pairs of images are.

    Args:
        ssim: structural similarity; noisy states have none.
        correlation: correlation of the pixels.
        mse: mean squared difference.
    """

    ssim: Summary | None = None
    correlation: Summary
    mse: Summary


class ComparedModel(Model):
    """One of the two models.

    Args:
        name: its name.
        architecture: class of its network.
        prediction_type: what the network predicts.
        groups: first timestep and one past the last of each timestep group; None for one network.
        weights_sha256: hash of its weights.
    """

    name: str
    architecture: str
    prediction_type: str
    groups: Many[Pair[Whole]] | None
    weights_sha256: str


class ComparisonSettings(Model):
    """How the models were compared.

    Args:
        sampler: name of the sampler.
        steps: the sampler's number of steps.
        count: number of pairs.
        seed: seed of the noise.
        teacher_forced: whether the second model was also evaluated on the first model's states.
        batch_size: pairs at a time.
        shape: channels, height and width of an image.
    """

    sampler: str
    steps: Positive
    count: Positive
    seed: Whole
    teacher_forced: bool
    batch_size: Positive
    shape: Many[Positive]


class SsimSettings(Model):
    """Settings of the structural similarity.

    Args:
        data_range: range of the pixels' values.
        sigma: width of the window's weights.
        window: side of the window in pixels.
        k1: first constant.
        k2: second constant.
    """

    data_range: Number
    sigma: Number
    window: Positive
    k1: Number
    k2: Number


class ComparedStep(Model):
    """One evaluation of both models.

    Args:
        timestep: the timestep.
        groups: for models `a` and `b`, the timestep group; None for one network.
        same: predictions that started from the same noise.
        shuffled: shuffled pairs of predictions.
        state: the noisy states.
        forced: predictions of both models for the first model's states; None if they were not made.
    """

    timestep: Number
    groups: Named[Whole | None]
    same: ImageLikeness
    shuffled: ImageLikeness
    state: ImageLikeness
    forced: ImageLikeness | None


class SeamPart(Model):
    """The border between two experts.

    Args:
        model: `a` or `b`.
        timestep: first timestep of the noisier group.
        groups: the two timestep groups.
        jump: difference of the two experts' predictions.
        cleaner: difference of the cleaner group's expert from the other model.
        noisier: difference of the noisier group's expert from the other model.
        ratio: the jump as a multiple of the mean of these two differences.
    """

    model: Literal["a", "b"]
    timestep: Whole
    groups: Pair[Whole]
    jump: Summary
    cleaner: Summary
    noisier: Summary
    ratio: Summary


class ConsistencyFile(Model):
    """The comparison of two models from the same noise, `consistency.json`.

    Args:
        format: name and version of the format.
        prunekit: version of prunekit.
        models: the models, `a` and `b`.
        noise_schedule: the noise schedule of both.
        settings: how they were compared.
        ssim: settings of the structural similarity.
        images: likeness of the finished images, from the `same` noise and `shuffled`.
        steps: the evaluations, noisiest first.
        seams: the borders between experts that the sampler passes, noisiest first.
    """

    format: Annotated[str, Is(CONSISTENCY)]
    prunekit: str
    models: Named[ComparedModel]
    noise_schedule: Free
    settings: ComparisonSettings
    ssim: SsimSettings
    images: Named[ImageLikeness]
    steps: Many[ComparedStep]
    seams: Many[SeamPart]
