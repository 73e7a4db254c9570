"""What a run's page claims: no more than its numbers support."""

import pytest

from prunekit.ledger import both_ways
from prunekit.report import RunResults, claim, metric_lines, summary_rows
from prunekit.results.expert_results import Metrics

LABEL = "FID (features: digits-cnn, n = 1024)"


@pytest.fixture
def manifest(manifest):
    """A run whose loss does not clearly change, and without a ledger, so that the claim is about FID alone."""
    del manifest["ledger"]
    set_loss(manifest, 0.0)
    return manifest


def set_loss(manifest, change, error=0.001):
    """Make every expert's held-out loss differ from the base's by a share of it, with an error as a share of it."""
    for loss in manifest["losses"]:
        base = loss["base"]["mean"]
        loss["expert"]["mean"] = base * (1 + change)
        loss["difference"] = {"mean": base * change, "se": base * error}


def set_fid(manifest, fid, base=4.0213, difference=None):
    """Set both FIDs, and the paired difference's error where one was measured."""
    rows = manifest["metrics"]["rows"]
    rows[0]["fid"]["mean"], rows[1]["fid"]["mean"] = base, fid
    if difference is not None:
        rows[1]["fid_difference"] = {"mean": fid - base, "se": difference}


def claimed(manifest):
    return claim(RunResults.from_manifest(manifest))


@pytest.mark.parametrize(
    ("fid", "expected"),
    [
        (
            4.2104,
            "4.21 ± 0.05 against the base's 4.02 ± 0.04: worse by 4.7 % (difference, not paired, 0.19 ± 0.06).",
        ),
        (3.8, "3.80 ± 0.05 against the base's 4.02 ± 0.04: better by 5.5 % (difference, not paired, −0.22 ± 0.06)."),
        (4.0213, "4.02 ± 0.05 against the base's 4.02 ± 0.04: the same."),
        (
            4.06,
            "4.06 ± 0.05 against the base's 4.02 ± 0.04: unclear, "
            "the difference 0.04 ± 0.06 may be chance (95 % interval −0.09 … +0.16).",
        ),
    ],
)
def test_claim_says_what_the_numbers_say(manifest, fid, expected):
    set_fid(manifest, fid)
    assert claimed(manifest) == f"At 0.798 of the base's MACs per sampling step, {LABEL} is {expected}"


def test_a_paired_difference_has_its_own_error(manifest):
    set_fid(manifest, 4.06, difference=0.01)
    assert claimed(manifest).endswith(": worse by 1.0 % (paired difference 0.039 ± 0.010).")
    set_fid(manifest, 4.06, difference=0.03)
    assert "unclear, the paired difference 0.039 ± 0.030 may be chance (95 % interval −0.020 … +0.097)" in claimed(
        manifest
    )


def test_one_seed_without_an_error_claims_nothing(manifest):
    manifest["metrics"]["seeds"] = [0]
    for row in manifest["metrics"]["rows"]:
        row["fid"]["se"] = None
    sentence = claimed(manifest)
    assert sentence.endswith("is 4.210 against the base's 4.021: unclear, the error of the difference is not known.")


def test_one_seed_with_a_paired_bootstrap_has_an_error(manifest):
    manifest["metrics"]["seeds"] = [0]
    for row in manifest["metrics"]["rows"]:
        row["fid"]["se"] = None
    set_fid(manifest, 4.2104, difference=0.05)
    assert claimed(manifest).endswith("against the base's 4.021: worse by 4.7 % (paired difference 0.19 ± 0.05).")


@pytest.mark.parametrize("key", ["count", "count_real"])
def test_too_few_images_are_said_with_how_many_are_needed(manifest, key):
    set_loss(manifest, 0.02)
    manifest["metrics"][key] = 16
    sentence = claimed(manifest)
    assert "the held-out denoising loss, averaged over the sampler's steps, is" in sentence
    assert "worse by 2.0 % (paired difference" in sentence
    assert "is not part of this claim: 16 " in sentence
    assert sentence.endswith("images are too few; with fewer than 320 it is mostly bias.")
    assert "better by" not in sentence
    manifest["metrics"][key] = 320
    assert "not part" not in claimed(manifest)


def test_features_that_do_not_suit_the_pictures_carry_no_claim(manifest):
    set_fid(manifest, 3.8, difference=0.01)
    set_loss(manifest, 1.0)
    features = manifest["metrics"]["features"]
    features["fit"] = {"distance": 61.1, "limit": 2.5, "count": 1498}
    sentence = claimed(manifest)
    assert "better" not in sentence
    assert f"{LABEL} is not part of this claim: it is not known that digits-cnn suits these pictures." in sentence
    features["fit"]["distance"] = 0.7
    assert "not part" not in claimed(manifest)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("fashion-cnn", {"source": "holiday-photos", "resolution": 16}),
        ("fashion-cnn", {"source": "fashion-mnist", "resolution": 28}),
        ("digits-cnn", {"source": "digits", "resolution": 16}),
        ("digits-cnn", {}),
        ("theirs", {"source": "digits", "resolution": 8}),
    ],
)
def test_an_old_manifest_claims_nothing_on_features_of_other_pictures(manifest, name, data):
    """Older versions took fashion-cnn for everything that is not digits, and recorded no check."""
    set_fid(manifest, 3.8)
    manifest["metrics"]["features"]["name"] = name
    manifest["base"]["data"] = data
    assert "better" not in claimed(manifest)
    assert f"it is not known that {name} suits these pictures" in claimed(manifest)


@pytest.mark.parametrize(
    "fit", [{}, {"distance": "near", "limit": 2.5}, {"distance": None, "limit": 2.5}, {"limit": 9}]
)
def test_a_fit_that_cannot_be_read_carries_no_claim(manifest, fit):
    manifest["metrics"]["features"]["fit"] = fit
    assert "it is not known that digits-cnn suits these pictures" in claimed(manifest)


def test_a_users_own_extractor_is_named_and_trusted(manifest):
    set_fid(manifest, 3.8, difference=0.01)
    manifest["metrics"]["features"] = {"name": "inception", "own": True, "num_features": 128}
    assert "FID (features: inception, n = 1024) is 3.80" in claimed(manifest)
    manifest["metrics"]["features"]["num_features"] = 2048
    assert "with fewer than 10240 it is mostly bias" in claimed(manifest)


def test_without_features_the_loss_is_claimed_and_the_reason_told(manifest):
    set_loss(manifest, -0.02)
    metrics = manifest["metrics"]
    metrics |= {"features": None, "no_features": "no shipped feature extractor knows these pictures."}
    for row in metrics["rows"]:
        row["fid"] = row["kid"] = None
    sentence = claimed(manifest)
    assert "better by 2.0 %" in sentence
    assert sentence.endswith("No FID was measured: no shipped feature extractor knows these pictures.")
    assert {row["fid"] for row in summary_rows(manifest)} == {None}
    lines = metric_lines(Metrics.of(metrics, "The metrics"))
    assert lines == [
        "base: 0.0131 s per image",
        "experts: 0.0121 s per image",
        "No FID or KID: no shipped feature extractor knows these pictures.",
    ]


def test_where_fid_and_loss_disagree_both_are_said(manifest):
    set_fid(manifest, 3.8, difference=0.01)
    set_loss(manifest, 0.02)
    sentence = claimed(manifest)
    assert (
        sentence.index("better by 5.5 %") < sentence.index("the held-out denoising loss") < sentence.index("worse by 2")
    )
    set_fid(manifest, 4.3, difference=0.01)
    set_loss(manifest, -0.02)
    sentence = claimed(manifest)
    assert (
        sentence.index("worse by 6.9 %") < sentence.index("the held-out denoising loss") < sentence.index("better by 2")
    )


@pytest.mark.parametrize("error", [0.001, 0.3])
def test_where_they_agree_or_the_loss_is_unclear_fid_speaks_alone(manifest, error):
    set_fid(manifest, 3.8, difference=0.01)
    set_loss(manifest, -0.02 if error < 0.01 else 0.02, error)
    assert "loss" not in claimed(manifest)


@pytest.mark.parametrize("error", [0.01, 0.5])
def test_a_far_worse_loss_leads_the_claim(manifest, error):
    """The reported case: the loss was twice the base's while FID was called better by 1.0 %."""
    set_fid(manifest, 3.98, difference=error)
    set_loss(manifest, 1.0)
    sentence = claimed(manifest)
    assert "two measures contradict each other, so no gain is claimed: the held-out denoising loss" in sentence
    assert sentence.index("worse by 100.0 %") < sentence.index("; but FID")
    assert ("better by 1.0 %" in sentence) == (error == 0.01)


def test_training_on_top_of_the_bases_is_in_the_claim(manifest):
    base, tuned = (
        both_ways("base training", "training", 1000, 10),
        both_ways("fine-tuning, group 0", "training", 400, 8),
    )
    manifest["ledger"] = [base.to_json(), tuned.to_json()]
    said = (
        "Making the experts took an additional 0.32 of the base's training MACs, so this is not a comparison at equal"
    )
    assert said in claimed(manifest)
    manifest["ledger"] = [base.to_json()]
    assert "equal training cost" not in claimed(manifest)
    manifest["ledger"] = [tuned.to_json()]
    assert "in addition to the base's training, which has no recorded cost" in claimed(manifest)
    manifest["base"]["training"] = {"macs": 30_000}
    assert said in claimed(manifest)


def test_claim_falls_back_to_what_was_measured(manifest):
    set_loss(manifest, 0.05)
    for row in manifest["metrics"]["rows"]:
        del row["fid"]
    assert "KID (features: digits-cnn, n = 1024) is 0.00232 ± 0.00012" in claim(RunResults.from_manifest(manifest))
    del manifest["metrics"]
    shares = [group["share"] for group in manifest["allocation"]["groups"]]
    means = [
        sum(s * loss[key]["mean"] for s, loss in zip(shares, manifest["losses"], strict=True))
        for key in ("expert", "base")
    ]
    sentence = claim(RunResults.from_manifest(manifest))
    assert f"is {means[0]:.4f} against the base's {means[1]:.4f}: worse by" in sentence
    del manifest["losses"]
    assert claim(RunResults.from_manifest(manifest)) == (
        "At 0.798 of the base's MACs per sampling step, the quality was not measured."
    )


def test_negative_base_has_no_percentage(manifest):
    for row, kid in zip(manifest["metrics"]["rows"], (-0.001, 0.002), strict=True):
        del row["fid"]
        row["kid"] = {"mean": kid, "se": 0.0001}
    sentence = claim(RunResults.from_manifest(manifest))
    assert sentence.endswith(
        "is 0.00200 ± 0.00010 against the base's −0.00100 ± 0.00010: worse by 0.00300 "
        "(difference, not paired, 0.00300 ± 0.00014)."
    )
