"""Importance of every channel group and residual branch for every timestep group, as one immutable, JSON-able object."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from torch import nn

from prunekit._containers import read_npz
from prunekit._files import atomic_path, canonical_json, write_json
from prunekit._json import JsonDict, JsonObject, parse_json, read_json
from prunekit._progress import told
from prunekit._types import FloatArray
from prunekit.errors import FileFormatError, InputError, LimitError, MissingFileError
from prunekit.graph import ChannelGraph, HeadMode, NormMode, Shrink, trace
from prunekit.graph.forward_pass import Inputs, check_has_values, check_one_sample, undisturbing
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.importance.channel_sums import parts_of
from prunekit.importance.contents import Contents
from prunekit.importance.criteria import WITHOUT_LOSS, criterion
from prunekit.importance.loss_checks import check_repeats
from prunekit.importance.probe import DrawnLoss, Loss, Probe, no_loss
from prunekit.importance.protocol import Criterion, Scores
from prunekit.results.formats import IMPORTANCE

if TYPE_CHECKING:
    from prunekit.results.planning_files import ImportanceAbout, ImportanceFile

__all__ = ["ImportanceMap", "importance"]

_AGAIN = "make it again with `prunekit importance`"
_Frame = TypeVar("_Frame")


@dataclass(frozen=True, eq=False)
class ImportanceMap:
    """Scores of every channel for each timestep group, and of residual branches that can be removed.

    A branch is an entry with one score, beside the channel groups.

    Args:
        criterion: name of the criterion.
        timestep_groups: the groups that were scored, in the order of ``scores``.
        sizes: number of channels of each channel group, in network order, then 1 for each branch.
        left_whole: layers that were not scored because they are never pruned, with the reason.
        scores: for each timestep group, a mapping from channel group name to scores of shape (size,), higher = keep.
        branches: the entries that are branches, with what is removed with each.
    """

    criterion: str
    timestep_groups: tuple[TimestepGroup, ...]
    sizes: Mapping[str, int]
    left_whole: Mapping[str, str]
    scores: tuple[Scores, ...]
    branches: Mapping[str, Contents] = field(default_factory=dict)

    def __repr__(self) -> str:
        channels = self.channels
        return (
            f"<ImportanceMap by {self.criterion!r}: timestep groups {len(self.timestep_groups)}, channel groups {len(channels)}, "
            f"channels {sum(channels.values())}, residual branches {len(self.branches)}>"
        )

    @property
    def channels(self) -> dict[str, int]:
        """Number of channels of each channel group, without the branches."""
        return {name: size for name, size in self.sizes.items() if name not in self.branches}

    def of(self, group: int) -> Scores:
        """Scores for the timestep group with this index.

        Raises:
            InputError: the timestep group was not scored.
        """
        for timestep_group, scores in zip(self.timestep_groups, self.scores, strict=True):
            if timestep_group.index == group:
                return scores
        raise InputError(
            f"Timestep group {group} was not scored; expected one of {[g.index for g in self.timestep_groups]}."
        )

    def to_frame(self, make: Callable[[JsonObject], _Frame]) -> _Frame:
        """A tidy table: one row per timestep group, channel group and channel; a branch has one row.

        Args:
            make: makes a table from named columns, such as ``pandas.DataFrame``; this package does not depend on pandas.
        """
        sizes = list(self.sizes.values())
        count, channels = len(self.timestep_groups), sum(sizes)
        names = np.repeat(np.array(list(self.sizes), dtype=object), sizes)
        return make(
            {
                "timestep_group": np.repeat([group.index for group in self.timestep_groups], channels),
                "channel_group": np.tile(names, count),
                "channel": np.tile(np.concatenate([np.arange(size) for size in sizes] or [np.arange(0)]), count),
                "score": np.concatenate(
                    [scores[name] for scores in self.scores for name in self.sizes] or [np.zeros(0)]
                ),
            }
        )

    def records(self) -> list[JsonObject]:
        """The rows of :meth:`to_frame`, one dict each."""
        columns = self.to_frame(dict)
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def save(self, path: Path | str) -> None:
        """Write ``.json``, or ``.npz`` (smaller, the same numbers); atomically.

        Raises:
            InputError: the name ends with neither.
        """
        path = _known(Path(path))
        about = self.to_json()
        if path.suffix == ".json":
            write_json(path, about)
            return
        del about["scores"]
        arrays: dict[str, Any] = {f"scores_{i}": values for i, values in enumerate(self._stacked())}
        with atomic_path(path) as part, part.open("wb") as handle:
            np.savez_compressed(handle, about=np.array(canonical_json(about)), **arrays)

    @classmethod
    def load(cls, path: Path | str) -> "ImportanceMap":
        """Read what :meth:`save` wrote; nothing in the file can run code.

        Raises:
            InputError: the name ends with neither ``.json`` nor ``.npz``.
            MissingFileError: there is no such file.
            FileFormatError: it is not an importance map.
        """
        from prunekit.results.planning_files import ImportanceAbout  # noqa: PLC0415 - loads pydantic

        path = _known(Path(path))
        if path.suffix == ".json":
            return cls.from_json(read_json(path, IMPORTANCE), path)
        if not path.is_file():
            raise MissingFileError(f"{path} does not exist; expected an importance map there.")
        try:
            arrays = read_npz(path)
            about = ImportanceAbout.of(parse_json(str(arrays["about"]).encode(), str(path)), str(path), _AGAIN)
            stacked = [arrays[f"scores_{i}"] for i in range(len(about.channel_groups))]
            rows = range(len(about.timestep_groups))
            scores = [[np.array(values[row], dtype=np.float64) for values in stacked] for row in rows]
            return cls._of(about, scores)
        except LimitError:
            raise
        except FileFormatError as error:
            raise FileFormatError(str(error) if _AGAIN in str(error) else f"{error} Or {_AGAIN}.") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"{path} cannot be read as an importance map ({error}); make it again with `prunekit importance`."
            ) from error

    def _stacked(self) -> list[FloatArray]:
        """For each channel group, scores of shape (timestep groups, size)."""
        return [
            np.array([scores[name] for scores in self.scores]).reshape(len(self.scores), size)
            for name, size in self.sizes.items()
        ]

    def to_json(self) -> dict[str, object]:
        """The content of ``importance.json``."""
        return {
            "format": IMPORTANCE,
            "criterion": self.criterion,
            "timestep_groups": [{"index": g.index, "start": g.start, "stop": g.stop} for g in self.timestep_groups],
            "channel_groups": [{"name": name, "size": size} for name, size in self.sizes.items()],
            "left_whole": dict(self.left_whole),
            **({"branches": {name: own.to_json() for name, own in self.branches.items()}} if self.branches else {}),
            "scores": [[scores[name].tolist() for name in self.sizes] for scores in self.scores],
        }

    @classmethod
    def from_json(cls, data: "ImportanceFile | JsonDict", source: Path | str = "The importance map") -> "ImportanceMap":
        """Read what :meth:`to_json` wrote.

        Args:
            data: JSON, or the content of a file that has been read.
            source: where it comes from, for error messages.

        Raises:
            FileFormatError: a key is missing or of the wrong type, or numbers do not fit each other.
        """
        from prunekit.results.planning_files import ImportanceFile  # noqa: PLC0415 - loads pydantic

        known = ImportanceFile.of(data, str(source), _AGAIN)
        try:
            return cls._of(known, [[np.array(values, dtype=np.float64) for values in row] for row in known.scores])
        except ValueError as error:
            raise FileFormatError(f"{source} cannot be read ({error}); {_AGAIN}.") from error

    @classmethod
    def _of(cls, about: "ImportanceAbout", scores: list[list[FloatArray]]) -> "ImportanceMap":
        """The map of these scores, if they match their description.

        Raises:
            ValueError: they do not match.
        """
        groups = tuple(map(TimestepGroup.of, about.timestep_groups))
        sizes = {group.name: group.size for group in about.channel_groups}
        if len(sizes) < len(about.channel_groups):
            raise ValueError("two channel groups have one name")
        if any(group.stop <= group.start for group in groups) or len({g.index for g in groups}) < len(groups):
            raise ValueError("a timestep group is empty or occurs twice")
        if len(scores) != len(groups):
            raise ValueError(f"{len(scores)} sets of scores for {len(groups)} timestep groups")
        if any([values.shape for values in row] != [(size,) for size in sizes.values()] for row in scores):
            raise ValueError("a channel group has another number of scores than channels")
        branches = {
            name: Contents(tuple(own.layers), tuple(own.channel_groups)) for name, own in (about.branches or {}).items()
        }
        if any(sizes.get(name) != 1 for name in branches):
            raise ValueError("a branch has no score, or several")
        if not all(np.isfinite(values).all() for row in scores for values in row):
            raise ValueError("a score is not finite")
        by_name = tuple(dict(zip(sizes, row, strict=True)) for row in scores)
        return cls(about.criterion, groups, sizes, dict(about.left_whole), by_name, branches)


@undisturbing
def importance(
    model: nn.Module,
    example_inputs: Inputs,
    loss: Loss | None,
    timestep_groups: Iterable[TimestepGroup],
    *,
    by: str | Criterion = "taylor",
    samples: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    chunk: int = 64,
    distributed: bool = False,
    norm_mode: NormMode = "even",
    head_mode: HeadMode = "whole",
    graph: ChannelGraph | None = None,
    num_timesteps: int | None = None,
    shrink: Shrink = "width",
) -> ImportanceMap:
    """Score every channel of any network, and residual branches if asked, separately for each timestep group.

    Args:
        model: any module; it is not changed.
        example_inputs: arguments of one forward pass, batch 1, by name (a dict) or by place (a tuple).
        loss: ``loss(model, timesteps, generator) -> scalar``, the mean over timesteps of shape (batch,), with all randomness from
            the generator. None for criteria that need no loss (:data:`prunekit.importance.WITHOUT_LOSS`).
        timestep_groups: the groups to score for: a :class:`prunekit.groups.TimestepGroups`, or some of its groups. Each group is
            scored on its own timesteps only; criteria of the whole model use all timesteps of the model.
        by: a criterion or its name.
        samples: number of timesteps per group in the calibration set.
        batch_size: number of timesteps evaluated at once, for losses that draw separately
            (:class:`prunekit.importance.DrawnLoss`). It changes no draw: scores stay the same up to rounding.
        seed: seed of the calibration set.
        chunk: number of draws that share a generator, and of timesteps per call of a loss that does not draw separately. Another
            value gives another calibration set.
        distributed: share the work with the other processes of torch.distributed, see :class:`prunekit.importance.Probe`.
        norm_mode: how group norms will shrink, see :func:`prunekit.graph.trace`.
        head_mode: how attentions will shrink, see :func:`prunekit.graph.trace`.
        graph: the network's channel groups, if they are known already, in place of the modes and of ``shrink``.
        num_timesteps: T of the model, for criteria of the whole model; if missing, the partition's T or the last group's end.
        shrink: what may become smaller, see :meth:`prunekit.graph.ChannelGraph.shrinking`. With ``depth`` and ``both``, residual
            branches are scored, too.

    Returns:
        Scores in network order, higher = keep.

    Raises:
        GraphError: the network cannot be traced.
        InputError: the criterion is unknown, the loss is missing or is not one number, or scores are not finite.
    """
    groups = _checked_groups(timestep_groups)
    if not isinstance(by, str) and not callable(by):
        raise InputError(f"Got {by!r:.80} as the criterion; expected its name, such as 'taylor', or a criterion.")
    check_has_values(model)
    check_one_sample(example_inputs)
    rule = criterion(by) if isinstance(by, str) else by
    graph = trace(model, example_inputs, norm_mode, head_mode, shrink=shrink) if graph is None else graph
    _check_real(model, graph)
    partition = timestep_groups.num_timesteps if isinstance(timestep_groups, TimestepGroups) else 0
    stop = num_timesteps or partition
    if getattr(rule, "whole_model", False):
        scored = [TimestepGroup(0, 0, max([stop, *(group.stop for group in groups)]))] if groups else []
    else:
        scored = list(groups)
    asked = loss or no_loss
    unasked = loss is None or (isinstance(by, str) and by in WITHOUT_LOSS)
    if scored and not unasked and not isinstance(cast(object, loss), DrawnLoss):
        check_repeats(Probe(asked, scored[0], samples, batch_size, seed, chunk, distributed), model)
    scores = [
        rule(model, graph, Probe(asked, one, samples, batch_size, seed, chunk, distributed))
        for one in told("importance of timestep groups", scored)
    ]
    for one, by_name in zip(scored, scores, strict=True):
        bad = [name for name, values in by_name.items() if not np.isfinite(values).all()]
        if bad:
            raise InputError(
                f"The scores of {bad[0]} on timesteps {one.start} to {one.stop - 1} are not finite; "
                "expected finite weights and a finite loss."
            )
    if len(scores) < len(groups):
        scores = [{name: values.copy() for name, values in scores[0].items()} for _ in groups]
    name = by if isinstance(by, str) else getattr(by, "__name__", type(by).__name__)
    left_whole = {**_stuck(graph), **graph.left_whole}
    branches = {g.name: Contents.of(model, graph, g.branch) for g in graph if g.branch is not None}
    return ImportanceMap(name, groups, {g.name: g.size for g in graph}, left_whole, tuple(scores), branches)


def _stuck(graph: ChannelGraph) -> dict[str, str]:
    """The entries of a graph that cannot become smaller, with the reason."""
    stuck = [group for group in graph if len(group.widths) == 1]
    others = [group for group in graph if group.branch is None and len(group.widths) > 1]
    reason = "no smaller width is possible"
    kept = "channels are kept, since only branches are removed" if graph.switches and not others else reason
    return {g.name: kept if g.branch is None else "a constraint keeps it" for g in stuck}


def _known(path: Path) -> Path:
    if path.suffix not in (".json", ".npz"):
        raise InputError(f"{path} ends with {path.suffix or 'nothing'}; expected .json or .npz.")
    return path


def _checked_groups(timestep_groups: object) -> tuple[TimestepGroup, ...]:
    """The groups; anything else is refused."""
    if isinstance(timestep_groups, TimestepGroup):
        raise InputError(
            f"Got the single timestep group {timestep_groups.index}; expected TimestepGroups or a list: "
            f"[groups[{timestep_groups.index}]]."
        )
    groups = tuple(timestep_groups) if isinstance(timestep_groups, Iterable) else (timestep_groups,)
    for one in groups:
        if not isinstance(one, TimestepGroup):
            raise InputError(
                f"Got {one!r:.80} as a timestep group; expected TimestepGroups, such as make_groups(schedule, count=5), or a list "
                "of its groups."
            )
    return groups


def _check_real(model: nn.Module, graph: ChannelGraph) -> None:
    """Refuse complex weights of channels that may leave: no criterion is defined on them."""
    parameters = dict(model.named_parameters())
    for group in graph:
        for part in parts_of(model, group, parameters) if group.least < group.size else ():
            if part.parameter.is_complex():
                raise InputError(
                    f"{part.key} has complex numbers, which no criterion scores; expected real weights, or a graph traced with "
                    f"Constraints(keep=({group.name!r},))."
                )
