"""Checks the numbers of every step without stalling a GPU: a training stops at the first that is not finite."""

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from prunekit.checkpoint.finite import first_not_finite
from prunekit.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["StepWatch", "Watch"]

_Step = TypeVar("_Step")
_MEND = "lower the learning rate and start again"


class Watch(Generic[_Step]):
    """Reads each step's numbers: at once on a CPU, and one step later on a GPU, when they are already computed.

    Reading a number from a GPU at once waits for all queued work, and leaves the GPU idle until Python has queued more.

    Example:
        >>> watch = Watch[int]()
        >>> watch.note(7, torch.tensor([1.0, 2.0])), watch.pending()
        ([(7, [1.0, 2.0])], [])
    """

    def __init__(self) -> None:
        self._pending: tuple[_Step, Tensor, Any] | None = None

    def note(self, step: _Step, numbers: Tensor) -> list[tuple[_Step, list[float]]]:
        """Take a step's numbers, shape (n,); returns the steps with numbers that are ready, and these numbers."""
        if numbers.device.type != "cuda":
            return [(step, numbers.tolist())]
        ready = self.pending()
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(numbers.device))
        self._pending = (step, host, event)
        return ready

    def pending(self) -> list[tuple[_Step, list[float]]]:
        """The step that :meth:`note` will return next, if there is one; waits until a GPU has computed it."""
        if self._pending is None:
            return []
        step, host, event = self._pending
        event.synchronize()
        return [(step, host.tolist())]


class StepWatch:
    """Watches a training across all its processes.

    Args:
        accelerator: the training's.

    Attributes:
        asked: whether any process was asked to end. All processes learn this at the same step, since otherwise one would wait for
            another forever.
    """

    def __init__(self, accelerator: "Accelerator") -> None:
        self._accelerator, self._watch, self.asked = accelerator, Watch[int](), False

    def note(self, step: int, losses: Tensor, norm: Tensor | None, asked: bool) -> None:
        """Take the losses of a step's samples, the norm of the gradients, and whether this process was asked to end.

        With fp16, gradients overflow now and then; the scaler then skips the step, and the norm is ignored.

        Raises:
            InputError: a loss or norm is not finite.
        """
        loss = losses.float().mean()
        scaled = norm is None or self._accelerator.scaler is not None
        numbers = torch.stack([loss, torch.zeros_like(loss) if norm is None or scaled else norm.detach().float()])
        if self._accelerator.num_processes == 1:
            self.asked = asked
        else:
            numbers = torch.cat([numbers, numbers.new_tensor([float(asked)])])
            numbers = self._accelerator.reduce(numbers, "sum")
        for known, (loss_, norm_, *others) in self._watch.note(step, numbers):
            _refuse(known, loss_, norm_)
            self.asked = self.asked or any(others)

    def check(self, step: int, model: nn.Module, averaged: nn.Module) -> None:
        """Refuse numbers that must not get into a checkpoint.

        Raises:
            InputError: a loss, a norm, a weight or an average is not finite after this step.
        """
        for known, (loss, norm, *_) in self._watch.pending():
            _refuse(known, loss, norm)
        for network, whose in ((model, ""), (averaged, "the moving average's ")):
            if (found := first_not_finite(network)) is not None:
                raise InputError(f"After training step {step} {whose}{found}; {_MEND}.")


def _refuse(step: int, loss: float, norm: float) -> None:
    if not math.isfinite(loss):
        raise InputError(f"The training loss is {loss} at step {step}; {_MEND}.")
    if not math.isfinite(norm):
        raise InputError(f"The norm of the training's gradients is {norm} at step {step}; {_MEND}.")
