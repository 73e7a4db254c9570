"""The report of a comparison of ways to train: a table and the learning curves, made only from its manifest."""

from pathlib import Path

from prunekit._json import JsonDict
from prunekit.errors import FileFormatError
from prunekit.report.comparison import Comparison, write_comparison
from prunekit.report.learning import (
    LearningCurve,
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
from prunekit.report.table import Table, named
from prunekit.report.wording import ABSENT
from prunekit.results.learning_results import CurriculumManifest, CurriculumRow, CurriculumSettings
from prunekit.results.reading_manifests import AGAIN, Manifest, of_kind, read_manifest

__all__ = ["curriculum_claim", "training_curves", "write_curriculum_report"]


def training_curves(manifest: Manifest | JsonDict) -> list[LearningCurve]:
    """The ways to train of a manifest, in its order, the baseline first.

    Raises:
        FileFormatError: the manifest is not one of such a comparison.
    """
    found = of_kind(CurriculumManifest, manifest)
    try:
        by_entry: dict[str, list[CurriculumRow]] = {}
        for row in found.curriculum:
            by_entry.setdefault(row.entry, []).append(row)
        return [curves_of(name, rows) for name, rows in by_entry.items()]
    except ValueError as error:
        raise FileFormatError(f"The manifest holds no comparison of ways to train ({error}).") from error


def curriculum_claim(manifest: Manifest | JsonDict) -> str:
    """The finding of the comparison, in one sentence.

    Raises:
        FileFormatError: the manifest has one way to train.
    """
    manifest = of_kind(CurriculumManifest, manifest)
    base, *others = training_curves(manifest)
    if not others:
        raise FileFormatError(f"The manifest compares {base.title[:80]!r} with nothing; expected two ways to train.")
    return comparison_claim(manifest, manifest.curriculum[0].curve[-1], base, others)


def write_curriculum_report(folder: Path | str) -> Path:
    """Write the report of the folder's manifest, see :func:`write_comparison`; returns its page.

    Raises:
        FileFormatError: the manifest is of another kind.
    """
    folder = Path(folder)
    manifest = of_kind(CurriculumManifest, read_manifest(folder), str(folder / "manifest.json"))
    curves = training_curves(manifest)
    settings = CurriculumSettings.of(manifest.config or {}, "The manifest's configuration", AGAIN)
    entries = settings.curriculum.entries or {}
    if unknown := [curve.title for curve in curves if curve.title not in entries]:
        raise FileFormatError(
            f"The manifest's configuration has no entry {unknown[0][:80]!r}, which it has measured; {AGAIN}."
        )
    rows = tuple(
        {
            "place": place,
            "title": curve.title,
            "changes": ", ".join(f"{key} {value}" for key, value in entries[curve.title].items()) or ABSENT,
            **ends(curve),
        }
        for place, curve in enumerate(curves)
    )
    columns = (
        named("training", "title"),
        *end_columns(curves, curves[0], "the"),
        named("what it changes", "changes"),
    )
    look = manifest.curriculum[0].curve[-1]
    comparison = Comparison(
        "curriculum",
        "Ways to train, at equal train steps",
        curriculum_claim(manifest),
        _text(manifest, settings, curves),
        curves,
        Table("curriculum", "Final results of every way to train", rows, columns),
        look.features,
        tiles=learning_tiles(curves[0], curves[1:], *label_and_doubt(manifest, look)),
    )
    return write_comparison(folder, manifest, comparison)


def _text(manifest: CurriculumManifest, settings: CurriculumSettings, curves: list[LearningCurve]) -> str:
    base = curves[0]
    look, train, section = manifest.curriculum[0].curve[-1], settings.base.train, settings.curriculum
    shares = (
        f"Shares: steps to reach the final mean loss and FID of {base.title}, as a share of the steps of {base.title} and as a "
        "factor of reduction, interpolated between looks; – if they are never reached."
    )
    return (
        f"Each training: {look.steps or train.steps:,} steps of {train.batch_size}, {tmacs_text(base.training_macs[0, -1])} TMACs "
        f"(backward counted as twice forward), from the same initial weights for each seed, over "
        f"{seeds_text(len(section.seeds))}; "
        f"the learning rate is {train.lr_scheduler} unless an entry changes it, and the moving average is measured. "
        f"{measured_on(look, section.sampler, section.sampling_steps)} {shares_sentence(curves, base, shares)}"
    )
