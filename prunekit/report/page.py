"""The page: one HTML file with its style and its pictures inside, that asks the network for nothing."""

import base64
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from prunekit import __version__
from prunekit._files import atomic_folder, read_json
from prunekit.groups import Grouping
from prunekit.report import figures
from prunekit.report.groupings import describe_grouping, grouping_png
from prunekit.report.heatmap import Heatmap
from prunekit.report.ledger import cost_sentence, kinds_table, ledger_table
from prunekit.report.run import RunResults, read_run
from prunekit.report.samples import describe_samples, samples_png, shown_count
from prunekit.report.table import Table
from prunekit.report.tables import cost_table, loss_table, metric_table, seconds_table
from prunekit.report.wording import claim, count_text, short_ratio, time_sentence, warnings_of

__all__ = ["write_report"]

_SHOWN_HASH = 16  # digits of a hash that are shown; the manifest has all


@dataclass(frozen=True)
class Picture:
    """A picture inside the page.

    Args:
        alt: the picture in words.
        caption: how to read it.
        data: base64 of the PNG.
        width: natural width in CSS pixels.
        height: natural height in CSS pixels.
    """

    alt: str
    caption: str
    data: str
    width: int
    height: int


@dataclass(frozen=True)
class WidthTable:
    """Channels before and after, one row per channel group, one column per timestep group."""

    groups: tuple[int, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def write_report(run_folder: Path) -> Path:
    """Write ``report/`` into a run folder: the page, the tables as CSV and Markdown, and the pictures.

    The folder is replaced as a whole, after everything in it is made. A part that the run does not have is left out.

    Args:
        run_folder: holds ``manifest.json``, and optionally ``groups.json``, ``importance.json`` and ``samples/*.npz``.

    Returns:
        Path of ``report/index.html``.

    Raises:
        MissingFileError: there is no manifest.
        FileFormatError: a file is there and cannot be read.
    """
    results = read_run(run_folder)
    heatmap = None if results.importance is None else Heatmap.from_json(results.importance)
    with atomic_folder(run_folder / "report") as folder:
        tables = _write_tables(results, folder)
        pictures = _write_pictures(results, heatmap, folder)
        pictures |= _picture_of_groups(run_folder / "groups.json", folder)
        page = _render(results, tables, pictures, heatmap)
        (folder / "index.html").write_text(page, encoding="utf-8")
    return run_folder / "report" / "index.html"


def _write_tables(results: RunResults, folder: Path) -> dict[str, Table]:
    made = [make(results) for make in (cost_table, loss_table, metric_table, ledger_table, kinds_table, seconds_table)]
    tables = {table.name: table for table in made if table is not None}
    for name in ("table", "losses", "metrics", "ledger", "kinds"):
        if name in tables:
            tables[name].to_csv(folder / f"{name}.csv")
            tables[name].to_markdown(folder / f"{name}.md")
    return tables


def _write_pictures(results: RunResults, heatmap: Heatmap | None, folder: Path) -> dict[str, Picture]:
    pictures = {}

    def add(name: str, draw: Callable[[Path], None], alt: str, caption: str) -> None:
        path = folder / f"{name}.png"
        draw(path)
        pictures[name] = _picture(path, alt, caption)

    with figures.styled():
        add(
            "snr_targets",
            lambda path: figures.save_figure(figures.draw_snr_targets(results), path),
            figures.describe_snr_targets(results),
            _targets_caption(results),
        )
        if results.allocation.frontiers:
            add(
                "frontiers",
                lambda path: figures.save_figure(figures.draw_frontiers(results), path),
                figures.describe_frontiers(results),
                "Points that no other recorded point of the timestep group's search beats, and in rings the targets. The loss is "
                "the search's own, before fine-tuning; between points it is an interpolation.",
            )
        if heatmap is not None:
            add("importance", lambda path: figures.save_figure(heatmap.draw(), path), heatmap.alt, heatmap.caption)
        if figures.width_order(results):
            add(
                "widths",
                lambda path: figures.save_figure(figures.draw_widths(results), path),
                figures.describe_widths(results),
                "Channels of each channel group in network order: pale before pruning, solid after, with the number that is left.",
            )
    if results.samples:
        add(
            "samples",
            lambda path: samples_png(results.samples, path),
            describe_samples(results.samples),
            f"The first {shown_count(results.samples)} images of each model, not chosen. The same place in each grid "
            "started from the same noise. Pixels are enlarged without smoothing.",
        )
    return pictures


def _picture_of_groups(source: Path, folder: Path) -> dict[str, Picture]:
    """Why the timesteps were cut where they were, where the run's groups say so by a map of similarities."""
    if not source.is_file():
        return {}
    grouping = Grouping.from_json(read_json(source))
    if grouping.evidence.matrix is None:
        return {}
    path = folder / "groups.png"
    grouping_png(grouping, path)
    caption = f"Timesteps were cut by method {grouping.groups.method}: the curves that say where, and the map of similarities."
    return {"groups": _picture(path, describe_grouping(grouping), caption)}


def _targets_caption(results: RunResults) -> str:
    allocation = results.allocation
    low, high = allocation.feasible
    return (
        f"Budget {short_ratio(allocation.budget)} by rule {allocation.rule}, which can reach {short_ratio(low)} to "
        f"{short_ratio(high)} here; the mean is over the {allocation.sampler_steps} steps of {allocation.sampler}. "
        "Lines mark the borders of the timestep groups, group 0 being the cleanest."
    )


def _picture(path: Path, alt: str, caption: str) -> Picture:
    with Image.open(path) as image:
        width, height = image.size
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return Picture(alt, caption, data, width // 2, height // 2)  # every picture is drawn at twice its natural size


def _render(
    results: RunResults, tables: Mapping[str, Table], pictures: Mapping[str, Picture], heatmap: Heatmap | None
) -> str:
    environment = Environment(
        loader=PackageLoader("prunekit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    config = results.manifest.get("config")
    page = environment.get_template("index.html.j2").render(
        recipe=results.recipe,
        claim=claim(results),
        cost_sentence=cost_sentence(results),
        time_sentence=time_sentence(results),
        warnings=warnings_of(results),
        tables=tables,
        pictures=pictures,
        widths=_width_table(results),
        left_whole=heatmap.left_whole if heatmap else {},
        facts=_facts(results),
        versions=results.manifest.get("versions") or {},
        commands=_commands(results),
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
        version=__version__,
    )
    return page.strip() + "\n"


def _unbroken(text: str) -> str:
    """Keep a number and its unit or error on one line."""
    for pair in (" %", " ± ", " = ", " s "):
        text = text.replace(pair, pair.replace(" ", "\N{NO-BREAK SPACE}", 1 if pair == " s " else 2))
    return text


def _width_table(results: RunResults) -> WidthTable | None:
    names = figures.width_order(results)
    if not names:
        return None
    groups = tuple(sorted(results.experts))
    pairs = {name: [results.experts[group].widths.get(name) for group in groups] for name in names}
    return WidthTable(
        groups,
        tuple((name, tuple(f"{p[0]} → {p[1]}" if p else "–" for p in row)) for name, row in pairs.items()),
    )


def _facts(results: RunResults) -> list[tuple[str, str]]:
    """Where the numbers come from; what was not recorded says so."""
    manifest, base = results.manifest, results.base
    facts = [
        ("Made", _stated(manifest.get("created"))),
        ("Commit", _stated(manifest.get("commit"))),
        ("prunekit", _stated(manifest.get("prunekit"))),
        ("Device", _stated(manifest.get("device"))),
        ("Threads", _stated(manifest.get("threads"))),
        ("Seeds", ", ".join(f"{name} {seed}" for name, seed in (manifest.get("seeds") or {}).items())),
        ("Configuration", _hash(manifest.get("config_hash"))),
        ("Base checkpoint", _hash(base.sha256)),
        ("Data", ", ".join(f"{key} {value}" for key, value in base.data.items())),
    ]
    if results.metrics is not None:
        features = dict(results.metrics.features)
        text = [str(features.get("name", "not named")), f"SHA-256 {_hash(features.get('sha256'))}"]
        if features.get("accuracy") is not None:
            text.append(f"accuracy {features['accuracy']:.4g} as a classifier")
        if features.get("resolution") is not None:
            text.append(f"resolution {features['resolution']}")
        facts.append(("Features", ", ".join(text)))
        facts.append(("Sampling seeds", ", ".join(map(str, results.metrics.seeds))))
    facts.append(("Base cost", f"{count_text(base.macs)} MACs, {count_text(base.params)} parameters"))
    return [(name, text or "not recorded") for name, text in facts]


def _stated(value: Any) -> str:
    return "" if value is None else str(value)


def _hash(value: Any) -> str:
    text = _stated(value)
    return text if len(text) <= _SHOWN_HASH else f"{text[:_SHOWN_HASH]}…"


def _commands(results: RunResults) -> str:
    """What to type to get the same run again, then this page."""
    commit = results.manifest.get("commit")
    lines = [f"git checkout {shlex.quote(str(commit))}"] if commit else []
    lines += [f"prunekit run {shlex.quote(results.recipe)}", "prunekit report RUN"]
    return "\n".join(lines)
