"""Writes the report of a comparison of trainings: a Markdown file, the learning curves, and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from prunekit._files import atomic_folder
from prunekit._names import without_paths
from prunekit.groups import Grouping
from prunekit.ledger import LedgerRow
from prunekit.report.cost_tables import kinds_sentence
from prunekit.report.document import Block, Document, Tile, Words, sections_with
from prunekit.report.figures import save_png
from prunekit.report.folder import FOLDER
from prunekit.report.gallery import letters, sample_blocks
from prunekit.report.groupings import grouping_charts
from prunekit.report.illustrations import Charts
from prunekit.report.learning import LearningCurve, draw_learning
from prunekit.report.learning_charts import learning_charts
from prunekit.report.pareto import Point, draw_pareto, pareto_chart
from prunekit.report.provenance import again, cost_blocks, provenance
from prunekit.report.rendering import render
from prunekit.report.run import read_samples
from prunekit.report.samples import Images
from prunekit.report.table import Table, markdown_text
from prunekit.results.learning_results import CurriculumManifest, MultistageManifest
from prunekit.results.manifest_head import Features

__all__ = ["Comparison", "write_comparison"]


@dataclass(frozen=True)
class Comparison:
    """The content of the report.

    Args:
        name: of the Markdown file and the picture.
        heading: the networks or trainings that were compared.
        claim: the finding, in a sentence.
        text: how the networks were trained and measured.
        curves: learning curves of all trainings, the rival first.
        table: the results at the end of the trainings.
        features: the manifest's description of FID's features; None if FID was not measured.
        points: quality against sampling cost of the networks, by measure; empty if all cost the same.
        rival: name of the network whose cost is 1.
        tiles: the most important numbers.
    """

    name: str
    heading: str
    claim: str
    text: str
    curves: Sequence[LearningCurve]
    table: Table
    features: Features | None
    points: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    rival: str = "base"
    tiles: tuple[Tile, ...] = ()


def write_comparison(
    folder: Path | str, manifest: CurriculumManifest | MultistageManifest, comparison: Comparison
) -> Path:
    """Write ``report/`` into the folder of a run, replacing an earlier one as a whole; returns the page."""
    folder = Path(folder)
    spent = kinds_sentence(list(map(LedgerRow.from_json, manifest.ledger or ())))
    samples = read_samples(folder)
    with atomic_folder(folder / "report", FOLDER) as target:
        _write_markdown(target, manifest, comparison, spent)
        sections = sections_with(
            ("table", "Result", [comparison.table, Words(comparison.text, note=True)]),
            ("samples", "Samples from the same noise", _samples(comparison, samples)),
            ("curves", "Learning curves", [learning_charts(comparison.curves)]),
            ("pareto", "Quality against cost", [_pareto(comparison, target)]),
            ("stages", "Where the timesteps are cut", _groupings(manifest)),
            ("cost", "Cost", [Words(spent) if spent else None, *cost_blocks(manifest)]),
            short={"samples": "Samples"},
        )
        end = (provenance(manifest, comparison.features), again(manifest))
        said = (f"{comparison.heading}. {without_paths(manifest.settings.description or '')}",)
        page = Document(manifest.recipe, comparison.claim, (*sections, *end), said, tiles=comparison.tiles)
        (target / "index.html").write_text(render(page), encoding="utf-8")
    return folder / "report" / "index.html"


def _write_markdown(
    folder: Path, manifest: CurriculumManifest | MultistageManifest, comparison: Comparison, spent: str
) -> None:
    """The results as Markdown, with a picture of the learning curves."""
    save_png(partial(draw_learning, comparison.curves), folder / f"{comparison.name}.png")
    picture = f"![Learning curves]({comparison.name}.png)"
    said = without_paths(manifest.settings.description or "")
    title = f"# {comparison.heading}: {markdown_text(manifest.recipe)}"
    told = [markdown_text(text) for text in (said, comparison.text)]
    paragraphs = [title, *told, comparison.table.markdown, picture, *([markdown_text(spent)] if spent else [])]
    (folder / f"{comparison.name}.md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def _samples(comparison: Comparison, samples: dict[str, Images]) -> list[Block]:
    """Images by the trainings' names where the file's name is one of them, with a slider between the first two."""
    titles = {letters(curve.title): curve.title for curve in comparison.curves}
    named = {titles.get(letters(stem), stem): images for stem, images in samples.items()}
    order = sorted(
        named, key=lambda name: list(titles.values()).index(name) if name in titles.values() else len(titles)
    )
    shown = {name: named[name] for name in order}
    return sample_blocks(shown, (order[0], order[1]) if len(order) > 1 else None)


def _pareto(comparison: Comparison, folder: Path) -> Charts | None:
    charts = []
    for measure, points in comparison.points.items():
        caption = f"{measure} at the end of the training, against the mean MACs of an evaluation while sampling."
        path = folder / f"pareto_{measure.lower()}.png"
        save_png(partial(draw_pareto, points, measure, comparison.rival), path)
        charts.append(pareto_chart(points, measure, caption, comparison.rival, measure))
    return Charts(tuple(charts)) if charts else None


def _groupings(manifest: CurriculumManifest | MultistageManifest) -> list[Charts | None]:
    found = manifest.groupings if isinstance(manifest, MultistageManifest) else None
    return [grouping_charts(Grouping.from_json(data, "The manifest's grouping")) for data in found or ()]
