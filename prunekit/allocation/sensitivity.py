"""How a sampler carries an error of the prediction, made in one timestep group, into the sample: as data and as a file.

:mod:`prunekit.sampling.disturbances` measures it. This module needs neither torch nor a network, so that budgets can be planned
without them.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunekit._json import JsonDict
from prunekit._types import FloatArray, IntArray
from prunekit.errors import FileFormatError, InputError, PrunekitError
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.results.formats import SENSITIVITY
from prunekit.schedule import NoiseSchedule

if TYPE_CHECKING:
    from prunekit.results.sensitivity_files import SensitivityFile, SensitivityPart

__all__ = ["LINEAR", "GroupSensitivity", "Sensitivity"]

LINEAR = 1.25
"""Largest factor by which the amplifications of two sizes of noise may differ, for changes to count as proportional to errors."""
_LOOSEST = 1e6
_AGAIN = "measure it again with `prunekit sensitivity`"


@dataclass(frozen=True)
class GroupSensitivity:
    r"""How the sampler carries an error, made in one timestep group, into the sample.

    Args:
        index: timestep group, 0 = cleanest.
        start: first timestep.
        stop: one past the last timestep.
        evaluations: the sampler's evaluations of the network in the group, for each sample.
        error: mean square of the noise that was added to the prediction of one evaluation, per element.
        amplification: :math:`A_g`, the mean square change of the sample divided by ``error``. In pixels and latents the change is
            the mean over the sample's elements; in features it is the squared distance, a sum over the features.
        se: standard error of the amplification over the samples; None for one sample.
        linearity: the amplification with noise of another size, divided by this one; None if it was not measured, or if this one
            is 0.
    """

    index: int
    start: int
    stop: int
    evaluations: int
    error: float
    amplification: float
    se: float | None = None
    linearity: float | None = None

    @classmethod
    def of(cls, part: "SensitivityPart") -> "GroupSensitivity":
        """The sensitivity that a file describes."""
        numbers = part.error, part.amplification, part.se, part.linearity
        return cls(part.index, part.start, part.stop, part.evaluations, *numbers)

    @property
    def is_linear(self) -> bool:
        """Whether changes are about proportional to errors: the amplification differs by less than a quarter; or is not known."""
        ratio = self.linearity
        return ratio is None or (ratio > 0 and abs(math.log(ratio)) <= math.log(LINEAR))


@dataclass(frozen=True)
class Sensitivity:
    r"""How a sampler carries an error of each timestep group into the sample.

    :math:`\sum_g A_g L_g` is the expected mean square change of the sample, if the prediction of every evaluation in group g has an
    independent error of mean square :math:`L_g`. Definition: this project's (docs/allocation.md).

    Args:
        num_timesteps: number of timesteps T.
        sampler: name of the sampler.
        steps: its number of steps.
        guidance_scale: of classifier-free guidance; None for a pipeline's default.
        measured_in: ``pixels``, ``latents`` or ``features``.
        count: number of samples.
        seed: seed of the samples and of the added noise.
        size: of the added noise, relative to the root mean square of each sample's prediction.
        checked_size: of the noise with which linearity was checked; None if it was not.
        clamped: whether the sampler clamped predictions of the clean sample.
        groups: one for each timestep group, cleanest first.
        features: description of the feature extractor; None unless it was measured in features.
        about: its origin: the model with the hash of its weights, the noise schedule and prunekit's version.

    Raises:
        ValueError: the groups are no partition of the timesteps, or their numbers contradict each other.
    """

    num_timesteps: int
    sampler: str
    steps: int
    guidance_scale: float | None
    measured_in: str
    count: int
    seed: int
    size: float
    checked_size: float | None
    clamped: bool
    groups: tuple[GroupSensitivity, ...]
    features: JsonDict | None = None
    about: JsonDict | None = None

    def __post_init__(self) -> None:
        TimestepGroups(self.num_timesteps, tuple(TimestepGroup(g.index, g.start, g.stop) for g in self.groups))
        for group in self.groups:
            if group.evaluations == 0 and (group.amplification or group.error):
                raise ValueError(f"group {group.index} has no evaluations and an amplification")
            if group.evaluations and not group.error > 0:
                raise ValueError(f"group {group.index} has {group.evaluations} evaluations and no error")
        if (self.features is not None) != (self.measured_in == "features"):
            raise ValueError("features are described only where the change was measured in them")

    @property
    def timestep_groups(self) -> TimestepGroups:
        """The partition that was measured."""
        return TimestepGroups.from_cuts(self.num_timesteps, [group.start for group in self.groups[1:]], "sensitivity")

    @property
    def weights(self) -> FloatArray:
        """What each group's loss is multiplied by: its amplification, shape (groups,)."""
        return np.array([group.amplification for group in self.groups])

    @property
    def weights_sha256(self) -> str | None:
        """Hash of the weights of the model that was sampled; None if the file does not say."""
        model = (self.about or {}).get("model")
        return str(model["weights_sha256"]) if isinstance(model, dict) and "weights_sha256" in model else None

    @property
    def noise_schedule(self) -> NoiseSchedule | None:
        """The noise schedule of the model that was sampled; None if the file does not say."""
        own = (self.about or {}).get("noise_schedule")
        return None if own is None else NoiseSchedule.from_config(own)

    @property
    def not_linear(self) -> tuple[GroupSensitivity, ...]:
        """The groups whose changes are not proportional to errors of this size."""
        return tuple(group for group in self.groups if not group.is_linear)

    def slack(self, losses: FloatArray) -> FloatArray:
        r"""Share of its loss that every group may rise by for the same change of the sample, shape (groups,).

        A rise of all losses by one share c changes the sample by :math:`c\sum_h A_h L_h`. Group g alone may rise by
        :math:`c\,L_g \cdot \text{slack}_g` for its part of that, one of G equal ones:
        :math:`\text{slack}_g = \sum_h A_h L_h/(G A_g L_g)`. Where errors hardly reach the sample it is large, at most 10⁶.

        Args:
            losses: of the whole network in every group, shape (groups,).
        """
        changes = self.weights * losses
        most = _LOOSEST * changes
        return np.where(changes.mean() < most, changes.mean() / np.where(changes > 0, changes, 1.0), _LOOSEST)

    def describe_linearity(self) -> str:
        """One sentence on whether the change of the sample grows in proportion to the error."""
        if self.checked_size is None:
            return "Linearity was not checked."
        size = f"with noise of size {self.checked_size:g} the amplification"
        if not self.not_linear:
            return f"Changes are proportional to errors: {size} of every group is the same within a quarter."
        which = ", ".join(f"× {group.linearity:.3g} in group {group.index}" for group in self.not_linear)
        return (
            f"Changes are not proportional to errors: {size} differs, {which}. Their figures hold for this size alone."
        )

    def check_groups(self, groups: TimestepGroups) -> None:
        """Refuse a sensitivity that was measured for other timestep groups.

        Raises:
            InputError: it was.
        """
        own = [(group.start, group.stop) for group in self.groups]
        wanted = [(group.start, group.stop) for group in groups]
        if own != wanted or self.num_timesteps != groups.num_timesteps:
            raise InputError(
                f"The sensitivity was measured for the timestep groups {_ranges(own)} and the allocation is for {_ranges(wanted)}; "
                f"expected the same: {_AGAIN}."
            )

    def check_weights(self, weights: str) -> None:
        """Refuse a sensitivity of another network.

        Args:
            weights: :func:`prunekit.training.weights_hash` of the network that it shall tell of.

        Raises:
            InputError: it is of another one.
        """
        if self.weights_sha256 not in (None, weights):
            raise InputError(f"The sensitivity was measured with other weights than those of the base: {_AGAIN}.")

    def is_of(self, schedule: NoiseSchedule) -> bool:
        """Whether it was measured with a noise schedule; True if the file does not say."""
        own = self.noise_schedule
        return own is None or own.is_close(schedule)

    def check_schedule(self, schedule: NoiseSchedule) -> None:
        """Refuse a sensitivity that was measured with another noise schedule.

        Raises:
            InputError: it was.
        """
        if not self.is_of(schedule):
            raise InputError(
                f"The sensitivity was measured with another noise schedule than the base's; expected the same: {_AGAIN}."
            )

    def check(self, groups: TimestepGroups, sampler: str, counts: IntArray) -> None:
        """Refuse a sensitivity that was measured for other groups or another sampler.

        Args:
            groups: of the allocation.
            sampler: of the allocation.
            counts: the sampler's evaluations in each of these groups, shape (groups,).

        Raises:
            InputError: it was.
        """
        self.check_groups(groups)
        found = [group.evaluations for group in self.groups]
        if self.sampler != sampler or found != counts.tolist():
            raise InputError(
                f"The sensitivity was measured with {self.sampler}, which evaluates the groups {_listed(found)} times, and the "
                f"allocation is for {sampler} with {_listed(counts.tolist())} evaluations; expected the same sampler and steps: "
                f"{_AGAIN}."
            )

    def to_json(self) -> dict[str, object]:
        """The content of ``sensitivity.json``."""
        own = {key: value for key, value in vars(self).items() if key not in ("groups", "about", "features")}
        features = None if self.features is None else dict(self.features)
        groups = [vars(group) for group in self.groups]
        return {"format": SENSITIVITY, **(self.about or {}), **own, "features": features, "groups": groups}

    @classmethod
    def from_json(cls, data: "SensitivityFile | JsonDict", source: Path | str = "The sensitivity") -> "Sensitivity":
        """Read what :meth:`to_json` wrote.

        Args:
            data: JSON, or the content of a file that has been read.
            source: where it comes from, for error messages.

        Raises:
            FileFormatError: a key is missing or of the wrong type, the ranges are no partition, or numbers do not agree.
        """
        from prunekit.results.sensitivity_files import SensitivityFile  # noqa: PLC0415 - loads pydantic

        known = SensitivityFile.of(data, str(source), _AGAIN)
        fields = {name: getattr(known, name) for name in _PLAIN}
        about = {key: value for key, value in known.to_json().items() if key in _ABOUT}
        try:
            if not any(part.amplification for part in known.groups):
                raise ValueError("no group has an amplification: the noise changed no sample")
            made = cls(**fields, groups=tuple(map(GroupSensitivity.of, known.groups)), about=about or None)
            if sum(part.evaluations for part in known.groups) < known.steps:
                raise ValueError(f"its groups have fewer evaluations than the sampler has steps, {known.steps}")
            schedule = made.noise_schedule
            if schedule is not None and schedule.num_timesteps != made.num_timesteps:
                raise ValueError(
                    f"its noise schedule has {schedule.num_timesteps} timesteps, expected {made.num_timesteps}"
                )
        except (ValueError, PrunekitError) as error:
            raise FileFormatError(f"{source} cannot be read ({str(error).rstrip('.')}); {_AGAIN}.") from error
        return made


_ABOUT = ("prunekit", "model", "noise_schedule")
_PLAIN = (
    *("num_timesteps", "sampler", "steps", "guidance_scale", "measured_in", "count", "seed", "size", "checked_size"),
    "clamped",
    "features",
)


def _ranges(groups: list[tuple[int, int]]) -> str:
    return ", ".join(f"{start}–{stop - 1}" for start, stop in groups)


def _listed(counts: list[int]) -> str:
    return ", ".join(map(str, counts))
