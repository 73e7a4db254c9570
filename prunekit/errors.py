"""Every error that prunekit raises on purpose.

The tree; each leaf is also a subclass of the matching builtin error::

    PrunekitError
    ├── InputError (ValueError)             an argument, an option or a recipe key
    │   ├── BudgetError                     a target outside what can be reached
    │   └── PlanError                       a pruning plan that does not fit its model
    ├── FileFormatError (ValueError)        a file that is broken, foreign or of another version
    │   ├── LimitError                      a file that is larger than a limit allows
    │   └── UnsafeFileError                 a file that would need to run code to be read
    ├── MissingFileError (FileNotFoundError)
    ├── GraphError (RuntimeError)           a network whose structure cannot be followed
    └── UnfinishedError (RuntimeError)      parts of a run that failed while the others continued

A message is one sentence: what is wrong, the value, the expected value, and how to fix it.
"""

from prunekit._messages import printable

__all__ = [
    "BudgetError",
    "FileFormatError",
    "GraphError",
    "InputError",
    "LimitError",
    "MissingFileError",
    "PlanError",
    "PrunekitError",
    "UnfinishedError",
    "UnsafeFileError",
]


class PrunekitError(Exception):
    """Root of the tree; the command line turns it into one sentence and exit code 2.

    Args:
        message: the sentence; control characters are escaped, see :func:`~prunekit._messages.printable`.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class InputError(PrunekitError, ValueError):
    """A value that the caller gave cannot be used."""


class BudgetError(InputError):
    """A compute target cannot be reached.

    Args:
        message: the sentence for the user.
        feasible: the smallest and the largest target that can be reached, in the unit of the target.
    """

    def __init__(self, message: str, feasible: tuple[float, float]) -> None:
        super().__init__(message)
        self.feasible = feasible

    def __reduce__(self) -> tuple[type["BudgetError"], tuple[str, tuple[float, float]]]:
        return type(self), (str(self), self.feasible)  # so that it can be pickled by a worker process


class PlanError(InputError):
    """A pruning plan does not fit the model that it is applied to."""


class FileFormatError(PrunekitError, ValueError):
    """A file is truncated, tampered with, foreign, or of an unknown version."""


class UnsafeFileError(FileFormatError):
    """Reading a file would run code that it contains."""


class LimitError(FileFormatError):
    """A file is larger than a limit of :data:`prunekit.limits.LIMITS` allows.

    Args:
        message: the sentence for the user.
        limit: the limit's name.
        found: the file's value, which would need a higher limit.
    """

    def __init__(self, message: str, limit: str, found: int) -> None:
        super().__init__(message)
        self.limit, self.found = limit, found

    def __reduce__(self) -> tuple[type["LimitError"], tuple[str, str, int]]:
        return type(self), (str(self), self.limit, self.found)


class MissingFileError(PrunekitError, FileNotFoundError):
    """A file or folder that is needed does not exist."""


class GraphError(PrunekitError, RuntimeError):
    """The structure of a network cannot be followed, so it cannot be pruned safely."""


class UnfinishedError(PrunekitError, RuntimeError):
    """Parts of a run failed; the results of the others are kept.

    Args:
        message: the sentence for the user.
        failures: reason of each failure, by the part's name.
    """

    def __init__(self, message: str, failures: dict[str, str]) -> None:
        super().__init__(message)
        self.failures = dict(failures)

    def __reduce__(self) -> tuple[type["UnfinishedError"], tuple[str, dict[str, str]]]:
        return type(self), (str(self), self.failures)
