"""A pruned network, call by call in step with the full one: each call gets what the full network has in its place.

So every function is checked by itself, errors cannot grow from layer to layer, and one pass finds everything that is wrong.
Three things are tolerated:

- *Norms* may have other statistics when channels go. Of torch's norms only scale and shift are compared; what is written out is
  taken from the full network, see :mod:`prunekit.graph.statistics`.
- *Queries* of heads that narrow carry a factor, which the attention that divides by their width takes back.
- *Other numbers* for other widths may scale a tensor, as long as the scale is taken back before anything else is done with it.
"""

from typing import Any, NoReturn, Protocol

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from prunekit._types import Args, Function, IntArray, Kwargs
from prunekit.graph.calls import call_name, is_plain, opened, versions
from prunekit.graph.deadline import Deadline
from prunekit.graph.forward_pass import Inputs, output_tensors, run_once
from prunekit.graph.judging import agree
from prunekit.graph.meeting import Meeting
from prunekit.graph.pruning_faults import CHANGED, Fault, place_of, text_of
from prunekit.graph.recording import Note, Recording, Value
from prunekit.graph.slicing import Cutter
from prunekit.graph.statistics import Statistics

__all__ = ["Lockstep"]


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
                self.stop(f"removing its channels stops the network{self._where()} ({text_of(error)})")
            if self.place + 1 < len(self.notes):
                self.place += 1
                self.part(f"the network ends{self._where()}")
            self._compare_outputs(output)
        except Stopped:
            pass
        return self.faults

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if is_plain(func, args, kwargs):
            return func(*args, **kwargs)
        self.deadline.check()
        self.place += 1
        leaves, close = opened(args, kwargs)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        meeting = Meeting(self, self._note(func, len(places)), leaves, places)
        meeting.feed()
        return meeting.run(func, close)

    def _note(self, func: Function, tensors: int) -> Note:
        """What the full network did in this place."""
        note = self.notes[self.place] if self.place < len(self.notes) else None
        if note is None:
            self.part("the network goes on at its end")
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
                self.stop(CHANGED + " in the output, in a way that is not known")
