"""A probe: the caller's loss on one timestep group, on a calibration set that is the same at every call."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.groups import TimestepGroup
from prunekit.importance.loss_checks import (
    check_arguments,
    left_to_the_caller,
    of_the_given_network,
    one_number,
    only_from_the_generator,
)
from prunekit.limits import MAX_SEED

__all__ = ["DrawnLoss", "Loss", "Probe", "no_loss"]

Loss = Callable[[nn.Module, Tensor, Generator], Tensor]
"""``loss(model, timesteps, generator) -> scalar``: timesteps of shape (batch,), int64; data and noise from the generator.

The scalar is the mean over the batch. It is called with one chunk of draws at a time.
"""


def no_loss(model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
    """Stands in for a missing loss, if nothing should evaluate one.

    Raises:
        InputError: always.
    """
    raise InputError(
        "A loss is evaluated here and none was given; give a loss (images, `data`, make one), or a criterion of the "
        "weights alone such as magnitude, a proposer that measures nothing such as oneshot, and no repair."
    )


@runtime_checkable
class DrawnLoss(Protocol):
    """Optional methods of a loss: separate drawing and evaluation, so that the same draws can be batched in any size."""

    def draw(self, timesteps: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        """Everything random for these timesteps: tensors of shape (batch, …)."""
        ...

    def drawn_losses(self, model: nn.Module, drawn: tuple[Tensor, ...], timesteps: Tensor) -> Tensor:
        """Loss of each sample on given draws, shape (batch,)."""
        ...


@dataclass(frozen=True, eq=False)
class Probe:
    """Losses of a model on fixed draws from one timestep group.

    The calibration set depends only on the group, ``samples``, ``seed`` and ``chunk``: timesteps are spread evenly through the
    group, shuffled and cut into chunks, each with its own generator. The way it is evaluated changes no draw.

    Args:
        loss: the caller's loss; all its randomness must come from the generator.
        group: the timesteps.
        samples: number of timesteps in the calibration set, spread evenly through the group.
        batch_size: number of timesteps evaluated at once, for a :class:`DrawnLoss`. Any other loss is called with one chunk.
        seed: seed of the draws.
        chunk: number of draws that share a generator.
        distributed: if torch.distributed's default process group is initialised, process i mod n evaluates batch i, and the float64
            sums are added up. Every process must then make the same calls, and all get the same results.
        part_of: number of draws of a larger calibration set of which these are a part; None if they are a set of their own.
        ranks: which draws of the larger set these are, in the order of the timesteps for a :class:`DrawnLoss`, else in their own.

    Raises:
        InputError: samples, batch size, chunk or seed are no whole numbers in their range, or the loss takes other arguments.
    """

    loss: Loss
    group: TimestepGroup
    samples: int = 256
    batch_size: int = 64
    seed: int = 0
    chunk: int = 64
    distributed: bool = False
    part_of: int | None = None
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = (self.samples, self.batch_size, self.chunk)
        if any(isinstance(count, bool) or not isinstance(count, int) or count < 1 for count in counts):
            raise InputError(
                f"Got {self.samples!r:.40} samples in batches of {self.batch_size!r:.40} and chunks of {self.chunk!r:.40}; "
                "expected whole numbers of at least 1."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"Got seed {self.seed!r:.40}; expected a whole number from 0 to {MAX_SEED:,}.")
        check_arguments(self.loss)

    @property
    def batches(self) -> int:
        """Number of batches that the calibration set is evaluated in, by all processes together."""
        return -(-self.samples // (self.batch_size if isinstance(self.loss, DrawnLoss) else self.chunk))

    def chunks(self) -> Iterator[tuple[Tensor, Generator]]:
        """Timesteps and a freshly seeded generator for each chunk; equal on every call."""
        for timesteps, generator, rows in self._whole_chunks():
            if len(rows):
                yield timesteps[rows], generator

    def _whole_chunks(self) -> Iterator[tuple[Tensor, Generator, Tensor]]:
        """Timesteps and generator of each chunk of the set that this one is a part of, and the rows that belong to this one."""
        count = self.part_of or self.samples
        positions = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        timesteps = self.group.start + (positions * len(self.group)).long()
        shuffle = Generator().manual_seed(self.seed)
        order = torch.randperm(count, generator=shuffle)
        loss: object = self.loss
        own = torch.tensor(self._ranks, dtype=torch.long)
        mine = torch.isin(order if isinstance(loss, DrawnLoss) else torch.arange(count), own)
        for i, (chunk, rows) in enumerate(zip(timesteps[order].split(self.chunk), mine.split(self.chunk), strict=True)):
            generator = Generator().manual_seed(self.seed * 1_000_003 + self.group.index * 10_007 + i + 1)
            yield chunk, generator, rows.nonzero().squeeze(1)

    def losses(self, model: nn.Module, first: Tensor | None = None) -> Iterator[tuple[Tensor, int]]:
        """Differentiable mean loss and number of samples of each batch that this process evaluates.

        Args:
            model: the network.
            first: the first batch's loss if it is known already; it is not evaluated again.
        """
        rank, world = self._place()
        for i, (evaluate, count) in enumerate(self._batches()):
            if i % world == rank:
                yield evaluate(model) if i or first is None else first, count

    @torch.no_grad()
    def mean(self, model: nn.Module, first: Tensor | None = None) -> float:
        """Mean loss over the calibration set, in eval mode, summed in float64; ``first`` as for :meth:`losses`."""
        with evaluation_mode(model):
            total = sum(float(loss) * (count / self.samples) for loss, count in self.losses(model, first))
        if self._place()[1] == 1:
            return total
        device = next(model.parameters(), torch.zeros(())).device
        pooled = torch.tensor([total], dtype=torch.float64, device=device)
        self.pool([pooled])
        return float(pooled)

    def pool(self, sums: Iterable[Tensor]) -> None:
        """Add up every process's float64 sums, in place; does nothing if there is one process."""
        if self._place()[1] > 1:
            for tensor in sums:
                dist.all_reduce(tensor)

    def part(self, draws: int) -> "Probe":
        """Some draws of the calibration set as a set of their own.

        For a :class:`DrawnLoss` they are evenly spread over the timesteps and unchanged. Any other loss is called with the first
        timesteps of a chunk and the chunk's generator.

        Args:
            draws: number of draws; all of them if there are no more.
        """
        return self._part(self._spread(self._ranks, draws))

    def parts(self, draws: int, others: int) -> tuple["Probe", "Probe"]:
        """Two parts without a common draw, each as :meth:`part` has them.

        Args:
            draws: number of draws of the first part.
            others: number of draws of the second; with ``draws`` at most all of them.
        """
        both = self._spread(self._ranks, draws + others)
        first = self._spread(both, draws)
        return self._part(first), self._part(tuple(rank for rank in both if rank not in set(first)))

    @property
    def _ranks(self) -> tuple[int, ...]:
        return self.ranks or tuple(range(self.samples))

    def _spread(self, ranks: tuple[int, ...], count: int) -> tuple[int, ...]:
        """Some of these draws: those in the middle of equal parts, or the first ones, so that few chunks are called."""
        count, loss = min(count, len(ranks)), cast(object, self.loss)
        if not isinstance(loss, DrawnLoss):
            return ranks[:count]
        return tuple(ranks[(2 * i + 1) * len(ranks) // (2 * count)] for i in range(count))

    def _part(self, ranks: tuple[int, ...]) -> "Probe":
        return replace(self, samples=len(ranks), part_of=self.part_of or self.samples, ranks=ranks)

    def one_by_one(self) -> "Probe":
        """The same timesteps in batches of one: with the same draws for a :class:`DrawnLoss`, else with one generator each."""
        return replace(self, batch_size=1, chunk=self.chunk if isinstance(self.loss, DrawnLoss) else 1)

    def _place(self) -> tuple[int, int]:
        """This process's number and the number of processes."""
        if self.distributed and dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def _batches(self) -> Iterator[tuple[Callable[[nn.Module], Tensor], int]]:
        """A function that evaluates each batch, and the batch's number of samples."""
        loss: object = self.loss
        if isinstance(loss, DrawnLoss):
            for timesteps, *drawn in self._drawn(loss):
                yield _Evaluation(loss, timesteps, tuple(drawn)), len(timesteps)
        else:
            for timesteps, generator in self.chunks():
                yield _Call(self.loss, timesteps, generator), len(timesteps)

    def _drawn(self, loss: DrawnLoss) -> Iterator[tuple[Tensor, ...]]:
        """Timesteps and draws of each batch: the draws of all chunks in order, split into batches."""
        waiting: tuple[Tensor, ...] = ()
        for timesteps, generator, own in self._whole_chunks():
            rows = tuple(tensor[own] for tensor in (timesteps, *loss.draw(timesteps, generator)))
            waiting = tuple(map(torch.cat, zip(waiting, rows, strict=True))) if waiting else rows
            while len(waiting[0]) >= self.batch_size:
                yield tuple(tensor[: self.batch_size] for tensor in waiting)
                waiting = tuple(tensor[self.batch_size :] for tensor in waiting)
        if len(waiting[0]):
            yield waiting


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """Mean loss on given draws."""

    loss: DrawnLoss
    timesteps: Tensor
    drawn: tuple[Tensor, ...]

    def __call__(self, model: nn.Module) -> Tensor:
        with of_the_given_network(model), left_to_the_caller(model):
            losses = self.loss.drawn_losses(model, self.drawn, self.timesteps)
            if losses.shape != self.timesteps.shape:
                raise InputError(
                    f"drawn_losses returned shape {tuple(losses.shape)} for {len(self.timesteps)} samples; expected one loss for "
                    "each."
                )
            return one_number(losses.mean())


@dataclass(frozen=True, eq=False)
class _Call:
    """Loss on a chunk of its own draws."""

    loss: Loss
    timesteps: Tensor
    generator: Generator

    def __call__(self, model: nn.Module) -> Tensor:
        with of_the_given_network(model), left_to_the_caller(model), only_from_the_generator(model):
            return one_number(self.loss(model, self.timesteps, self.generator))
