"""One call of the pruned network, compared with the same call of the full one, see :mod:`prunekit.graph.lockstep`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from prunekit._types import Function, IntArray
from prunekit.graph.judging import agree, is_random, plain_norm, ratio, size_of_terms
from prunekit.graph.labels import Labels
from prunekit.graph.pruning_faults import Fault, changed_at, place_of, text_of
from prunekit.graph.recording import Note, Value

if TYPE_CHECKING:
    from prunekit.graph.lockstep import Lockstep

__all__ = ["Meeting"]

_SHAPES = ("numel", "nelement", "size", "dim", "ndimension", "stride", "element_size", "is_contiguous", "__len__")
"""Functions that ask for no values."""


class Meeting:
    """One call of the pruned network, and the same call of the full one.

    Args:
        step: the pass that it belongs to.
        note: the full network's call.
        leaves: of the arguments.
        places: of the tensors among them.
    """

    def __init__(self, step: "Lockstep", note: Note, leaves: list[Any], places: Sequence[int]) -> None:
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

    def run(self, func: Function, close: Callable[[list[Any]], Any]) -> Any:
        """Call the function, compare, and return the value that the network continues with."""
        args, kwargs = close(self.leaves)
        out: Any = None
        failed = True
        try:
            plain = plain_norm(func, args, kwargs) if self.note.plain is not None else None
            out, failed = func(*args, **kwargs), False
        except Exception as error:
            self._fault(f"removing its channels stops the network at {place_of(self.call)} ({text_of(error)})")
        if plain is not None and self.note.plain is not None and not failed:
            cuts = self.step.cutter.cuts(self.note.plain, self.call.after[0])
            if not any(agree(plain, cut) for cut in cuts):
                self._fault(changed_at(self.call))
        for k, value in self.note.written.items():
            self._settle_written(k, value)
        own, spec = ([out], None) if isinstance(out, Tensor) else tree_flatten(out)
        if failed or len(own) != len(self.note.results):
            if not failed or len(self.note.results) != 1:
                self._fault(f"removing its channels stops the network at {place_of(self.call)}")
                self.step.stop(self.step.faults[-1].reason)
            own, spec = [None], None
        self._settle_results(own)
        numbers = [value.number for value in self.note.given]
        made = [v.number for v in (*self.note.results, *self.note.written.values()) if isinstance(v, Value)]
        astray = self.step.statistics.go_on(self.call, numbers, made, self.differs)
        if len(astray) and not self.wrong:
            self.blamed = [astray]
            self._fault(changed_at(self.call))
        return own[0] if spec is None else tree_unflatten(own, spec)

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
        if own is not None and self._has_its_shape(value.tensor, own, labels):
            return self.step.pair(value, own)
        cuts = list(self.step.cutter.cuts(value.tensor, labels, None if own is None else own.shape))
        right = None if own is None else self._right(value, own, labels, cuts)
        if right is not None:
            return right
        fault = self._as_fault(changed_at(self.call))
        if own is None or not cuts or own.shape != cuts[0].shape:
            self._fault(fault.reason)
        if not cuts:
            self.step.stop(fault.reason)
        settled = self._same(value, own, cuts[0])
        if not self.wrong:
            self.step.mark_wrong(settled, fault)
        return settled

    def _right(self, value: Value, own: Tensor, labels: Labels, cuts: Sequence[Tensor]) -> Tensor | None:
        """What the pruned network goes on with where it is right, or wrong in a way that is let be; else None."""
        for cut in cuts:
            if agree(own, cut):
                return self._same(value, own, cut)
        if self._is_scaled(value.tensor, own, labels, cuts):
            return self.step.pair(value, own)
        least = size_of_terms(self.call.name, [self.leaves[i] for i in self.places])
        for cut in cuts:
            if least > 0 and agree(own, cut, least):
                return self._same(value, own, cut)
            if cut.shape == own.shape and self._is_excused(own, cut):
                self.differs = True
                return self._same(value, own, cut)
        return None

    def _has_its_shape(self, tensor: Tensor, own: Tensor, labels: Labels) -> bool:
        """Whether neither tensor has values, and their shapes agree unless both are empty."""
        if own.dtype != tensor.dtype:
            return False
        if not tensor.numel() and not own.numel():  # a slice past the end, of whatever other sizes
            return own.ndim == tensor.ndim
        if not own.is_meta or not tensor.is_meta:
            return False
        return tuple(own.shape) in self.step.cutter.shapes(tensor, labels, own.shape)

    def _same(self, value: Value, own: Tensor | None, cut: Tensor) -> Tensor:
        """The full network's values in the pruned one's tensor, which may be a view of others."""
        if own is None or own.shape != cut.shape or own.dtype != cut.dtype:
            own = cut.clone()
        elif own.is_meta or cut.is_meta:
            return self.step.pair(value, own)
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


def _plain_numbers(leaves: Sequence[Any]) -> list[Any]:
    return [leaf for leaf in leaves if isinstance(leaf, float | int)]


def _whole_numbers(leaves: Sequence[Any]) -> tuple[int, ...]:
    flat = [part for leaf in leaves for part in (leaf if isinstance(leaf, tuple | list) else [leaf])]
    return tuple(number for number in flat if isinstance(number, int) and not isinstance(number, bool))
