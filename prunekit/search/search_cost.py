"""What a search takes, before it is run: samples that pass through networks, and operations with those of its repairs."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.forward_pass import Inputs, evaluation_mode, run_once
from prunekit.graph.layers import layer_kind
from prunekit.search.layer_inputs import readers, signals_of
from prunekit.search.proposers import MEASURING_NOTHING
from prunekit.search.proxies import proxy_samples
from prunekit.search.repaired_loss import fitted_draws
from prunekit.search.search import SearchOptions

__all__ = ["search_operations", "search_samples"]

_SLICED = ("bias", "least-squares")  # proxies whose candidates may start from the repaired network of another plan


@dataclass(frozen=True)
class _Look:
    """Candidates that are measured on equally many draws.

    Args:
        draws: number of draws.
        count: number of candidates.
        anew: number of candidates that are repaired anew; the others start from the repaired network of another plan.
        others: number of draws apart from these that repairs are fitted to; 0 if they are fitted to some of these.
    """

    draws: int
    count: int
    anew: int
    others: int = 0


def _looks(options: SearchOptions, samples: int, batch_size: int) -> Iterator[_Look]:
    """The most that a search of one timestep group measures: every round its whole short list."""
    if options.proposer in MEASURING_NOTHING:
        return
    if options.proposer in ("evolution", "tpe"):
        yield _Look(samples, options.trials, options.trials)
    elif draws := options.screened(samples):
        starts, sliced = 3 + options.rounds, (options.rounds + 1) * options.shortlist
        others = fitted_draws(draws, samples, batch_size) if options.proxy in _SLICED else 0
        yield _Look(draws, starts + sliced, starts, others)
        whole = 1 + min(options.finalists, options.shortlist)
        yield _Look(samples, whole, whole)
    else:
        count = 1 + (options.rounds + 1) * options.shortlist
        yield _Look(samples, count, count)


def search_samples(options: SearchOptions, samples: int, batch_size: int) -> tuple[int, int]:
    """The largest number of samples that go forward for one timestep group, and how many of them go backward too.

    Every round is counted with its whole short list. Samples of a repair's first pass through the full network are left out: it
    takes one for each number of draws.

    Args:
        options: how to search.
        samples: number of draws of the calibration set.
        batch_size: number of draws in a batch.
    """
    forward = backward = 0
    for look in _looks(options, samples, batch_size):
        ahead, back = proxy_samples(options.proxy, look.draws, min(batch_size, look.draws))
        forward, backward = forward + look.count * ahead + look.anew * look.others, backward + look.count * back
    return forward, backward


@dataclass(frozen=True)
class _Reader:
    """A layer that is repaired: input channels, rows of one sample, and the weights of one input channel."""

    channels: int
    rows: int
    weights: int

    def anew(self, draws: int) -> int:
        """Multiplications of a regression on its inputs, and of its weights by the coefficients."""
        rows = draws * self.rows
        smaller = min(self.channels, rows)
        sums = smaller * smaller * max(self.channels, rows) + self.channels**2 * rows
        solved = smaller**3 // 6 + smaller**2 * self.channels
        return sums + solved + self.channels**2 * min(self.weights, rows)


def search_operations(
    model: nn.Module, inputs: Inputs, macs: int, groups: int, options: SearchOptions, samples: int, batch_size: int
) -> int:
    """Multiply-accumulates of a search for one timestep group, as if every candidate had the full network's widths.

    A candidate's forward passes and its repair count; element-wise work does not. Layers that a candidate shares with the plan that
    it was made from count too, so this is an upper bound. For a proxy that trains, steps count three passes.

    Args:
        model: the network; on the meta device it takes no memory.
        inputs: arguments of a forward pass at batch 1, on the same device.
        macs: its MACs per sample.
        groups: number of channel groups; a candidate that starts from a repaired network changes the readers of one.
        options: how to search.
        samples: number of draws of the calibration set.
        batch_size: number of draws in a batch, which repairs are fitted to.
    """
    forward, backward = search_samples(options, samples, batch_size)
    total = (forward + 2 * backward) * macs
    if options.proxy not in ("least-squares", "repaired-recovery"):
        return total
    found = _readers_of(model, inputs)
    mixing = sum(reader.channels**2 * reader.weights for reader in found) // max(groups, 1)
    for look in _looks(options, samples, batch_size):
        fitted = look.others or min(look.draws, batch_size)
        total += fitted * macs  # of the full network, once
        total += look.anew * sum(reader.anew(fitted) for reader in found)
        total += (look.count - look.anew) * mixing
    return total


def _readers_of(model: nn.Module, inputs: Inputs) -> list[_Reader]:
    """The layers that read channels, by a forward pass."""
    found: list[_Reader] = []

    def note(module: Any, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            channels, rows = signals_of(module, args[0]).shape
            if layer_kind(module) in ("conv", "linear") and module.weight.shape[1] == channels:
                found.append(_Reader(channels, rows, module.weight[:, 0].numel()))

    with ExitStack() as stack, torch.no_grad(), evaluation_mode(model):
        for name in readers(model):
            stack.callback(model.get_submodule(name).register_forward_pre_hook(note).remove)
        run_once(model, inputs)
    return found
