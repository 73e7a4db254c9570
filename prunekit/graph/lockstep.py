"""The full and the pruned network in step: each call of the pruned one gets what the full one has in its place.

So every function is checked once and alone, errors cannot grow from layer to layer, and whatever is wrong is found in one pass.
Three things are let be:

- *Norms* may have other statistics when channels go. Of torch's norms only the scale and the shift are compared; what is written out
  is taken from the full network, see :mod:`prunekit.graph.statistics`.
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

from prunekit._types import BoolArray, IntArray
from prunekit.graph.calls import Call, call_name, is_plain, versions
from prunekit.graph.cutting import Cutter
from prunekit.graph.flow import Deadline, Labels
from prunekit.graph.judging import NORMS, agree, is_finite, is_random, plain_norm, ratio
from prunekit.graph.meeting import Finished, Partner, Stopped
from prunekit.graph.statistics import Statistics, visible
from prunekit.graph.surgery import Inputs, output_tensors, run_once

__all__ = ["Fault", "Lockstep", "Tensors"]


@dataclass(frozen=True, eq=False)
class Fault:
    """Something that went wrong.

    Args:
        reason: what.
        ids: the removed ids that are involved, empty where nobody knows.
        call: place of the call.
        numbers: whole numbers among the arguments, of the full and of the pruned network.
    """

    reason: str
    ids: IntArray
    call: int
    numbers: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


class Tensors(Protocol):
    """Values of parameters and buffers in both networks."""

    def full(self, tensor: Tensor) -> Tensor | None:
        """With zeros where channels are removed; None for a tensor that is neither parameter nor buffer."""
        ...

    def pruned(self, tensor: Tensor, partner: Tensor) -> Tensor | None:
        """Of the pruned network, for a tensor of the full one and what the pruned one has in its place; None for another one."""
        ...


@dataclass(frozen=True, eq=False)
class _Meeting:
    """Both networks at one call: the leaves of their arguments, and the places of the tensors among them."""

    call: Call
    full: list[Any]
    pruned: list[Any]
    places: list[tuple[int, int]]

    @property
    def given(self) -> list[Tensor]:
        """The full network's tensors."""
        return [self.full[i] for i, _ in self.places]

    @property
    def numbers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Whole numbers among the arguments."""
        return _whole_numbers(self.full), _whole_numbers(self.pruned)

    @property
    def differs(self) -> bool:
        """Whether the two were given different numbers."""
        a, b = ([v for v in leaves if isinstance(v, float | int)] for leaves in (self.full, self.pruned))
        return a != b


class Lockstep(TorchFunctionMode):
    """Runs a full network, with the pruned one in step.

    Args:
        calls: what the full network does.
        cutter: knows what is left of each tensor.
        gone: for every id, whether it is removed.
        component: of every id.
        tensors: the networks' own.
        deadline: when to give up.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        cutter: Cutter,
        gone: BoolArray,
        component: IntArray,
        tensors: Tensors,
        deadline: Deadline,
    ) -> None:
        super().__init__()
        self.calls, self.cutter, self.gone, self.tensors, self.deadline = calls, cutter, gone, tensors, deadline
        self.place = -1
        self.faults: list[Fault] = []
        self.is_sound = True
        self.statistics = Statistics(gone, component)
        self._twins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._odd: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def run(self, full: nn.Module, pruned: nn.Module, inputs: Inputs) -> list[Fault]:
        """What goes wrong, in the order in which it does.

        Args:
            full: the network.
            pruned: the same with channels removed.
            inputs: of both.
        """
        given, own = (
            tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs) for _ in range(2)
        )
        self.partner = Partner(lambda: run_once(pruned, own))
        try:
            with self:
                output = run_once(full, given)
            self._compare_outputs(output)
        except Stopped:
            pass
        finally:
            self.partner.end()
        return self.faults

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_plain(func):
            return func(*args, **kwargs)
        self.deadline.check()
        self.place += 1
        meeting, specs = self._meet(func, args, kwargs)
        self._feed(meeting)
        before = versions(meeting.given)
        full, own = (tree_unflatten(leaves, spec) for leaves, spec in zip((meeting.full, meeting.pruned), specs, strict=True))
        blamed = self._blame(meeting)
        norms = self._plain_norms(func, full, own)
        out = func(*full[0], **full[1])
        try:
            result, error = func(*own[0], **own[1]), None
        except Exception as raised:  # noqa: BLE001 - whatever torch says to the foreign network's arguments
            result, error = None, raised
        written = [k for k, (a, b) in enumerate(zip(versions(meeting.given), before, strict=True)) if a != b]
        _Ending(self, meeting, blamed, written, norms).settle(out, result, error)
        return out

    def _meet(self, func: Any, args: Any, kwargs: Any) -> tuple[_Meeting, Any]:
        """Wait until the pruned network has come to the same call."""
        name = call_name(func)
        call = self.calls[self.place] if self.place < len(self.calls) else None
        if call is None or call.name != name:
            self.is_sound = False
            self.stop("the network does not do the same a second time")
        said = self.partner.next()
        if isinstance(said, Finished):
            if said.error is not None:
                self.stop(f"removing its channels stops the network{_before(call)} ({_text(said.error)})")
            self.stop(f"removing its channels makes other layers run: the network ends{_before(call)}")
        (full, spec), (pruned, own_spec) = tree_flatten((args, kwargs)), tree_flatten((said.args, said.kwargs))
        a, b = ([i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)] for leaves in (full, pruned))
        if said.func != func or len(a) != len(b) or len(a) != len(call.before):
            self.stop(
                f"removing its channels makes other layers run: {call.module or 'the network'} calls {call_name(said.func)} "
                f"where it called {name}"
            )
        return _Meeting(call, full, pruned, list(zip(a, b, strict=True))), (spec, own_spec)

    def stop(self, reason: str) -> NoReturn:
        """End here, with a fault of which nobody knows the channels."""
        self.faults.append(Fault(reason, np.zeros(0, dtype=np.int64), min(self.place, len(self.calls) - 1)))
        raise Stopped

    def _feed(self, meeting: _Meeting) -> None:
        """Give both their parameters, and the pruned network what the full one has."""
        for (i, j), labels in zip(meeting.places, meeting.call.before, strict=True):
            tensor, own = meeting.full[i], meeting.pruned[j]
            value = self.tensors.full(tensor)
            if value is not None:
                own_value = self.tensors.pruned(tensor, own)
                if own_value is None:
                    self.stop(f"removing its channels makes other layers run{_before(meeting.call)}")
                meeting.full[i], meeting.pruned[j] = value, own_value
            elif not self._is_twin(tensor, own):
                meeting.pruned[j] = self._fitting(meeting, tensor, own, labels)

    def _is_twin(self, tensor: Tensor, own: Tensor) -> bool:
        twin = self._twins.get(own)
        return twin is not None and twin[0] is tensor and twin[1] == versions([tensor, own])

    def pair(self, tensor: Tensor, own: Tensor) -> None:
        """Note that a tensor of the pruned network is what it should be."""
        self._twins[own] = (tensor, versions([tensor, own]))

    def is_odd(self, own: Tensor) -> bool:
        """Whether a tensor of the pruned network is scaled by something that is to be taken back."""
        return own in self._odd

    def mark_odd(self, own: Tensor, ids: IntArray) -> None:
        """Note that it is, and by which channels."""
        self._odd[own] = ids

    def _fitting(self, meeting: _Meeting, tensor: Tensor, own: Tensor, labels: Labels) -> Tensor:
        """What comes from outside torch's functions, such as a number of its own made into a tensor, or a scripted function."""
        cuts = list(self.cutter.cuts(tensor, labels, own.shape))
        for cut in cuts:
            if agree(own, cut):
                return own
            if own in self._odd and ratio(own, cut) is not None:
                return own
        self.note(meeting, _changed(meeting.call), ())
        return cuts[0].clone() if cuts else own

    def _blame(self, meeting: _Meeting) -> list[IntArray]:
        """What the pruned network's arguments are scaled by."""
        return [self._odd[meeting.pruned[j]] for _, j in meeting.places if meeting.pruned[j] in self._odd]

    def _plain_norms(self, func: Any, full: Any, own: Any) -> tuple[Tensor, Tensor] | None:
        if func not in NORMS:
            return None
        try:
            return plain_norm(func, *full), plain_norm(func, *own)
        except RuntimeError:  # the norm itself will tell
            return None

    def involved(self, meeting: _Meeting, blamed: Sequence[IntArray]) -> IntArray:
        """Removed ids of a call: those that its arguments are scaled by, or else all that its tensors have."""
        if blamed:
            return np.unique(np.concatenate(blamed))
        call = meeting.call
        ids = visible([*call.before, *call.after, *call.written.values()])
        return np.unique(ids[self.gone[ids]])

    def note(self, meeting: _Meeting, reason: str, blamed: Sequence[IntArray]) -> None:
        """Note a fault of the call."""
        self.faults.append(Fault(reason, self.involved(meeting, blamed), self.place, meeting.numbers))

    def _compare_outputs(self, output: Any) -> None:
        """Nothing of the output may change."""
        self.place = len(self.calls) - 1
        said = self.partner.next()
        if not isinstance(said, Finished):
            self.stop("removing its channels makes other layers run: the network goes on at its end")
        if said.error is not None:
            self.stop(f"removing its channels stops the network at its end ({_text(said.error)})")
        found, expected = output_tensors(said.output), output_tensors(output)
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
            self.stop("removing its channels changes the shape of the output")
        for a, b in zip(found, expected, strict=True):
            value = self.tensors.full(b)
            if value is None and not agree(a, b):
                self.stop("removing its channels changes what the other channels compute in the output, in a way that is not known")


class _Ending:
    """What comes of one call in both networks."""

    def __init__(
        self,
        step: Lockstep,
        meeting: _Meeting,
        blamed: list[IntArray],
        written: Sequence[int],
        norms: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.step, self.meeting, self.blamed, self.written, self.norms = step, meeting, blamed, written, norms
        self.call = meeting.call
        self.given = meeting.given
        self.wrong = False
        self.differs = False

    def settle(self, out: Any, own: Any, error: Exception | None) -> None:
        """Compare, and tell the pruned network what the call gives."""
        if error is not None:
            self._fault(f"removing its channels stops the network at {_place(self.call)} ({_text(error)})")
        elif self.norms is not None:
            self._compare_norms()
        changed = [self._settle_written(k) for k in self.written]
        leaves, spec = tree_flatten(out)
        own_leaves, own_spec = tree_flatten(own)
        if error is not None or own_spec != spec:
            if error is None:
                self._fault(f"removing its channels stops the network at {_place(self.call)} (it gives something else)")
            own_leaves, own_spec = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
        labels, results = iter(self.call.after), []
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                own_leaves[place] = self._settle(leaf, own_leaves[place], next(labels, Labels()))
                results.append(leaf)
        astray = self.step.statistics.go_on(self.call, self.given, [*results, *changed], self.differs)
        if len(astray) and not self.wrong:
            self.blamed = [astray]
            self._fault(_changed(self.call))
        self.step.partner.answer(tree_unflatten(own_leaves, own_spec))

    def _fault(self, reason: str) -> None:
        if not self.wrong:
            self.step.note(self.meeting, reason, self.blamed)
        self.wrong = True

    def _compare_norms(self) -> None:
        assert self.norms is not None  # noqa: S101 - asked before
        expected, found = self.norms
        if not any(agree(found, cut) for cut in self.step.cutter.cuts(expected, self.call.after[0])):
            self._fault(_changed(self.call))

    def _settle_written(self, k: int) -> Tensor:
        """An argument that the call wrote into."""
        i, j = self.meeting.places[k]
        tensor, own = self.meeting.full[i], self.meeting.pruned[j]
        labels = self.call.written.get(k, self.call.before[k])
        fixed = self._settle(tensor, own, labels)
        if fixed is not own:
            self.step.stop(self.step.faults[-1].reason if self.step.faults else _changed(self.call))
        return tensor

    def _settle(self, tensor: Tensor, own: Tensor | None, labels: Labels) -> Tensor:
        """What the pruned network goes on with."""
        shape = None if own is None else own.shape
        cuts = list(self.step.cutter.cuts(tensor, labels, shape))
        if own is not None:
            for cut in cuts:
                if agree(own, cut):
                    return self._same(tensor, own, cut)
            if self._is_scaled(tensor, own, labels, cuts):
                self.step.pair(tensor, own)
                return own
            for cut in cuts:
                if cut.shape == own.shape and self._is_excused(own, cut):
                    self.differs = True
                    return self._same(tensor, own, cut)
        self._fault(_changed(self.call))
        if not cuts:
            self.step.stop(_changed(self.call))
        return self._same(tensor, own, cuts[0])

    def _same(self, tensor: Tensor, own: Tensor | None, cut: Tensor) -> Tensor:
        """The full network's values in the pruned one's tensor, which may be a view of others."""
        if not is_finite(cut) and not is_random(self.call.name) and all(map(is_finite, self._arguments())):
            self.step.is_sound = False
            self._fault(f"the trial overflows at {_place(self.call)}")
        if own is not None and own.shape == cut.shape and own.dtype == cut.dtype:
            if not own.equal(cut):
                try:
                    own.copy_(cut)
                except RuntimeError:  # it overlaps with itself
                    own = cut.clone()
        else:
            own = cut.clone()
        self.step.pair(tensor, own)
        return own

    def _arguments(self) -> list[Any]:
        return [leaf for leaf in self.meeting.full if isinstance(leaf, Tensor | float)]

    def _is_scaled(self, tensor: Tensor, own: Tensor, labels: Labels, cuts: Sequence[Tensor]) -> bool:
        """Whether the pruned network's values are scaled in a way that is to be taken back."""
        scaled = self.step.cutter.scaled(tensor, labels)
        if scaled is not None and any(agree(own, cut) for cut in self.step.cutter.cuts(scaled, labels, own.shape)):
            self.step.mark_odd(own, self.step.involved(self.meeting, self.blamed))
            return True
        if not self.blamed and not self.meeting.differs:
            return False
        if self.step.statistics.is_normed(self.call, self.given):
            return False
        if any(ratio(own, cut) is not None for cut in cuts):
            self.step.mark_odd(own, self.step.involved(self.meeting, self.blamed))
            return True
        return False

    def _is_excused(self, own: Tensor, cut: Tensor) -> bool:
        """Whether other values are all right."""
        if self.norms is not None or is_random(self.call.name):
            return True
        statistics = self.step.statistics
        if statistics.may_differ(self.call, self.given):
            return True
        return statistics.is_normed(self.call, self.given) and ratio(own, cut) is not None


def _place(call: Call) -> str:
    return f"{call.name.strip('_')} of {call.module}" if call.module else call.name.strip("_")


def _before(call: Call) -> str:
    return f" before {_place(call)}"


def _changed(call: Call) -> str:
    return f"removing its channels changes what the other channels compute at {_place(call)}, in a way that is not known"


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).split(chr(10))[0]}"


def _whole_numbers(leaves: Sequence[Any]) -> tuple[int, ...]:
    flat = [part for leaf in leaves for part in (leaf if isinstance(leaf, tuple | list) else [leaf])]
    return tuple(number for number in flat if isinstance(number, int) and not isinstance(number, bool))
