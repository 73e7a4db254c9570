"""JSON that is read strictly: bounded in size, without repeated keys, and with finite numbers only."""

import json
import math
from pathlib import Path
from typing import Any

from prunekit.errors import FileFormatError, MissingFileError
from prunekit.limits import check_limit

__all__ = ["parse_json", "read_json"]

_LARGEST_INTEGER = 2**63  # what other programs can hold, and more MACs than any network has


def read_json(path: Path, expected_format: str | None = None) -> dict[str, Any]:
    """Read a JSON object, checking its ``format`` key when ``expected_format`` is given.

    Raises:
        MissingFileError: there is no such file.
        LimitError: it is larger than the limits ``json-bytes`` and ``json-values`` allow.
        FileFormatError: it is not a JSON object, repeats a key, holds NaN, an infinity or a text that is no Unicode, or is of
            another format.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected a JSON file there.")
    check_limit("json-bytes", path.stat().st_size, str(path))
    data = parse_json(path.read_bytes(), str(path))
    if not isinstance(data, dict):
        raise FileFormatError(f"{path} holds a JSON {type(data).__name__}; expected an object.")
    if expected_format is not None and data.get("format") != expected_format:
        found = repr(data.get("format"))[:80]
        raise FileFormatError(f"{path} has format {found}; expected {expected_format!r}.")
    return data


def parse_json(content: bytes, what: str) -> Any:
    """Parse JSON strictly.

    Args:
        content: UTF-8.
        what: where it comes from, as error messages name it.

    Returns:
        Plain dicts, lists, texts, finite floats, integers below 2⁶³ in size, booleans and None.

    Raises:
        LimitError: it is larger than the limits ``json-bytes`` and ``json-values`` allow.
        FileFormatError: it is no such JSON.
    """
    check_limit("json-bytes", len(content), what)
    check_limit("json-values", sum(map(content.count, (b",", b":", b"[", b"{"))), what)
    try:
        text = content.decode("utf-8")
        data = json.loads(
            text, parse_constant=_no_number, parse_float=_finite, parse_int=_whole, object_pairs_hook=_without_repeats
        )
        if "\\u" in text:  # the only way to a lone surrogate: UTF-8 itself has none
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise FileFormatError(
            f"{what} is not readable JSON ({said}); write it again with the command that made it."
        ) from error
    return data


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _whole(text: str) -> int:
    number = int(text) if len(text) <= 20 else _LARGEST_INTEGER
    if abs(number) >= _LARGEST_INTEGER:
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {repeated[:40]!r} occurs twice")
    return found
