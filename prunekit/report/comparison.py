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
from prunekit.report.document import Document, Picture, Words, sections_with
from prunekit.report.folder import FOLDER
from prunekit.report.groupings import grouping_picture
from prunekit.report.learning import LearningCurve, describe_learning, draw_learning
from prunekit.report.pareto import Point, pareto_picture
from prunekit.report.provenance import again, cost_blocks, provenance
from prunekit.report.rendering import drawn, render
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


def write_comparison(
    folder: Path | str, manifest: CurriculumManifest | MultistageManifest, comparison: Comparison
) -> Path:
    """Write ``report/`` into the folder of a run, replacing an earlier one as a whole; returns the page."""
    folder = Path(folder)
    spent = kinds_sentence(list(map(LedgerRow.from_json, manifest.ledger or ())))
    with atomic_folder(folder / "report", FOLDER) as target:
        words = (
            "Learning curves",
            describe_learning(comparison.curves),
            "Means over the seeds at every look; the others are compared with the thick line.",
        )
        curves = drawn(partial(draw_learning, comparison.curves), target / f"{comparison.name}.png", words)
        picture = f"![Learning curves]({comparison.name}.png)"
        said = without_paths(manifest.settings.description or "")
        title = f"# {comparison.heading}: {markdown_text(manifest.recipe)}"
        told = [markdown_text(text) for text in (said, comparison.text)]
        paragraphs = [title, *told, comparison.table.markdown, picture, *([markdown_text(spent)] if spent else [])]
        (target / f"{comparison.name}.md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
        sections = sections_with(
            ("table", "Final results", [comparison.table, Words(comparison.text, note=True)]),
            ("curves", "Learning curves", [curves]),
            ("pareto", "Quality against cost", _pareto(comparison, target)),
            ("stages", "Where the timesteps are cut", _groupings(manifest, target)),
            ("cost", "Cost", [Words(spent) if spent else None, *cost_blocks(manifest)]),
        )
        end = (provenance(manifest, comparison.features), again(manifest))
        page = Document(manifest.recipe, comparison.claim, (*sections, *end), (f"{comparison.heading}. {said}",))
        (target / "index.html").write_text(render(page), encoding="utf-8")
    return folder / "report" / "index.html"


def _pareto(comparison: Comparison, folder: Path) -> list[Picture]:
    return [
        pareto_picture(
            points,
            measure,
            folder / f"pareto_{measure.lower()}.png",
            f"{measure} against MACs",
            f"{measure} at the end of the training, against the mean MACs of an evaluation while sampling.",
            comparison.rival,
        )
        for measure, points in comparison.points.items()
    ]


def _groupings(manifest: CurriculumManifest | MultistageManifest, folder: Path) -> list[Picture | None]:
    found = manifest.groupings if isinstance(manifest, MultistageManifest) else None
    groupings = [Grouping.from_json(data, "The manifest's grouping") for data in found or ()]
    return [grouping_picture(grouping, folder / f"grouping-{i}.png") for i, grouping in enumerate(groupings)]
