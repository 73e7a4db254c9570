"""A time limit for tracing, and progress messages."""

import logging
import time
from collections.abc import Callable

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from prunekit._types import Args, Function, Kwargs
from prunekit.errors import GraphError
from prunekit.graph.forward_pass import Inputs, run_and_keep

__all__ = ["Deadline", "run_first"]

_PATIENCE = 3.0  # seconds before anything is said
_log = logging.getLogger(__name__)


class Deadline:
    """A limit on the processor time of the thread that traces, which starts now.

    So neither a busy machine nor the number of torch's threads makes a network fail; time in which the thread waits does not count.

    Args:
        seconds: the limit.
        progress: is told what is being done, once this takes more than a few seconds on the clock; it is logged, too.
    """

    def __init__(self, seconds: float, progress: Callable[[str], None] | None = None) -> None:
        self.seconds, self._end, self._progress = seconds, time.thread_time() + seconds, progress
        self._start, self._untold = time.monotonic(), ""

    def check(self) -> None:
        """Refuse to go on after the limit.

        Raises:
            GraphError: the time is up.
        """
        if self._untold:
            self._tell()
        if time.thread_time() > self._end:
            raise GraphError(
                f"The network was not followed through within {self.seconds:g} s of processor time; "
                "give a smaller example input or a longer limit."
            )

    def is_early(self) -> bool:
        """Whether less than half of the time is spent."""
        return time.thread_time() < self._end - self.seconds / 2

    def say(self, what: str) -> None:
        """Tell what is being done from now on: at once where it has taken long already, or else as soon as it has.

        Raises:
            GraphError: the time is up.
        """
        self._untold = what
        self.check()

    def _tell(self) -> None:
        spent = time.monotonic() - self._start
        if spent <= _PATIENCE:
            return
        what, self._untold = self._untold, ""
        _log.info("%s (%.0f s so far)", what, spent)
        if self._progress is not None:
            self._progress(f"{what} ({spent:.0f} s so far)")


class _Hurried(TorchFunctionMode):
    """Ends a network's pass when the time is up.

    Only a call that is given tensors is ended: setting a mode back, as ``no_grad`` does when its block is left, has to succeed.

    Args:
        deadline: when.
    """

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            self._deadline.check()
        return func(*args, **kwargs)


def run_first(model: nn.Module, inputs: Inputs, deadline: Deadline) -> None:
    """A first pass, as some networks keep masks or tables from it, so that later passes call less.

    Args:
        model: the network; what it keeps is kept for each copy of it anew.
        inputs: of the pass.
        deadline: when to give up.

    Raises:
        GraphError: the time is up.
    """
    with _Hurried(deadline):
        run_and_keep(model, inputs)
