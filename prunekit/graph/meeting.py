"""Two networks that run in step: each waits at every call of a torch function until the other has come to it too.

The second network runs in a thread of its own, and only its Python code does: what it calls is computed in the first one's thread,
so that both are under the same autocast, devices and streams.
"""

import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from prunekit.graph.calls import is_plain

__all__ = ["Finished", "Partner", "Stopped", "Waiting"]


class Stopped(BaseException):
    """Ends a network's forward pass from inside; no ``except Exception`` of its own catches it."""


class Waiting:
    """The second network waits at a call.

    Args:
        func: the torch function.
        args: its arguments by place.
        kwargs: and by name.
    """

    def __init__(self, func: Any, args: Any, kwargs: Any) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs


class Finished:
    """The second network has come to an end.

    Args:
        output: what it gave.
        error: what stopped it, None for nothing.
    """

    def __init__(self, output: Any, error: BaseException | None) -> None:
        self.output, self.error = output, error


class Partner:
    """Runs the second network, call by call.

    Args:
        run: its forward pass.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        self._said: SimpleQueue[Waiting | Finished] = SimpleQueue()
        self._told: SimpleQueue[tuple[Any, bool]] = SimpleQueue()
        self._over = False
        context = contextvars.copy_context()
        device = torch.get_default_device()
        self._thread = threading.Thread(target=lambda: context.run(self._work, run, device), daemon=True)
        self._thread.start()

    def next(self) -> Waiting | Finished:
        """What the network does next; each :class:`Waiting` has to be answered."""
        said = self._said.get()
        self._over = isinstance(said, Finished)
        return said

    def answer(self, value: Any) -> None:
        """What the call that it waits at gives."""
        self._told.put((value, True))

    def end(self) -> None:
        """Stop the network where it is; nothing happens where it has come to an end."""
        if not self._over:
            self._told.put((None, False))
        self._thread.join()

    def _work(self, run: Callable[[], Any], device: torch.device) -> None:
        try:
            with device, _Asking(self._ask):
                output = run()
        except BaseException as error:  # noqa: BLE001 - it is told to the other thread
            self._said.put(Finished(None, error))
        else:
            self._said.put(Finished(output, None))

    def _ask(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._said.put(Waiting(func, args, kwargs))
        value, goes_on = self._told.get()
        if not goes_on:
            self._told.put((None, False))  # for whatever it calls on its way out
            raise Stopped
        return value


class _Asking(TorchFunctionMode):
    """Hands every call to somebody else."""

    def __init__(self, ask: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self.ask = ask

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {})) if is_plain(func) else self.ask(func, args, kwargs or {})
