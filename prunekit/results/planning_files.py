"""The files with which pruning is planned: timestep groups, the allocation, and the importance of channels."""

from typing import Annotated

from prunekit._json import Bounded, Many, Named, Number, Pair, Positive, Ratio, Unchanged, Whole
from prunekit.results.formats import ALLOCATION, GROUPS, IMPORTANCE
from prunekit.results.model import Free, Is, Model, NotNull
from prunekit.results.recovery_files import RecoveryPart
from prunekit.results.sensitivity_files import SensitivityFile

__all__ = [
    "AllocationFile",
    "BranchPart",
    "ChannelsPart",
    "FrontierPart",
    "GroupPart",
    "GroupingEvidence",
    "GroupsFile",
    "ImportanceAbout",
    "ImportanceFile",
    "Judged",
    "Partition",
    "TargetPart",
]

_Part = Annotated[
    float, Bounded(gt=0, le=1 + 1e-9), Unchanged()
]  # rules round, so a whole network may be slightly above 1


class GroupPart(Model):
    """A timestep group.

    Args:
        index: its index, 0 = cleanest.
        start: first timestep.
        stop: one past the last timestep.
    """

    index: Whole
    start: Whole
    stop: Whole


class GroupingEvidence(Model):
    """The measurements that a grouping method used.

    Args:
        timesteps: where the method measured, rising.
        curves: for each curve, a number for each of these timesteps.
        matrix: similarity of each two of these timesteps; None if it was not measured.
        facts: thresholds, seeds, and the method's choices.
    """

    timesteps: Many[Whole]
    curves: Named[Many[float]]
    matrix: Many[Many[float]] | None
    facts: Free


class Partition(Model):
    """Timestep groups.

    Args:
        num_timesteps: number of timesteps T.
        method: how the timesteps were cut.
        groups: the groups, which cover all timesteps.
    """

    num_timesteps: Whole
    method: str = "explicit"
    groups: Many[GroupPart]


class _GroupsHead(Model):
    """The format.

    Args:
        format: name and version of the format.
    """

    format: Annotated[str, Is(GROUPS)]


class GroupsFile(Partition, _GroupsHead):
    """Timestep groups and how they were found, `groups.json`.

    Args:
        evidence: the measurements that the method used; older versions wrote none.
        noise_schedule: the noise schedule that they were cut for.
    """

    evidence: Annotated[GroupingEvidence | None, NotNull()] = None
    noise_schedule: Annotated[Free | None, NotNull()] = None


class TargetPart(Model):
    """A timestep group's part of the budget.

    Args:
        index: its index, 0 = cleanest.
        start: first timestep.
        stop: one past the last timestep.
        snr_db: mean SNR of its timesteps, in dB.
        share: fraction of the sampler's steps that fall into it.
        mac_ratio: target MACs as a fraction of the base's.
        target_macs: the target; None if no model is known yet.
    """

    index: Whole
    start: Whole
    stop: Whole
    snr_db: Number
    share: Ratio
    mac_ratio: _Part
    target_macs: Whole | None


class FrontierPart(Model):
    """The losses that a search recorded for a timestep group at rising MACs.

    Args:
        base_macs: MACs of the whole network.
        macs: MACs per sample per evaluation, rising.
        loss: the loss at these MACs, falling.
        recoveries: networks before and after a short fine-tuning, for which the losses are corrected; missing if they are not.
    """

    base_macs: int
    macs: Many[int]
    loss: Many[float]
    recoveries: Annotated[Many[RecoveryPart] | None, NotNull()] = None


class Judged(Model):
    """The allocation of another rule at the same budget.

    Args:
        mac_ratios: target MACs of each timestep group as a fraction of the base's.
        mean_mac_ratio: mean over the sampler's steps.
        loss: mean loss on the frontiers at these ratios, linear between recorded points.
        recorded_loss: the same at the best point within each target.
        change: expected change of the sample at these ratios, with a sensitivity; missing without.
    """

    mac_ratios: Many[Number]
    mean_mac_ratio: Number
    loss: Number | None
    recorded_loss: Number | None
    change: Number | None = None


class AllocationFile(Model):
    """A MAC target for every timestep group, `allocation.json`.

    Args:
        format: name and version of the format.
        budget: mean fraction of the base's MACs over the sampler's steps.
        rule: how the groups share the budget.
        num_timesteps: number of timesteps T.
        sampler: name of the sampler.
        sampler_steps: the sampler's number of steps.
        feasible: smallest and largest budget with this rule.
        groups: the timestep groups and their targets.
        mean_mac_ratio: mean of the targets over the sampler's steps.
        base_macs: MACs of the base; None if no model is known yet.
        network_floor: smallest fraction of its MACs that the base can be pruned to; missing if no model was looked at.
        frontiers: what searches recorded for each timestep group, for rule `measured`.
        sensitivity: how the sampler carries an error of each timestep group into the sample; rule `measured` weighs the losses by
            it. Missing if it was not measured: the losses are then weighed by the numbers of steps.
        comparison: the allocations of the rules auto, linear, snr and measured; None for a rule that cannot meet the budget.
    """

    format: Annotated[str, Is(ALLOCATION)]
    budget: _Part
    rule: str
    num_timesteps: Whole
    sampler: str = "ddim"
    sampler_steps: Positive
    feasible: Annotated[Pair[Ratio] | None, NotNull()] = None
    groups: Many[TargetPart]
    mean_mac_ratio: Annotated[_Part | None, NotNull()] = None
    base_macs: Positive | None
    network_floor: Annotated[Ratio | None, NotNull()] = None
    frontiers: Annotated[Many[FrontierPart] | None, NotNull()] = None
    sensitivity: Annotated[SensitivityFile | None, NotNull()] = None
    comparison: Named[Judged | None] | None = None


class ChannelsPart(Model):
    """A channel group.

    Args:
        name: its name.
        size: number of channels.
    """

    name: str
    size: Positive


class BranchPart(Model):
    """What is removed with a residual branch.

    Args:
        layers: its layers, in the network's order.
        channel_groups: the channel groups, and the branches within it, of which nothing is left without it.
    """

    layers: Many[str]
    channel_groups: Many[str]


class ImportanceAbout(Model):
    """Everything in an importance map except the scores.

    Args:
        format: name and version of the format.
        criterion: name of the criterion.
        timestep_groups: the timestep groups that were scored.
        channel_groups: the channel groups, in the network's order.
        left_whole: layers that are never pruned, with the reason.
        branches: the channel groups that are residual branches, with what is removed with each; missing if branches were not
            scored.
    """

    format: Annotated[str, Is(IMPORTANCE)]
    criterion: str
    timestep_groups: Many[GroupPart]
    channel_groups: Many[ChannelsPart]
    left_whole: Named[str]
    branches: Annotated[Named[BranchPart] | None, NotNull()] = None


class ImportanceFile(ImportanceAbout):
    """The importance of every channel for every timestep group, `importance.json`; higher means keep.

    Args:
        format: name and version of the format.
        criterion: name of the criterion.
        timestep_groups: the timestep groups that were scored.
        channel_groups: the channel groups, in the network's order.
        left_whole: layers that are never pruned, with the reason.
        branches: the channel groups that are residual branches, with what is removed with each; missing if branches were not
            scored.
        scores: for each timestep group and channel group, the score of each channel.
    """

    scores: Many[Many[Many[float]]]
