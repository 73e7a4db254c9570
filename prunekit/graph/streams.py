"""Evaluates a batch in several streams of few threads each, in place of one stream in which all threads wait at every operator.

Small operators take less time than it takes all threads to meet after them. On two cores with other work, a two-threaded evaluation
spent nine tenths of its processor time waiting (``benchmarks/evaluation_speed.py``). Samples are independent, so their streams meet
only once per evaluation of the network.
"""

import copy
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from prunekit.conditions import flat, nested, prediction_of, rows_of

__all__ = ["in_streams"]

_LEAST = 32
"""Samples of a stream. With fewer, the calls' own overhead in Python, which streams do not share, takes over."""


class _InStreams(nn.Module):
    """A network that is called as ``model(x, t, …)``, and evaluates parts of the batch at the same time.

    Args:
        networks: one for each stream; they share their tensors.
        threads: of every stream.
        pool: runs the streams.
        fixed: paths of arguments that are the same for every sample.
    """

    def __init__(
        self, networks: list[nn.Module], threads: int, pool: ThreadPoolExecutor, fixed: Collection[str]
    ) -> None:
        super().__init__()
        self._networks, self._threads, self._pool, self._fixed = networks, threads, pool, frozenset(fixed)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Prediction of shape (batch, …), in the order of the samples.

        Args:
            args: of the network; the samples, shape (batch, …), come first, here or by name. Tensors with a row for each sample are
                split like the samples, also inside mappings.
            kwargs: likewise, but for those that are the same for every sample.
        """
        batch, streams = len(next(iter((*args, *kwargs.values())))), len(self._networks)
        edges = [batch * number // streams for number in range(streams + 1)]
        named = flat(kwargs)
        parts = [
            (network, rows_of(args, slice(*edge), batch), self._split(named, slice(*edge), batch))
            for network, edge in zip(self._networks, pairwise(edges), strict=True)
        ]
        return torch.cat([future.result() for future in [self._pool.submit(self._part, *part) for part in parts]])

    def _split(self, named: Mapping[str, Any], rows: slice, batch: int) -> dict[str, Any]:
        return nested(
            {name: value if name in self._fixed else rows_of(value, rows, batch) for name, value in named.items()}
        )

    @torch.no_grad()
    def _part(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        torch.set_num_threads(self._threads)  # of this thread
        return prediction_of(network(*args, **kwargs))


@contextmanager
def in_streams(model: nn.Module, batch: int, fixed: Collection[str] = ()) -> Iterator[nn.Module]:
    """Within the block, a way to evaluate a network on batches without gradients, in as many streams as pay off.

    The model itself is given back if it is evaluated on another device than the CPU, with one thread, under a mode that other
    threads do not see, with hooks, or with gradients; or if it says that it ``evaluates_alone``, or cannot be copied.

    Args:
        model: the network, in eval mode; its tensors are shared and not copied.
        batch: number of samples of the batches to come.
        fixed: paths of arguments that are the same for every sample; a table of as many rows as there are samples is not split.
    """
    threads = torch.get_num_threads()
    streams = min(threads, batch // _LEAST)
    networks = _sharing(model, streams) if streams > 1 and _may_split(model) else []
    if not networks:
        yield model
        return
    try:
        with ThreadPoolExecutor(streams, "prunekit-stream") as pool:
            yield _InStreams(networks, threads // streams, pool, fixed)
    finally:
        torch.set_num_threads(threads)  # what threads to come begin with


def _may_split(model: nn.Module) -> bool:
    """Whether other threads would compute the same as this one, and nobody looks on."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or getattr(model, "evaluates_alone", False):
        return False
    if _get_current_function_mode() is not None or _get_current_dispatch_mode() is not None:
        return False
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return not hooked and all(tensor.device.type == "cpu" for tensor in chain(model.parameters(), model.buffers()))


def _sharing(model: nn.Module, count: int) -> list[nn.Module]:
    """The model and copies with its own tensors, since a network may keep something of a pass; empty if it cannot be copied."""
    tensors = list(chain(model.parameters(), model.buffers()))
    try:
        return [model, *(copy.deepcopy(model, {id(each): each for each in tensors}) for _ in range(count - 1))]
    except (TypeError, RuntimeError, AttributeError, NotImplementedError):  # locks, open files, tensors within a graph
        return []
