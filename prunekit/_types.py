"""Names for types that cross module borders: of arrays, and of calls that are passed on as they are."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Args", "BoolArray", "FloatArray", "Function", "IntArray", "Kwargs", "StateDict"]

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Function = Callable[..., Any]
Args = tuple[Any, ...]
"""Arguments by place."""
Kwargs = dict[str, Any]
"""Arguments by name."""
StateDict = dict[str, Any]
"""A state as torch saves it."""
