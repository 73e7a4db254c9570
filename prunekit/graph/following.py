"""Follow ids through a forward pass, operator by operator: each has a rule for what becomes of its inputs' ids."""

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from prunekit._types import Args, Function, Kwargs
from prunekit.graph.flow import Flow
from prunekit.graph.operators import Operation, follow_declared, rule_of

__all__ = ["Following"]


class Following(Flow):
    """Follows ids through everything that runs inside ``with following:``."""

    supports_higher_order_operators = True

    def declared(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """Call a layer whose class the user has declared, and follow the call as one step."""
        self.use(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        counter = FlopCounterMode(display=False)
        with self.paused(), counter:
            out = func(*args, **kwargs)
        follow_declared(self, args, kwargs, out, counter.get_total_flops() // 2)
        return out

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        self._deadline.check()
        kwargs = kwargs or {}
        if self.is_paused:
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.use(given)
        if torch.Tag.dynamic_output_shape in getattr(func, "tags", ()):
            self.found.deciding.add(self.module)
        rule_of(func)(self, Operation(func, args, kwargs, out))
        if given and all(self.is_weight(tensor) for tensor in given):
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    self._derived[tensor] = True
        return out
