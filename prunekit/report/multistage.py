"""The report of a comparison of multistage networks: a table and the learning curves, made only from its manifest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit._json import JsonDict
from prunekit.errors import FileFormatError
from prunekit.report.comparison import Comparison, write_comparison
from prunekit.report.document import Tile
from prunekit.report.learning import (
    LearningCurve,
    are_even,
    comparison_claim,
    curves_of,
    end_columns,
    ends,
    label_and_doubt,
    measured_on,
    seeds_text,
    shares_sentence,
    tmacs_text,
)
from prunekit.report.learning_charts import learning_tiles
from prunekit.report.pareto import Point
from prunekit.report.table import Column, Table, named
from prunekit.report.wording import ABSENT
from prunekit.results.estimate import Estimate
from prunekit.results.learning_results import MultistageManifest, MultistageRow, MultistageSettings, Unified
from prunekit.results.reading_manifests import AGAIN, Manifest, of_kind, read_manifest

__all__ = ["Entry", "entries_of", "multistage_claim", "network_title", "write_multistage_report"]

_TITLES = {
    "unified": "unified",
    "separate": "separate networks",
    "equal": "equal decoders",
    "tailored": "tailored decoders",
}


@dataclass(frozen=True)
class Entry:
    """One network on one grouping, over its seeds.

    Args:
        network: ``unified``, ``separate``, ``equal`` or ``tailored``.
        grouping: method that cut the stages.
        cuts: first timesteps of all stages except the first.
        stage_macs: MACs per sample of every stage.
        sampling_macs: mean MACs of an evaluation while sampling.
        params: number of parameters.
        curve: its learning curve.
    """

    network: str
    grouping: str
    cuts: tuple[int, ...]
    stage_macs: tuple[int, ...]
    sampling_macs: float
    params: int
    curve: LearningCurve


def entries_of(manifest: Manifest | JsonDict) -> list[Entry]:
    """The networks of a manifest, in its order.

    Raises:
        FileFormatError: the manifest is not one of such a comparison.
    """
    found = of_kind(MultistageManifest, manifest)
    try:
        by_network: dict[tuple[str, str, tuple[int, ...], int], list[MultistageRow]] = {}
        met = Counter[tuple[str, str, tuple[int, ...], int]]()
        for row in found.multistage:
            key = (row.network, "" if row.network == "unified" else row.grouping, tuple(row.cuts))
            again = 0  # a seed that was met before is of another grouping with the same cuts
            if row.seed is not None:
                again = met[(*key, row.seed)]
                met[(*key, row.seed)] += 1
            by_network.setdefault((*key, again), []).append(row)
        return [
            Entry(
                network,
                grouping,
                cuts,
                tuple(rows[0].stage_macs),
                float(rows[0].sampling_macs),
                rows[0].params,
                curves_of(network_title(network, grouping), rows),
            )
            for (network, grouping, cuts, _), rows in by_network.items()
        ]
    except ValueError as error:
        raise FileFormatError(f"The manifest holds no comparison of multistage networks ({error}).") from error


def network_title(network: str, grouping: str) -> str:
    """A network's name in tables and pictures.

    Args:
        network: ``unified``, ``separate``, ``equal`` or ``tailored``.
        grouping: method that cut the stages, which the unified network does not have.
    """
    title = _TITLES.get(network, network)
    return f"{title}, {grouping}" if grouping and network != "unified" else title


def multistage_claim(manifest: Manifest | JsonDict) -> str:
    """The finding of the comparison, in one sentence.

    Raises:
        FileFormatError: the manifest lacks the unified network, or others.
    """
    manifest = of_kind(MultistageManifest, manifest)
    entries = entries_of(manifest)
    unified = next((entry.curve for entry in entries if entry.network == "unified"), None)
    others = [entry.curve for entry in entries if entry.network != "unified"]
    if unified is None or not others:
        raise FileFormatError(f"The manifest lacks the unified network, or another one to compare with it; {AGAIN}.")
    return comparison_claim(manifest, manifest.multistage[0].curve[-1], unified, others)


def write_multistage_report(folder: Path | str) -> Path:
    """Write the report of the folder's manifest, see :func:`write_comparison`; returns its page.

    Raises:
        FileFormatError: the manifest is of another kind.
    """
    folder = Path(folder)
    manifest = of_kind(MultistageManifest, read_manifest(folder), str(folder / "manifest.json"))
    settings = MultistageSettings.of(manifest.config or {}, "The manifest's configuration", AGAIN)
    unified = Unified.of(manifest.unified, "The manifest's unified network", AGAIN)
    entries = entries_of(manifest)
    look = manifest.multistage[0].curve[-1]
    comparison = Comparison(
        "multistage",
        "Networks for stages, at equal training MACs"
        if are_even([entry.curve for entry in entries])
        else "Networks for stages, trained for different MACs",
        multistage_claim(manifest),
        _text(manifest, settings, unified, entries),
        [entry.curve for entry in entries],
        _table(entries),
        look.features,
        _points(entries),
        "unified network",
        _tiles(entries, *label_and_doubt(manifest, look)),
    )
    return write_comparison(folder, manifest, comparison)


def _tiles(entries: Sequence[Entry], label: str, doubt: str) -> tuple[Tile, ...]:
    unified = next(entry.curve for entry in entries if entry.network == "unified")
    return learning_tiles(unified, [entry.curve for entry in entries if entry.curve is not unified], label, doubt)


def _points(entries: list[Entry]) -> dict[str, list[Point]]:
    """Loss and FID against sampling MACs; empty if all networks cost the same."""
    if len({entry.sampling_macs for entry in entries}) < 2:
        return {}
    unified = next(entry.sampling_macs for entry in entries if entry.network == "unified")
    return {
        measure: [
            Point(
                entry.curve.title,
                "base" if entry.network == "unified" else "stages",
                entry.sampling_macs / unified,
                Estimate.over(getattr(entry.curve, of)[:, -1]),
            )
            for entry in entries
        ]
        for measure, of in (("FID", "fids"), ("Loss", "losses"))
        if of == "losses" or all(entry.curve.has_fid for entry in entries)
    }


def _table(entries: list[Entry]) -> Table:
    unified = next((entry.curve for entry in entries if entry.network == "unified"), None)
    curves = [entry.curve for entry in entries]
    rows = tuple(
        {
            "place": place,
            "title": entry.curve.title,
            "cuts": " ".join(map(str, entry.cuts)) or ABSENT,
            "stage_macs": " ".join(f"{macs / 1e6:.1f}" for macs in entry.stage_macs),
            "sampling_macs": entry.sampling_macs,
            "params": entry.params,
            **ends(entry.curve),
        }
        for place, entry in enumerate(entries)
    )
    columns = (
        named("network", "title"),
        *end_columns(curves, unified, "its"),
        Column("sampling MACs (M)", "sampling_macs", lambda row: f"{row['sampling_macs'] / 1e6:.1f}"),
        Column("parameters (M)", "params", lambda row: f"{row['params'] / 1e6:.2f}"),
        named("MACs by stage (M)", "stage_macs"),
        named("cuts", "cuts"),
    )
    return Table("multistage", "Final results of every network", rows, columns)


def _text(
    manifest: MultistageManifest, settings: MultistageSettings, unified: Unified, entries: Sequence[Entry]
) -> str:
    look, train, section = manifest.multistage[0].curve[-1], settings.base.train, settings.multistage
    start = f"further from {settings.base.checkpoint}" if settings.base.checkpoint else "from scratch"
    rival = next((entry.curve for entry in entries if entry.network == "unified"), None)
    shares = (
        "Shares: training MACs to reach the unified network's final mean loss and FID, as a share of the unified "
        "network's training and as a factor of reduction, interpolated between looks; – if they are never reached."
    )
    steps = train.steps
    if unified.macs is not None:  # steps are rounded to whole looks
        steps = round(unified.training_macs / (3 * unified.macs * train.batch_size))
    curves = [entry.curve for entry in entries]
    ratios = {curve.title: curve.training_macs[:, -1].mean() / unified.training_macs for curve in curves}
    spent = [f"{title} {ratio:.2f}" for title, ratio in ratios.items()]
    bound = "at most" if max(ratios.values()) < 1.005 else "about"  # the drawn stages may cost more than the mean
    why = "Stages were stopped early. " if section.early_stop else ""
    less = "" if are_even(curves) else f"{why}Of these MACs they spent: {', '.join(spent)}. "
    return (
        f"Every network was trained {start} with {f'{bound} ' if less else ''}{tmacs_text(unified.training_macs)} TMACs, "
        f"as many as {steps:,} steps of {train.batch_size} for the unified network (backward counted as twice forward), over "
        f"{seeds_text(len(section.seeds))}; the learning rate {_RATES[train.lr_scheduler]}. {less}Stages are listed from the "
        f"cleanest. {measured_on(look, section.sampler, section.sampling_steps)} "
        f"{shares_sentence([entry.curve for entry in entries], rival, shares)}"
    )


_RATES = {
    "constant": "is constant, and the moving average is measured",
    "cosine": "falls to zero over each network's own steps",
}
