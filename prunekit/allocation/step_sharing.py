"""Shares train steps among timestep groups by what an error in each of them does to the sample."""

import math
from collections.abc import Sequence

import numpy as np

from prunekit._types import FloatArray
from prunekit.allocation.targets import Allocation
from prunekit.errors import InputError

__all__ = ["shared_steps"]

_LEAST = 0.25  # of the steps that each group would get alike


def shared_steps(allocation: Allocation, steps: int, trained: Sequence[bool] | None = None) -> tuple[int, ...]:
    r"""Train steps of every timestep group, which cost as much together as the same number for each.

    With :math:`A_g` the sampler's amplification, :math:`L_g` the loss on the group's frontier at its target and :math:`c_g` the
    target's MACs, group g gets :math:`n_g \propto \sqrt{A_g L_g / c_g}` steps, and at least a quarter of ``steps``. If what is left
    of the loss falls in proportion to 1/n, this makes the expected change of the sample, :math:`\sum_g A_g L_g`, smallest for the
    training MACs :math:`\sum_g c_g n_g`. That is an assumption, and the rule is this project's.

    Args:
        allocation: of rule ``measured``, with a sensitivity and targets in MACs.
        steps: train steps that each group would get alike.
        trained: which groups are trained at all; all if missing. The others get 0.

    Raises:
        InputError: the allocation has no sensitivity or no frontiers, or no targets in MACs.

    Returns:
        Steps, rounded down, one for each group.
    """
    if allocation.sensitivity is None or not allocation.frontiers:
        raise InputError(
            f"Got an allocation by rule {allocation.rule} without a sensitivity, by which to share the train steps; expected rule "
            "measured with one: `prunekit allocate --rule measured --journals frontiers --sensitivity sensitivity.json`."
        )
    macs = [group.target_macs for group in allocation.groups]
    if None in macs:
        raise InputError("Got an allocation without MACs; make it with `prunekit allocate --base base.pt`.")
    costs = np.array(macs, dtype=np.float64)
    own = np.ones(len(costs), dtype=bool) if trained is None else np.array(trained, dtype=bool)
    at_target = [f.loss_at(g.mac_ratio) for f, g in zip(allocation.frontiers, allocation.groups, strict=True)]
    losses = [f.loss[0] if loss is None else loss for f, loss in zip(allocation.frontiers, at_target, strict=True)]
    worth = np.sqrt(allocation.sensitivity.weights * np.maximum(losses, 0) / costs)
    found = np.zeros(len(costs), dtype=np.int64)
    found[own] = _filled(worth[own], costs[own], steps)
    return tuple(found.tolist())


def _filled(worth: FloatArray, costs: FloatArray, steps: int) -> FloatArray:
    """Steps in proportion to ``worth``, at least a part of ``steps``, that cost as much as ``steps`` for each; rounded down."""
    if not worth.any():
        return np.full(len(costs), float(steps))
    least = max(1, math.floor(_LEAST * steps))
    found = np.full(len(costs), float(least))
    free = worth > 0
    while free.any():
        room = steps * costs.sum() - least * costs[~free].sum()
        wanted = worth * room / (worth * costs)[free].sum()
        if (low := free & (wanted < least)).any():
            free &= ~low
            continue
        found[free] = wanted[free]
        break
    return np.floor(found + 1e-9)
