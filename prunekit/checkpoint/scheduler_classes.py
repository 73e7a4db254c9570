"""Scheduler classes of the installed diffusers, by name; nothing else of diffusers can be reached by a name."""

from typing import Any

__all__ = ["ERRORS", "is_stand_in", "named_class"]

ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    ImportError,
    AssertionError,
    MemoryError,
)
"""What schedulers raise where they do not take their settings, or a number of steps."""


def named_class(name: str) -> Any:
    """The scheduler class of this name, maybe a stand-in (:func:`is_stand_in`); None where diffusers has none."""
    import diffusers  # noqa: PLC0415 - takes seconds, and planning alone does not need it

    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    return found if is_stand_in(found) or hasattr(found, "from_config") else None


def is_stand_in(scheduler_class: Any) -> bool:
    """Whether this only stands for a class whose packages are not installed; it lists them under ``_backends``."""
    return type(scheduler_class).__name__ == "DummyObject"
