"""What the call of a pipeline takes."""

import inspect
from typing import Any

__all__ = ["takes"]


def takes(pipeline: Any) -> tuple[str, ...]:
    """Names of the arguments of the call of a pipeline or of its class."""
    kind = pipeline if isinstance(pipeline, type) else type(pipeline)
    return tuple(inspect.signature(kind.__call__).parameters)
