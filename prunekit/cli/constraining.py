"""Options by which a user constrains what is pruned, one word each for what recipes call ``constraints``."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._json import JsonDict
from prunekit.cli.pruning_choices import HeadOption, NormOption
from prunekit.errors import InputError

if TYPE_CHECKING:
    from prunekit.graph import Constraints

__all__ = ["Constraining", "said_of_multiples", "width_multiples"]

KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keep", help="Layers that keep all their channels, by name or pattern: 'mid_block.*'. May be repeated."
    ),
]
TieOption = Annotated[
    list[str] | None,
    typer.Option("--tie", help="Layers that keep equal widths: patterns separated by commas. May be repeated."),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit", help="PATTERN=LEAST: fraction (0.5) or number (16) of channels that stay. May be repeated."
    ),
]
DeclareOption = Annotated[
    list[str] | None,
    typer.Option(
        "--declare", help="CLASS=conv or CLASS=linear, for layer classes that cannot be followed. May be repeated."
    ),
]
NormModeOf = Annotated[
    list[str] | None,
    typer.Option(
        "--norm-mode-of", help="PATTERN=even or PATTERN=whole, for single layers' group norms. May be repeated."
    ),
]
HeadModeOf = Annotated[
    list[str] | None,
    typer.Option("--head-mode-of", help="PATTERN=whole or PATTERN=even, for single attentions. May be repeated."),
]
WidthMultipleOption = Annotated[
    str | None,
    typer.Option(
        help="Widths in multiples: 16, or by resolution as in 32:32,1:16 (32 from 32×32 images up, 16 below); 1 for any. "
        "Default: 8 where the base's widths are multiples of 8 and it is not tiny."
    ),
]


@dataclass(frozen=True)
class Constraining:
    """What pruning may do."""

    keep: KeepOption = None
    tie: TieOption = None
    limit: LimitOption = None
    declare: DeclareOption = None
    norm_mode: NormOption = "even"
    head_mode: HeadOption = "whole"
    norm_mode_of: NormModeOf = None
    head_mode_of: HeadModeOf = None
    width_multiple: WidthMultipleOption = None

    @property
    def constraints(self) -> "Constraints":
        """The constraints that were typed.

        Raises:
            InputError: a pair has another form, or is given twice, or a value is none of the known ones.
        """
        from prunekit.graph import Constraints

        limits = {name: _number(name, value) for name, value in _pairs("--limit", self.limit, "0.5").items()}
        pairs: JsonDict = {
            "declare": _pairs("--declare", self.declare, "conv"),
            "norm_mode_of": _pairs("--norm-mode-of", self.norm_mode_of, "whole"),
            "head_mode_of": _pairs("--head-mode-of", self.head_mode_of, "even"),
        }
        ties = tuple(tuple(part.strip() for part in one.split(",")) for one in self.tie or ())
        return Constraints(keep=tuple(self.keep or ()), tie=ties, limit=limits, **pairs)


def _pairs(option: str, given: Iterable[str] | None, example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.rpartition("=")
        if not equals or not name or not value:
            raise InputError(
                f"Got {option} {text}; expected a name or pattern and a value, such as 'mid_block.*={example}'."
            )
        if found.setdefault(name.strip(), value.strip()) != value.strip():
            raise InputError(f"Got {option} {name} twice, as {found[name.strip()]} and {value}; expected one of them.")
    return found


def _number(pattern: str, text: str) -> int | float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError as error:
        raise InputError(
            f"Got --limit {pattern}={text}; expected a fraction between 0 and 1, or a whole number of channels from 1."
        ) from error


def width_multiples(text: str | None) -> dict[int, int] | None:
    """``16`` as ``{1: 16}``, ``32:32,1:16`` as ``{32: 32, 1: 16}``, None for the default.

    Raises:
        InputError: it is none of these.
    """
    if text is None:
        return None
    pairs = [part.split(":") for part in (text if ":" in text else f"1:{text}").split(",")]
    numbers = [[int(number) if number.strip().isdecimal() else 0 for number in pair] for pair in pairs]
    found = {pair[0]: pair[-1] for pair in numbers}
    if any(len(pair) != 2 or min(pair) < 1 for pair in numbers) or len(found) < len(pairs):
        raise InputError(
            f"Got --width-multiple {text}; expected a multiple such as 16, or resolution:multiple pairs such as 32:32,1:16."
        )
    return found


def said_of_multiples(facts: Iterable[JsonDict]) -> str | None:
    """What multiples the widths are and what that costs, in one line; None where any widths were allowed."""
    facts = list(facts)
    multiples = sorted({int(one) for fact in facts for one in fact["multiples"]["groups"]} - {1})
    if not multiples:
        return None
    by = "as asked" if facts[0]["multiples"]["asked"] else "the default; --width-multiple 1 allows any"
    worst = max(fact["multiples"]["costs"] / fact["base"] for fact in facts)
    finer = sorted({name for fact in facts for name in fact["multiples"]["finer"]})
    told = f"Widths are multiples of {' or '.join(map(str, multiples))} ({by}); any widths come {worst:.3%} of the base nearer"
    but = (
        f"; {len(finer)} channel groups have finer ones, so that targets are met: {', '.join(finer[:3])}"
        if finer
        else ""
    )
    return f"{told}{but}{', …' if len(finer) > 3 else ''}."
