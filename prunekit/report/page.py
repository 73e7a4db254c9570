"""Writes the page of a run that makes experts."""

from functools import partial
from pathlib import Path

from prunekit._files import atomic_folder
from prunekit._json import read_json
from prunekit.groups import Grouping
from prunekit.report.claims import claim, fid_doubt
from prunekit.report.cost_tables import cost_sentence, kinds_table, ledger_table
from prunekit.report.document import Block, Document, Fold, Words, sections_with
from prunekit.report.doubts import doubt_caption
from prunekit.report.figures import save_png
from prunekit.report.flow_chart import flow_of
from prunekit.report.folder import FOLDER
from prunekit.report.gallery import sample_blocks
from prunekit.report.groupings import grouping_charts
from prunekit.report.guidance import guided_table
from prunekit.report.illustrations import Charts
from prunekit.report.loss_map import losses_chart
from prunekit.report.method import importance_blocks, width_blocks
from prunekit.report.pareto import Point, draw_pareto, pareto_chart
from prunekit.report.provenance import again, cost_blocks, provenance
from prunekit.report.rendering import render
from prunekit.report.result_table import result_table, result_tiles
from prunekit.report.run import RunResults, read_run
from prunekit.report.samples import samples_png
from prunekit.report.sensitivities import sensitivity_blocks, sensitivity_table
from prunekit.report.table import Table
from prunekit.report.tables import cost_table, loss_table, metric_table
from prunekit.report.target_charts import frontiers_chart, targets_charts
from prunekit.report.times import predicted_time_sentence, time_sentence
from prunekit.report.wording import mean_losses, warnings_of
from prunekit.results.estimate import Estimate

__all__ = ["write_page", "write_report"]


def write_report(run_folder: Path | str) -> Path:
    """Write ``report/`` into a run folder: the page, the tables as CSV and Markdown, and the pictures.

    An earlier report is replaced as a whole, after the new one is complete. Parts that the run does not have are left out.

    Args:
        run_folder: has ``manifest.json``, and optionally ``groups.json``, ``importance.json`` and ``samples/*.npz``.

    Returns:
        Path of ``report/index.html``.

    Raises:
        InputError: the folder ``report/`` has something other than an earlier report in it.
        MissingFileError: there is no manifest.
        FileFormatError: a file cannot be read.
    """
    return write_page(read_run(run_folder), Path(run_folder))


def write_page(results: RunResults, run_folder: Path) -> Path:
    """Write ``report/`` from results that have been read, see :func:`write_report`; ``groups.json`` is read from the folder."""
    source = run_folder / "groups.json"
    grouping = Grouping.from_json(read_json(source), source) if source.is_file() else None
    with atomic_folder(run_folder / "report", FOLDER) as folder:
        document = _document(results, grouping, folder)
        (folder / "index.html").write_text(render(document), encoding="utf-8")
    return run_folder / "report" / "index.html"


def _document(results: RunResults, grouping: Grouping | None, folder: Path) -> Document:
    tables = _write_tables(results, folder)
    cost = cost_sentence(results)
    features = results.metrics.features if results.metrics else None
    first = result_table(results)
    losses = losses_chart(results)
    sections = sections_with(
        ("quality", "Result", [first]),
        ("guidance", "Guidance", [tables.get("guidance")]),
        ("samples", "Samples from the same noise", _samples(results, folder)),
        ("importance", "Importance", importance_blocks(results)),
        ("losses", "Denoising loss by timestep group", [losses, _folded(tables.get("losses"))]),
        ("pareto", "Quality against cost", [_pareto(results, folder)]),
        ("compute", "Compute and parameters", [tables["table"], _folded(tables.get("metrics"))]),
        ("widths", "Widths before and after", width_blocks(results)),
        ("flow", "From the base to the experts", [flow_of(results)]),
        (
            "targets",
            "Noise and targets",
            [
                targets_charts(results),
                grouping_charts(grouping) if grouping else None,
                frontiers_chart(results),
                *sensitivity_blocks(results, tables.get("sensitivity")),
            ],
        ),
        ("training", "Training cost", [Words(cost) if cost else None, *cost_blocks(results.manifest)]),
        short={"flow": "Flow", "losses": "Loss map", "widths": "Widths", "samples": "Samples"},
    )
    return Document(
        results.recipe,
        claim(results),
        (*sections, provenance(results.manifest, features), again(results.manifest)),
        tuple(filter(None, [time_sentence(results), predicted_time_sentence(results)])),
        tuple(warnings_of(results)),
        tiles=result_tiles(results),
    )


def _folded(table: Table | None) -> Fold | None:
    return None if table is None else Fold(f"All numbers as a table: {table.caption}", (table,))


def _write_tables(results: RunResults, folder: Path) -> dict[str, Table]:
    made = [make(results) for make in (cost_table, loss_table, metric_table, guided_table, sensitivity_table)]
    made += [ledger_table(results.ledger), kinds_table(results.ledger)]
    tables = {table.name: table for table in made if table is not None}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv")
        table.to_markdown(folder / f"{name}.md")
    return tables


def _samples(results: RunResults, folder: Path) -> list[Block]:
    if not results.samples:
        return []
    samples_png(results.samples, folder / "samples.png")
    others = [name for name in results.samples if name != "base"]
    pair = ("base", others[0]) if "base" in results.samples and others else None
    return sample_blocks(results.samples, pair)


def _pareto(results: RunResults, folder: Path) -> Charts | None:
    """Loss and FID against MACs, each if it is known for two models."""
    charts = []
    for name, title, measure, points in (
        ("pareto_loss", "Held-out loss", "Held-out loss, averaged over the sampler's steps", _loss_points(results)),
        ("pareto_fid", "FID", results.metrics.label("FID") if results.metrics else "", _fid_points(results)),
    ):
        if len(points) > 1:
            doubt = fid_doubt(results) if name == "pareto_fid" else ""
            caption = f"{measure}, against the MACs of an evaluation.{doubt_caption(doubt)}"
            save_png(partial(draw_pareto, points, measure), folder / f"{name}.png")
            charts.append(pareto_chart(points, measure, caption, title=measure if title == "FID" else title))
    return Charts(tuple(charts)) if charts else None


def _loss_points(results: RunResults) -> list[Point]:
    if results.assembled is None:
        return []
    losses, ratio = mean_losses(results), results.assembled.mean_mac_ratio
    models = (
        ("base", "base", 1.0, losses["base"]),
        ("experts before fine-tuning", "pruned", ratio, losses["pruned"]),
        ("experts", "experts", ratio, losses["expert"]),
    )
    return [Point(name, role, macs, Estimate(mean=loss)) for name, role, macs, loss in models if loss is not None]


def _fid_points(results: RunResults) -> list[Point]:
    rows = results.metrics.rows if results.metrics else ()
    roles = {"base": "base", "experts": "experts"}
    return [
        Point(row.model, roles.get(row.model, "baseline"), row.mac_ratio, row.fid)
        for row in rows
        if row.fid is not None and row.mac_ratio is not None
    ]
