"""Limits on the size of files, checked before reading: one table; users can raise its entries by name.

A limit is raised for one process and its children by the environment variable ``PRUNEKIT_LIMITS``, as in
``PRUNEKIT_LIMITS=picture-pixels=500000000,json-bytes=50000000``, or in Python by :func:`raise_limit`.
"""

import os
from dataclasses import dataclass

from prunekit._messages import did_you_mean
from prunekit.errors import InputError, LimitError

__all__ = [
    "LIMITS",
    "MAX_COUNT",
    "MAX_SEED",
    "MAX_STEPS",
    "VARIABLE",
    "Limit",
    "check_limit",
    "check_unpacked",
    "limit",
    "raise_limit",
]

VARIABLE = "PRUNEKIT_LIMITS"
"""Environment variable with raised limits: ``name=value,name=value``."""
MAX_SEED = 2**32 - 1
MAX_COUNT = 2**20
"""Most samples, images, rounds, groups, channels and so on that one option may ask for."""
MAX_STEPS = 10**9
"""Most train steps."""
"""Largest seed, as for NumPy and Optuna."""

_UNSUSPICIOUS = 2**28  # bytes


@dataclass(frozen=True)
class Limit:
    """A bound on one property of the files that are read.

    Args:
        default: the largest value that is accepted unless the user raises it.
        unit: unit of the value, as error messages name it.
        applies_to: which files it bounds, and why the default is large enough for real ones.
    """

    default: int
    unit: str
    applies_to: str


LIMITS: dict[str, Limit] = {
    "json-bytes": Limit(16 * 2**20, "bytes", "JSON files; the plan of 200,000 kept channels takes 3 MB"),
    "json-values": Limit(
        2_000_000, "values", "values and keys of a JSON file; they take up to 70 bytes each in memory"
    ),
    "yaml-bytes": Limit(256 * 2**10, "bytes", "recipes; the longest of this project's own has 4 kB"),
    "yaml-values": Limit(20_000, "values", "values of a recipe, those behind an alias counted wherever it stands"),
    "yaml-brackets": Limit(
        2_000, "brackets", "lists and mappings in brackets of a recipe; their reader is slow where they are nested"
    ),
    "picture-pixels": Limit(2**28, "pixels", "one picture; a scan of 16,384 by 16,384 has as many"),
    "metadata-bytes": Limit(
        2**28,
        "bytes",
        "metadata.jsonl or metadata.csv of a folder of pictures; enough for a million with 200 bytes each",
    ),
    "unpacked-bytes": Limit(
        4 * 2**30,
        "bytes",
        "the arrays of an .npz together, or an idx.gz, once unpacked; 60,000 pictures of 64 by 64 take 0.7 GB",
    ),
    "unpacked-ratio": Limit(
        200,
        "times its own size",
        "arrays and idx.gz of more than 256 MiB once unpacked; pictures rarely shrink to a 20th",
    ),
    "jpeg-scans": Limit(
        100, "scans", "one JPEG; a progressive one has about 10, and each takes as long as the whole picture"
    ),
    "zip-directory-bytes": Limit(8 * 2**20, "bytes", "the list of files in an .npz or .pt; enough for 80,000 tensors"),
    "pickle-bytes": Limit(
        16 * 2**20,
        "bytes",
        "the part of a .pt that says how its tensors are put together; 80,000 tensors take 12 MB",
    ),
    "pickle-containers": Limit(2_000_000, "containers", "lists, dicts, tuples and calls in that part of a .pt"),
    "safetensors-header-bytes": Limit(16 * 2**20, "bytes", "the header of a .safetensors; enough for 100,000 tensors"),
    "safetensors-tensors": Limit(100_000, "tensors", "tensors of a .safetensors"),
}
"""Every limit by its name."""


def limit(name: str) -> int:
    """The current value: the default, or the value that the user set.

    Raises:
        InputError: ``PRUNEKIT_LIMITS`` names an unknown limit or holds a value that is not a whole number above 0.
    """
    return _raised().get(name, LIMITS[name].default)


def raise_limit(name: str, value: int | str) -> None:
    """Set a limit for this process and for the processes that it starts.

    Raises:
        InputError: there is no such limit, or the value is not a whole number above 0.
    """
    raised = {**_raised(), **_parsed(f"{name}={value}")}
    os.environ[VARIABLE] = ",".join(f"{key}={number}" for key, number in raised.items())


def check_limit(name: str, found: int, what: str) -> None:
    """Refuse something larger than a limit.

    Args:
        name: a key of :data:`LIMITS`.
        found: the size, in the limit's unit.
        what: name of the thing with this size, for the message.

    Raises:
        LimitError: it is larger.
    """
    allowed = limit(name)
    if found > allowed:
        number = f"{found:,}" if found.bit_length() <= 128 else "far too many"
        raise LimitError(
            f"{what} has {number} {LIMITS[name].unit}; expected at most {allowed:,}. "
            f"If you trust it, raise the limit by the environment variable {VARIABLE}={name}={found}",
            name,
            found,
        )


def check_unpacked(packed: int, unpacked: int, what: str) -> None:
    """Refuse content that is too large when unpacked, or suspiciously much larger than when packed.

    Args:
        packed: bytes in the file.
        unpacked: declared bytes after unpacking.
        what: name of the file in messages.

    Raises:
        LimitError: one of the limits ``unpacked-bytes`` and ``unpacked-ratio`` is exceeded.
    """
    check_limit("unpacked-bytes", unpacked, what)
    if unpacked > _UNSUSPICIOUS:
        check_limit("unpacked-ratio", unpacked // max(1, packed), f"{what}, once unpacked,")


def _raised() -> dict[str, int]:
    return _parsed(os.environ.get(VARIABLE, ""))


def _parsed(text: str) -> dict[str, int]:
    raised = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name not in LIMITS:
            raise InputError(
                f"There is no limit {name[:40]!r}{did_you_mean(name, LIMITS)}; expected one of {', '.join(sorted(LIMITS))}."
            )
        if not (value.isascii() and value.isdigit() and len(value) <= 18 and int(value) > 0):
            raise InputError(f"The limit {name} is {value[:40]!r}; expected a whole number above 0.")
        raised[name] = int(value)
    return raised
