"""Bounds on the values in a recipe. A recipe may come from a stranger, so it is checked before anything else uses it."""

import datetime
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping

from prunekit._json import JsonDict
from prunekit._messages import plain
from prunekit.errors import InputError
from prunekit.limits import MAX_COUNT, MAX_SEED, MAX_STEPS
from prunekit.recipe.schema import Limits, kinds_at
from prunekit.search import PROPOSERS, PROXIES, SearchOptions
from prunekit.training.options import PRECISIONS

__all__ = [
    "SEARCH",
    "TRAINING",
    "check_inner_name",
    "check_search",
    "misread_values",
    "unsafe_values",
]

_NUMBERS = frozenset(("integer", "number"))
_OWN = (
    (bool, {"boolean"}),
    (str, {"string"}),
    (int | float, _NUMBERS),
)  # types of JSON by Python's; a bool is an int, too
_MAX_INTEGER = 2**63
_MAX_TEXT = 1024  # characters; a path may have 4096 on Linux, but nobody types those
_MAX_DESCRIPTION = 10_000
_BIDIRECTIONAL = (
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # display a text in another order than a program reads it
)
_COUNT = {"minimum": 1, "maximum": MAX_COUNT}
_STEPS = {"minimum": 1, "maximum": MAX_STEPS}
_POSITIVE = {"exclusiveMinimum": 0}
_BELOW_ONE = {"minimum": 0, "exclusiveMaximum": 1}
_SHARE = {"exclusiveMinimum": 0, "maximum": 1}
_SEED = {"minimum": 0, "maximum": MAX_SEED}
TRAINING = Limits(
    {
        **dict.fromkeys(("batch_size", "gradient_accumulation_steps", "checkpoints_total_limit"), _COUNT),
        **dict.fromkeys(("steps", "checkpoint_every", "log_every"), _STEPS),
        "warmup_steps": _STEPS | {"minimum": 0},
        "seed": _SEED,
        **dict.fromkeys(("learning_rate", "checkpoint_minutes", "max_grad_norm"), _POSITIVE),
        **dict.fromkeys(("ema_decay", "label_dropout"), _BELOW_ONE),
        "curriculum_share": _SHARE,
        "weight_decay": {"minimum": 0},
        "mixed_precision": {"enum": list(PRECISIONS)},
    }
)
"""Bounds on a recipe's training options."""
SEARCH = Limits(
    {
        **dict.fromkeys(("rounds", "shortlist", "finalists", "fresh", "trials"), _COUNT),
        "screening": {"minimum": 0, "maximum": _COUNT["maximum"]},
        "negligible": {"minimum": 0},
        "seed": _SEED,
        "tolerance": _BELOW_ONE,
        "bite": _SHARE,
        "proposer": {"enum": list(PROPOSERS)},
        "proxy": {"enum": list(PROXIES)},
    }
)
"""Bounds on a recipe's search options."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+. -]{0,99}", re.ASCII)


def unsafe_values(data: object) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Find values that no key of a recipe may have; yields the place of each with a sentence about it.

    These are numbers that are not finite or take more than 64 bits, texts with control characters or of great length, and
    values that JSON does not have. Objects such as a section made in Python are skipped.

    Example:
        >>> list(unsafe_values({"base": {"train": {"steps": 10**30}}}))[0][0]
        ('base', 'train', 'steps')
    """
    for place, value in _nested(data):
        for key in value if isinstance(value, Mapping) else ():
            said = _text_fault(key, _MAX_TEXT) if isinstance(key, str) else None
            if said is not None:
                yield place, f"a key has {said}"
            elif type(key) not in (str, int):
                yield place, f"Got the key {str(key).lower()[:80]}; expected a text or a whole number"
        fault = _fault(value, multiline=place == ("description",))
        if fault is not None:
            yield place, fault


def misread_values(data: object, schema: JsonDict) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Find values that would be read as another one; yields the place of each with a sentence about it.

    These are true, false and texts where a number belongs, and numbers where true or false does.

    Args:
        data: a recipe.
        schema: the recipe's JSON Schema.
    """
    for place, value in _nested(data):
        if not isinstance(value, bool | int | float | str):
            continue
        kinds = set(kinds_at(schema, place))
        said, own = plain(value), next(own for kind, own in _OWN if isinstance(value, kind))
        if kinds & _NUMBERS and not kinds & own:
            yield place, f"Got {said}; expected {'a number' if 'number' in kinds else 'a whole number'}"
        elif own is _NUMBERS and kinds and kinds <= {"boolean", "null"}:
            yield place, f"Got {said}; expected true or false"


def _nested(data: object) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """All values at any depth with their places."""
    left: list[tuple[tuple[str | int, ...], object]] = [((), data)]
    while left:
        place, value = left.pop()
        yield place, value
        if isinstance(value, Mapping):
            left += [((*place, key if isinstance(key, str | int) else str(key)), one) for key, one in value.items()]
        elif isinstance(value, list | tuple):
            left += [((*place, index), one) for index, one in enumerate(value)]


def _fault(value: object, multiline: bool) -> str | None:
    """Why a single value is refused, or None."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"Got {value}; expected a finite number"
    if isinstance(value, int) and not -_MAX_INTEGER <= value < _MAX_INTEGER:
        return "Got a whole number of more than 64 bits; expected a smaller one"
    if isinstance(value, bytes | bytearray | set | frozenset | complex | datetime.date | datetime.time):
        return f"Got a {type(value).__name__}; expected a number, a text, a list or a mapping"
    if isinstance(value, str):
        plain = value.replace("\n", " ").replace("\t", " ") if multiline else value
        said = _text_fault(plain, _MAX_DESCRIPTION if multiline else _MAX_TEXT)
        return None if said is None else f"Got {said}; expected a short text of printable characters"
    return None


def _text_fault(text: str, longest: int) -> str | None:
    """Why a text is refused, as the end of ``it has …``, or None."""
    if len(text) > longest:
        return f"a text of {len(text):,} characters"
    if any(unicodedata.category(character) in ("Cc", "Cs") or character in _BIDIRECTIONAL for character in text):
        return "a control character"
    return None


def check_inner_name(name: str, what: str) -> None:
    """Check that the name of a file that a recipe wants written cannot lead out of the folder it is written to.

    Allowed are parts of letters, digits, spaces and ``_ + . -`` that begin with a letter, a digit or ``_``, with ``/`` between
    them. So there is no ``..``, no absolute path, no ``~``, no drive letter, no URL and no hidden file.

    Args:
        name: of the file, relative to the run's folder.
        what: the key, for the message.

    Raises:
        InputError: the name is of another kind.

    Example:
        >>> check_inner_name("studies/first.log", "study")
        >>> check_inner_name("../first.log", "study")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        prunekit.errors.InputError: Got study '../first.log'; a recipe writes inside its run's folder only: ...
    """
    parts = name.split("/")
    if len(parts) > 8 or not all(_PART.fullmatch(part) and not part.endswith((".", " ")) for part in parts):
        raise InputError(
            f"Got {what} {name[:200]!r}; a recipe writes inside its run's folder only: expected a plain relative name such as "
            "'tables/one.json'."
        )


def check_search(options: SearchOptions) -> SearchOptions:
    """Return the options, after checking that their study is inside the run's folder.

    Raises:
        InputError: they ask for one.
    """
    if options.study is not None:
        check_inner_name(options.study, "study")
    return options
