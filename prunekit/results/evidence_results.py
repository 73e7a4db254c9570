"""The results of a comparison of experts with baselines at equal training."""

from typing import Annotated, ClassVar, Literal

from prunekit._json import Above, Amount, Bounded, Distance, Many, Named, Number, Positive, Whole
from prunekit.experiments import Experiment
from prunekit.results.estimate import Estimate, LossEstimate
from prunekit.results.expert_results import BaseResult, Expert, ExpertsManifest
from prunekit.results.manifest_head import Features, Head, LedgerEntry, metric_label
from prunekit.results.model import Model

__all__ = ["EvidenceManifest", "EvidenceMetrics", "EvidenceRow", "Figures", "Guided", "Quality"]


class Quality(Model):
    """The quality of a network's images.

    Args:
        fid: FID; None if no extractor knows the pictures.
        kid: KID; None if no extractor knows the pictures.
        fid_sampling_error: standard error of the FID over the images: how far others from the same network would move it.
        fid_difference: paired difference of FID from the base.
        agreement: share of images in which the extractor, as a classifier, finds the class that the caption names.
        agreement_difference: paired difference of the agreement from the base.
        ssim: likeness of its images to the base's from the same noise.
    """

    fid: Distance | None = None
    kid: Number | None = None
    fid_sampling_error: Amount | None = None
    fid_difference: Estimate | None = None
    agreement: Number | None = None
    agreement_difference: Estimate | None = None
    ssim: Number


class Guided(Quality):
    """The quality of a network's images at another scale of guidance than the comparison's own.

    Args:
        guidance_scale: of classifier-free guidance.
    """

    guidance_scale: Number


class Figures(Quality):
    """The quality of one network.

    Args:
        losses: held-out loss of every timestep group.
        loss: their mean.
        guided: its images at other scales of guidance.
    """

    losses: Many[LossEstimate]
    loss: Amount
    guided: Many[Guided] | None = None


class _Made(Model):
    """A network of the comparison, and what making it took.

    Args:
        entry: name of the entry.
        group: the entry's role.
        seed: seed of its fine-tuning; None for the base.
        sampling_macs: mean MACs of an evaluation while sampling.
        params: number of parameters.
        training_macs: MACs for making it, by use.
        experts: its slim models.
    """

    entry: str
    group: Literal["base", "experts", "baseline", "ablation"]
    seed: int | None
    sampling_macs: Above
    params: Whole
    training_macs: Named[Amount]
    experts: Many[Expert] | None = None


class EvidenceRow(Figures, _Made):
    """One network of the comparison, made with one seed.

    Args:
        seconds_per_image: wall time.
    """

    seconds_per_image: Amount | None = None


class EvidenceMetrics(Model):
    """How images were made and compared.

    Args:
        features: the extractor; None if no extractor knows the pictures.
        no_features: why there is none.
        count: images of each network.
        count_real: number of real images.
        sampler: name of the sampler.
        steps: the sampler's number of steps.
        seed: seed of the noise.
        threads: threads of one operation.
        guidance_scale: of classifier-free guidance; None for a pipeline's default, and without a pipeline.
        agreement_real: agreement of held-out images with their own captions.
        captions: of the first images, if they have some.
        subjects: the class of the extractor that each of these captions names.
    """

    features: Features | None
    no_features: str | None = None
    count: Positive
    count_real: Whole | None = None
    sampler: str | None = None
    steps: int | None = None
    seed: int | None = None
    threads: Positive | None = None
    guidance_scale: Number | None = None
    agreement_real: Number | None = None
    captions: Many[str] | None = None
    subjects: Many[str] | None = None

    def label(self, measure: str) -> str:
        """The full name of FID or KID, see :func:`prunekit.results.manifest_head.metric_label`."""
        return metric_label(measure, self.features, self.count)


class EvidenceManifest(Head):
    """The manifest of a comparison of experts with baselines.

    Args:
        base: the base.
        reference: the entry that the others are compared with.
        headline: the entry that the claim is about.
        method: the manifest of the run that made the headline's experts.
        groups: first timesteps of all timestep groups of the evaluation except the first.
        metrics: how images were made and compared.
        evidence: the networks.
        ledger: the MACs that each stage spent.
    """

    kind: ClassVar = Experiment.EVIDENCE

    base: BaseResult | None = None
    reference: str
    headline: str
    method: ExpertsManifest | None = None
    groups: Many[Whole]
    metrics: EvidenceMetrics
    evidence: Annotated[list[EvidenceRow], Bounded(min_length=1)]
    ledger: Many[LedgerEntry] | None = None
