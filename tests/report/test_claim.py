import pytest

from prunekit.report import RunResults, claim


@pytest.mark.parametrize(
    ("fid", "expected"),
    [
        (4.2104, "4.21 ± 0.05 against the base's 4.02 ± 0.04: worse by 4.7 %."),
        (3.8, "3.80 ± 0.05 against the base's 4.02 ± 0.04: better by 5.5 %."),
        (4.0213, "4.02 ± 0.05 against the base's 4.02 ± 0.04: the same."),
        (
            4.06,
            "4.06 ± 0.05 against the base's 4.02 ± 0.04: worse by 1.0 %, "
            "within two standard errors of no difference (0.04 ± 0.06).",
        ),
    ],
)
def test_claim_says_what_the_numbers_say(manifest, fid, expected):
    manifest["metrics"]["rows"][1]["fid"]["mean"] = fid
    sentence = claim(RunResults.from_manifest(manifest))
    assert sentence == (
        f"At 0.798 of the base's MACs per sampling step, FID (features: digits-cnn, n = 1024) is {expected}"
    )


def test_claim_with_one_seed_has_no_error(manifest):
    manifest["metrics"]["seeds"] = [0]
    for row in manifest["metrics"]["rows"]:
        row["fid"]["se"] = None
    sentence = claim(RunResults.from_manifest(manifest))
    assert sentence.endswith("is 4.210 against the base's 4.021: worse by 4.7 % (one seed, no error).")


def test_claim_falls_back_to_what_was_measured(manifest):
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
    assert sentence.endswith("is 0.00200 ± 0.00010 against the base's −0.00100 ± 0.00010: worse by 0.00300.")
