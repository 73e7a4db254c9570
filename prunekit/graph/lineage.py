"""Which tensor was computed from which, in one forward pass: operators below autograd, and the modules that they ran in."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from prunekit._types import Args, Kwargs
from prunekit.graph.deadline import Deadline
from prunekit.graph.forward_pass import Inputs, output_tensors, run_once
from prunekit.graph.operators.common import name_of

__all__ = ["Lineage", "ModuleCall", "Step", "followed", "makes_step"]


@dataclass(frozen=True, eq=False)
class Step:
    """One call of an operator.

    Args:
        operator: name without namespace and overload.
        inputs: nodes of its tensors, in order.
        numbers: its other arguments.
        outputs: nodes of its results.
        module: the module that was running.
        shape: of its first result.
        given: shapes of its tensors, in order.
    """

    operator: str
    inputs: tuple[int, ...]
    numbers: tuple[Any, ...]
    outputs: tuple[int, ...]
    module: str
    shape: tuple[int, ...]
    given: tuple[tuple[int, ...], ...]


@dataclass(eq=False)
class ModuleCall:
    """One call of a module.

    Args:
        module: its name.
        first: number of steps before it started.
        given: by place, the name of each argument (None where it was given by place), its node and shape.
        last: number of steps when it ended.
        results: node and shape of each result.
        form: ``tensor``, ``tuple`` or ``other``.
    """

    module: str
    first: int
    given: list[tuple[int, str | None, int, tuple[int, ...]]]
    last: int = 0
    results: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    form: str = "other"

    @property
    def given_nodes(self) -> set[int]:
        """Nodes of the tensors that it was given."""
        return {node for _, _, node, _ in self.given}


@dataclass(eq=False)
class Lineage:
    """The steps and the modules' calls of one forward pass. Nodes are numbers, one for each result of a step.

    Args:
        steps: in order.
        calls: in the order in which they started.
        outputs: nodes of the network's output.
    """

    steps: list[Step] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    outputs: tuple[int, ...] = ()

    def maker(self, node: int) -> int | None:
        """Number of the step that made a node; None for an input or a weight."""
        return self._makers.get(node)

    @cached_property
    def _makers(self) -> dict[int, int]:
        return {node: i for i, step in enumerate(self.steps) for node in step.outputs}

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """Numbers of the steps that read each node."""
        found: dict[int, list[int]] = defaultdict(list)
        for number, step in enumerate(self.steps):
            for node in dict.fromkeys(step.inputs):
                found[node].append(number)
        return found

    @cached_property
    def moving(self) -> set[int]:
        """Nodes that depend on what the network was given: no weights."""
        found = {node for call in self.calls if not call.module for _, _, node, _ in call.given}
        for step in self.steps:
            if found & set(step.inputs):
                found |= set(step.outputs)
        return found

    def ancestors(self, nodes: Iterable[int]) -> set[int]:
        """The nodes, and all that they were computed from."""
        found, waiting = set[int](), list(nodes)
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            made = self.maker(node)
            if made is not None:
                waiting += self.steps[made].inputs
        return found


class _Recorder(TorchDispatchMode):
    """Notes every operator."""

    supports_higher_order_operators = True

    def __init__(self, lineage: Lineage, deadline: Deadline) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lineage, self._deadline = lineage, deadline
        self._nodes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._next = 0
        self.stack = [""]

    def node(self, tensor: Tensor) -> int:
        """Number of a tensor's present value."""
        if tensor not in self._nodes:
            self.renew(tensor)
        found: int = self._nodes[tensor]
        return found

    def renew(self, tensor: Tensor) -> int:
        """A new number for a tensor that was made or written into."""
        self._next += 1
        self._nodes[tensor] = self._next
        return self._next

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        self._deadline.check()
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        inputs, given = tuple(map(self.node, tensors)), tuple(tuple(one.shape) for one in tensors)
        out = func(*args, **kwargs)
        if makes_step(out):
            results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            numbers = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
            nodes = tuple(self.renew(one) for one in results)
            shape = tuple(results[0].shape)
            self._lineage.steps.append(Step(name_of(func), inputs, numbers, nodes, self.stack[-1], shape, given))
        return out


def makes_step(out: Any) -> bool:
    """Whether a call of an operator counts as a step: it returned a tensor."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(out))


def followed(model: nn.Module, inputs: Inputs, deadline: Deadline) -> tuple[Lineage, list[Tensor]]:
    """The lineage of a network's forward pass, and what the network returned.

    Args:
        model: the network.
        inputs: of the pass.
        deadline: when to give up.

    Raises:
        GraphError: the time is up.
    """
    with _recorded(model, deadline) as (lineage, recorder):
        found = output_tensors(run_once(model, inputs))
        lineage.outputs = tuple(recorder.node(tensor) for tensor in found)
    return lineage, found


@contextmanager
def _recorded(model: nn.Module, deadline: Deadline) -> Iterator[tuple[Lineage, "_Recorder"]]:
    """Within the block, note what the network computes, and which modules it calls."""
    lineage = Lineage()
    recorder = _Recorder(lineage, deadline)
    running: list[ModuleCall] = []
    handles = []

    def enter(module: nn.Module, args: Args, kwargs: Kwargs, name: str) -> None:
        given = [
            (i, None, recorder.node(one), tuple(one.shape)) for i, one in enumerate(args) if isinstance(one, Tensor)
        ]
        named = [(-1, k, recorder.node(one), tuple(one.shape)) for k, one in kwargs.items() if isinstance(one, Tensor)]
        call = ModuleCall(name, len(lineage.steps), [*given, *named])
        lineage.calls.append(call)
        running.append(call)
        recorder.stack.append(name)

    def leave(module: nn.Module, args: Args, kwargs: Kwargs, output: Any, name: str) -> None:
        recorder.stack.pop()
        call = running.pop()
        call.last = len(lineage.steps)
        values: Sequence[Any] = (
            [output] if isinstance(output, Tensor) else list(output) if type(output) is tuple else []
        )
        if values and all(isinstance(value, Tensor) for value in values):
            call.form = "tensor" if isinstance(output, Tensor) else "tuple"
        call.results = [
            (recorder.node(leaf), tuple(leaf.shape))
            for leaf in tree_leaves(_opened(output))
            if isinstance(leaf, Tensor)
        ]

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, a, k, n=name: enter(m, a, k, n), with_kwargs=True))
        handles.append(module.register_forward_hook(lambda m, a, k, o, n=name: leave(m, a, k, o, n), with_kwargs=True))
    try:
        with recorder:
            yield lineage, recorder
    finally:
        for handle in handles:
            handle.remove()


def _opened(output: Any) -> Any:
    """What a module returned, as something whose leaves can be listed."""
    return (
        output
        if isinstance(output, Tensor | tuple | list | dict)
        else vars(output)
        if hasattr(output, "__dict__")
        else output
    )
