"""Callable packages: both ``prunekit.search(…)`` and ``from prunekit.search import Task`` work."""

import sys
from inspect import Signature, signature
from types import ModuleType
from typing import Any

__all__ = ["CallableModule", "callable_module"]


class CallableModule(ModuleType):
    """A module that passes a call on to its own function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function of the same name."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)

    @property
    def __signature__(self) -> Signature:
        """The function's signature, so that editors and notebooks show its arguments."""
        return signature(getattr(self, self.__name__.rpartition(".")[2]))


def callable_module(name: str) -> None:
    """Make the module ``name`` callable."""
    sys.modules[name].__class__ = CallableModule
