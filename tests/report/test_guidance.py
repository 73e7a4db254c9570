"""Pages of comparisons with captions: agreement, scales of guidance, pictures by caption."""

import numpy as np
import pytest
from evidence_manifest import make_evidence, make_strips

from prunekit.report.evidence import Evidence, gap, gap_text
from prunekit.report.guidance import caption_strips, guidance_sentences, guidance_table

CAPTIONS = ["a bag", "a coat", "a bag", "two coats", "a bag", "a coat"] * 2
SUBJECTS = ["bag", "coat"] * 6


@pytest.fixture
def manifest():
    """A comparison in which experts agree less, and more guidance makes all agree more."""
    data = make_evidence()
    for row in data["evidence"]:
        lower = 0.1 if row["group"] == "experts" else 0.0
        row["agreement"] = 0.8 - lower
        row["guided"] = [{"guidance_scale": 4.0, "fid": row["fid"] + 1, "agreement": 0.95 - lower, "ssim": row["ssim"]}]
        if row["group"] != "base":
            row["agreement_difference"] = {"mean": -lower, "se": 0.02}
            row["guided"][0]["agreement_difference"] = {"mean": -lower, "se": 0.01}
    data["metrics"] |= {"guidance_scale": 1.0, "agreement_real": 0.9, "captions": CAPTIONS, "subjects": SUBJECTS}
    return data


def test_more_agreement_is_better_and_its_error_is_paired(manifest):
    evidence = Evidence.from_manifest(manifest)
    one, base = evidence.headline, evidence.base
    found = gap(one, base, "agreement")
    assert (found.mean, found.se) == (pytest.approx(-0.1), pytest.approx(0.02))
    assert gap_text(one, base, "agreement") == "0.100 ± 0.020 worse than the base's"
    assert gap_text(one.at(4.0), base.at(4.0), "agreement") == "0.100 ± 0.010 worse than the base's"
    assert gap_text(base, one, "agreement").endswith("better than that of experts 0.8")


def test_every_entry_has_a_row_for_each_scale(manifest):
    evidence = Evidence.from_manifest(manifest)
    assert evidence.scales == (None, 4.0)
    table = guidance_table(evidence)
    names = [(row["entry"], row["guidance"]) for row in table.rows]
    assert names == [(name, scale) for scale in ("1", "4") for name in evidence.entries]
    by_name = dict(zip(names, table.rows, strict=True))
    assert by_name["base", "4"]["agreement_mean"] == 0.95
    assert by_name["experts 0.8", "1"]["fid_mean"] + 1 == pytest.approx(by_name["experts 0.8", "4"]["fid_mean"])
    assert "It is 0.9 for held-out images" in table.note


def test_the_sentences_say_each_scale_and_what_real_images_have(manifest):
    first, second = guidance_sentences(Evidence.from_manifest(manifest))
    assert first.startswith("At guidance 1, the images of experts 0.8 agree with their captions in a share of 0.7")
    assert "worse than the base's" in first
    assert second.startswith("At guidance 4, ")
    assert second.endswith("Of the held-out images, a share of 0.9 agrees.")


def test_images_of_one_subject_stand_together_for_every_entry_and_scale(manifest):
    evidence, samples = Evidence.from_manifest(manifest), make_strips()
    samples |= {f"{name}-guidance-4": images for name, images in make_strips().items()}
    own, guided = caption_strips(evidence, samples)
    assert [picture.caption for picture in own.pictures] == ["bag", "coat"]
    assert own.caption.endswith(
        "Rows from the top: base, experts 0.8, experts 0.6, base trained on, one network, uniform pruning 0.8."
    )
    assert guided.label == "Images by caption at guidance 4"
    assert {(picture.width, picture.height) for picture in own.pictures} == {(4 * 40, 5 * 40)}


def test_captions_that_name_no_class_are_their_own_subjects(manifest):
    manifest["metrics"] |= {"captions": ["a cat", "a dog"] * 6, "subjects": None}
    for row in manifest["evidence"]:
        del row["agreement"]
        del row["guided"]
    evidence = Evidence.from_manifest(manifest)
    (strip,) = caption_strips(evidence, make_strips())
    assert [picture.caption for picture in strip.pictures] == ["a cat", "a dog"]
    assert (guidance_table(evidence), guidance_sentences(evidence)) == (None, [])


def test_a_comparison_without_captions_has_none_of_this():
    evidence = Evidence.from_manifest(make_evidence())
    assert caption_strips(evidence, make_strips()) == []
    assert guidance_table(evidence) is None
    assert np.isfinite(evidence.headline.mean("fid"))
