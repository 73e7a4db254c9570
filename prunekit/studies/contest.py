"""One network for all timesteps, networks for stages, and one encoder with several decoders, at equal training MACs.

This is the comparison in the paper on the multi-stage framework (arXiv:2312.09181, tables 4 and 5), with a recipe's own images
and U-Net.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from prunekit.checkpoint import ModelSpec
from prunekit.cost import count_macs
from prunekit.data import ImageSplit
from prunekit.errors import InputError
from prunekit.graph import PruningPlan
from prunekit.graph.copying import copied
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.importance import Probe
from prunekit.ledger import LedgerRow, forwards, spent_on_training
from prunekit.nets import MultiDecoderUNet, TimestepExperts
from prunekit.recipe import EvaluationOptions, MultistageOptions
from prunekit.results.learning_results import MultistageRow
from prunekit.schedule import Parameterization, Parameterized
from prunekit.slim import SlimModel
from prunekit.steps.bases import seeded_weights
from prunekit.steps.budgets import evaluations
from prunekit.studies.judge import Judge
from prunekit.training import (
    Callback,
    DenoisingObjective,
    EarlyStop,
    RangeTimesteps,
    Reporter,
    Snapshots,
    StageTimesteps,
    TimestepSampler,
    TrainOptions,
    train,
    with_weights,
)

__all__ = ["Contest"]

_BATCH = 256  # draws in a forward pass of an early stop's looks


@dataclass(frozen=True, eq=False)
class Contest(Parameterized):
    """The settings that all networks of the comparison share.

    Args:
        spec: the unified network, a diffusers ``UNet2DModel``.
        images: training images, and held-out ones for the losses.
        parameterization: the noise schedule, and what the networks predict.
        train: the unified network's training; the others get the number of steps that costs the same MACs.
        options: see :class:`prunekit.recipe.MultistageOptions`.
        evaluation: the measurements at every look.
        start: trained network from which all networks continue, which excludes tailored widths; None for random weights.

    Raises:
        InputError: the network is no ``UNet2DModel``.
    """

    spec: ModelSpec
    images: ImageSplit
    parameterization: Parameterization
    train: TrainOptions
    options: MultistageOptions
    evaluation: EvaluationOptions
    start: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.spec.class_name != "UNet2DModel":
            raise InputError(f"Got a {self.spec.class_name}; a comparison of multi-decoder U-Nets needs a UNet2DModel.")

    @cached_property
    def macs(self) -> int:
        """MACs per sample of the unified network."""
        return count_macs(self.spec.build(), self.spec.example_inputs()).macs

    @cached_property
    def judge(self) -> Judge:
        """The judge that measures all networks."""
        sampler, steps = self.options.sampler, self.options.sampling_steps
        return Judge(self.images, self.parameterization, sampler, steps, self.evaluation)

    @property
    def budget(self) -> int:
        """Training MACs of every network; a backward pass counts as two forward passes."""
        return 3 * self.macs * self.train.batch_size * self._whole_looks(self.train.steps)

    def run(
        self,
        network: str,
        groups: TimestepGroups,
        seed: int,
        checkpoints: Path,
        report: Reporter | None = None,
        images: Path | None = None,
    ) -> tuple[MultistageRow, list[LedgerRow], nn.Module]:
        """Train one network and measure it during the training.

        Args:
            network: ``unified``, ``separate``, ``equal`` or ``tailored``.
            groups: the stages; for ``unified`` they only say for which timesteps its losses are reported.
            seed: seed of the initial weights, the batches and the noise.
            checkpoints: folder for the checkpoints of this training only.
            report: is told the progress of the training.
            images: where the trained network's first images are kept for the report; None not to keep them.

        Returns:
            The measurements, what the training cost, and the trained network: the moving average, of which the measurements are.
        """
        parts, stops = self._parts(network, groups, seed), self._stops(network, groups)
        samplers = self._samplers(network, groups, stops[0])
        part_macs = [self._part_macs(part) for part in parts]
        share = self.budget / len(parts)
        looks: list[list[dict[str, Tensor]]] = []
        spent, ledger = [0] * self.options.looks, list[LedgerRow]()
        for i, (part, sampler, stop, macs) in enumerate(zip(parts, samplers, stops, part_macs, strict=True)):
            expected = (
                float(max(macs)) if stop else self._expected(macs, groups)
            )  # the costliest stage may be left alone
            steps = self._whole_looks(share / (3 * expected * self.train.batch_size))
            snapshots = Snapshots(steps // self.options.looks)
            settings = replace(self.train, steps=steps, seed=seed * 1009 + i)
            objective = DenoisingObjective(self.images.train.images, self.parameterization)
            watching: list[Callback] = [snapshots] if stop is None else [snapshots, stop]
            result = train(part, objective, sampler, settings, checkpoints / f"part-{i}", report, watching)
            taken = steps if stop is None or stop.active else stop.history[-1][0]
            looks.append([state for _, state in snapshots.kept])
            looks[-1] += [result.model.state_dict()] * (self.options.looks - len(looks[-1]))  # it ended early
            own = self._spent(result.seen, macs, groups)
            averaged = sum(parameter.numel() for parameter in part.parameters())
            _, average = spent_on_training(network, result.samples, 0, averaged, self.train.batch_size)
            ledger += [LedgerRow(network, "training", result.samples, own, own // 3), average]
            if stop is not None:
                ledger.append(self._watched(network, stop, macs))
            so_far = [min((look + 1) * snapshots.every, taken) for look in range(self.options.looks)]
            spent = [total + own * done // taken for done, total in zip(so_far, spent, strict=True)]
        curve = []
        for look, macs_then in enumerate(spent):  # the last one is of the end
            model = self._joined(
                [with_weights(part, states[look]) for part, states in zip(parts, looks, strict=True)], groups
            )
            kept = images if look == len(spent) - 1 else None
            curve.append(self.judge(model, groups, images=kept, training_macs=macs_then))
        stage_macs = part_macs[0] if network in ("equal", "tailored") else [own[0] for own in part_macs]
        row = MultistageRow(
            network=network,
            grouping=groups.method,
            cuts=list(groups.cuts),
            seed=seed,
            stage_macs=list(stage_macs),
            sampling_macs=self._sampling_macs(list(stage_macs), groups),
            params=sum(parameter.numel() for parameter in model.parameters()),
            curve=curve,
        )
        return row, ledger, model

    def _whole_looks(self, steps: float) -> int:
        """Steps rounded to a multiple of the looks, so that the last look is at the end."""
        return max(1, round(steps / self.options.looks)) * self.options.looks

    def _parts(self, network: str, groups: TimestepGroups, seed: int) -> list[nn.Module]:
        """Networks to train one after the other: randomly initialised, or copies of the network to start from."""
        if self.start is not None:
            if network == "equal":
                return [MultiDecoderUNet.from_unet(self.start, groups, self.options.middle)]
            return [copied(self.start) for _ in (groups if network == "separate" else range(1))]
        widths = self.options.widths if network == "tailored" else None
        with seeded_weights(seed):
            if network in ("equal", "tailored"):
                return [MultiDecoderUNet(self.spec.config, groups, widths, self.options.middle)]
            return [self.spec.build() for _ in (groups if network == "separate" else range(1))]

    def _stops(self, network: str, groups: TimestepGroups) -> list[EarlyStop | None]:
        """The early stop of every part, if it has one."""
        options = self.options.early_stop
        watched: list[TimestepGroups | list[TimestepGroup]] = [groups]
        if network == "separate":
            watched = [[group] for group in groups]
        if options is None or network == "unified":
            return [None] * len(watched)
        return [EarlyStop(own, self._held_out_loss, **asdict(options)) for own in watched]

    def _held_out_loss(self, model: nn.Module, group: TimestepGroup) -> float:
        """Loss of a network on a stage, on held-out images."""
        objective = DenoisingObjective(self.images.held_out.images, self.parameterization)
        return Probe(objective, group, self.evaluation.loss_samples, _BATCH).mean(model)

    def _watched(self, network: str, stop: EarlyStop, macs: Sequence[int]) -> LedgerRow:
        """What the looks of an early stop cost."""
        own = list(macs) if len(macs) == len(stop.groups) else list(macs) * len(stop.groups)
        each = len(stop.history) * self.evaluation.loss_samples
        return forwards(network, "training", each * len(own), each * sum(own))

    def _samplers(self, network: str, groups: TimestepGroups, stop: EarlyStop | None) -> list[TimestepSampler]:
        if network == "separate":
            return [RangeTimesteps(group.start, group.stop) for group in groups]
        if network == "unified":
            return [RangeTimesteps(0, self.schedule.num_timesteps)]
        return [StageTimesteps(groups, self.options.draw, stop)]

    def _part_macs(self, part: nn.Module) -> tuple[int, ...]:
        """MACs per sample of every stage, or of the one network."""
        return part.stage_macs() if isinstance(part, MultiDecoderUNet) else (self.macs,)

    def _expected(self, macs: Sequence[int], groups: TimestepGroups) -> float:
        """Mean MACs of a training sample."""
        if len(macs) == 1:
            return float(macs[0])
        odds = [len(group) if self.options.draw == "proportional" else 1 for group in groups]
        return sum(part * odd for part, odd in zip(macs, odds, strict=True)) / sum(odds)

    @staticmethod
    def _spent(seen: Tensor, macs: Sequence[int], groups: TimestepGroups) -> int:
        """MACs that a training took, from the timesteps that it drew."""
        if len(macs) == 1:
            return 3 * macs[0] * int(seen.sum())
        by_stage = [int(seen[group.start : group.stop].sum()) for group in groups]
        return 3 * sum(count * own for count, own in zip(by_stage, macs, strict=True))

    def _joined(self, parts: Sequence[nn.Module], groups: TimestepGroups) -> nn.Module:
        """One denoiser made of the networks."""
        if len(parts) == 1:
            return parts[0].eval()
        plan, total = PruningPlan({}, ""), self.schedule.num_timesteps
        slims = [
            SlimModel(part.eval(), self.spec, plan, {}, group, total, self.macs, 0)
            for part, group in zip(parts, groups, strict=True)
        ]
        experts = TimestepExperts(groups, slims)
        experts.eval()
        return experts

    def _sampling_macs(self, stage_macs: list[int], groups: TimestepGroups) -> float:
        """Mean MACs of an evaluation while sampling."""
        if len(stage_macs) == 1:
            return float(stage_macs[0])
        shares = groups.shares(evaluations(self.schedule, self.options.sampler, self.options.sampling_steps))
        return float(sum(share * macs for share, macs in zip(shares, stage_macs, strict=True)))
