"""Residual branches, tried: a network with stubs must compute what it does when the branches' sums return what they add to.

The lineage is not trusted. Branches are removed for trial on a copy with random weights, many at a time, and the output is compared
with that of the same weights where the sums are left out. The copy must also run the same products but for those of the branches.
The same is tried at other widths.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from prunekit._types import Args, Kwargs
from prunekit.graph.branch import Branch, stubs_of
from prunekit.graph.copying import copied
from prunekit.graph.deadline import Deadline
from prunekit.graph.forward_pass import Inputs, output_tensors, run_and_keep, run_once
from prunekit.graph.lineage import Lineage, followed, makes_step
from prunekit.graph.operators.common import name_of
from prunekit.graph.residuals import Residual, residuals
from prunekit.graph.stubs import put_stubs
from prunekit.graph.surgery import all_tensors, put
from prunekit.graph.values import random_inputs
from prunekit.graph.ways_back import SUMS, is_product

__all__ = ["branches_of"]

_NEAR = {torch.float64: 1e-6, torch.float32: 1e-4}  # of the largest output
_ROUNDS = 4


def branches_of(models: Sequence[nn.Module], inputs: Inputs, deadline: Deadline) -> tuple[Branch, ...]:
    """The residual branches of a network that can be removed, in network order.

    Args:
        models: the network at several widths, small enough to be run; they are not changed. Branches are looked for in the first.
        inputs: of one forward pass.
        deadline: when to give up.

    Raises:
        GraphError: the time is up.
    """
    trials = [_Trial.of(model, inputs, deadline) for model in models]
    good: list[Residual] = []
    order: list[str] = []
    tried: set[Branch] = set()
    for shaped, near in itertools.product((False, True), repeat=2):
        found = trials[0].found(shaped, near) if not order or len(good) < len(order) else []
        order = order or [one.branch.name for one in found]
        names = {*order} - {one.branch.name for one in good}
        waiting = [one for one in found if one.branch.name in names and one.branch not in tried]
        tried |= {one.branch for one in waiting}
        together = [*good, *waiting] if waiting else []
        for choice, trial in itertools.product(_choices(together, np.random.default_rng(0)), trials):
            wrong = trial.wrong([one for one in choice if one in waiting or one in good])
            good, waiting = ([one for one in some if one not in wrong] for some in (good, waiting))
        good += waiting
    return tuple(sorted((one.branch for one in good), key=lambda branch: order.index(branch.name)))


def _choices(found: Sequence[Residual], rng: np.random.Generator) -> Iterator[list[Residual]]:
    """Sets of branches that are removed together: those that hold all others, those that hold none, and others at random."""
    yield [
        one for one in found if not any(one is not other and other.branch.removes(one.branch.module) for other in found)
    ]
    yield [
        one for one in found if not any(one is not other and one.branch.removes(other.branch.module) for other in found)
    ]
    for _ in range(_ROUNDS - 2):
        yield [one for one in found if rng.random() < 0.5]


class _Trial:
    """A copy of a network with random weights, with and without its branches.

    Args:
        model: the network.
        inputs: of one forward pass.
        deadline: when to give up.
        dtype: of weights and inputs.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, deadline: Deadline, dtype: torch.dtype) -> None:
        self._model = _randomised(model, dtype)
        self._inputs = tree_map(partial(_cast, dtype=dtype), random_inputs(inputs))
        self._deadline, self._near = deadline, _NEAR[dtype]
        run_and_keep(self._model, self._inputs)  # what a network computes once and keeps is not noted
        self._lineage, _ = followed(self._model, self._inputs, deadline)
        self._cut = copied(self._model)
        self._children = [(module._modules, dict(module._modules)) for module in self._cut.modules()]

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, deadline: Deadline) -> "_Trial":
        """In double precision, unless the network has single precision in its code."""
        try:
            return cls(model, inputs, deadline, torch.float64)
        except Exception:  # whatever the network raises; it raises it again if it is something else
            deadline.check()
            return cls(model, inputs, deadline, torch.float32)

    def found(self, shaped: bool, near: bool) -> list[Residual]:
        """The branches, see :func:`residuals`."""
        return residuals(self._model, self._lineage, shaped=shaped, near=near)

    def wrong(self, chosen: Sequence[Residual]) -> list[Residual]:
        """Branches that cannot be removed, of some that are to be removed together.

        Branches of one kind tend to fail together, so that they are looked at one after the other where their kind fails.
        """
        if not chosen or self._is_right(chosen):
            return []
        if len(chosen) == 1:
            return list(chosen)
        kinds: dict[tuple[str, str], list[Residual]] = defaultdict(list)
        for one in chosen:
            kinds[one.branch.stubs[0].kind, one.branch.module.rpartition(".")[2]].append(one)
        parts = list(kinds.values()) if len(kinds) > 1 else [[one] for one in chosen]
        found = [one for part in parts for one in self.wrong(part)]
        left = [one for one in chosen if one not in found]
        return found if not found or self._is_right(left) else list(chosen)

    def _is_right(self, chosen: Sequence[Residual]) -> bool:
        branches = {one.branch.name: one.branch for one in chosen}
        stubs = stubs_of(branches, branches)
        sums = {number: place for one in chosen for number, place in one.sums.items()}
        for children, whole in self._children:
            children.update(whole)
        try:
            put_stubs(self._cut, stubs)
            lineage, found = followed(self._cut, self._inputs, self._deadline)
        except Exception:  # whatever the network raises
            self._deadline.check()
            return False
        products = Counter(self._products(lineage))
        gone = [one for one in self._products(self._lineage) if not any(stub.removes(one[0]) for stub in stubs)]
        if not products or Counter(gone) != products:
            return False
        with _LeavingOut(sums):
            wanted = output_tensors(run_once(self._model, self._inputs))
        return _are_near(found, wanted, self._near)

    def _products(self, lineage: Lineage) -> Iterator[tuple[str, str, object]]:
        """Module, operator and shapes of each product."""
        for step in lineage.steps:
            if is_product(step):
                yield step.module, step.operator, step.given


class _LeavingOut(TorchDispatchMode):
    """Lets sums return the operand that stays."""

    def __init__(self, sums: Mapping[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sums, self._count = sums, 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        leaves = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        place = self._sums.get(self._count) if name_of(func) in SUMS else None
        base = leaves[place].clone() if place is not None else None
        out = func(*args, **(kwargs or {}))
        if makes_step(out):
            self._count += 1
            if base is not None:
                result: Any = out
                result.copy_(base.expand(result.shape))
        return out


def _randomised(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose weights keep activations near one: in a new network, gates and last layers are zero."""
    draws = torch.Generator().manual_seed(0)
    clone = nn.Module.to(copied(model), dtype)  # diffusers' own warns
    made, parameters = {}, dict(clone.named_parameters())
    for key, tensor in all_tensors(clone).items():
        if not tensor.is_floating_point() or key not in parameters:
            continue
        fan = max(tensor[0].numel(), 1) if tensor.ndim > 1 else 1
        noise = torch.randn(tensor.shape, generator=draws, dtype=torch.float64)
        made[key] = (noise / math.sqrt(fan) if tensor.ndim > 1 else 0.5 + 0.2 * noise).to(dtype)
    put(clone, made)
    return clone


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _are_near(found: Iterable[Tensor], wanted: Iterable[Tensor], near: float) -> bool:
    pairs = list(zip(found, wanted, strict=False))
    return bool(pairs) and all(
        a.shape == b.shape and bool(b.isfinite().all()) and bool(((a - b).abs() <= near * b.abs().max()).all())
        for a, b in pairs
        if a.is_floating_point()
    )
