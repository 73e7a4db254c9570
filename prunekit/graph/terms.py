"""Numbers that follow the widths of channel groups: products, parameters, and what code keeps beside its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from prunekit._types import IntArray

__all__ = ["Attribute", "Term", "Width"]


@dataclass(frozen=True)
class Width:
    r"""A number of positions that follows the channel groups' widths w: :math:`(c + \sum_g a_g w_g) / d`.

    Args:
        constant: c.
        by_group: a, by place of the channel group in its graph.
        divisor: d.
    """

    constant: int = 1
    by_group: Mapping[int, int] = field(default_factory=dict)
    divisor: int = 1

    def __call__(self, widths: IntArray) -> int:
        """Value at the widths of all groups, shape (groups,)."""
        return (self.constant + sum(count * int(widths[g]) for g, count in self.by_group.items())) // self.divisor


@dataclass(frozen=True)
class Term:
    """One summand of a cost, ``scale · inner · outer``.

    Args:
        owner: module or parameter that it belongs to.
        operator: aten operator, empty for parameters.
        scale: what no width changes: positions, kernel.
        inner: first factor.
        outer: second factor.
    """

    owner: str
    operator: str
    scale: int
    inner: Width = Width()
    outer: Width = Width()


@dataclass(frozen=True)
class Attribute:
    """A number that code keeps beside its tensors, such as ``heads`` or ``channels``.

    Args:
        module: module name.
        name: the attribute's.
        width: its value.
    """

    module: str
    name: str
    width: Width
