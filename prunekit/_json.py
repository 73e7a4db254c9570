"""JSON that is read strictly: bounded in size, without repeated keys, with finite numbers only, and of a stated form.

A form is a :class:`~typing_extensions.TypedDict`; its fields may be :class:`Bounded`. pydantic checks data against it, and is
imported when the first file is checked. Nothing is converted: a text that looks like a number is refused; unknown keys are kept.
"""

import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from prunekit._missing import check_json
from prunekit.errors import FileFormatError
from prunekit.limits import check_limit

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema, ErrorDetails

__all__ = [
    "AGAIN",
    "Above",
    "Amount",
    "Bounded",
    "Distance",
    "JsonDict",
    "JsonObject",
    "Many",
    "Named",
    "Number",
    "Pair",
    "Positive",
    "Ratio",
    "Unchanged",
    "Whole",
    "checked",
    "parse_json",
    "parsed",
    "read_document",
    "read_json",
]

JsonDict = Mapping[str, Any]
"""An object of JSON that is only read."""
JsonObject = dict[str, Any]
"""An object of JSON that is being made."""

AGAIN = "write it again with the command that made it"
"""Default advice for a faulty file."""

_LARGEST_INTEGER = 2**63  # limit of other programs, and more MACs than any network has
_T = TypeVar("_T")


class Bounded:
    """Bounds of a field, for ``Annotated``, by pydantic's names.

    Args:
        bounds: ``ge``, ``gt``, ``le``, ``lt`` of numbers, ``min_length`` and ``max_length`` of lists, objects and texts.
    """

    def __init__(self, **bounds: float) -> None:
        self.bounds = bounds

    def __get_pydantic_core_schema__(self, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        return cast("CoreSchema", {**handler(source), **self.bounds})


class Unchanged:
    """For ``Annotated``: a value is checked and kept, so that a whole number stays one where any number is expected."""

    def __get_pydantic_core_schema__(self, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415 - pydantic is loaded when this is called

        def unchanged(value: float, check: core_schema.ValidatorFunctionWrapHandler) -> float:
            check(value)
            return value

        return core_schema.no_info_wrap_validator_function(unchanged, handler(source))


Many = Annotated[list[_T], Bounded(fail_fast=True)]
"""A list of any length; its check stops at the first fault, since listing a million faults would take a gigabyte."""
Pair = Annotated[list[_T], Bounded(min_length=2, max_length=2)]
"""A list of two."""
Named = Annotated[dict[str, _T], Bounded(max_length=100_000)]
"""An object with names as keys, such as those of a network's layers."""
Whole = Annotated[int, Bounded(ge=0)]
"""A whole number of 0 or more."""
Positive = Annotated[int, Bounded(ge=1)]
"""A whole number of 1 or more."""
Number = Annotated[float, Unchanged()]
"""A number; a whole one stays whole."""
Amount = Annotated[float, Bounded(ge=0), Unchanged()]
"""A number of 0 or more."""
Above = Annotated[float, Bounded(gt=0), Unchanged()]
"""A number above 0."""
Distance = Annotated[float, Bounded(ge=-1e-3), Unchanged()]
"""A Fréchet distance: that of equal images is 0, except for rounding."""
Ratio = Annotated[float, Bounded(ge=0, le=1), Unchanged()]
"""A number from 0 to 1."""

_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "an object",
    "dict_type": "an object",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "an object",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "string_type": "a text",
    "too_long": "at most {max_length} entries",
    "too_short": "at least {min_length} entries",
}
"""Expected value for each kind of pydantic error."""


def read_json(path: Path, expected_format: str | None = None, infinities: bool = False) -> JsonObject:
    """Read a JSON object, checking its ``format`` key when ``expected_format`` is given.

    Args:
        path: the file.
        expected_format: what its ``format`` key must say.
        infinities: see :func:`parse_json`.

    Raises:
        MissingFileError: there is no such file.
        LimitError: it is larger than the limits ``json-bytes`` and ``json-values`` allow.
        FileFormatError: it is not a JSON object, repeats a key, holds NaN, an infinity or a text that is no Unicode, or is of
            another format.
    """
    check_json(path)
    check_limit("json-bytes", path.stat().st_size, str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read ({error.strerror}); expected a JSON file.") from error
    data = parse_json(content, str(path), infinities)
    if not isinstance(data, dict):
        raise FileFormatError(f"{path} holds {_short(data)}; expected an object.")
    if expected_format is not None and data.get("format") != expected_format:
        found, kind = data.get("format"), expected_format.partition("/")[0]
        other = isinstance(found, str) and found.startswith(f"{kind}/")
        mend = "make it again with this version of prunekit" if other else "give a file of that kind"
        raise FileFormatError(f"{path} has format {found!r:.80}; expected {expected_format!r}: {mend}.")
    return data


def read_document(path: Path, form: type[_T], expected_format: str | None = None, mend: str = AGAIN) -> _T:
    """Read a JSON object of a stated form.

    Args:
        path: the file.
        form: a TypedDict.
        expected_format: what its ``format`` key must say.
        mend: how to get a good file, as the end of a sentence.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: see :func:`read_json` and :func:`checked`.
    """
    return checked(form, read_json(path, expected_format), str(path), mend)


def checked(form: type[_T], data: object, what: str, mend: str = AGAIN) -> _T:
    """Check that data has a stated form, and return it (not a copy).

    Args:
        form: a TypedDict.
        data: what :func:`parse_json` returns.
        what: where it comes from, as error messages name it.
        mend: how to get good data, as the end of a sentence.

    Raises:
        FileFormatError: a key is missing, or a value is of another type or out of its range; the message names the first.

    Example:
        >>> from typing_extensions import TypedDict
        >>> class Cut(TypedDict):
        ...     cuts: Many[Whole]
        >>> checked(Cut, {"cuts": [250, 600.5]}, "groups.json")
        Traceback (most recent call last):
        prunekit.errors.FileFormatError: groups.json cannot be read (cuts[1] is 600.5; expected a whole number); write it again ...
    """
    parsed(form, data, what, mend)
    return cast(_T, data)


def parsed(form: type[_T], data: object, what: str, mend: str = AGAIN) -> _T:
    """Check that data has a stated form, and return it in that form, which for a model is an object of its class.

    Args:
        form: a TypedDict or a pydantic model.
        data: see :func:`checked`, also for ``what`` and ``mend``.
        what: where it comes from, as error messages name it.
        mend: how to get good data, as the end of a sentence.

    Raises:
        FileFormatError: see :func:`checked`.
    """
    from pydantic import ValidationError  # noqa: PLC0415 - takes a tenth of a second, and only files need it

    try:
        return cast(_T, _adapter(cast(Hashable, form)).validate_python(data, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FileFormatError(f"{what} cannot be read ({_fault(first)}); {mend}.") from None
    except RecursionError:
        raise FileFormatError(f"{what} cannot be read (it is nested too deeply); {mend}.") from None


@cache
def _adapter(form: Hashable) -> "TypeAdapter[object]":
    from pydantic import TypeAdapter  # noqa: PLC0415 - as above

    return TypeAdapter(cast("type[object]", form))


def _fault(error: "ErrorDetails") -> str:
    """The place of a fault, the value there and the expected one."""
    keys = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error["loc"]).lstrip(".")
    place = keys if len(keys) <= 120 else f"{keys[:60]} … {keys[-50:]}"
    if error["type"] == "missing":
        return f"{place!r} is missing"
    if error["type"] in ("recursion_loop", "recursion_depth_exceeded"):
        return f"{place!r} is nested too deeply"
    form = _EXPECTED.get(error["type"])
    expected = form.format_map(error.get("ctx", {})) if form else " ".join(str(error["msg"]).split())[:120]
    return f"{place or 'it'} is {_short(error['input'])}; expected {expected}"


def _short(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = json.dumps(value) if isinstance(value, str | bool | None) else repr(value)
    return text if len(text) <= 60 else f"{text[:50]} …"


def parse_json(content: bytes, what: str, infinities: bool = False, limited: bool = True) -> Any:
    """Parse JSON strictly.

    Args:
        content: UTF-8.
        what: where it comes from, as error messages name it.
        infinities: whether ``Infinity`` and ``-Infinity`` are numbers, as other libraries write them; NaN is always refused.
        limited: whether its size is checked here.

    Returns:
        Plain dicts, lists, texts, finite floats, integers below 2⁶³ in size, booleans and None.

    Raises:
        LimitError: it is larger than the limits ``json-bytes`` and ``json-values`` allow.
        FileFormatError: it is not such JSON.
    """
    if limited:
        check_limit("json-bytes", len(content), what)
        check_limit("json-values", sum(map(content.count, (b",", b":", b"[", b"{"))), what)
    try:
        if not content.strip():
            raise ValueError("it is empty")
        if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            raise ValueError("it begins with a byte order mark; expected UTF-8 without one")
        text = content.decode("utf-8")
        data = json.loads(
            text,
            parse_constant=_infinity if infinities else _no_number,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_without_repeats,
        )
        if "\\u" in text:  # lone surrogates come only from escapes: UTF-8 has none
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise FileFormatError(f"{what} is not readable JSON ({said}); {AGAIN}.") from error
    return data


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _infinity(name: str) -> float:
    if name == "NaN":
        raise ValueError(f"{name} is no JSON number")
    return float(name)


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


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {repeated[:40]!r} occurs twice")
    return found
