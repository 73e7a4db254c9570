"""Seams: the change of the prediction where sampling switches from one expert to the next, on states of real trajectories."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from prunekit._json import JsonObject
from prunekit._types import FloatArray
from prunekit.consistency.denoiser import Denoiser
from prunekit.consistency.likeness import pixel_mse, summary
from prunekit.groups import TimestepGroup
from prunekit.sampling import Evaluation, ddim_step

__all__ = ["Seam", "SeamWatch"]


@dataclass(frozen=True, eq=False)
class Seam:
    """Two neighbouring experts compared on the same x_t, at the first timestep of the noisier one.

    Differences are root mean squares over the pixels of two predictions of the clean image, clamped and scaled to 0 … 1, one
    for each sample, float64, shape (samples,).

    Args:
        model: the model with the seam, ``a`` or ``b``.
        timestep: first timestep of the noisier group.
        groups: (cleaner, noisier) timestep group.
        jump: difference of the two neighbours.
        cleaner: difference of the cleaner group's expert from the other model.
        noisier: difference of the noisier group's expert from the other model.
    """

    model: str
    timestep: int
    groups: tuple[int, int]
    jump: FloatArray
    cleaner: FloatArray
    noisier: FloatArray

    @property
    def ratio(self) -> FloatArray:
        """2·jump/(cleaner + noisier), shape (samples,): 0 … 2 by the triangle inequality; NaN where both equal the other model.

        0: the neighbours agree, at any distance from the other model. √2: their deviations are equally large and orthogonal, as
        unrelated deviations would be. 2: they are opposite, or only one of the two deviates.
        """
        both = self.cleaner + self.noisier
        return np.divide(2 * self.jump, both, out=np.full_like(both, np.nan), where=both > 0)

    def to_json(self) -> JsonObject:
        """The fields by name, each difference and the ratio as mean and standard error over samples."""
        return {
            "model": self.model,
            "timestep": self.timestep,
            "groups": list(self.groups),
            **{name: summary(getattr(self, name)) for name in ("jump", "cleaner", "noisier", "ratio")},
        }


@dataclass(frozen=True, eq=False)
class SeamWatch:
    """Measures a model's seams while it is sampled.

    Args:
        name: ``a`` or ``b``.
        own: the model with the seams; one without timestep groups has none.
        other: the model that it is compared with.
        timesteps: timesteps of the sampler's evaluations, in order; a seam that they do not pass is not measured.
    """

    name: str
    own: Denoiser
    other: Denoiser
    timesteps: Sequence[float]
    _found: dict[int, list[tuple[FloatArray, ...]]] = field(default_factory=dict, init=False)

    def look(self, number: int, evaluation: Evaluation) -> None:
        """Measure the seams between evaluation ``number`` and the next one."""
        for group in self._passed(number):
            index, cut = group.index, group.start
            state = self._state_at(cut, evaluation)
            cleaner, noisier = (self.own.part(i).clean(state, cut) for i in (index - 1, index))
            other = self.other.clean(state, cut)
            pairs = ((cleaner, noisier), (cleaner, other), (noisier, other))
            self._found.setdefault(index, []).append(tuple(np.sqrt(pixel_mse(x, y)) for x, y in pairs))

    def seams(self) -> tuple[Seam, ...]:
        """The seams measured so far, noisiest first."""
        return tuple(
            Seam(self.name, group.start, (group.index - 1, group.index), *map(np.concatenate, zip(*parts, strict=True)))
            for group in reversed(tuple(self.own.groups or ()))
            if (parts := self._found.get(group.index)) is not None
        )

    def _passed(self, number: int) -> list[TimestepGroup]:
        """Timestep groups that the sampler leaves for the first time after an evaluation."""
        if self.own.groups is None:
            return []
        steps = list(itertools.pairwise(self.timesteps))
        return [
            group
            for group in self.own.groups
            if group.index and next((k for k, (t, then) in enumerate(steps) if t >= group.start > then), -1) == number
        ]

    def _state_at(self, cut: int, evaluation: Evaluation) -> Tensor:
        """x_t at the seam: the sampler's state if it stops there, else the state after one DDIM step."""
        if evaluation.timestep == cut:
            return evaluation.state
        clean = self.own.clean_of(evaluation)
        return ddim_step(evaluation.state, clean, evaluation.timestep, cut, self.own.parameterization)
