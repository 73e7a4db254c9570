"""Writes the report of a comparison of experts with baselines at equal training."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prunekit._files import atomic_folder
from prunekit._names import without_paths
from prunekit.report.document import Block, Document, Fold, Section, Tile, Words, sections_with
from prunekit.report.doubts import doubt_caption
from prunekit.report.evidence import Entry, Evidence, evidence_claim, evidence_doubt, gap_text
from prunekit.report.evidence_tables import (
    entry_table,
    group_table,
    losses_chart,
    points_of,
    result_table,
    training_blocks,
    training_table,
)
from prunekit.report.figures import save_png
from prunekit.report.flow_chart import flow_of
from prunekit.report.folder import FOLDER
from prunekit.report.gallery import letters, sample_blocks
from prunekit.report.guidance import caption_strips, guidance_sentences, guidance_table
from prunekit.report.illustrations import Charts
from prunekit.report.method import importance_blocks, width_blocks
from prunekit.report.pareto import draw_pareto, pareto_chart
from prunekit.report.provenance import again, cost_blocks, provenance
from prunekit.report.rendering import render
from prunekit.report.run import RunResults, read_importance, read_samples
from prunekit.report.samples import Images
from prunekit.report.sensitivities import sensitivity_blocks, sensitivity_table
from prunekit.report.table import markdown_text
from prunekit.report.target_charts import frontiers_chart, targets_charts
from prunekit.report.times import time_tile
from prunekit.report.wording import estimate_text, short_ratio
from prunekit.results.evidence_results import EvidenceManifest
from prunekit.results.expert_results import ExpertsManifest
from prunekit.results.reading_manifests import AGAIN, of_kind, read_manifest

__all__ = ["write_evidence_report"]

_NEARLY = 1.005  # targets are met from below, within one channel
_EQUAL = 0.01  # fine-tuning takes whole steps
_ONE_BATCH = 64  # images that every sampler samples at a time; more may be split


def write_evidence_report(folder: Path | str) -> Path:
    """Write ``report/`` from the folder's manifest and ``samples/*.npz``, replacing an earlier one as a whole; returns the page.

    Raises:
        FileFormatError: the manifest is of another kind, or a file of samples cannot be read.
    """
    folder = Path(folder)
    manifest = of_kind(EvidenceManifest, read_manifest(folder), str(folder / "manifest.json"))
    evidence, samples = Evidence.from_manifest(manifest), read_samples(folder)
    method = ExpertsManifest.of(manifest.method, "The manifest's method", AGAIN)
    made = RunResults.from_manifest(method, read_importance(folder))
    doubt = evidence_doubt(manifest, evidence)
    with atomic_folder(folder / "report", FOLDER) as target:
        said = without_paths(manifest.settings.description)
        measure = "loss" if doubt or not evidence.has_fid else "fid"
        found = [said, _loss_sentence(evidence), *_baseline_sentences(evidence, measure), *guidance_sentences(evidence)]
        sentences = tuple(filter(None, found))
        sections = (
            *_sections(evidence, made, samples, target, doubt, sentences[1:] if said else sentences),
            *sections_with(("ledger", "Ledger", cost_blocks(manifest))),
        )
        end = (provenance(manifest, evidence.metrics.features), again(manifest))
        title, claim = manifest.recipe, evidence_claim(manifest)
        tiles = _tiles(evidence, measure, _timed_together(manifest))
        page = Document(title, claim, (*sections, *end), (said,) if said else (), tiles=tiles)
        (target / "index.html").write_text(render(page), encoding="utf-8")
        text = [f"# Experts and baselines at equal training: {markdown_text(title)}"]
        text += map(markdown_text, (claim, *sentences))
        table = entry_table(evidence)
        text += [table.markdown, markdown_text(table.note)]
        text += ["![FID against MACs](pareto_fid.png)"] if evidence.has_fid else []
        text += ["![Loss against MACs](pareto_loss.png)"]
        (target / "evidence.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return folder / "report" / "index.html"


def _sections(
    evidence: Evidence, made: RunResults, samples: dict[str, Images], folder: Path, doubt: str, sentences: Sequence[str]
) -> tuple[Section, ...]:
    """Results first, then how the claim's experts were made."""
    made_of = [entry_table(evidence), group_table(evidence), training_table(evidence), guidance_table(evidence)]
    tables = {table.name: table for table in made_of if table is not None}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv")
    name = evidence.headline.name
    result: list[Block] = [result_table(evidence), *map(Words, sentences)]
    result.append(Fold("All measures of every entry", (tables["evidence"],)))
    losses: list[Block] = [losses_chart(evidence), Fold("The same numbers as a table", (tables["losses"],))]
    return sections_with(
        ("entries", "Result", result),
        ("guidance", "Guidance and agreement with captions", [tables.get("guidance")]),
        ("captions", "Pictures by caption", caption_strips(evidence, samples)),
        ("samples", "Samples from the same noise", _samples(evidence, samples)),
        ("importance", f"Importance: {name}", importance_blocks(made)),
        ("losses", "Loss by timesteps", losses),
        ("pareto", "Quality against cost", [_pareto(evidence, folder, doubt)]),
        ("training", "Training cost", training_blocks(evidence)),
        ("widths", f"Widths before and after: {name}", width_blocks(made)),
        ("flow", f"From the base to {name}", [flow_of(made)]),
        (
            "targets",
            f"Noise and targets: {name}",
            [targets_charts(made), frontiers_chart(made), *sensitivity_blocks(made, sensitivity_table(made))],
        ),
        short={
            "guidance": "Guidance",
            "captions": "By caption",
            "samples": "Samples",
            "importance": "Importance",
            "losses": "Loss map",
            "widths": "Widths",
            "flow": "Flow",
            "targets": "Noise and targets",
        },
    )


def _pareto(evidence: Evidence, folder: Path, doubt: str) -> Charts:
    charts = []
    measures = [("fid", evidence.label("FID")), ("loss", "Held-out loss, mean over the timestep groups")]
    for measure, name in measures if evidence.has_fid else measures[1:]:
        points = points_of(evidence, measure)
        told = doubt_caption(doubt) if measure == "fid" else ""
        caption = f"{name}, mean and one standard error over fine-tuning seeds, all from one base.{told}"
        save_png(partial(draw_pareto, points, name), folder / f"pareto_{measure}.png")
        charts.append(pareto_chart(points, name, caption, title=name.split(",")[0] if measure == "loss" else name))
    return Charts(tuple(charts))


def _timed_together(manifest: EvidenceManifest) -> int | None:
    """How many images were sampled at a time to measure wall time; None if the manifest does not tell."""
    options = (manifest.config or {}).get("evidence")
    count = options.get("timed_images") if isinstance(options, dict) else None
    return count if isinstance(count, int) and 0 < count <= _ONE_BATCH else None


def _tiles(evidence: Evidence, measure: str, batch: int | None) -> tuple[Tile, ...]:
    """The headline's most important numbers compared with the reference's; wall time is that of ``batch`` images at a time."""
    headline, reference, base = evidence.headline, evidence.reference, evidence.base
    word = evidence.label("FID") if measure == "fid" else "held-out loss"
    pair = [estimate_text(entry.estimate(measure)) for entry in (headline, reference)]
    tiles = [
        Tile(pair[0], f"{word} of {headline.name}; {reference.name} {pair[1]}"),
        Tile(short_ratio(evidence.ratio(headline)), "of the base's MACs while sampling"),
    ]
    seconds = [entry.estimate("seconds_per_image") for entry in (headline, base)]
    if seconds[0] and seconds[1] and seconds[1].mean:
        tiles.append(time_tile(seconds[0].mean / seconds[1].mean, batch))
    tiles.append(Tile(f"{headline.mean('params') / base.mean('params'):.1f}×", "the base's parameters stored"))
    return tuple(tiles)


def _samples(evidence: Evidence, samples: dict[str, Images]) -> list[Block]:
    """Images of each entry that has some, in the order of the entries, with a slider between the base and the headline."""
    by_letters = {letters(stem): images for stem, images in samples.items()}
    shown = {name: by_letters[letters(name)] for name in evidence.entries if letters(name) in by_letters}
    return sample_blocks(shown, (evidence.base.name, evidence.headline.name))


def _loss_sentence(evidence: Evidence) -> str:
    found = gap_text(evidence.headline, evidence.reference, "loss")
    mean = f"mean over {len(evidence.cuts) + 1} timestep groups"
    return f"The held-out loss of {evidence.headline.name}, {mean}, is {found}."


def _baseline_sentences(evidence: Evidence, measure: str) -> list[str]:
    """Compare the headline with the best baseline that costs no more while sampling, and with the best of all other entries.

    Args:
        evidence: see :class:`Evidence`.
        measure: ``fid``, or ``loss`` if no claim may rest on FID.
    """
    word = "FID" if measure == "fid" else "held-out loss"
    headline = evidence.headline
    most = evidence.ratio(headline) * _NEARLY
    baselines = [entry for entry in evidence.entries.values() if entry.role == "baseline"]
    cheap = [entry for entry in baselines if evidence.ratio(entry) <= most]
    said = []
    for rivals, where in (
        (cheap, f"at no more than {short_ratio(evidence.ratio(headline))} of the sampling MACs"),
        ([entry for entry in baselines if entry not in cheap], "that cost more while sampling"),
    ):
        if rivals:
            best = min(rivals, key=lambda entry: entry.mean(measure))
            told = (
                f"Of {len(rivals)} baselines {where} the best is {best.name}"
                if len(rivals) > 1
                else f"Compared with {best.name}"
            )
            said.append(
                f"{told}: {word} of {headline.name}{_training(headline, best)} is {gap_text(headline, best, measure)}."
            )
    return said


def _training(one: Entry, other: Entry) -> str:
    """How one entry's training compares with another's, in parentheses."""
    if not other.total:
        return ""
    part = one.total / other.total
    return (
        ", at training MACs equal within 1 %,"
        if abs(part - 1) < _EQUAL
        else f", at {short_ratio(part)} of its training MACs,"
    )
