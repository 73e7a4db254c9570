"""Images that show captions: how well at each scale of guidance, how often what the caption names, and the images themselves."""

from collections.abc import Mapping

import numpy as np

from prunekit.report.evidence import Evidence, gap_text, short_gap
from prunekit.report.gallery import letters, picture_of
from prunekit.report.illustrations import Strip
from prunekit.report.run import RunResults
from prunekit.report.samples import Images
from prunekit.report.table import Row, Table, estimate, flat, named
from prunekit.report.wording import ABSENT, estimate_text, short_ratio

__all__ = ["caption_strips", "guidance_sentences", "guidance_table", "guided_table"]

_SIDE = 40  # width of an image
_COLUMNS = 4  # images of each caption and entry
_MOST = 10  # captions that are shown


def guidance_table(evidence: Evidence) -> Table | None:
    """The images of every entry at every scale of guidance; None for a comparison without captions."""
    if len(evidence.scales) == 1 and not evidence.has_agreement:
        return None
    rows = tuple(_row(evidence, name, scale) for scale in evidence.scales for name in evidence.entries)
    columns = (
        named("Entry", "entry"),
        named("Guidance", "guidance"),
        estimate(evidence.label("FID"), "fid"),
        named(f"FID against {evidence.reference.name}", "fid_verdict"),
        estimate("Agreement", "agreement"),
        named(f"Agreement against {evidence.reference.name}", "agreement_verdict"),
        estimate("SSIM to the base", "ssim"),
    )
    count = evidence.metrics.count
    return Table(
        "guidance", f"{count:,} images of each entry at each scale of guidance", rows, columns, _note(evidence)
    )


def guided_table(results: RunResults) -> Table | None:
    """Sample quality of each model at other scales of guidance; None if there are none."""
    metrics = results.metrics
    if metrics is None or not metrics.guided:
        return None
    own = "by default" if metrics.guidance_scale is None else f"{metrics.guidance_scale:g}"
    measured = [(own, row) for row in metrics.rows]
    measured += [(f"{row.guidance_scale:g}", row) for row in metrics.guided]
    keys = ("fid", "fid_difference", "agreement", "agreement_difference")
    rows = tuple(
        {"model": row.model, "guidance": scale, **flat(**{key: getattr(row, key) for key in keys})}
        for scale, row in measured
    )
    label = metrics.label("FID")
    columns = (
        named("Model", "model"),
        named("Guidance", "guidance"),
        estimate(label, "fid"),
        estimate(f"{label}, paired difference from the base", "fid_difference"),
        estimate("Agreement with captions", "agreement"),
        estimate("Agreement, paired difference from the base", "agreement_difference"),
    )
    note = "Lower FID and higher agreement are better."
    return Table("guidance", f"{metrics.count:,} images of each model at each scale of guidance", rows, columns, note)


def guidance_sentences(evidence: Evidence) -> list[str]:
    """What the headline's agreement is at each scale, compared with the reference's."""
    if not evidence.has_agreement:
        return []
    said = []
    for scale in evidence.scales:
        one, other = evidence.headline.at(scale), evidence.reference.at(scale)
        own, its = (estimate_text(entry.estimate("agreement")) for entry in (one, other))
        said.append(
            f"At guidance {_scale_text(evidence, scale)}, the images of {one.name} agree with their captions in a share of {own}; "
            f"that is {gap_text(one, other, 'agreement')} ({its})."
        )
    if (real := evidence.metrics.agreement_real) is not None:
        said[-1] += f" Of the held-out images, a share of {short_ratio(real)} agrees."
    return said


def caption_strips(evidence: Evidence, samples: Mapping[str, Images]) -> list[Strip]:
    """For each scale of guidance, the images of the same caption side by side: a row for each entry.

    Args:
        evidence: see :class:`Evidence`.
        samples: images by the names of their files.
    """
    captions = evidence.metrics.captions
    if not captions:
        return []
    places = _places(captions, evidence)
    by_letters = {letters(stem): images for stem, images in samples.items()}
    strips = []
    for scale in evidence.scales:
        end = "" if scale is None else f" guidance {scale:g}"
        shown = {name: by_letters.get(letters(f"{name}{end}")) for name in evidence.entries}
        kept = {name: images for name, images in shown.items() if images is not None and len(images) >= len(captions)}
        if not kept:
            continue
        columns = min(_COLUMNS, *(len(rows) for rows in places.values()))
        pictures = [
            picture_of(
                np.concatenate([images[rows[:columns]] for images in kept.values()]),
                columns,
                _SIDE,
                subject,
                f"{columns} images of {len(kept)} entries for captions with {subject}.",
            )
            for subject, rows in places.items()
        ]
        caption = (
            f"Guidance {_scale_text(evidence, scale)}. The first {columns} images of each caption, not selected; images of one "
            f"column started from the same noise. Rows from the top: {', '.join(kept)}."
        )
        strips.append(Strip(f"Images by caption at guidance {_scale_text(evidence, scale)}", caption, tuple(pictures)))
    return strips


def _places(captions: list[str], evidence: Evidence) -> dict[str, list[int]]:
    """Places of the images by what they show: the class that the caption names, or else the caption; the most frequent ones."""
    subjects = evidence.metrics.subjects or captions
    found: dict[str, list[int]] = {}
    for place, subject in enumerate(subjects):
        found.setdefault(subject, []).append(place)
    most = sorted(found, key=lambda subject: -len(found[subject]))[:_MOST]
    return {subject: found[subject] for subject in found if subject in most}


def _row(evidence: Evidence, name: str, scale: float | None) -> Row:
    entry, reference = evidence.entries[name].at(scale), evidence.reference.at(scale)
    verdicts = {
        f"{measure}_verdict": short_gap(entry, reference, measure)
        if measure in entry.values and entry.name != reference.name
        else ABSENT
        for measure in ("fid", "agreement")
    }
    measures = {measure: entry.estimate(measure) for measure in ("fid", "agreement", "ssim")}
    return {"entry": name, "guidance": _scale_text(evidence, scale), **flat(**measures), **verdicts}


def _scale_text(evidence: Evidence, scale: float | None) -> str:
    known = evidence.metrics.guidance_scale if scale is None else scale
    return "by the pipeline's default" if known is None else f"{known:g}"


def _note(evidence: Evidence) -> str:
    features = evidence.metrics.features
    name = (features.name if features else None) or "the extractor"
    real = evidence.metrics.agreement_real
    return " ".join(
        filter(
            None,
            [
                f"Agreement is the share of images in which {name}, as a classifier, finds the class that the caption names; "
                "higher is better."
                if evidence.has_agreement
                else "",
                f"It is {short_ratio(real)} for held-out images with their own captions." if real is not None else "",
                f"{evidence.error_note} Differences from the base are paired, image by image.",
            ],
        )
    )
