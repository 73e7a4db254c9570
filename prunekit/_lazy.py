"""Names of a package that are imported when they are first used."""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module

__all__ = ["at_need"]


def at_need(package: str, homes: Mapping[str, Iterable[str]], packages: Iterable[str] = ()) -> Callable[[str], object]:
    """A module's ``__getattr__``.

    Args:
        package: the module's name.
        homes: names by the submodule that has them.
        packages: submodules that are names themselves.

    Raises:
        AttributeError: no submodule has the name.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    own = frozenset(packages)

    def find(name: str) -> object:
        if name in own:
            return import_module(f"{package}.{name}")
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home_of[name]}"), name)

    return find
