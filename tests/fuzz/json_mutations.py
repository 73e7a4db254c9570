"""Damaged JSON, the same for the same seed: other types and sizes, lost and new keys, and texts that are no JSON."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    5,
    2**40,
    -(2**62),
    2**63,
    10**400,
    0.5,
    -0.25,
    1e-320,
    1.7e308,
    float("nan"),
    float("inf"),
    "",
    "0.5",
    "nonsense",
    "../../x",
    "\ud800",
    "<script>",
    "a" * 100_000,
    [],
    [[]],
    {},
    {"a": 1},
    [0, "a", None],
    [1e999],
    list(range(1000)),
)
TEXTS = (
    b"",
    b" ",
    b"null",
    b"[]",
    b"3",
    b"{",
    b"[" * 50_000,
    b'{"a":' * 50_000,
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"format": 1e999}',
    b"\x00" * 64,
    b'{"a": 1, "a": 2}',
    b'{"a": "\xff"}',
)


def mutated(document: Any, seed: int) -> bytes:
    """The document with one to three faults, as bytes."""
    draw = random.Random(seed)  # noqa: S311 - reproducible on purpose
    if draw.random() < 0.12:
        return draw.choice(TEXTS)
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            break  # nothing is left of it
        holder, key = draw.choice(places)
        _damage(holder, key, draw)
    text = json.dumps(document).encode()
    if draw.random() < 0.08:
        cut = draw.randrange(len(text))
        return text[:cut] if draw.random() < 0.5 else text[:cut] + bytes([draw.randrange(256)]) + text[cut + 1 :]
    return text


def _damage(holder: Any, key: Any, draw: random.Random) -> None:
    how = draw.random()
    if how < 0.15:
        del holder[key]
    elif how < 0.22 and isinstance(holder, dict):
        holder[draw.choice(("extra", "", "\udfff", f"{key} "))] = copy.deepcopy(draw.choice(VALUES))
    elif how < 0.3 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif (
        how < 0.42
        and isinstance(holder[key], int | float)
        and not isinstance(holder[key], bool)
        and abs(holder[key]) < 1e300
    ):
        holder[key] = draw.choice(
            (-holder[key], holder[key] * 2, holder[key] + 1, holder[key] * 1.5, float(holder[key]))
        )
    else:
        holder[key] = copy.deepcopy(draw.choice(VALUES))


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Every holder and key, of long lists the first and last few."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)[:30]
    elif isinstance(value, list):
        keys = sorted({*range(min(3, len(value))), len(value) - 1} - {-1})
    else:
        return
    for key in keys:
        yield value, key
        yield from _places(value[key], depth + 1)
