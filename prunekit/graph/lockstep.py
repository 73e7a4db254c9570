"""A pruned network, call by call in step with the full one: each call gets what the full network has in its place.

So every function is checked once and alone, errors cannot grow from layer to layer, and whatever is wrong is found in one pass.
Three things are let be:

- *Norms* may have other statistics when channels go. Of torch's norms only scale and shift are compared; what is written out is
  taken from the full network, see :mod:`prunekit.graph.statistics`.
- *Queries* of heads that narrow carry a factor, which the attention that divides by their width takes back.
- *Other numbers* for other widths may scale a tensor, as long as the scale is taken back before anything else is done with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from prunekit._types import IntArray
from prunekit.graph.calls import Call, call_name, is_plain, versions
from prunekit.graph.cutting import Cutter
from prunekit.graph.flow import Deadline, Labels
from prunekit.graph.judging import agree, is_random, plain_norm, ratio
from prunekit.graph.recording import Note, Recording, Value
from prunekit.graph.statistics import Statistics
from prunekit.graph.surgery import Inputs, output_tensors, run_once

__all__ = ["Fault", "Lockstep"]


@dataclass(frozen=True, eq=False)
class Fault:
    """Something that went wrong.

    Args:
        reason: what.
        ids: the removed ids that are involved, empty where nobody knows.
        call: place of the call.
        numbers: whole numbers among the arguments, of the full and of the pruned network.
        parted: whether the pruned network called other functions.
    """

    reason: str
    ids: IntArray
    call: int
    numbers: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    parted: bool = False


class Stopped(BaseException):
    """Ends a network's forward pass from inside; no ``except Exception`` of its own catches it."""


class Source(Protocol):
    """Where the values of the pruned network's own tensors come from."""

    def pruned_key(self, tensor: Tensor) -> str | None:
        """Name of a parameter or buffer, None for other tensors."""
        ...

    def pruned(self, key: str) -> Tensor:
        """Its value."""
        ...


class Lockstep(TorchFunctionMode):
    """Runs a pruned network.

    Args:
        recording: of the full network.
        cutter: knows what is left of each tensor.
        statistics: knows what may be another one.
        source: values of the pruned network's own tensors.
        deadline: when to give up.

    ``scaled`` has the network's own tensors that it scales otherwise than the full one: name, factor and removed ids.
    """

    def __init__(
        self, recording: Recording, cutter: Cutter, statistics: Statistics, source: Source, deadline: Deadline
    ) -> None:
        super().__init__()
        self.notes: list[Note | None] = [*recording.notes]
        self.output = recording.output
        self.cutter, self.statistics, self.source, self.deadline = cutter, statistics, source, deadline
        self.place = -1
        self.faults: list[Fault] = []
        self.scaled: list[tuple[str, float, IntArray]] = []
        self._twins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._wrong: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._odd: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def run(self, model: nn.Module, inputs: Inputs) -> list[Fault]:
        """What goes wrong, in the order in which it does.

        Args:
            model: the pruned network.
            inputs: what the full network was given.
        """
        inputs = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
        try:
            try:
                with self:
                    output = run_once(model, inputs)
            except Exception as error:
                self.deadline.check()
                self.place += 1
                self.stop(f"removing its channels stops the network{self._where()} ({_text(error)})")
            if self.place + 1 < len(self.notes):
                self.place += 1
                self.part(f"the network ends{self._where()}")
            self._compare_outputs(output)
        except Stopped:
            pass
        return self.faults

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_plain(func, args, kwargs):
            return func(*args, **kwargs)
        self.deadline.check()
        self.place += 1
        leaves, spec = tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        meeting = Meeting(self, self._note(func, len(places)), leaves, places)
        meeting.feed()
        return meeting.run(func, spec)

    def _note(self, func: Any, tensors: int) -> Note:
        """What the full network did in this place."""
        if self.place >= len(self.notes):
            self.part("the network goes on at its end")
        note = self.notes[self.place]
        assert note is not None  # noqa: S101 - each is asked for once
        self.notes[self.place] = None  # its tensors are of no use any longer
        if note.func != func or len(note.given) != tensors:
            self.part(f"{note.call.module or 'the network'} calls {call_name(func)} where it called {note.call.name}")
        return note

    def stop(self, reason: str, parted: bool = False) -> NoReturn:
        """End here, with a fault of which nobody knows the channels."""
        self.faults.append(Fault(reason, np.zeros(0, dtype=np.int64), self.place, parted=parted))
        raise Stopped

    def part(self, how: str) -> NoReturn:
        """End here: the pruned network does something else."""
        self.stop(f"removing its channels makes other layers run: {how}", parted=True)

    def _where(self) -> str:
        note = self.notes[self.place] if self.place < len(self.notes) else None
        return f" before {place_of(note.call)}" if note is not None else ""

    def is_twin(self, value: Value, own: Tensor) -> bool:
        """Whether a tensor of the pruned network is known to be what it should be."""
        return bool(self._twins.get(own) == (value.number, *versions([own])))

    def pair(self, value: Value, own: Tensor) -> Tensor:
        """Note that a tensor of the pruned network is what it should be."""
        self._twins[own] = (value.number, *versions([own]))
        return own

    def mark_wrong(self, own: Tensor, fault: Fault) -> None:
        """Note that a tensor was computed wrongly: a fault, should anything be done with it."""
        self._wrong[own] = fault

    def use(self, own: Tensor) -> None:
        """Something is done with a tensor."""
        fault = self._wrong.pop(own, None)
        if fault is not None:
            self.faults.append(fault)

    def is_odd(self, own: Tensor) -> bool:
        """Whether a tensor of the pruned network is scaled by something that is to be taken back."""
        return own in self._odd

    def blame(self, own: Tensor) -> IntArray:
        """The ids that it is scaled by."""
        ids: IntArray = self._odd[own]
        return ids

    def mark_odd(self, own: Tensor, ids: IntArray) -> None:
        """Note that it is scaled, and by what."""
        self._odd[own] = ids

    def _compare_outputs(self, output: Any) -> None:
        """Nothing of the output may change."""
        found, expected = output_tensors(output), output_tensors(self.output)
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
            self.stop("removing its channels changes the shape of the output")
        for a, b in zip(found, expected, strict=True):
            self.use(a)
            if self.source.pruned_key(a) is None and not agree(a, b):
                self.stop(_CHANGED + " in the output, in a way that is not known")


class Meeting:
    """One call of the pruned network, beside the full one's.

    Args:
        step: the pass that it belongs to.
        note: the full network's call.
        leaves: of the arguments.
        places: of the tensors among them.
    """

    def __init__(self, step: Lockstep, note: Note, leaves: list[Any], places: Sequence[int]) -> None:
        self.step, self.note, self.call, self.leaves, self.places = step, note, note.call, leaves, places
        self.own_arguments = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
        self.blamed: list[IntArray] = []
        self.wrong = False
        self.differs = False

    def feed(self) -> None:
        """Give the call its parameters, and what the full network has in place of all else."""
        for i, value, labels in zip(self.places, self.note.given, self.call.before, strict=True):
            own = self.leaves[i]
            if self.call.name not in _SHAPES:
                self.step.use(own)
            if self.step.source.pruned_key(own) != value.key:
                self.step.part(f"{place_of(self.call)} takes other tensors")
            if value.key is not None:
                self.leaves[i] = self.step.source.pruned(value.key)
            elif not self.step.is_twin(value, own):
                self.leaves[i] = self._fitting(value, own, labels)
        self.blamed = [self.step.blame(self.leaves[i]) for i in self.places if self.step.is_odd(self.leaves[i])]

    def _fitting(self, value: Value, own: Tensor, labels: Labels) -> Tensor:
        """What comes from outside torch's functions: an input, a number made into a tensor, what a scripted function gives."""
        cuts = list(self.step.cutter.cuts(value.tensor, labels, own.shape))
        for cut in cuts:
            if agree(own, cut) or (self.step.is_odd(own) and ratio(own, cut) is not None):
                return own
        self._fault(changed_at(self.call))
        return cuts[0].clone() if cuts else own

    def run(self, func: Any, spec: Any) -> Any:
        """Call the function, compare, and give back what the network is to go on with."""
        args, kwargs = tree_unflatten(self.leaves, spec)
        out: Any = None
        failed = True
        try:
            plain = plain_norm(func, args, kwargs) if self.note.plain is not None else None
            out, failed = func(*args, **kwargs), False
        except Exception as error:
            self._fault(f"removing its channels stops the network at {place_of(self.call)} ({_text(error)})")
        if plain is not None and self.note.plain is not None and not failed:
            cuts = self.step.cutter.cuts(self.note.plain, self.call.after[0])
            if not any(agree(plain, cut) for cut in cuts):
                self._fault(changed_at(self.call))
        for k, value in self.note.written.items():
            self._settle_written(k, value)
        own, spec = tree_flatten(out)
        if failed or len(own) != len(self.note.results):
            if not failed or len(self.note.results) != 1:
                self._fault(f"removing its channels stops the network at {place_of(self.call)}")
                self.step.stop(self.step.faults[-1].reason)
            own, spec = [None], tree_flatten(0)[1]
        self._settle_results(own)
        numbers = [value.number for value in self.note.given]
        made = [v.number for v in (*self.note.results, *self.note.written.values()) if isinstance(v, Value)]
        astray = self.step.statistics.go_on(self.call, numbers, made, self.differs)
        if len(astray) and not self.wrong:
            self.blamed = [astray]
            self._fault(changed_at(self.call))
        return tree_unflatten(own, spec)

    def _settle_results(self, own: list[Any]) -> None:
        labels = iter(self.call.after)
        for place, result in enumerate(self.note.results):
            if isinstance(result, Value):
                found = own[place] if isinstance(own[place], Tensor) else None
                own[place] = self._settle(result, found, next(labels, Labels()))

    def _settle_written(self, k: int, value: Value) -> None:
        """An argument that the call wrote into."""
        own = self.leaves[self.places[k]]
        if self._settle(value, own, self.call.written.get(k, self.call.before[k])) is not own:
            self.step.stop(changed_at(self.call))

    def _fault(self, reason: str) -> None:
        if not self.wrong:
            self.step.faults.append(self._as_fault(reason))
        self.wrong = True

    def _as_fault(self, reason: str) -> Fault:
        numbers = _whole_numbers(self.note.arguments), _whole_numbers(self.own_arguments)
        return Fault(reason, self._involved(), self.step.place, numbers)

    def _involved(self) -> IntArray:
        """Removed ids of the call: those that its arguments are scaled by, or else all that its tensors have."""
        if self.blamed:
            return np.unique(np.concatenate(self.blamed))
        return self.step.statistics.removed([*self.call.before, *self.call.after, *self.call.written.values()])

    def _settle(self, value: Value, own: Tensor | None, labels: Labels) -> Tensor:
        """What the pruned network goes on with."""
        cuts = list(self.step.cutter.cuts(value.tensor, labels, None if own is None else own.shape))
        if own is not None:
            for cut in cuts:
                if agree(own, cut):
                    return self._same(value, own, cut)
            if self._is_scaled(value.tensor, own, labels, cuts):
                return self.step.pair(value, own)
            for cut in cuts:
                if cut.shape == own.shape and self._is_excused(own, cut):
                    self.differs = True
                    return self._same(value, own, cut)
        fault = self._as_fault(changed_at(self.call))
        if own is None or not cuts or own.shape != cuts[0].shape:
            self._fault(fault.reason)
        if not cuts:
            self.step.stop(fault.reason)
        settled = self._same(value, own, cuts[0])
        if not self.wrong:
            self.step.mark_wrong(settled, fault)
        return settled

    def _same(self, value: Value, own: Tensor | None, cut: Tensor) -> Tensor:
        """The full network's values in the pruned one's tensor, which may be a view of others."""
        if own is None or own.shape != cut.shape or own.dtype != cut.dtype:
            own = cut.clone()
        elif not own.equal(cut):
            try:
                own = cut.clone() if self._is_view(own) else own.copy_(cut)
            except RuntimeError:  # it overlaps with itself
                own = cut.clone()
        return self.step.pair(value, own)

    def _is_view(self, own: Tensor) -> bool:
        """Whether a result is a part of an argument that the call did not write into."""
        if self.note.written:
            return False
        given = {self.leaves[i].untyped_storage()._cdata for i in self.places}
        return own.untyped_storage()._cdata in given

    def _is_scaled(self, tensor: Tensor, own: Tensor, labels: Labels, cuts: Sequence[Tensor]) -> bool:
        """Whether the pruned network's values are scaled in a way that is to be taken back."""
        scaled = self.step.cutter.scaled(tensor, labels)
        if scaled is not None and any(agree(own, cut) for cut in self.step.cutter.cuts(scaled, labels, own.shape)):
            self.step.mark_odd(own, self._involved())
            return True
        if self.note.plain is not None:  # of a norm, the scale and the shift are compared alone
            return False
        differs = bool(self.blamed) or _plain_numbers(self.note.arguments) != _plain_numbers(self.own_arguments)
        ratios = [ratio(own, cut) for cut in cuts] if differs and not self._is_normed() else []
        for factor in ratios:
            if factor is not None:
                self.step.mark_odd(own, self._involved())
                own_keys = [value.key for value in self.note.given if value.key is not None]
                self.step.scaled += [(key, factor, self._involved()) for key in own_keys]
                return True
        return False

    def _is_normed(self) -> bool:
        return self.step.statistics.is_normed(self.call, [value.number for value in self.note.given])

    def _is_excused(self, own: Tensor, cut: Tensor) -> bool:
        """Whether other values are all right."""
        if self.note.plain is not None or is_random(self.call.name):
            return True
        if self.step.statistics.may_differ(self.call, [value.number for value in self.note.given]):
            return True
        return self._is_normed() and ratio(own, cut) is not None


_SHAPES = ("numel", "nelement", "size", "dim", "ndimension", "stride", "element_size", "is_contiguous", "__len__")
"""Functions that ask for no values."""
_CHANGED = "removing its channels changes what the other channels compute"


def place_of(call: Call) -> str:
    """A call, as a message names it."""
    return f"{call.name.strip('_')} of {call.module}" if call.module else call.name.strip("_")


def changed_at(call: Call) -> str:
    """A message."""
    return f"{_CHANGED} at {place_of(call)}, in a way that is not known"


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).split(chr(10))[0]}"


def _plain_numbers(leaves: Sequence[Any]) -> list[Any]:
    return [leaf for leaf in leaves if isinstance(leaf, float | int)]


def _whole_numbers(leaves: Sequence[Any]) -> tuple[int, ...]:
    flat = [part for leaf in leaves for part in (leaf if isinstance(leaf, tuple | list) else [leaf])]
    return tuple(number for number in flat if isinstance(number, int) and not isinstance(number, bool))
