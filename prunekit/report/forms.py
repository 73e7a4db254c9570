"""The forms of manifests, by kind of run. A manifest is checked against its form before anything is drawn."""

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from typing_extensions import TypedDict

from prunekit._json import Amount, Bounded, Many, Named, Pair, Positive, Whole, read_document
from prunekit.groups.partition import GroupForm
from prunekit.ledger import LedgerForm

__all__ = [
    "AGAIN",
    "MANIFEST_FORMAT",
    "CurriculumForm",
    "CurriculumRows",
    "EvidenceForm",
    "HeadForm",
    "ImportanceForm",
    "MetricsForm",
    "MultistageForm",
    "MultistageRows",
    "RunForm",
    "read_manifest",
]

MANIFEST_FORMAT = "prunekit-manifest/1"
AGAIN = "make it again with `prunekit run`"
_T = TypeVar("_T")
_Above = Annotated[float, Bounded(gt=0)]
_Distance = Annotated[float, Bounded(ge=-1e-3)]  # FID of equal images is 0, except for rounding


class _Named(TypedDict):
    method: NotRequired[str | None]
    proposer: NotRequired[str | None]


class _PruneForm(TypedDict):
    search: NotRequired[_Named | None]


class _StepsForm(TypedDict):
    steps: NotRequired[Whole | None]


class _TunedForm(TypedDict):
    train: NotRequired[_StepsForm | None]


class _ConfigForm(TypedDict):
    description: NotRequired[str | None]
    data: NotRequired[dict[str, Any] | None]
    groups: NotRequired[_Named | None]
    prune: NotRequired[_PruneForm | None]
    finetune: NotRequired[_TunedForm | None]


class HeadForm(TypedDict):
    """The keys of a manifest of any kind; all are optional."""

    recipe: NotRequired[str]
    created: NotRequired[str | None]
    commit: NotRequired[str | None]
    prunekit: NotRequired[str | None]
    versions: NotRequired[dict[str, Any] | None]
    device: NotRequired[str | None]
    threads: NotRequired[Whole | None]
    config_hash: NotRequired[str | None]
    config: NotRequired[_ConfigForm | None]
    seeds: NotRequired[dict[str, Any] | None]
    seconds: NotRequired[Named[Amount] | None]
    ledger: NotRequired[Many[LedgerForm] | None]
    groupings: NotRequired[Many[dict[str, Any]] | None]


class _FeaturesForm(TypedDict):
    name: NotRequired[str]
    sha256: NotRequired[str | None]
    accuracy: NotRequired[float | None]
    resolution: NotRequired[int | None]


class _EstimateForm(TypedDict):
    mean: NotRequired[float | None]
    se: NotRequired[Amount | None]


class _DistanceForm(TypedDict):
    mean: NotRequired[_Distance | None]
    se: NotRequired[Amount | None]


class _LossForm(TypedDict):
    mean: NotRequired[Amount | None]
    se: NotRequired[Amount | None]


class _TrainingForm(TypedDict):
    macs: NotRequired[Whole]


class _BaseForm(TypedDict):
    macs: Positive
    params: Positive
    sha256: NotRequired[str | None]
    data: NotRequired[dict[str, Any] | None]
    noise_schedule: dict[str, Any]
    training: NotRequired[_TrainingForm | None]


class _ExpertForm(TypedDict):
    group: Whole
    target_macs: NotRequired[Whole | None]
    macs: Whole
    params: Whole
    widths: NotRequired[Named[Pair[Whole]] | None]


class _AssembledForm(TypedDict):
    mean_macs: _Above
    mean_mac_ratio: _Above
    params: Whole


class _GroupLossForm(TypedDict):
    group: Whole
    base: NotRequired[_LossForm | None]
    pruned: NotRequired[_LossForm | None]
    expert: NotRequired[_LossForm | None]
    difference: NotRequired[_EstimateForm | None]


class _MetricRowForm(TypedDict):
    model: str
    fid: NotRequired[_DistanceForm | None]
    kid: NotRequired[_EstimateForm | None]
    seconds_per_image: NotRequired[Amount | None]
    mean_macs: NotRequired[Amount | None]
    mac_ratio: NotRequired[Amount | None]


class MetricsForm(TypedDict):
    """Sample quality, in a manifest or an evaluation."""

    features: NotRequired[_FeaturesForm | None]
    count: Positive
    sampler: NotRequired[str]
    steps: NotRequired[int | None]
    seeds: NotRequired[Many[int] | None]
    rows: Many[_MetricRowForm]


class RunForm(HeadForm):
    """A run that makes timestep experts."""

    base: _BaseForm
    allocation: dict[str, Any]
    experts: NotRequired[Many[_ExpertForm] | None]
    assembled: NotRequired[_AssembledForm | None]
    losses: NotRequired[Many[_GroupLossForm] | None]
    metrics: NotRequired[dict[str, Any] | None]


class _LookForm(TypedDict):
    training_macs: _Above
    loss: Amount
    fid: NotRequired[_Distance | None]
    count: NotRequired[Positive]
    features: NotRequired[_FeaturesForm | None]


_Curve = Annotated[list[_LookForm], Bounded(min_length=1)]


class _CurriculumRow(TypedDict):
    entry: str
    curve: _Curve


class CurriculumRows(TypedDict):
    """The results of a comparison of ways to train."""

    curriculum: Annotated[list[_CurriculumRow], Bounded(min_length=1)]


class _MultistageRow(TypedDict):
    network: str
    grouping: str
    cuts: Many[Whole]
    stage_macs: Many[Whole]
    sampling_macs: _Above
    params: Whole
    curve: _Curve


class MultistageRows(TypedDict):
    """The results of a comparison of networks for stages."""

    multistage: Annotated[list[_MultistageRow], Bounded(min_length=1)]


class _TrainForm(TypedDict):
    steps: Whole
    batch_size: Whole
    lr_scheduler: Literal["constant", "cosine"]


class _TrainedForm(TypedDict):
    checkpoint: NotRequired[str | None]
    train: _TrainForm


class _SamplingForm(TypedDict):
    seeds: Many[int]
    sampler: str
    sampling_steps: Whole


class _CurriculumSection(_SamplingForm):
    entries: Named[dict[str, Any]]


class _CurriculumConfig(TypedDict):
    description: str
    base: _TrainedForm
    curriculum: _CurriculumSection


class _MultistageConfig(TypedDict):
    description: str
    base: _TrainedForm
    multistage: _SamplingForm


class _UnifiedForm(TypedDict):
    training_macs: Amount


class CurriculumForm(CurriculumRows):
    """A comparison of ways to train, with everything that its page shows."""

    recipe: str
    config: _CurriculumConfig


class MultistageForm(MultistageRows):
    """A comparison of networks for stages, with everything that its page shows."""

    recipe: str
    config: _MultistageConfig
    unified: _UnifiedForm


class _MeanForm(TypedDict):
    mean: Amount


class _EvidenceRow(TypedDict):
    entry: str
    group: Literal["base", "experts", "baseline", "ablation"]
    seed: NotRequired[int | None]
    sampling_macs: _Above
    params: Whole
    training_macs: Named[Amount]
    losses: Many[_MeanForm]
    loss: Amount
    fid: NotRequired[_Distance | None]
    kid: NotRequired[float | None]
    ssim: NotRequired[float | None]
    seconds_per_image: NotRequired[Amount | None]


class _EvidenceMetrics(TypedDict):
    features: Any  # a text in older manifests
    count: Positive
    sampler: NotRequired[str | None]
    steps: NotRequired[int | None]


class EvidenceForm(TypedDict):
    """A comparison of experts with baselines."""

    evidence: Annotated[list[_EvidenceRow], Bounded(min_length=1)]
    metrics: _EvidenceMetrics
    groups: Many[Whole]
    reference: str
    headline: str


class _ChannelsForm(TypedDict):
    name: str
    size: Positive


class ImportanceForm(TypedDict):
    """The part of an importance map that pages show."""

    criterion: str
    timestep_groups: Many[GroupForm]
    channel_groups: Many[_ChannelsForm]
    left_whole: Named[str]
    scores: Many[Many[Many[float]]]


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """``manifest.json`` of a run's folder, its head checked; each kind of run checks its own part.

    Raises:
        MissingFileError: there is no manifest.
        FileFormatError: it cannot be read.
    """
    folder = Path(folder)
    manifest: Any = read_document(folder / "manifest.json", HeadForm, MANIFEST_FORMAT, AGAIN)
    return dict(manifest)
