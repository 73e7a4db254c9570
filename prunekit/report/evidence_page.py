"""Writes the report of a comparison of experts with baselines at equal training."""

import re
from functools import partial
from pathlib import Path

from prunekit._files import atomic_folder
from prunekit._names import without_paths
from prunekit.report.document import Document, Fold, Picture, Section, Strip, sections_with
from prunekit.report.doubts import doubt_caption
from prunekit.report.evidence import Entry, Evidence, evidence_claim, evidence_doubt, gap_text
from prunekit.report.evidence_tables import (
    describe_losses,
    describe_training,
    draw_losses,
    draw_training,
    entry_table,
    group_table,
    points_of,
    training_table,
)
from prunekit.report.flow_chart import flow_of
from prunekit.report.folder import FOLDER
from prunekit.report.method import frontiers_picture, importance_blocks, targets_picture, width_blocks
from prunekit.report.pareto import pareto_picture
from prunekit.report.provenance import again, cost_blocks, provenance
from prunekit.report.rendering import drawn, load_picture, render
from prunekit.report.run import RunResults, read_importance, read_samples
from prunekit.report.samples import Images, grid_png
from prunekit.report.table import markdown_text
from prunekit.report.wording import short_ratio
from prunekit.results.evidence_results import EvidenceManifest
from prunekit.results.expert_results import ExpertsManifest
from prunekit.results.reading_manifests import AGAIN, of_kind, read_manifest

__all__ = ["write_evidence_report"]

_ACROSS, _SHOWN = 2, 16  # images of each entry: in a row, in total
_NEARLY = 1.005  # targets are met from below, within one channel
_EQUAL = 0.01  # fine-tuning takes whole steps


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
        sections = (
            *_sections(evidence, samples, target, doubt),
            *_method_sections(evidence.headline.name, made, target),
            *sections_with(("ledger", "Ledger", cost_blocks(manifest))),
        )
        said = without_paths(manifest.settings.description)
        measure = "loss" if doubt or not evidence.has_fid else "fid"
        sentences = tuple(filter(None, [said, _loss_sentence(evidence), *_baseline_sentences(evidence, measure)]))
        end = (provenance(manifest, evidence.metrics.features), again(manifest))
        title, claim = manifest.recipe, evidence_claim(manifest)
        page = Document(title, claim, (*sections, *end), sentences)
        (target / "index.html").write_text(render(page), encoding="utf-8")
        text = [f"# Experts and baselines at equal training: {markdown_text(title)}"]
        text += map(markdown_text, (claim, *sentences))
        table = entry_table(evidence)
        text += [table.markdown, markdown_text(table.note)]
        text += ["![FID against MACs](pareto_fid.png)"] if evidence.has_fid else []
        text += ["![Loss against MACs](pareto_loss.png)"]
        (target / "evidence.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return folder / "report" / "index.html"


def _sections(evidence: Evidence, samples: dict[str, Images], folder: Path, doubt: str) -> tuple[Section, ...]:
    tables = {table.name: table for table in (entry_table(evidence), group_table(evidence), training_table(evidence))}
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv")
    losses = drawn(
        partial(draw_losses, evidence),
        folder / "losses.png",
        ("Loss by timesteps", describe_losses(evidence), "Change from the base in percent; below zero is better."),
    )
    caption = f"Search included, means over the seeds. The dotted line is {evidence.reference.name}."
    training = drawn(
        partial(draw_training, evidence),
        folder / "training.png",
        ("Training MACs", describe_training(evidence), caption),
    )
    return sections_with(
        ("entries", "Entries side by side", [tables["evidence"]]),
        ("pareto", "Quality against cost", _pareto(evidence, folder, doubt)),
        ("samples", "Samples from the same noise", [_strip(evidence, samples, folder)]),
        ("losses", "Loss by timesteps", [losses, Fold("The same numbers as a table", (tables["losses"],))]),
        ("training", "Training cost", [training, Fold("The same numbers as a table", (tables["training"],))]),
    )


def _method_sections(name: str, method: RunResults, folder: Path) -> tuple[Section, ...]:
    """Sections about how the claim's experts were made."""
    targets = [targets_picture(method, folder), frontiers_picture(method, folder)]
    return sections_with(
        ("flow", f"From the base to {name}", [flow_of(method)]),
        ("targets", f"Noise and targets: {name}", targets),
        ("importance", f"Importance: {name}", importance_blocks(method, folder)),
        ("widths", f"Widths before and after: {name}", width_blocks(method, folder)),
        short={"flow": "Flow", "targets": "Noise and targets", "importance": "Importance", "widths": "Widths"},
    )


def _pareto(evidence: Evidence, folder: Path, doubt: str) -> list[Picture]:
    pictures = []
    measures = [("fid", evidence.label("FID")), ("loss", "Held-out loss, mean over the timestep groups")]
    for measure, name in measures if evidence.has_fid else measures[1:]:
        points = points_of(evidence, measure)
        told = doubt_caption(doubt) if measure == "fid" else ""
        caption = f"{name}, mean and one standard error over fine-tuning seeds.{told}"
        path = folder / f"pareto_{measure}.png"
        pictures.append(pareto_picture(points, name, path, f"{measure} against MACs", caption))
    return pictures


def _strip(evidence: Evidence, samples: dict[str, Images], folder: Path) -> Strip | None:
    """A column of images for each entry that has images, in the order of the entries."""
    by_letters = {_letters(stem): images for stem, images in samples.items()}
    pictures: list[Picture] = []
    for name in evidence.entries:
        images = by_letters.get(_letters(name))
        if images is None:
            continue
        shown = images[:_SHOWN]
        path = folder / f"samples-{len(pictures)}.png"
        grid_png(shown, path, _ACROSS)
        pictures.append(load_picture(path, name, f"{len(shown)} generated images of {name}.", name))
    caption = (
        f"The first {_SHOWN} images of each entry, of its first fine-tuning seed, not selected. Images at the same place in "
        "each column started from the same noise. Pixels are enlarged without smoothing."
    )
    return Strip("Samples", caption, tuple(pictures)) if pictures else None


def _letters(name: str) -> str:
    """A name reduced to the characters that are unchanged in file names."""
    return re.sub("[^a-z0-9]", "", name.lower())


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
