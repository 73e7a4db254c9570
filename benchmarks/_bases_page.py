"""The page on several bases."""

from collections.abc import Sequence

import numpy as np
from _bases_figures import CHOSEN_ON, SEEDS_APART, Design, Difference, Following, Rows, Spread
from _manifest import markdown_table

_SAID = (
    "# Several bases\n\n"
    "FID on 10,000 samples of Fashion-MNIST at 16×16 from the same noise, on bases that differ only in the seed of their "
    "training. The entries of a study spend the same training MACs, scoring, searches, recoveries and the sensitivity included; "
    "the recipe of the study says what they are. Made by `python benchmarks/bases.py`; the manifest of each study on each base is "
    "in the folders beside this page, named by the base's seed (`seeds.base` in it is another number). Lower is better. MACs and "
    "parameters are those of the last base.\n\n"
)
_OWN = (
    "## Fine-tuning seeds of its own for each base\n\n"
    f"Base N has the seed N, or as many of N, N + {SEEDS_APART}, … as the second table counts, so no two bases share one. Both "
    "entries of a pair start from the same base, are fine-tuned with the same seed and sample from the same noise, and the mean of "
    "a base's pairs counts once. The interval is Student's for the mean over bases, 95 %, for one comparison; among many, one may "
    "exclude zero by chance. It covers chance in the training of the base and in the fine-tuning, but not in the images, whose "
    "noise is the same on all bases. All learning rates were chosen on "
    f"{CHOSEN_ON.replace('-', ' ')}, so the last column leaves it out.\n\n"
)
_ZERO = (
    "## Fine-tuning seed 0 on every base\n\n"
    "All bases get the same batches and the same noise in the fine-tuning. Chance in these shifts an entry on all bases alike, "
    "which an interval over bases cannot show, so these intervals may be too narrow.\n\n"
)
_CAUSES = (
    "\n## Standard deviations by cause\n\n"
    "Standard deviations of an entry's FID: over bases, each with the first of its own fine-tuning seeds; over fine-tuning seeds "
    "on one base, which are rough, as few bases have two; over images of one network (bootstrap), and the same of its difference "
    "from the base.\n\n"
)


def markdown(designs: Sequence[Design], spreads: Sequence[Spread], followed: Following, rows: Rows) -> str:
    """The whole page."""
    header = ["entry", "bases", "fine-tuning", "sampling", "sampling, paired"]
    causes = [
        [spread.entry, *map(_number, (spread.bases, spread.tuning, spread.sampling, spread.paired))]
        for spread in spreads
    ]
    parts = [_design(design, rows) for design in designs if design.fids]
    return _SAID + "\n".join(parts) + _CAUSES + markdown_table(header, causes) + _followed(followed)


def _design(design: Design, rows: Rows) -> str:
    said = _OWN if design.own else _ZERO
    names = [name.replace("-", " ") for name in design.fids]
    levels = markdown_table(["entry", *names, "mean", "MACs", "parameters"], _levels(design, rows))
    header = ["pair", "bases", "seeds in all", "difference", "95 %", "relative", "better", "without base 0"]
    return said + levels + "\n" + markdown_table(header, [_pair(pair) for pair in design.differences])


def _levels(design: Design, rows: Rows) -> list[list[str]]:
    """FID of every entry on every base."""
    costs = {
        row["entry"]: (row["sampling_macs"] / own[0]["sampling_macs"], row["params"])
        for own in rows.values()
        for row in own
    }
    lines = []
    for entry, (ratio, params) in costs.items():
        values = [own.get(entry) for own in design.fids.values()]
        known = [value for value in values if value is not None]
        if known:
            lines.append([entry, *map(_number, values), f"{np.mean(known):.3f}", f"{ratio:.3f}", f"{params:,}"])
    return lines


def _pair(pair: Difference) -> list[str]:
    return [
        f"{pair.entry} − {pair.other}",
        str(pair.bases),
        str(pair.pairs),
        f"{pair.mean:+.3f}",
        "–" if pair.low is None else f"{pair.low:+.3f} … {pair.high:+.3f}",
        f"{100 * pair.relative:+.1f} %",
        f"{pair.better} of {pair.bases}",
        "–" if pair.rest is None else "{:+.3f} ({:+.3f} … {:+.3f})".format(*pair.rest),
    ]


def _followed(found: Following) -> str:
    """The table of losses by group."""
    header = ["entry", *(f"t ≥ {start}" for start in (0, *found.groups))]
    lines = [[name, *(f"{value:+.2f} %" for value in values)] for name, values in found.changes.items()]
    ranks = ["*rank correlation with FID*", *(f"{value:.2f}" for value in found.ranks)]
    summed = (
        ""
        if found.weighed is None
        else (
            f" Summed over the groups with the amplification that the sensitivities measured as weights, it is {found.weighed:.2f}."
        )
    )
    return (
        "\n## Rank correlation of FID with each group's loss\n\n"
        "Change of the held-out loss from the base's by timestep group, the mean over bases. The last line is Spearman's rank "
        f"correlation with the change of FID, over all {found.pairs} networks, which share bases and seeds.{summed}\n\n"
        + markdown_table(header, [*lines, ranks])
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
