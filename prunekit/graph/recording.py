"""One forward pass of the full network, call by call, with zeros where channels go: what a pruned network has to match."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from prunekit._types import Args, Function, Kwargs
from prunekit.graph.calls import Call, call_name, is_plain, leaves_of, opened, tensors_among, versions
from prunekit.graph.deadline import Deadline
from prunekit.graph.forward_pass import Inputs, run_once
from prunekit.graph.judging import NORMS, is_finite, is_random, is_unset, plain_norm
from prunekit.graph.slicing import Cutter

__all__ = ["Note", "Recording", "Unsound", "Value"]


class Unsound(Exception):
    """The full network does not do in the trial what it did before; the message says where."""


@dataclass(eq=False)
class Value:
    """A tensor's values at one moment.

    Args:
        number: equal for tensors that are the same at the same moment.
        tensor: the values.
        key: for a parameter or buffer, its name.
    """

    number: int
    tensor: Tensor
    key: str | None = None


@dataclass(frozen=True, eq=False)
class Note:
    """One call.

    Args:
        call: what is known of it.
        func: the function.
        arguments: leaves of its arguments, without their tensors.
        given: its tensors, in order.
        results: what it gave, leaf by leaf, tensors as :class:`Value`.
        written: arguments that it wrote into, by place among ``given``, afterwards.
        plain: for a norm, what its weights alone do.
    """

    call: Call
    func: Function
    arguments: tuple[Any, ...]
    given: tuple[Value, ...]
    results: list[Any]
    written: dict[int, Value] = field(default_factory=dict)
    plain: Tensor | None = None


class Source(Protocol):
    """Where the values of a network's own tensors come from."""

    def key(self, tensor: Tensor) -> str | None:
        """Name of a parameter or buffer, None for other tensors."""
        ...

    def full(self, key: str) -> Tensor:
        """Its value."""
        ...


class Recording(TorchFunctionMode):
    """Runs the full network.

    Args:
        calls: what it did when it was followed.
        source: values of its own tensors.
        cutter: knows what is removed.
        deadline: when to give up.
    """

    def __init__(self, calls: Sequence[Call], source: Source, cutter: Cutter, deadline: Deadline) -> None:
        super().__init__()
        self.calls, self.source, self.cutter, self.deadline = calls, source, cutter, deadline
        self.notes: list[Note] = []
        self.output: Any = None
        self._numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._next = 0
        self._stored: dict[int, list[Value]] = {}  # by storage

    def run(self, model: nn.Module, inputs: Inputs) -> "Recording":
        """Run once.

        Raises:
            Unsound: it calls other functions than before, or numbers overflow.
        """
        inputs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
        with self:
            self.output = run_once(model, inputs)
        if len(self.notes) < len(self.calls):
            raise Unsound("the network ends early a second time")
        return self

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if is_plain(func, args, kwargs):
            return func(*args, **kwargs)
        self.deadline.check()
        call = self._call(func)
        leaves, close = opened(args, kwargs)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if len(places) != len(call.before):
            raise Unsound(f"{call.name} of {call.module} is given something else a second time")
        given = [self._given(leaves, i) for i in places]
        numbers = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        args, kwargs = close(leaves)
        plain = _plain(func, args, kwargs)
        for k in call.written:
            self._keep(leaves[places[k]])
        before = versions([leaves[i] for i in places])
        was_finite = _are_finite(leaves) if call.written else None
        out = func(*args, **kwargs)
        if is_unset(call.name):  # whatever memory holds may be no number
            for tensor in tensors_among(out):
                tensor.zero_()
        after = versions([leaves[i] for i in places])
        written = {k: self._new(leaves[i]) for k, i in enumerate(places) if after[k] != before[k]}
        made = [*_numbers_of(call.name, out), *(value.tensor for value in written.values())]
        if not _are_finite(made):
            self._silence(call, out, {k: leaves[places[k]] for k in written})
            was_finite = _are_finite(leaves) if was_finite is None else was_finite
            if was_finite and not is_random(call.name) and not _are_finite(made):
                raise Unsound(f"numbers overflow at {call.name} of {call.module}")
        results = [self._value(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves_of(out)]
        self.notes.append(Note(call, func, numbers, tuple(given), results, written, plain))
        return out

    def _silence(self, call: Call, out: Any, written: Mapping[int, Tensor]) -> None:
        """Zeros for what is no number where channels are removed, as zeros divided by zeros are not."""
        for tensor, labels in zip(tensors_among(out), call.after, strict=False):
            if not is_finite(tensor):
                self.cutter.silence(tensor, labels)
        for k, tensor in written.items():
            if not is_finite(tensor):
                self.cutter.silence(tensor, call.written.get(k, call.before[k]))

    def _call(self, func: Function) -> Call:
        place = len(self.notes)
        if place >= len(self.calls) or self.calls[place].name != call_name(func):
            raise Unsound(f"the network calls {call_name(func)} a second time where it called something else before")
        return self.calls[place]

    def _given(self, leaves: list[Any], i: int) -> Value:
        """An argument; the network's own tensors are replaced by their values."""
        key = self.source.key(leaves[i])
        if key is None:
            return self._value(leaves[i])
        leaves[i] = self.source.full(key)
        return Value(-1, leaves[i].new_empty(0), key)  # values of weights are made anew for the pruned network

    def _value(self, tensor: Tensor) -> Value:
        number = self._numbers.get(tensor)
        if number is None:
            return self._new(tensor)
        return self._stored_value(Value(number, tensor))

    def _new(self, tensor: Tensor) -> Value:
        """A tensor that has not been seen, or has changed."""
        self._next += 1
        self._numbers[tensor] = self._next
        return self._stored_value(Value(self._next, tensor))

    def _stored_value(self, value: Value) -> Value:
        self._stored.setdefault(_storage(value.tensor), []).append(value)
        return value

    def _keep(self, tensor: Tensor) -> None:
        """Copy what has been noted of a tensor and its views: it is going to be written into."""
        for value in self._stored.pop(_storage(tensor), ()):
            value.tensor = value.tensor.clone()


def _numbers_of(name: str, out: Any) -> list[Tensor]:
    """Tensors of a result that have to be finite: a flexible attention also gives logarithms of sums, −∞ where all is masked."""
    return tensors_among(out)[: 1 if name == "flex_attention" else None]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _are_finite(values: Iterable[Any]) -> bool:
    return all(is_finite(value) for value in values if isinstance(value, Tensor | float))


def _plain(func: Function, args: Args, kwargs: Kwargs) -> Tensor | None:
    if func not in NORMS or any(isinstance(value, Tensor) and value.is_meta for value in args):
        return None
    return plain_norm(func, args, kwargs)
