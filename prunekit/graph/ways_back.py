"""Ways back from what a module returned to what it was given, through nothing but sums, reshapes, numbers and layers of its own."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from prunekit.graph.lineage import Lineage, ModuleCall, Step

__all__ = ["AFFINE", "LONGEST", "PRODUCTS", "SAME", "SUMS", "TIMES", "Way", "WaysBack", "factor_of", "is_product"]

_SAME = (
    "_to_copy _unsafe_view alias cat chunk clone contiguous detach expand lift_fresh narrow permute reshape select slice split "
    "split_with_sizes squeeze t transpose unbind unsqueeze view"
)
SAME = frozenset(_SAME.split())
"""Operators that move values and change none."""
PRODUCTS = frozenset(("addmm", "baddbmm", "bmm", "convolution", "linear", "matmul", "mm"))
"""Operators that multiply weights or tensors, but for fused attentions."""
AFFINE = SAME | PRODUCTS | {"avg_pool1d", "avg_pool2d", "div", "mul", "pad", "upsample_nearest1d", "upsample_nearest2d"}
"""Operators that may be on the way past a branch."""
TIMES = frozenset(("div", "mul", "neg"))
"""Operators that leave zeros zero."""
SUMS = frozenset(("add", "sub"))
LONGEST = 400
"""Steps of a way back that are looked at."""
_MOST = 5000  # steps of all ways back from one result
_WAYS = 4  # how many ways back are looked at, where sums of sums have many


@dataclass(frozen=True)
class Way:
    """A way back from a module's result to one of its arguments.

    Args:
        given: node of the argument.
        sums: number of the step of each sum that was passed, with the place of the operand that the way went through.
        through: children of the module that it went through, the last first.
        scale: product of the numbers that it was multiplied by.
    """

    given: int
    sums: tuple[tuple[int, int], ...] = ()
    through: tuple[str, ...] = ()
    scale: float = 1.0


class WaysBack:
    """Finds ways back.

    Args:
        lineage: of a forward pass.
        calls: the calls of modules that are called once.
    """

    def __init__(self, lineage: Lineage, calls: Sequence[ModuleCall]) -> None:
        self._lineage, self._left = lineage, 0
        self._makers: dict[int, list[ModuleCall]] = defaultdict(list)
        for call in calls:
            if call.form == "tensor":
                self._makers[call.results[0][0]].append(call)

    def best(self, call: ModuleCall, node: int, shape: tuple[int, ...]) -> Way | None:
        """The way back from a module's result that goes through fewest of its children, None if there is none.

        Args:
            call: of the module.
            node: of the result.
            shape: of the result; a way that goes through no child must lead to an argument of this shape.
        """
        self._left = _MOST
        shapes = {given: own for _, _, given, own in call.given}
        ways = islice(self._from(call, node, frozenset(), LONGEST), _WAYS)
        fitting = [way for way in ways if way.through or shapes[way.given] == shape]
        return min(fitting, key=lambda way: len(way.through), default=None)

    def _from(self, call: ModuleCall, node: int, passed: frozenset[str], left: int) -> Iterator[Way]:
        if any(node == given for _, _, given, _ in call.given):
            yield Way(node)
            return
        made = self._lineage.maker(node)
        self._left -= 1
        if made is None or made < call.first or left == 0 or self._left < 0:
            return
        step = self._lineage.steps[made]
        if step.operator in SAME:
            for source in step.inputs:
                yield from self._from(call, source, passed, left - 1)
        elif step.operator in TIMES and len(step.inputs) == 1:
            factor = _factor(step)
            ways = self._from(call, step.inputs[0], passed, left - 1) if factor else ()
            yield from (replace(way, scale=way.scale * factor) for way in ways)
        elif step.operator in SUMS and len(step.inputs) == 2 and factor_of(step) == 1:
            yield from self._past(call, made, passed, left)
        yield from self._through(call, node, passed, left)

    def _past(self, call: ModuleCall, number: int, passed: frozenset[str], left: int) -> Iterator[Way]:
        """Ways through one operand of a sum whose other operand was computed from where the way leads."""
        step = self._lineage.steps[number]
        for place in (0, 1) if step.operator == "add" else (0,):
            for way in self._from(call, step.inputs[place], passed, left - 1):
                if way.given in self._lineage.ancestors([step.inputs[1 - place]]):
                    yield replace(way, sums=(*way.sums, (number, place)))

    def _through(self, call: ModuleCall, node: int, passed: frozenset[str], left: int) -> Iterator[Way]:
        """Ways through a direct child whose only result is a node, if it computes nothing but products and reshapes."""
        for child in self._makers.get(node, ()):
            holder, _, name = child.module.rpartition(".")
            if holder != call.module or child.module in passed:
                continue
            if child.given and all(map(self.is_affine, self._lineage.steps[child.first : child.last])):
                ways = self._from(call, child.given[0][2], passed | {child.module}, left - 1)
                yield from (replace(way, through=(*way.through, name)) for way in ways)
            return

    def is_affine(self, step: Step) -> bool:
        """Whether a step is a product, a reshape or the sum with a weight, or has to do with weights alone."""
        moving = self._lineage.moving.intersection(step.inputs)
        return not moving or step.operator in AFFINE or (step.operator in SUMS and len(moving) == 1)


def is_product(step: Step) -> bool:
    """Whether a step multiplies weights or tensors, or is a fused attention."""
    return step.operator in PRODUCTS or "attention" in step.operator


def factor_of(step: Step) -> float:
    """What the second operand of a sum is multiplied by."""
    number = _number(step)
    return 1.0 if number is None else number


def _factor(step: Step) -> float:
    """What a tensor is multiplied by, 0 where that is not one number."""
    number = -1.0 if step.operator == "neg" else _number(step) or 0.0
    return 1 / number if step.operator == "div" and number else number


def _number(step: Step) -> float | None:
    numbers = [one for one in step.numbers if isinstance(one, int | float) and not isinstance(one, bool)]
    return float(numbers[0]) if numbers else None
