"""The conditions of a data set: one column for each, with a row for each image."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from prunekit._messages import did_you_mean
from prunekit.errors import InputError

__all__ = ["CLASSES", "Columns", "in_parts", "update_with"]

CLASSES = "class_labels"
"""The name of the condition that class-conditional networks take."""
_BYTES = 2**26  # of rows that are read together


@dataclass(frozen=True, eq=False)
class Columns:
    """Conditions of images, and how often they are withheld from the network.

    A network that was sometimes trained without its conditions can be guided during sampling (classifier-free guidance,
    arXiv:2207.12598).

    Args:
        values: the columns by their conditions' names, each of shape (count, …); they may be mapped from files.
        dropout: share of the draws in which the conditions are replaced, all of a sample together.
        empty: what replaces them, by name: a row without the first axis. Columns without such a row are never replaced.
        own_dropout: for some conditions, the share of the draws in which that one is replaced in addition, by name. Each is drawn
            for itself, so that a network learns to do without any of several texts.

    Raises:
        InputError: a condition to be dropped is unknown, or has no empty one.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    dropout: float = 0.0
    empty: Mapping[str, Tensor] = field(default_factory=dict)
    own_dropout: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.own_dropout:
            if name not in self.values:
                meant = did_you_mean(name, self.values)
                raise InputError(
                    f"Got condition_dropout for {name!r:.80}, which is no condition of the images{meant}; expected "
                    f"{', '.join(self.values) or 'none'}."
                )
            if name not in self.empty:
                raise InputError(
                    f"Got condition_dropout for {name}, which has no empty condition; leave it out, or encode the images by a "
                    "pipeline that replaces it for guidance."
                )
        if self.dropout and not self.empty:
            raise InputError(
                f"Got label_dropout {self.dropout:g} and conditions without an empty one; leave it out, or encode the images by a "
                "pipeline that guides."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conditions, in the order in which they are drawn."""
        return tuple(self.values)

    def draw(self, index: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        """The conditions of the images that were drawn, each of shape (batch, …); floating-point ones in float32.

        Args:
            index: rows of the images, int64, shape (batch,).
            generator: decides which samples' conditions are replaced.

        Raises:
            InputError: a condition is not finite.
        """
        found = [_rows(values, index, name) for name, values in self.values.items()]
        if self.dropout:
            hidden = torch.rand(len(index), generator=generator) < self.dropout
            found = [self._replaced(name, own, hidden) for name, own in zip(self.values, found, strict=True)]
        for place, name in enumerate(self.values):
            if share := self.own_dropout.get(name, 0.0):
                hidden = torch.rand(len(index), generator=generator) < share
                found[place] = self._replaced(name, found[place], hidden)
        return tuple(found)

    def _replaced(self, name: str, rows: Tensor, hidden: Tensor) -> Tensor:
        if name not in self.empty:
            return rows
        where = hidden.reshape(-1, *[1] * (rows.ndim - 1))
        return torch.where(where, self.empty[name].to(rows), rows)

    def update(self, digest: "hashlib._Hash") -> None:
        """Add everything that decides the draws to a hash."""
        for name, values in self.values.items():
            if name != CLASSES:  # as hashes of earlier versions have it
                digest.update(name.encode())
            update_with(digest, values)
        if own := {name: share for name, share in self.own_dropout.items() if share}:
            digest.update(f"own {sorted(own.items())}".encode())
        empty = {name: self.empty[name] for name in self.values if name in self.empty}
        if set(self.values) == {CLASSES}:
            digest.update(f"{self.dropout} {int(empty[CLASSES]) if empty else 0}".encode())
            return
        digest.update(f"{self.dropout}".encode())
        for value in empty.values():
            update_with(digest, value)


def in_parts(values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows some megabytes at a time, so that a mapped file never comes into memory as a whole.

    Args:
        values: shape (count, …).

    Yields:
        Some rows, shape (rows, …), and their indices, int64, shape (rows,).
    """
    together = max(1, _BYTES // max(1, values[:1].nbytes))
    for first in range(0, len(values), together):
        part = values[first : first + together]
        yield part, torch.arange(first, first + len(part))


def update_with(digest: "hashlib._Hash", values: Tensor) -> None:
    """Add a tensor's numbers to a hash, some megabytes at a time."""
    for part, _ in in_parts(values.reshape(1) if values.ndim == 0 else values):
        digest.update(part.contiguous().numpy().data)


def _rows(values: Tensor, index: Tensor, name: str) -> Tensor:
    found = values[index]
    if not found.is_floating_point() or not found.numel():
        return found
    if all(math.isfinite(bound) for bound in found.aminmax()):  # much faster than a mask of every number
        return found.to(torch.float32)
    bad = ~found.reshape(len(found), -1).isfinite().all(1)
    raise InputError(
        f"{int(bad.sum())} of {len(found)} rows of {name} are not finite, row {int(index[bad].min())} the first; expected "
        "finite numbers: encode the data anew."
    )
