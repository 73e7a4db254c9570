"""What residual branches add, and how the loss depends on it: sums over the calibration set, from one backward pass a batch."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph import ChannelGraph
from prunekit.graph.branch import Branch
from prunekit.graph.forward_pass import evaluation_mode
from prunekit.graph.stubs import stub_for
from prunekit.importance.backward import kept_gradients
from prunekit.importance.gradients import differentiable
from prunekit.importance.probe import Probe

__all__ = ["BranchSignals", "branch_signals"]


@dataclass(frozen=True)
class BranchSignals:
    r"""Means over the samples of a calibration set of what a branch f adds to x, and of how the loss depends on it.

    The branch's *gate* is a factor of f. The loss' derivative by it is :math:`g_n = \langle f, \partial L_n/\partial f\rangle`,
    with :math:`L_n` the loss of the n-th sample.

    Args:
        slope: mean of :math:`g_n`. Without the branch the loss rises by its negative, to first order.
        slope_squared: mean of :math:`g_n^2`; NaN where a batch's rows are not its samples.
        added: mean of :math:`\|f\|_2^2`.
        without: mean of :math:`\|x\|_2^2`; 0 for a branch that is added outside the module that holds it.
        influence: mean of :math:`1 - \cos(x, x + f)`, over all numbers of a sample; 1 where x is not known.
    """

    slope: float
    slope_squared: float
    added: float
    without: float
    influence: float


def branch_signals(
    model: nn.Module, graph: ChannelGraph, probe: Probe, *, slopes: bool = True
) -> dict[str, BranchSignals]:
    """Signals of every residual branch that the graph may remove, by name.

    Args:
        model: the network.
        graph: its groups.
        probe: the loss on the timestep group.
        slopes: whether to make backward passes; without them slopes are 0.
    """
    branches = {switch.name: switch.branch for switch in graph.switches if switch.branch is not None}
    device = next(model.parameters(), torch.zeros(())).device
    sums = {name: _Sums(device) for name in branches}
    mode = differentiable(model) if slopes else evaluation_mode(model)
    with mode, torch.set_grad_enabled(slopes), _hooked(model, branches, sums):
        for loss, count in probe.losses(model):
            for own in sums.values():
                own.count = count
            if slopes:
                with kept_gradients(loss, model.parameters()):
                    loss.backward()
            for own in sums.values():
                own.settle()
    probe.pool(own.values for own in sums.values())
    return {name: own.means(probe.samples) for name, own in sums.items()}


class _Sums:
    """Sums of one branch over the samples so far.

    Args:
        device: where they are added up.
    """

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(5, dtype=torch.float64, device=device)  # in the order of BranchSignals
        self.count = 0
        self._latest = torch.zeros(3, dtype=torch.float64, device=device)

    def see(self, added: Tensor, without: Tensor | None) -> None:
        """Note what a pass adds; a block that is computed again for its gradients counts once."""
        f, numbers = added.double().flatten(1), self._latest
        numbers[0], numbers[1], numbers[2] = f.square().sum(), 0.0, 1.0
        if without is not None:
            x = without.double().flatten(1)
            numbers[1] = x.square().sum()
            numbers[2] = 1 - nn.functional.cosine_similarity(x, x + f).mean()

    def feel(self, added: Tensor, slope: Tensor) -> None:
        """Add up the derivative by the gate, from the mean loss' derivative by what a branch adds."""
        rows = (added.double() * slope.double()).flatten(1).sum(1)
        self.values[0] += rows.sum() * self.count
        self.values[1] += rows.square().sum() * self.count**2 if len(rows) == self.count else torch.nan

    def settle(self) -> None:
        """Count the batch whose passes are over."""
        self.values[2:4] += self._latest[:2]
        self.values[4] += self._latest[2] * self.count

    def means(self, samples: int) -> BranchSignals:
        """Means over this number of samples."""
        return BranchSignals(*(self.values / samples).tolist())


@contextmanager
def _hooked(model: nn.Module, branches: Mapping[str, Branch], sums: Mapping[str, _Sums]) -> Iterator[None]:
    """Within the block, what the branches add is summed up."""
    with ExitStack() as stack:
        for name, branch in branches.items():
            module = model.get_submodule(branch.module)
            hook = partial(_on_output, stub_for(module, branch.stubs[0]), branch, sums[name])
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _on_output(
    stub: nn.Module, branch: Branch, sums: _Sums, module: nn.Module, args: Any, kwargs: Any, output: object
) -> None:
    """Compare a module's output with what it would be without the branch."""
    with torch.no_grad():
        bases = tuple(_tensors(stub(*args, **kwargs)))
    outputs = tuple(_tensors(output))
    ends = branch.stubs[0].kind == "shortcut"
    added = [(full.detach() - base if ends else full.detach()) for full, base in zip(outputs, bases, strict=True)]
    without = torch.cat([base.flatten(1) for base in bases], 1) if ends else None
    sums.see(torch.cat([one.flatten(1) for one in added], 1), without)
    for full, one in zip(outputs, added, strict=True):
        if full.requires_grad:
            full.register_hook(partial(_on_slope, sums, one))


def _on_slope(sums: _Sums, added: Tensor, slope: Tensor) -> None:
    sums.feel(added, slope)


def _tensors(output: object) -> Iterable[Tensor]:
    """The tensors that a module returns."""
    return (output,) if isinstance(output, Tensor) else tuple(output)  # type: ignore[arg-type]
