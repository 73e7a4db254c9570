"""A partition together with its evidence: curves over the timesteps, a map of similarities, the numbers that were used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunekit._json import JsonDict
from prunekit._types import FloatArray, IntArray
from prunekit.errors import FileFormatError, InputError
from prunekit.groups.partition import TimestepGroups

if TYPE_CHECKING:
    from prunekit.results.planning_files import GroupingEvidence, GroupsFile

__all__ = ["Evidence", "Grouping"]

_AGAIN = "make the file again with `prunekit groups`"


_DIGITS = 6  # digits that are stored: a file reads back unchanged, and a map of 64 × 64 stays small


@dataclass(frozen=True, eq=False)
class Evidence:
    """The measurements that a grouping method used.

    Args:
        timesteps: nodes at which the method measured, shape (nodes,), rising.
        curves: name → one number per node, shape (nodes,).
        matrix: similarity of every pair of nodes, 1 for equal, symmetric, shape (nodes, nodes); None if not measured.
        facts: JSON-able numbers and names: thresholds, seeds, the method's choices.

    Raises:
        InputError: the timesteps do not rise from 0 on, or a matrix or curve has another shape, is not symmetric or not finite.
    """

    timesteps: IntArray
    curves: Mapping[str, FloatArray] = field(default_factory=dict)
    matrix: FloatArray | None = None
    facts: JsonDict = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes = len(self.timesteps)
        if self.timesteps.ndim != 1 or not nodes or (np.diff(self.timesteps) <= 0).any() or self.timesteps[0] < 0:
            raise InputError("Evidence needs rising timesteps from 0 on, at least one; got others.")
        rounded = {name: np.round(np.asarray(curve, dtype=np.float64), _DIGITS) for name, curve in self.curves.items()}
        object.__setattr__(self, "curves", rounded)
        for name, curve in rounded.items():
            if curve.shape != (nodes,) or not np.isfinite(curve).all():
                raise InputError(
                    f"Curve {name!r} of the evidence has shape {curve.shape}; expected {nodes} finite numbers."
                )
        if self.matrix is None:
            return
        matrix = np.round(np.asarray(self.matrix, dtype=np.float64), _DIGITS)
        object.__setattr__(self, "matrix", matrix)
        if matrix.shape != (nodes, nodes) or not np.isfinite(matrix).all() or (matrix != matrix.T).any():
            raise InputError(
                f"The evidence's matrix has shape {matrix.shape}; expected a symmetric one of {nodes} × {nodes} finite numbers."
            )

    def to_json(self) -> dict[str, object]:
        """The content of key ``evidence`` of ``groups.json``."""
        return {
            "timesteps": self.timesteps.tolist(),
            "curves": {name: curve.tolist() for name, curve in self.curves.items()},
            "matrix": None if self.matrix is None else self.matrix.tolist(),
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(
        cls, data: "GroupingEvidence | JsonDict", source: Path | str = "The evidence of the timestep groups"
    ) -> "Evidence":
        """Read what :meth:`to_json` wrote.

        Raises:
            FileFormatError: a key is missing, unknown or of a wrong shape.
        """
        from prunekit.results.planning_files import GroupingEvidence  # noqa: PLC0415 - loads pydantic

        known = GroupingEvidence.of(data, str(source), _AGAIN)
        try:
            if strange := sorted(known.model_extra or ()):
                raise ValueError(f"keys {', '.join(strange)}"[:200])
            timesteps = np.array(known.timesteps, dtype=np.int64)
            curves = {name: np.array(curve, dtype=np.float64) for name, curve in known.curves.items()}
            matrix = None if known.matrix is None else np.array(known.matrix, dtype=np.float64)
            return cls(timesteps, curves, matrix, dict(known.facts))
        except (ValueError, OverflowError) as error:
            raise FileFormatError(f"{source} cannot be read ({str(error).rstrip('.')}); {_AGAIN}.") from error


@dataclass(frozen=True, eq=False)
class Grouping:
    """Timestep groups and the evidence that led to them.

    Raises:
        InputError: the evidence has timesteps that the groups do not.
    """

    groups: TimestepGroups
    evidence: Evidence

    def __post_init__(self) -> None:
        if self.evidence.timesteps[-1] >= self.groups.num_timesteps:
            raise InputError(
                f"The evidence goes to timestep {self.evidence.timesteps[-1]}; expected it below {self.groups.num_timesteps}."
            )

    def to_json(self) -> dict[str, object]:
        """The content of ``groups.json``: the groups and the evidence."""
        return {**self.groups.to_json(), "evidence": self.evidence.to_json()}

    @classmethod
    def from_json(cls, data: "GroupsFile | JsonDict", source: Path | str = "The file of timestep groups") -> "Grouping":
        """Read what :meth:`to_json` wrote; a file of an older version has no evidence, hence no curve and no matrix.

        Args:
            data: JSON, or the content of a file that has been read.
            source: where it comes from, for error messages.

        Raises:
            FileFormatError: the groups or the evidence cannot be read, or do not fit each other.
        """
        from prunekit.results.planning_files import GroupsFile  # noqa: PLC0415 - loads pydantic

        known = GroupsFile.of(data, str(source), _AGAIN)
        groups = TimestepGroups.from_json(known, source)
        if known.evidence is None:
            return cls(groups, Evidence(np.array([0])))
        evidence = Evidence.from_json(known.evidence, f"The evidence in {source}")
        try:
            return cls(groups, evidence)
        except InputError as error:
            raise FileFormatError(f"{source} cannot be read ({str(error).rstrip('.')}); {_AGAIN}.") from error
