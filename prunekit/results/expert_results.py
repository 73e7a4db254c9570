"""The results of a run that makes timestep experts: the base, the experts, their losses, and the quality of samples."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from prunekit._json import Above, Amount, Many, Named, Number, Pair, Positive, Whole
from prunekit.experiments import Experiment
from prunekit.results.estimate import Estimate, FidEstimate, LossEstimate
from prunekit.results.formats import EVALUATION
from prunekit.results.manifest_head import BaseTraining, Clip, Features, Head, LedgerEntry, metric_label
from prunekit.results.model import Free, Is, Model, NotNull
from prunekit.results.predicted_time import PredictedTime

__all__ = [
    "Assembled",
    "BaseManifest",
    "BaseResult",
    "Evaluation",
    "Expert",
    "ExpertsManifest",
    "GroupLoss",
    "MetricRow",
    "Metrics",
]


class BaseResult(Model):
    """The model from which a run started.

    Args:
        macs: MACs per sample per evaluation.
        params: number of parameters.
        sha256: hash of its checkpoint.
        data: the images that it was trained on.
        noise_schedule: its noise schedule.
        training: what its training took; None if that is not recorded.
    """

    macs: Positive
    params: Positive
    sha256: str | None = None
    data: Free | None = None
    noise_schedule: Free
    training: BaseTraining | None = None


class Expert(Model):
    """The slim model of one timestep group.

    Args:
        group: the timestep group, 0 = cleanest.
        target_macs: the target; None for a target of parameters or time.
        macs: MACs per sample per evaluation.
        params: number of parameters.
        time: for a target of time, what was predicted.
        widths: channels before and after, for each channel group; 0 after for those that are gone with a residual branch.
        removed: the residual branches that are removed; missing if none are.
    """

    group: Whole
    target_macs: Whole | None = None
    macs: Whole
    params: Whole
    widths: Named[Pair[Whole]] | None = None
    time: PredictedTime | None = None
    removed: Annotated[Many[str] | None, NotNull()] = None

    @property
    def changes(self) -> Mapping[str, tuple[int, int]]:
        """Channels before and after, for each channel group; empty if they were not recorded."""
        return {name: (before, after) for name, (before, after) in (self.widths or {}).items()}


class Assembled(Model):
    """The experts as one denoiser.

    Args:
        mean_macs: mean MACs over the sampler's steps.
        mean_mac_ratio: the same as a fraction of the base's.
        params: parameters of all experts together; a network that several timestep groups share counts once.
    """

    mean_macs: Above
    mean_mac_ratio: Above
    params: Whole


class GroupLoss(Model):
    """Held-out denoising loss of the models in one timestep group.

    Args:
        group: the timestep group, 0 = cleanest.
        base: the base's.
        pruned: the pruned model's, before fine-tuning.
        expert: the expert's.
        model: the loss, if only one model was measured.
        difference: expert − base, paired.
        bounds: of networks that predict variances, the mean term of the variational bound in the group, in bits per dimension, by
            the models' names above, and ``difference``.
    """

    group: Whole
    base: LossEstimate | None = None
    pruned: LossEstimate | None = None
    expert: LossEstimate | None = None
    model: LossEstimate | None = None
    difference: Estimate | None = None
    bounds: Annotated[Named[Estimate] | None, NotNull()] = None


class MetricRow(Model):
    """Sample quality and cost of one model.

    Args:
        model: its name.
        fid: FID, mean over the seeds.
        kid: KID, mean over the seeds.
        precision: fraction of generated images among the real ones (arXiv:1904.06991), mean over the seeds.
        recall: fraction of real images among the generated ones, mean over the seeds.
        clip_score: CLIP score of images and their prompts, mean over the seeds.
        agreement: share of images in which the extractor, as a classifier, finds the class that the caption names; mean over the
            seeds.
        by_seed: the measures for each seed.
        fid_difference: paired difference from the base.
        kid_difference: paired difference from the base.
        precision_difference: paired difference from the base.
        recall_difference: paired difference from the base.
        clip_score_difference: paired difference from the base.
        agreement_difference: paired difference from the base.
        guidance_scale: of classifier-free guidance, in rows of other scales than the run's main one.
        seconds_per_image: median wall time over the seeds, in batches of ``batch_size``.
        seconds_alone: wall time of one image at batch size 1, median of several that the models took in turn.
        params: parameters that are stored; a network that several timestep groups share counts once.
        params_resident: parameters in memory while sampling.
        mean_macs: mean MACs of an evaluation while sampling.
        mac_ratio: the same as a fraction of the base's.
    """

    model: str
    fid: FidEstimate | None = None
    kid: Estimate | None = None
    precision: Estimate | None = None
    recall: Estimate | None = None
    clip_score: Estimate | None = None
    agreement: Estimate | None = None
    by_seed: Named[Many[Number]] | None = None
    fid_difference: Estimate | None = None
    kid_difference: Estimate | None = None
    precision_difference: Estimate | None = None
    recall_difference: Estimate | None = None
    clip_score_difference: Estimate | None = None
    agreement_difference: Estimate | None = None
    guidance_scale: Number | None = None
    seconds_per_image: Amount | None = None
    seconds_alone: Amount | None = None
    params: Whole | None = None
    params_resident: Whole | None = None
    mean_macs: Amount | None = None
    mac_ratio: Amount | None = None


class Metrics(Model):
    """FID and KID of several models under one feature extractor, sample count and sampler.

    Args:
        features: the extractor; None if no extractor knows the pictures.
        no_features: why there is none.
        clip: the CLIP model, if CLIP scores were measured.
        count: images of each model and seed.
        count_real: number of real images.
        sampler: name of the sampler.
        steps: the sampler's number of steps.
        batch_size: images that are sampled at a time.
        scheduler: config of the scheduler, for the model's own.
        seeds: seeds of the noise.
        threads: threads of one operation, on which wall time depends.
        guidance_scale: of classifier-free guidance; None for a pipeline's default, and without a pipeline.
        agreement_real: agreement of the real images with their own captions.
        captions: of the first images, if they have some.
        subjects: the class of the extractor that each of these captions names.
        rows: the models.
        guided: the models at other scales of guidance.
    """

    features: Features | None = None
    no_features: str | None = None
    clip: Clip | None = None
    count: Positive
    count_real: Whole | None = None
    sampler: str = ""
    steps: int | None = None
    batch_size: Positive | None = None
    scheduler: Free | None = None
    seeds: Many[int] | None = None
    threads: Positive | None = None
    guidance_scale: Number | None = None
    agreement_real: Number | None = None
    captions: Many[str] | None = None
    subjects: Many[str] | None = None
    rows: Many[MetricRow]
    guided: Many[MetricRow] | None = None

    def label(self, name: str) -> str:
        """The full name of FID or KID, see :func:`prunekit.results.manifest_head.metric_label`."""
        return metric_label(name, self.features, self.count)

    def row(self, model: str) -> MetricRow | None:
        """The row of one model."""
        return next((row for row in self.rows if row.model == model), None)

    @property
    def judged(self) -> MetricRow | None:
        """The row that a page's claim is about: the experts if there are any, otherwise the first model except the base."""
        return self.row("experts") or next((row for row in self.rows if row.model != "base"), None)


class Evaluation(Model):
    """Losses and sample quality of a base and experts.

    Args:
        format: name and version of the format.
        losses: held-out denoising losses of every timestep group.
        metrics: sample quality; missing for latents.
    """

    format: Annotated[str, Is(EVALUATION)]
    losses: Many[GroupLoss] | None = None
    metrics: Metrics | None = None


class BaseManifest(Head):
    """The manifest of a run that trains a base.

    Args:
        base: the base.
        ledger: the MACs that each stage spent.
    """

    kind: ClassVar = Experiment.BASE

    base: BaseResult | None = None
    ledger: Many[LedgerEntry] | None = None


class ExpertsManifest(BaseManifest):
    """The manifest of a run that makes timestep experts.

    Args:
        base: the base.
        ledger: the MACs that each stage spent.
        experts: the slim model of each timestep group.
        assembled: the experts as one denoiser.
        losses: held-out denoising losses of every timestep group.
        metrics: sample quality.
        allocation: the targets, as in `allocation.json`.
    """

    kind: ClassVar = Experiment.EXPERTS

    base: BaseResult
    experts: Many[Expert] | None = None
    assembled: Assembled | None = None
    losses: Many[GroupLoss] | None = None
    metrics: Metrics | None = None
    allocation: Free
