"""Importance of every channel group for every timestep group, as one immutable, JSON-able object."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from prunekit._types import JsonDict
from prunekit.errors import FileFormatError, InputError
from prunekit.graph import ChannelGraph, HeadMode, NormMode, trace
from prunekit.graph.surgery import Inputs
from prunekit.groups import TimestepGroup
from prunekit.importance.criteria import Criterion, Scores, criterion
from prunekit.importance.probe import Loss, Probe

__all__ = ["FORMAT", "ImportanceMap", "importance"]

FORMAT = "prunekit-importance/1"


@dataclass(frozen=True, eq=False)
class ImportanceMap:
    """Scores of every channel, for each timestep group.

    Args:
        criterion: its name.
        timestep_groups: the groups that were scored, in the order of ``scores``.
        sizes: channels of each channel group, in network order.
        left_whole: layers that were not scored because they are never pruned, with the reason.
        scores: for each timestep group, name of the channel group to scores of shape (size,), higher = keep.
    """

    criterion: str
    timestep_groups: tuple[TimestepGroup, ...]
    sizes: Mapping[str, int]
    left_whole: Mapping[str, str]
    scores: tuple[Scores, ...]

    def of(self, group: int) -> Scores:
        """Scores for the timestep group of this index."""
        for timestep_group, scores in zip(self.timestep_groups, self.scores, strict=True):
            if timestep_group.index == group:
                return scores
        raise InputError(
            f"Timestep group {group} was not scored; expected one of {[g.index for g in self.timestep_groups]}."
        )

    def records(self) -> list[dict[str, Any]]:
        """One row per timestep group, channel group and channel: ``pandas.DataFrame(map.records())`` is tidy."""
        return [
            {"timestep_group": group.index, "channel_group": name, "channel": channel, "score": float(value)}
            for group, scores in zip(self.timestep_groups, self.scores, strict=True)
            for name, values in scores.items()
            for channel, value in enumerate(values)
        ]

    def to_json(self) -> dict[str, Any]:
        """The content of ``importance.json``."""
        return {
            "format": FORMAT,
            "criterion": self.criterion,
            "timestep_groups": [{"index": g.index, "start": g.start, "stop": g.stop} for g in self.timestep_groups],
            "channel_groups": [{"name": name, "size": size} for name, size in self.sizes.items()],
            "left_whole": dict(self.left_whole),
            "scores": [[scores[name].tolist() for name in self.sizes] for scores in self.scores],
        }

    @classmethod
    def from_json(cls, data: JsonDict) -> "ImportanceMap":
        """Read what :meth:`to_json` wrote."""
        try:
            groups = tuple(TimestepGroup(g["index"], g["start"], g["stop"]) for g in data["timestep_groups"])
            sizes = {str(g["name"]): int(g["size"]) for g in data["channel_groups"]}
            scores = tuple(
                {name: np.array(values, dtype=np.float64) for name, values in zip(sizes, row, strict=True)}
                for row in data["scores"]
            )
            if any(scores_[name].shape != (size,) for scores_ in scores for name, size in sizes.items()):
                raise ValueError("a channel group has another number of scores than channels")
            if len(scores) != len(groups):
                raise ValueError(f"{len(scores)} sets of scores for {len(groups)} timestep groups")
            return cls(str(data["criterion"]), groups, sizes, dict(data["left_whole"]), scores)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"The importance map cannot be read ({error}); make it again with `prunekit importance`."
            ) from error


def importance(
    model: nn.Module,
    example_inputs: Inputs,
    loss: Loss,
    timestep_groups: Iterable[TimestepGroup],
    *,
    by: str | Criterion = "taylor",
    samples: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    norm_mode: NormMode = "even",
    head_mode: HeadMode = "whole",
    graph: ChannelGraph | None = None,
) -> ImportanceMap:
    """Score every channel of any network, separately for each timestep group.

    Args:
        model: any module; it is not changed.
        example_inputs: arguments of one forward pass, batch 1, by name (a dict) or by place (a tuple).
        loss: ``loss(model, timesteps, generator) -> scalar``, timesteps of shape (batch,), all randomness from the generator.
        timestep_groups: what to score for: a :class:`prunekit.groups.TimestepGroups`, or some of its groups. Only a
            group's own timesteps are used for it.
        by: a criterion or its name.
        samples: timesteps per group in the calibration set.
        batch_size: timesteps per call of ``loss``.
        seed: of the calibration set.
        norm_mode: how group norms will shrink, see :func:`prunekit.graph.trace`.
        head_mode: how attentions will shrink, see :func:`prunekit.graph.trace`.
        graph: the network's channel groups where they are known already.

    Returns:
        Scores in network order, higher = keep.

    Raises:
        GraphError: the network cannot be traced.
        InputError: the criterion is unknown, the loss is not one number, or scores are not finite.
    """
    timestep_groups = tuple(timestep_groups)
    rule = criterion(by) if isinstance(by, str) else by
    graph = trace(model, example_inputs, norm_mode, head_mode) if graph is None else graph
    scores = tuple(rule(model, graph, Probe(loss, group, samples, batch_size, seed)) for group in timestep_groups)
    for timestep_group, by_name in zip(timestep_groups, scores, strict=True):
        bad = [name for name, values in by_name.items() if not np.isfinite(values).all()]
        if bad:
            raise InputError(
                f"The scores of {bad[0]} on timestep group {timestep_group.index} are not finite; "
                "expected finite weights and a finite loss."
            )
    name = by if isinstance(by, str) else getattr(by, "__name__", type(by).__name__)
    return ImportanceMap(name, timestep_groups, {g.name: g.size for g in graph}, dict(graph.left_whole), scores)
