"""How each kind of aten operator carries channel ids along, see :mod:`prunekit.graph.flow`.

An operator that is not listed here fixes whatever reaches it: a network is never pruned through something unknown.
"""

from collections.abc import Mapping

import torch
from torch._ops import OpOverload

from prunekit.graph.operators import elementwise, picking, shapes
from prunekit.graph.operators import layer_operators as layers
from prunekit.graph.operators.common import Operation, Rule, name_of
from prunekit.graph.operators.declared_layers import follow_declared

__all__ = ["Operation", "follow_declared", "rule_of"]


def rule_of(func: OpOverload) -> Rule:
    """The rule of an operator overload."""
    name = name_of(func)
    if name in _RULES:
        return _RULES[name]
    if torch.Tag.pointwise in getattr(func, "tags", ()):
        return elementwise.pointwise
    for part, rule in layers.BY_PART.items():
        if part in name:
            return rule
    return elementwise.unknown


_RULES: Mapping[str, Rule] = {**elementwise.RULES, **shapes.RULES, **picking.RULES, **layers.RULES}
