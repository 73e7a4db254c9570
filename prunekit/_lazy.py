"""Names of a package that are imported when they are first used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["at_need"]


def at_need(package: str, home_of: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__``.

    Args:
        package: the module's name.
        home_of: name to the submodule that has it; an empty string if the name is a submodule itself.
    """

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(f"{package}.{home_of[name] or name}")
        return getattr(home, name) if home_of[name] else home

    return find
